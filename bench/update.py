#!/usr/bin/env python3
"""A rolling update beside Docker Swarm in one run: bench/update.py

Ten replicas, two at a time, no delay, each peer's defaults for the rest but the order, which is start-first for both. From the call sent until
ten containers of the new specification run. Image present, same host, rounds alternate. Warren by its command line, Swarm by its raw API.
"""
import json, subprocess, time, urllib.parse
from lib import Bench, WARREN, ratio, show, stats, wait_for

ROUNDS, REPLICAS, PARALLELISM = 5, 10, 2


def swarm_create(swarm):
    update = {'Parallelism': PARALLELISM, 'Delay': 0, 'Order': 'start-first', 'FailureAction': 'pause'}
    swarm.api('POST', '/services/create', {
        'Name': 'u', 'Mode': {'Replicated': {'Replicas': REPLICAS}}, 'UpdateConfig': update,
        'TaskTemplate': {'ContainerSpec': {'Image': swarm.image}, 'RestartPolicy': {'Condition': 'any', 'Delay': 0}}})


def swarm_update(swarm, number):
    s = swarm.api('GET', '/services/u')
    spec = s['Spec']
    spec['TaskTemplate']['ContainerSpec']['Env'] = [f'ROUND={number}']
    swarm.api('POST', f"/services/u/update?version={s['Version']['Index']}", spec)
    f = urllib.parse.quote(json.dumps({'desired-state': ['running'], 'service': ['u']}))

    def all_new():
        tasks = swarm.api('GET', f'/tasks?filters={f}')
        new = [t for t in tasks if t['Spec']['ContainerSpec'].get('Env') == [f'ROUND={number}']]
        return sum(t['Status']['State'] == 'running' for t in new) == REPLICAS

    return all_new


def warren_update(warren, before):
    """The command waits by itself, also for the last to have been up for the monitor: that is its second figure."""
    def all_new():
        tasks = [t for t in warren.tasks('u') if t['desired_state'] == 'running' and t['state'] == 'running']
        return len({t['id'] for t in tasks} - before) == REPLICAS

    return all_new


def main():
    took = {'warren': [], 'completed': [], 'swarm': []}
    with Bench(swarm=True) as b:
        b.warren.cli('service', 'create', 'u', '--image', 'bb:1', '--replicas', str(REPLICAS), '--update-parallelism', str(PARALLELISM))
        swarm_create(b.swarm)
        wait_for(lambda: b.swarm.running('u') == REPLICAS, 'replicas of Swarm', 120, 0.05)
        for number in range(1, ROUNDS + 1):
            before = {t['id'] for t in b.warren.tasks('u')}
            start = time.monotonic()
            command = subprocess.Popen([WARREN, 'service', 'update', 'u', '--env-add', f'ROUND={number}'], env=b.warren.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(warren_update(b.warren, before), 'update of Warren', 300, 0.02)
            took['warren'].append(time.monotonic() - start)
            if command.wait() != 0:
                raise RuntimeError('the update of Warren failed')
            took['completed'].append(time.monotonic() - start)
            time.sleep(1)
            start = time.monotonic()
            wait_for(swarm_update(b.swarm, number), 'update of Swarm', 300, 0.02)
            took['swarm'].append(time.monotonic() - start)
            wait_for(lambda: b.swarm.api('GET', '/services/u')['UpdateStatus']['State'] == 'completed', 'Swarm to be done', 300, 0.1)
            time.sleep(1)
    ours, done, theirs = (stats(took[who], 's', 2) for who in ('warren', 'completed', 'swarm'))
    show(f'rolling update of {REPLICAS} replicas, {PARALLELISM} at a time: all new ones running',
         [('Warren (CLI)', ours), ('Warren: the command has returned', done), ('Docker Swarm (API)', theirs), ('ratio of medians', ratio(ours['median'], theirs['median']))])


if __name__ == '__main__':
    main()
