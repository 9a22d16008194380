#!/usr/bin/env python3
"""How soon a container that ended is out of rotation on every node.

Three workers, a service of three containers; one is killed. A client on each worker connects to the service's virtual IP, one
outside to the published port of each worker, all of them again and again: from the first connection that is refused to the
last one. What is measured is what clients notice: the end is seen, reported, decided, told to all nodes and in their kernels.

WARREN_BENCH_ROUNDS makes a run shorter or longer.
"""
import contextlib, os, random, subprocess, sys, time
from bed import Bed, end
from lib import show, stats, wait_for

ROUNDS = int(os.environ.get('WARREN_BENCH_ROUNDS', 30))
PORT = 8080
# Prints, for each connection that was not made, when it was begun (monotonic, ns) and why. A server whose queue of connections is
# full for a moment (busybox' has room for nine) drops the first packet: the client sends it again after 1 s, and is served. What
# goes to a container that is gone has no answer to that one either.
PROBE = r'''
import errno, socket, sys, time
host, port = sys.argv[1], int(sys.argv[2])
until = time.monotonic() + float(sys.argv[3])
made = 0
while time.monotonic() < until:
    at = time.monotonic_ns()
    with socket.socket() as s:
        s.settimeout(3.5)
        try:
            s.connect((host, port))
            made += 1
        except OSError as e:
            print(at, errno.errorcode.get(e.errno, 'silence'), flush=True)
    time.sleep(0.003)
print('made', made, flush=True)
'''


def probe(within, address, port, length):
    args = [*within, sys.executable, '-c', PROBE, address, str(port), str(length)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True)


def process(host, task):
    """Pid as seen from here of the first process of a container, which is one in a namespace of its own on its host."""
    for pid in host.processes():
        with contextlib.suppress(OSError), open(f'/proc/{pid}/status') as f:
            line = next((line for line in f if line.startswith('NSpid:')), '')
            if line.split()[2:] == [str(task['pid']), '1']:
                return pid
    raise RuntimeError(f"{host.name}: no process {task['pid']}")


def vip(c):
    services = c.asked().json('network', 'inspect', 'default')[0]['services']
    return next(s['address'] for s in services if s['name'] == 'web')


def main():
    own, others, outside, worst = [], [], [], []
    with Bed() as bed:
        c = bed.cluster(1, 3)
        c.form()
        c.image()
        c.asked().cli('service', 'create', 'client', '--image', 'bb:1', '--mode', 'global')
        wait_for(lambda: len(c.running('client')) == 3, 'clients', 30)
        clients = {t['node']: process(c.node(t['node']).host, t) for t in c.running('client')}
        for _ in range(ROUNDS):
            c.asked().cli('service', 'create', 'web', '--image', 'bb:1', '--replicas', '3', '-p', f'{PORT}:80',
                          '--restart-condition', 'none', '--stop-signal', 'SIGKILL')
            wait_for(lambda: len(c.running('web')) == 3, 'servers', 30)
            time.sleep(random.uniform(0.5, 1.0))
            lost, address = random.choice(c.running('web')), vip(c)
            target = process(c.node(lost['node']).host, lost)
            probes = [(name, probe(['nsenter', f'--net=/proc/{pid}/ns/net'], address, 80, 2.5)) for name, pid in clients.items()]
            probes += [(None, probe([], w.host.address, PORT, 2.5)) for w in c.workers]
            time.sleep(0.8)
            killed = time.monotonic_ns()
            end(target)
            last = 0
            for name, client in probes:
                lines = client.communicate()[0].splitlines()
                late = [int(line.split()[0]) - killed for line in lines if not line.startswith('made')]
                took = max([0, *late]) / 1e6
                (outside if name is None else own if name == lost['node'] else others).append(took)
                last = max(last, took)
            worst.append(last)
            c.remove('web')
            wait_for(lambda: all(s['name'] != 'web' for s in c.asked().json('service', 'ls')), 'gone', 30)
    v = sorted(worst)
    show('from kill -9 of a container to the last connection that is refused', [
        ('clients on its own node', stats(own)), ('clients on other nodes', stats(others)), ('clients outside, by any node', stats(outside)),
        ('the last of all of them', stats(worst)), ('p90 of that', f'{v[len(v) * 9 // 10]:.1f} ms (at most 200)')])


if __name__ == '__main__':
    main()
