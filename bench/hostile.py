#!/usr/bin/env python3
"""Hostile containers beside a neighbour's web server, on one node with default limits.

  hostile.py            WARREN names the program; SECONDS how long each attack is watched (10)

Prints the neighbour's latency while nothing else runs and under each attack, and the daemon's memory.
Fails when the neighbour's p99 is more than three times its quiet one or the daemon has more than 60 MiB.
Runs in a network namespace and folders of its own. The memory bomb has a limit, as there is none by
default: without one it would be the machine's.
"""
import http.client, json, os, shutil, statistics, subprocess, sys, tempfile, time

from lib import ROOT, WARREN, run, show

SECONDS = float(os.environ.get('SECONDS_EACH', '10'))
RATIO_MAX, RSS_MAX_MIB = 3.0, 60.0
PORT = 8080
# 200 requests a second leave most of a core for the others.
PAUSE = 0.005

ATTACKS = [
    ('fork bomb', [], 'f() { f | f & }; f; sleep 1000'),
    ('memory bomb', ['--limit-memory', '256MiB'], 'while :; do tail /dev/zero; done'),
    ('log flood', [], 'exec yes 0123456789012345678901234567890123456789012345678901234567890123456789'),
    ('log flood without lines', [], 'exec cat /dev/zero'),
    ('descriptors and processes', [], 'while :; do for i in 1 2 3 4 5 6 7 8; do (exec 9>&1; exec 1>&-; id) & done; wait; done'),
]


class Node:
    def __init__(self, place):
        self.place = place
        self.env = {**os.environ, 'WARREN_DATA_DIR': f'{place}/data', 'WARREN_RUN_DIR': f'{place}/run', 'WARREN_SOCKET': f'{place}/run/warren.sock'}
        run(f'{ROOT}/scripts/rootfs', f'{place}/rootfs.tar')
        self.cli('cluster', 'init', '--detach')
        self.cli('image', 'import', f'{place}/rootfs.tar', 'bb:1')

    def cli(self, *args, check=True):
        return run(WARREN, *args, check=check, env=self.env)

    def rss_mib(self):
        with open(f'{self.place}/run/warren.pid') as f:
            pid = f.read().strip()
        with open(f'/proc/{pid}/status') as f:
            return next(int(line.split()[1]) for line in f if line.startswith('VmRSS:')) / 1024

    def logs_mib(self):
        total = 0
        for base, _, files in os.walk(f'{self.place}/data'):
            if 'logs' in base:
                for name in files:
                    try:
                        total += os.stat(os.path.join(base, name)).st_size
                    except OSError:
                        pass
        return total / 2**20


def ask():
    begin = time.monotonic()
    connection = http.client.HTTPConnection('127.0.0.1', PORT, timeout=20)
    connection.request('GET', '/')
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise OSError(f'status {answer.status}')
    return (time.monotonic() - begin) * 1000


def watch(node, seconds):
    """Latencies in ms, failures, and the daemon's memory at its highest."""
    times, failed, rss, end = [], 0, 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            times.append(ask())
        except (OSError, http.client.HTTPException):
            failed += 1
        if len(times) % 50 == 0:
            rss = max(rss, node.rss_mib())
        time.sleep(PAUSE)
    times.sort()
    return {'p50': statistics.median(times), 'p99': times[int(len(times) * 0.99)], 'n': len(times), 'failed': failed, 'rss': max(rss, node.rss_mib())}


def attack(node, name, options, script, quiet):
    node.cli('service', 'create', 'evil', '--image', 'bb:1', '--detach', '--restart-delay', '1s', *options, '--', 'sh', '-c', script)
    end = time.monotonic() + 30
    while not any(task['state'] == 'running' for task in json.loads(node.cli('service', 'ps', 'evil', '--format', 'json'))):
        if time.monotonic() > end:
            raise TimeoutError(f'{name} does not run')
        time.sleep(0.05)
    time.sleep(2)
    seen = watch(node, SECONDS)
    logs = node.logs_mib()
    begin = time.monotonic()
    node.cli('service', 'rm', 'evil')
    gone = time.monotonic() - begin
    times = seen['p99'] / quiet['p99']
    wrong = []
    if times > RATIO_MAX:
        wrong.append(f'p99 is {times:.1f}x')
    if seen['rss'] > RSS_MAX_MIB:
        wrong.append(f"the daemon has {seen['rss']:.0f} MiB")
    if seen['failed']:
        wrong.append(f"{seen['failed']} requests failed")
    text = (f"p50 {seen['p50']:.2f} ms  p99 {seen['p99']:.2f} ms ({times:.1f}x)  n={seen['n']}  failed {seen['failed']}  "
            f"daemon {seen['rss']:.1f} MiB RSS  logs {logs:.0f} MiB  removed in {gone:.1f} s")
    return (name, text), [f'{name}: {what}' for what in wrong]


def main():
    if 'WARREN_HOSTILE_INSIDE' not in os.environ:
        os.environ['WARREN_HOSTILE_INSIDE'] = '1'
        os.execvp('unshare', ['unshare', '-n', sys.executable, *sys.argv])
    run('ip', 'link', 'set', 'lo', 'up')
    wanted = sys.argv[1:]
    place = tempfile.mkdtemp(prefix='warren-hostile-', dir='/var/tmp')
    node, rows, wrong = None, [], []
    try:
        node = Node(place)
        node.cli('service', 'create', 'web', '--image', 'bb:1', '-p', f'127.0.0.1:{PORT}:80', '--', '/bin/httpd', '-f', '-p', '80', '-h', '/www')
        ask()
        watch(node, 2)
        quiet = watch(node, SECONDS)
        rows.append(('nothing', f"p50 {quiet['p50']:.2f} ms  p99 {quiet['p99']:.2f} ms  n={quiet['n']}  daemon {quiet['rss']:.1f} MiB RSS"))
        for name, options, script in ATTACKS:
            if not wanted or name in wanted:
                row, bad = attack(node, name, options, script, quiet)
                rows.append(row)
                wrong += bad
    finally:
        if node:
            node.cli('node', 'stop', '--with-containers', check=False)
        shutil.rmtree(place, ignore_errors=True)
    show('hostile containers beside a web server', rows)
    for what in wrong:
        print(what, file=sys.stderr)
    sys.exit(1 if wrong else 0)


main()
