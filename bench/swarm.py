#!/usr/bin/env python3
"""Warren beside Docker Swarm in one run: bench/swarm.py create | scale | storm

Both get a host of their own (network namespace), the same image, already present; rounds alternate.
Swarm is called by its raw API (pinned digest), Warren by its command line: the comparison leans to Swarm's side.
"""
import sys, time
from lib import Bench, NODE, SWARM, get_200, ratio, show, stats, wait_for

ROUNDS = {'create': 15, 'scale': 3, 'storm': 3}


def create(b):
    """One replica, from the create call sent to the first 200 from the container."""
    took = {'warren': [], 'swarm': []}
    for i in range(ROUNDS['create']):
        for name, peer, address in (('warren', b.warren, NODE), ('swarm', b.swarm, SWARM)):
            start = time.monotonic()
            peer.create(f'c{i}', port=9000 + i)
            get_200(address, 9000 + i)
            took[name].append((time.monotonic() - start) * 1000)
            peer.remove_all()
            time.sleep(0.3)
    ours, theirs = stats(took['warren']), stats(took['swarm'])
    show('service create of 1 replica -> first HTTP 200', [('Warren (CLI)', ours), ('Docker Swarm (API)', theirs), ('ratio of medians', ratio(ours['median'], theirs['median']))])


def scale(b):
    """1 -> 100 replicas all running; then the removal of all."""
    up, down = {'warren': [], 'swarm': []}, {'warren': [], 'swarm': []}
    before = None
    for i in range(ROUNDS['scale']):
        for name, peer in (('warren', b.warren), ('swarm', b.swarm)):
            peer.create('s')
            wait_for(lambda: peer.running('s') == 1 or False, 'first replica')
            start = time.monotonic()
            peer.scale('s', 100)
            wait_for(lambda: peer.running('s') == 100 or False, '100 replicas', 300, 0.02)
            up[name].append(time.monotonic() - start)
            time.sleep(1)
            down[name].append(peer.remove_all())
            time.sleep(1)
        left = b.warren.left()
        before = before or left
    rows = []
    for what, took in (('1 -> 100 replicas running', up), ('100 replicas removed', down)):
        ours, theirs = stats(took['warren'], 's', 2), stats(took['swarm'], 's', 2)
        rows += [(f'{what}: Warren', ours), (f'{what}: Docker Swarm', theirs), (f'{what}: ratio of medians', ratio(ours['median'], theirs['median']))]
    rows += [('left after the first round', str(before)), ('left after the last round', str(left))]
    show('scale', rows)


def storm(b):
    """50 services of one replica, accepted one after another: services running per second; and their removal."""
    rate, down = {'warren': [], 'swarm': []}, {'warren': [], 'swarm': []}
    for _ in range(ROUNDS['storm']):
        for name, peer in (('warren', b.warren), ('swarm', b.swarm)):
            start = time.monotonic()
            for i in range(50):
                peer.create(f'st{i}')
            wait_for(lambda: peer.running() == 50 or False, '50 services', 300, 0.02)
            rate[name].append(50 / (time.monotonic() - start))
            time.sleep(1)
            down[name].append(peer.remove_all())
            time.sleep(1)
    ours, theirs = stats(rate['warren'], 'services/s', 2), stats(rate['swarm'], 'services/s', 2)
    gone, theirs_gone = stats(down['warren'], 's', 2), stats(down['swarm'], 's', 2)
    show('50 services of one replica', [('Warren', ours), ('Docker Swarm', theirs), ('ratio of medians', ratio(ours['median'], theirs['median'])),
         ('removed: Warren', gone), ('removed: Docker Swarm', theirs_gone), ('removed: ratio of medians', ratio(gone['median'], theirs_gone['median'])),
         ('left', str(b.warren.left()))])


if __name__ == '__main__':
    what = sys.argv[1:] or ['create', 'scale', 'storm']
    with Bench(swarm=True) as b:
        for w in what:
            {'create': create, 'scale': scale, 'storm': storm}[w](b)
