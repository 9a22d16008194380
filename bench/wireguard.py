#!/usr/bin/env python3
"""iperf3 between two hosts through our in-process WireGuard and through others, by turns.

Two network namespaces joined by a veth pair play the hosts. Each round brings every tunnel up anew, in an order that moves
on from round to round: ours, boringtun-cli, Debian's wireguard-go, VXLAN, and plain routes. All tunnels have an MTU of 1420
(VXLAN 1450, plain 1500). CPU is that of both tunnel processes together; of what the kernel does alone, and of all for
comparison, it is that of the whole machine, iperf3 included. The round trip is one small datagram and its answer, sent when
the one before has come back, the median of each round's.

N is the number of rounds (7), SECONDS that of a transfer (3), ONLY=warren,boringtun runs some, QUEUES is that of our workers (1).
boringtun-cli is built by `cargo install` into WORK when it is missing.
"""
import json, os, socket, statistics, subprocess, sys, time
from lib import ROOT, WORK, cpu_seconds, need, ratio, run, show, stats, wait_for, within

N, SECONDS = int(os.environ.get('N', 7)), float(os.environ.get('SECONDS', 3))
QUEUES = os.environ.get('QUEUES', '1')
HOSTS = ('wbw1', 'wbw2')
NODE = os.environ.get('NODE', f'{ROOT}/target/release/examples/node')
BORINGTUN = f'{WORK}/boringtun/bin/boringtun-cli'
BORINGTUN_VERSION = '0.7.1'
KEYS = ('11' * 32, '22' * 32)
PLAIN, INNER = '192.0.2.{}', '10.9.{}.1'


def ns(host, *args):
    return run(*within(host, *args))


def public(private):
    """The public key of a private one, both in hexadecimal (RFC 7748, section 5)."""
    p, a24 = 2 ** 255 - 19, 121665
    k = bytearray(bytes.fromhex(private))
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    k = int.from_bytes(k, 'little')
    x1, x2, z2, x3, z3, swap = 9, 1, 0, 9, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % p, b * b % p, d * a % p, c * b % p
        e = (aa - bb) % p
        x3, z3, x2, z2 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p, aa * bb % p, e * (aa + a24 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, 'little').hex()


class Tunnel:
    """Nothing between the hosts but the veth pair."""
    name, target, pids, inner = 'plain routes', PLAIN.format(2), (), False

    def up(self):
        pass

    def addresses(self, device):
        for i, host in enumerate(HOSTS, 1):
            ns(host, 'ip', 'addr', 'add', f'10.9.{i}.1/16', 'dev', device.format(i))

    def down(self):
        pass


class Vxlan(Tunnel):
    name, target = 'VXLAN', INNER.format(2)

    def up(self):
        for i, host in enumerate(HOSTS, 1):
            ns(host, 'ip', 'link', 'add', 'wbvx', 'type', 'vxlan', 'id', '9', 'dev', 'eth0', 'local', PLAIN.format(i), 'remote', PLAIN.format(3 - i), 'dstport', '4789')
            ns(host, 'ip', 'link', 'set', 'wbvx', 'mtu', '1450', 'up')
        self.addresses('wbvx')

    def down(self):
        for host in HOSTS:
            ns(host, 'ip', 'link', 'del', 'wbvx')


class Process(Tunnel):
    """A tunnel by a process on each host."""
    target, inner = INNER.format(2), True

    def up(self):
        self.children = [self.start(i, host) for i, host in enumerate(HOSTS, 1)]
        self.pids = [self.pid(child) for child in self.children]
        self.addresses('wbw-{}')

    def pid(self, child):
        return child.pid

    def down(self):
        for child in self.children:
            if child.stdin:
                child.stdin.close()
            child.terminate()
            child.wait()
        for host in HOSTS:
            wait_for(lambda: 'wbw-' not in ns(host, 'ip', '-o', 'link'), 'devices gone')


class Warren(Process):
    name = 'Warren'

    def start(self, i, host):
        mine, other = KEYS[i - 1], KEYS[2 - i]
        args = (f'wbw-{i}', '1420', QUEUES, '0.0.0.0:51820', mine, other, f'{PLAIN.format(3 - i)}:51820', f'10.9.{3 - i}.0/24')
        child = subprocess.Popen(within(host, NODE, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == 'ready\n'
        return child


class Uapi(Process):
    """Configured by the text protocol of WireGuard's cross-platform interface."""

    def start(self, i, host):
        path = f'/var/run/wireguard/wbw-{i}.sock'
        child = subprocess.Popen(within(host, *self.command, f'wbw-{i}'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'WG_PROCESS_FOREGROUND': '1', 'WG_LOG_LEVEL': 'silent'})
        wait_for(lambda: os.path.exists(path), path)
        text = (f'set=1\nprivate_key={KEYS[i - 1]}\nlisten_port=51820\nreplace_peers=true\npublic_key={public(KEYS[2 - i])}\n'
                f'endpoint={PLAIN.format(3 - i)}:51820\nreplace_allowed_ips=true\nallowed_ip=10.9.{3 - i}.0/24\n\n')

        def configure():
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                s.sendall(text.encode())
                return 'errno=0' in s.recv(1000).decode()
        wait_for(configure, f'{self.name}: configure')
        ns(host, 'ip', 'link', 'set', f'wbw-{i}', 'mtu', '1420', 'up')
        return child


class Boringtun(Uapi):
    name, command = 'boringtun-cli', (BORINGTUN, '--foreground', '--disable-drop-privileges', '--verbosity', 'error')


class WireguardGo(Uapi):
    name, command = 'wireguard-go (Debian)', ('wireguard-go', '-f')


def machine_cpu():
    with open('/proc/stat') as f:
        fields = [int(x) for x in f.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf('SC_CLK_TCK')


def transfer(tunnel, flows):
    """Gbit/s, CPU seconds of the processes and of the machine per GB."""
    before, machine = cpu_seconds(tunnel.pids), machine_cpu()
    out = json.loads(run(*within(HOSTS[0], 'iperf3', '-c', tunnel.target, '-t', str(SECONDS), '-P', str(flows), '-J')))
    spent, machine = cpu_seconds(tunnel.pids) - before, machine_cpu() - machine
    got = out['end']['sum_received']
    return got['bits_per_second'] / 1e9, spent / (got['bytes'] / 1e9), machine / (got['bytes'] / 1e9)


ECHO = '''
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 7)); print("ready", flush=True)
while True:
    data, who = s.recvfrom(100); s.sendto(data, who)
'''
ASK = '''
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 7)); s.settimeout(5); times = []
for i in range(1500):
    t = time.perf_counter_ns(); s.send(b"x" * 32); s.recv(100); times.append(time.perf_counter_ns() - t)
times.sort(); print(times[len(times) // 2] / 1000)
'''


def round_trip(tunnel):
    echo = subprocess.Popen(within(HOSTS[1], 'python3', '-c', ECHO, tunnel.target), stdout=subprocess.PIPE, text=True)
    try:
        assert echo.stdout.readline() == 'ready\n'
        return float(ns(HOSTS[0], 'python3', '-c', ASK, tunnel.target))
    finally:
        echo.terminate()
        echo.wait()


def measure(tunnel, figures):
    tunnel.up()
    server = None
    try:
        server = subprocess.Popen(within(HOSTS[1], 'iperf3', '-s', '-B', tunnel.target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: ns(HOSTS[0], 'python3', '-c', f'import socket; socket.create_connection(("{tunnel.target}", 5201), 2)') and None, f'{tunnel.name}: no way through')
        time.sleep(0.3)
        figures['round trip'].append(round_trip(tunnel))
        for flows in (1, 8):
            speed, cpu, machine = transfer(tunnel, flows)
            figures[f'{flows} flows'].append(speed)
            figures[f'{flows} flows cpu'].append(cpu)
            figures[f'{flows} flows machine'].append(machine)
    finally:
        if server:
            server.terminate()
            server.wait()
        tunnel.down()


def sweep():
    for host in HOSTS:
        if os.path.exists(f'/run/netns/{host}'):
            run('ip', 'netns', 'del', host, check=False)


def main():
    need('iperf3', 'wireguard-go', 'iproute2')
    if not os.path.exists(BORINGTUN):
        run('cargo', 'install', '--locked', '--quiet', '--root', f'{WORK}/boringtun', '--version', BORINGTUN_VERSION, 'boringtun-cli')
    sweep()
    kinds = [Warren, Boringtun, WireguardGo, Vxlan, Tunnel]
    only = os.environ.get('ONLY')
    if only:
        kinds = [kind for kind in kinds if kind.__name__.lower() in only.split(',')]
    figures = {kind.name: {key: [] for key in ('round trip', '1 flows', '1 flows cpu', '1 flows machine', '8 flows', '8 flows cpu', '8 flows machine')} for kind in kinds}
    try:
        for host in HOSTS:
            run('ip', 'netns', 'add', host)
            ns(host, 'ip', 'link', 'set', 'lo', 'up')
        run('ip', '-n', HOSTS[0], 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', HOSTS[1])
        for i, host in enumerate(HOSTS, 1):
            ns(host, 'ip', 'addr', 'add', f'{PLAIN.format(i)}/24', 'dev', 'eth0')
            ns(host, 'ip', 'link', 'set', 'eth0', 'up')
        for turn in range(N):
            shift = turn % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                measure(kind(), figures[kind.name])
    finally:
        sweep()
    median = lambda name, key: statistics.median(figures[name][key])
    for flows in (1, 8):
        rows = [(f'{name}: Gbit/s', stats(f[f'{flows} flows'], 'Gbit/s', 2)) for name, f in figures.items()]
        rows += [(f'{kind.name}: CPU of the processes', stats(figures[kind.name][f'{flows} flows cpu'], 's/GB', 2)) for kind in kinds if kind.inner]
        rows += [(f'{name}: CPU of the machine', stats(f[f'{flows} flows machine'], 's/GB', 2)) for name, f in figures.items()]
        rows += ratios(figures, median, f'{flows} flows')
        show(f'{flows} TCP flow{"s" * (flows > 1)} between two hosts', rows)
    rows = [(name, stats(f['round trip'], 'us', 1)) for name, f in figures.items()]
    if {'Warren', 'boringtun-cli'} <= figures.keys():
        rows.append(('Warren to boringtun-cli (at most 1.1x)', ratio(median('Warren', 'round trip'), median('boringtun-cli', 'round trip'))))
    show('round trip of a small datagram at rest', rows)


def ratios(figures, median, what):
    rows = []
    if {'Warren', 'boringtun-cli'} <= figures.keys():
        rows.append(('throughput, Warren to boringtun-cli (at least 6x)', ratio(median('Warren', what), median('boringtun-cli', what))))
        rows.append(('CPU of the processes, the same (at most 0.2x)', ratio(median('Warren', f'{what} cpu'), median('boringtun-cli', f'{what} cpu'))))
    if {'VXLAN', 'plain routes'} <= figures.keys():
        rows.append(('CPU of the machine, VXLAN to plain routes (at most 1.2x)', ratio(median('VXLAN', f'{what} machine'), median('plain routes', f'{what} machine'))))
    return rows


if __name__ == '__main__':
    sys.exit(main())
