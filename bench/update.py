#!/usr/bin/env python3
"""A rolling update beside Docker Swarm in one run: bench/update.py

Ten replicas, two at a time, no delay, each peer's defaults for the rest but the order, which is start-first for both. From the call sent until
ten containers of the new specification run. Image present, same host, rounds alternate. Warren by its command line, Swarm by its raw API.

Swarm goes on to the next two as soon as two run, whatever its monitor (5 s) may still find. So does Warren with a monitor of 0, which is
what is compared; by default it goes on once its first two have been up for a second, which is told beside.
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


def warren_update(warren, name, before):
    def all_new():
        tasks = [t for t in warren.tasks(name) if t['desired_state'] == 'running' and t['state'] == 'running']
        return len({t['id'] for t in tasks} - before) == REPLICAS

    return all_new


def warren_round(warren, name, number):
    before = {t['id'] for t in warren.tasks(name)}
    start = time.monotonic()
    command = subprocess.Popen([WARREN, 'service', 'update', name, '--env-add', f'ROUND={number}'], env=warren.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(warren_update(warren, name, before), 'update of Warren', 300, 0.02)
    running = time.monotonic() - start
    if command.wait() != 0:
        raise RuntimeError('the update of Warren failed')
    completed = time.monotonic() - start
    time.sleep(1)
    return running, completed


def swarm_round(swarm, number):
    start = time.monotonic()
    wait_for(swarm_update(swarm, number), 'update of Swarm', 300, 0.02)
    running = time.monotonic() - start
    wait_for(lambda: swarm.api('GET', '/services/u')['UpdateStatus']['State'] == 'completed', 'Swarm to be done', 300, 0.1)
    time.sleep(1)
    return running


def main():
    took = {'bare': [], 'watched': [], 'completed': [], 'swarm': []}
    with Bench(swarm=True) as b:
        for name, monitor in ('bare', '0'), ('watched', '1s'):
            b.warren.cli('service', 'create', name, '--image', 'bb:1', '--replicas', str(REPLICAS), '--update-parallelism', str(PARALLELISM), '--update-monitor', monitor)
        swarm_create(b.swarm)
        wait_for(lambda: b.swarm.running('u') == REPLICAS, 'replicas of Swarm', 120, 0.05)
        for number in range(1, ROUNDS + 1):
            took['bare'].append(warren_round(b.warren, 'bare', number)[0])
            running, completed = warren_round(b.warren, 'watched', number)
            took['watched'].append(running)
            took['completed'].append(completed)
            took['swarm'].append(swarm_round(b.swarm, number))
    bare, watched, completed, theirs = (stats(took[who], 's', 2) for who in ('bare', 'watched', 'completed', 'swarm'))
    show(f'rolling update of {REPLICAS} replicas, {PARALLELISM} at a time: all new ones running', [
        ('Warren (CLI), nothing watched, as Swarm', bare), ('Docker Swarm (API)', theirs),
        ('ratio of medians', f"{ratio(bare['median'], theirs['median'])} (at most 0.25)"),
        ('Warren, the first two watched for 1 s (default)', watched), ('the same: until the command returns', completed),
        ('ratio of that to Swarm', ratio(watched['median'], theirs['median']))])


if __name__ == '__main__':
    main()
