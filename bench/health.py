#!/usr/bin/env python3
"""How soon an unhealthy container is out of rotation on every node, and what probes cost.

Rotation: three workers, a service of three containers whose check asks for a file; the file of one is taken away. A client in a
container on each worker fetches its page by the service's virtual IP all the time: from the file's end to the last page that the
sick container answered, to any of them. The limit is one interval and 100 ms.

Cost: a thousand HTTP probes a second by one node's daemon, against loops that connect, ask, read and close, one thread a container
(warren-load gets), in the same network namespace, to the same containers, at the same rate. Of the daemon, what it uses while it
asks no one is taken off.

WARREN_BENCH_ROUNDS and WARREN_BENCH_SECONDS make a run shorter or longer.
"""
import json, os, random, subprocess, sys, time
from bed import LOAD, Bed
from lib import cpu_seconds, show, stats, wait_for
from rotation import process, vip

ROUNDS = int(os.environ.get('WARREN_BENCH_ROUNDS', 20))
SECONDS = int(os.environ.get('WARREN_BENCH_SECONDS', 20))
INTERVAL_MS = 500
CONTAINERS, RATE = 20, 1000
PAGE = 'echo fine > /www/health; hostname > /www/index.html; exec httpd -f -p 80 -h /www'
# Says when it has seen the page of one container, goes on for a while, then prints when that page was last asked for and answered
# (monotonic, ns), and how many answers there were.
CLIENT = r'''
import socket, sys, time
host, sick = sys.argv[1], sys.argv[2].encode()
until = time.monotonic() + 20
last, answers, failures = 0, 0, 0
while time.monotonic() < until:
    at = time.monotonic_ns()
    try:
        with socket.create_connection((host, 80), 1) as s:
            s.sendall(b'GET / HTTP/1.0\r\n\r\n')
            page = b''
            while part := s.recv(4096):
                page += part
        answers += 1
        if sick in page:
            if not last:
                print('seen', flush=True)
                until = time.monotonic() + float(sys.argv[3])
            last = at
    except OSError:
        failures += 1
    time.sleep(0.001)
print(last, answers, failures)
'''


def health(c, name):
    return [t for t in c.tasks(name) if t['state'] == 'running' and t['health'] == 'healthy']


def rotation():
    took, failures = [], 0
    with Bed() as bed:
        c = bed.cluster(1, 3)
        c.form()
        c.image()
        c.asked().cli('service', 'create', 'client', '--image', 'bb:1', '--mode', 'global')
        wait_for(lambda: len(c.running('client')) == 3, 'clients', 30)
        clients = [process(c.node(t['node']).host, t) for t in c.running('client')]
        c.asked().cli('service', 'create', 'web', '--image', 'bb:1', '--replicas', '3', '--health-http', '/health:80', '--health-interval',
                      f'{INTERVAL_MS}ms', '--health-timeout', '300ms', '--health-retries', '1', '--health-action', 'none', 'sh', '-c', PAGE)
        for _ in range(ROUNDS):
            wait_for(lambda: len(health(c, 'web')) == 3, 'healthy', 30)
            time.sleep(random.uniform(0.3, 0.3 + INTERVAL_MS / 1000))
            sick = random.choice(health(c, 'web'))
            file = f"/proc/{process(c.node(sick['node']).host, sick)}/root/www/health"
            args = [sys.executable, '-c', CLIENT, vip(c), sick['id'][:12], '2']
            probes = [subprocess.Popen(['nsenter', f'--net=/proc/{pid}/ns/net', *args], stdout=subprocess.PIPE, text=True) for pid in clients]
            for p in probes:
                assert p.stdout.readline() == 'seen\n', 'it was not in rotation'
            time.sleep(0.1)
            at = time.monotonic_ns()
            os.unlink(file)
            said = [[int(word) for word in p.communicate()[0].split()] for p in probes]
            took.append(max((last - at) / 1e6 for last, _, _ in said))
            failures += sum(failed for _, _, failed in said)
            with open(file, 'w') as f:
                f.write('fine\n')
    late = sum(ms > INTERVAL_MS + 100 for ms in took)
    show('from the moment that a container is sick to the last page that it answered, to clients on three nodes', [
        (f'interval {INTERVAL_MS} ms', stats(took)), (f'later than {INTERVAL_MS + 100} ms', f'{late} of {len(took)}'),
        ('connections that failed', str(failures))])


def daemon_cpu(pid, seconds=SECONDS):
    start, at = cpu_seconds([pid]), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds([pid]) - start) / (time.monotonic() - at)


def good(node):
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9090/metrics').read().decode())"
    text = subprocess.run(node.host.within(sys.executable, '-c', ask), capture_output=True, text=True, check=True).stdout
    return int(next(line.split()[-1] for line in text.splitlines() if line.startswith('warren_agent_probes_good_total')))


def cost():
    with Bed() as bed:
        c = bed.cluster(1, 1)
        c.form()
        c.image()
        node = c.workers[0]
        interval = CONTAINERS * 1000 // RATE
        c.asked().cli('service', 'create', 'web', '--image', 'bb:1', '--replicas', str(CONTAINERS), '--health-http', '/health:80',
                      '--health-interval', f'{interval}ms', '--update-parallelism', '0', '--update-order', 'stop-first', '--stop-signal',
                      'SIGKILL', 'sh', '-c', PAGE)
        wait_for(lambda: len(health(c, 'web')) == CONTAINERS, 'healthy', 60)
        time.sleep(2)
        before, at = good(node), time.monotonic()
        asking = daemon_cpu(node.pid())
        rate = (good(node) - before) / (time.monotonic() - at)
        addresses = [f"{t['address']}:80" for t in health(c, 'web')]
        # Nobody asks: the same containers' successors, whose first probe is the last for a day.
        c.asked().cli('service', 'update', 'web', '--health-interval', '24h')
        wait_for(lambda: len(health(c, 'web')) == CONTAINERS and len(c.tasks('web')) == CONTAINERS, 'healthy', 60)
        time.sleep(2)
        idle = daemon_cpu(node.pid())
        addresses = [f"{t['address']}:80" for t in health(c, 'web')]
        load = subprocess.Popen(node.host.within(LOAD, 'gets', '--rate', str(RATE), *addresses), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(SECONDS)
        load.stdin.close()
        said = json.loads(load.stdout.read().splitlines()[-1])
        load.wait()
    ours, bare, their_rate = (asking - idle) / rate, said['cpu'] / said['good'], said['good'] / said['seconds']
    show(f'CPU of HTTP probes, {CONTAINERS} containers, {RATE} a second', [
        ('probes a second of the daemon, of the bare loop', f'{rate:.0f}, {their_rate:.0f} ({said["bad"]} failed)'),
        ('daemon: while it asks, while it does not', f'{asking * 100:.1f} %, {idle * 100:.1f} % of a core'),
        ('a probe of the daemon, of the bare loop', f'{ours * 1e6:.0f} us, {bare * 1e6:.0f} us'),
        ('ratio', f'{ours / bare:.2f}x (at most 1.5)')])


if __name__ == '__main__':
    what = sys.argv[1:] or ['rotation', 'cost']
    if 'rotation' in what:
        rotation()
    if 'cost' in what:
        cost()
