#!/usr/bin/env python3
"""CPU of the name server for each query, beside Debian's dnsmasq: bench/dns.py

Both on loopback with the same 10,000 names and addresses, one at a time, in turns, asked by Debian's dnsperf: at a fixed rate
(5,000 a second; also the latency, from each answer's own) and as fast as 64 outstanding queries go. CPU is what the kernel's
scheduler counted for the server's threads (schedstat) over the queries that were answered. What counts is the ratio within a
round. WARREN_BENCH_ROUNDS (7), WARREN_BENCH_SECONDS (4), WARREN_BENCH_SERVICES (10000) and WARREN_BENCH_RATE (5000) make a run
shorter or longer, WARREN_BENCH_DNS says which build of the example to run; WARREN_BENCH_ALSO names further servers to show
beside, `name=command` parted by `;`, started with an address and a number of services.
"""
import contextlib, json, os, random, re, signal, subprocess, sys, tempfile, time

import lib

DNS = os.environ.get('WARREN_BENCH_DNS', f'{lib.ROOT}/target/release/examples/bench_dns')
ROUNDS = int(os.environ.get('WARREN_BENCH_ROUNDS', 7))
SECONDS = int(os.environ.get('WARREN_BENCH_SECONDS', 4))
SERVICES = int(os.environ.get('WARREN_BENCH_SERVICES', 10000))
RATE = int(os.environ.get('WARREN_BENCH_RATE', 5000))
ALSO = dict(part.split('=', 1) for part in os.environ.get('WARREN_BENCH_ALSO', '').split(';') if part)
ADDRESS, SUFFIX = '127.0.0.1', 'warren.internal'
PORTS = iter(range(5400, 5500))


def cpu_ns(pid):
    """Time on a CPU of all threads of a process."""
    total = 0
    for thread in os.listdir(f'/proc/{pid}/task'):
        with contextlib.suppress(OSError), open(f'/proc/{pid}/task/{thread}/schedstat') as f:
            total += int(f.read().split()[0])
    return total


class Server:
    def __init__(self, name, command, port):
        self.name, self.port, self.report = name, port, {}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if name == 'warren':
            self.report = json.loads(self.process.stdout.readline())
        lib.wait_for(lambda: self.ask('s1', 5) > 0, name)

    def ask(self, name, count):
        queries = f'{name}.{SUFFIX} A\n' * count
        return perf(self.port, queries, '-l', '1', '-n', '1')['completed']

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def warren(port):
    return Server('warren', [DNS, f'{ADDRESS}:{port}', str(SERVICES)], port)


def dnsmasq(port, folder):
    base = int.from_bytes(bytes([10, 128, 0, 1]), 'big')
    with open(f'{folder}/hosts', 'w') as f:
        for n in range(SERVICES):
            f.write('.'.join(map(str, (base + n).to_bytes(4, 'big'))) + f' s{n}.{SUFFIX}\n')
    # As cheap as it goes: one address, no log, nothing to look up elsewhere.
    return Server('dnsmasq', ['dnsmasq', '-k', '--conf-file=/dev/null', '--no-resolv', '--no-hosts', f'--addn-hosts={folder}/hosts', '--bind-interfaces',
                              f'--listen-address={ADDRESS}', f'--port={port}', '--pid-file=', '--user=root', '--local-ttl=1', f'--local=/{SUFFIX}/'], port)


def perf(port, queries, *args):
    """Runs dnsperf over `queries`; counts, and seconds of each answer when asked for by -v."""
    with tempfile.NamedTemporaryFile('w') as f:
        f.write(queries)
        f.flush()
        out = lib.run('dnsperf', '-s', ADDRESS, '-p', str(port), '-d', f.name, *args)
    number = lambda what: float(re.search(rf'{what}:\s+([0-9.]+)', out).group(1))
    latencies = [float(line.rsplit(' ', 1)[1]) for line in out.splitlines() if line.startswith('> NOERROR ')]
    return {'completed': int(number('Queries completed')), 'lost': int(number('Queries lost')), 'rate': number('Queries per second'),
            'ok': 'NOERROR' in out and 'NXDOMAIN' not in out, 'latencies': latencies}


def measure(server, queries, *args):
    before = cpu_ns(server.process.pid)
    result = perf(server.port, queries, '-l', str(SECONDS), *args)
    result['us'] = (cpu_ns(server.process.pid) - before) / 1000 / result['completed']
    assert result['ok'], f'{server.name} did not answer what was asked'
    return result


def percentile(values, part):
    return sorted(values)[int(len(values) * part)]


def main():
    lib.need('dnsperf', 'dnsmasq-base')
    random.seed(1)
    names = [f's{random.randrange(SERVICES)}.{SUFFIX} A\n' for _ in range(20000)]
    queries, rows, seen = ''.join(names), [], {}
    with tempfile.TemporaryDirectory() as folder:
        makers = {'warren': warren, 'dnsmasq': lambda port: dnsmasq(port, folder)}
        for name, command in ALSO.items():
            makers[name] = lambda port, name=name, command=command: Server(name, [*command.split(), f'{ADDRESS}:{port}', str(SERVICES)], port)
        for turn in range(ROUNDS):
            for name in list(makers) if turn % 2 == 0 else list(makers)[::-1]:
                server = makers[name](next(PORTS))
                try:
                    mine = seen.setdefault(name, {'fixed': [], 'fast': [], 'rate': [], 'p50': [], 'p99': [], 'lost': 0, 'pss': []})
                    fixed = measure(server, queries, '-Q', str(RATE), '-c', '8')
                    # Apart from the CPU figures: one line for each answer is work for dnsperf.
                    times = measure(server, queries, '-Q', str(RATE), '-c', '8', '-v')
                    fast = measure(server, queries, '-q', '64', '-c', '8')
                    mine['fixed'].append(fixed['us'])
                    mine['fast'].append(fast['us'])
                    mine['rate'].append(fast['rate'])
                    mine['p50'].append(percentile(times['latencies'], .5) * 1000)
                    mine['p99'].append(percentile(times['latencies'], .99) * 1000)
                    mine['lost'] += fixed['lost'] + times['lost'] + fast['lost']
                    mine['pss'].append(lib.pss_kib(server.process.pid) / 1024)
                    mine['report'] = server.report
                finally:
                    server.stop()
    for name, mine in seen.items():
        rows += [(f'{name}: CPU per query at {RATE}/s', lib.stats(mine['fixed'], 'us')),
                 (f'{name}: CPU per query, 64 outstanding', lib.stats(mine['fast'], 'us')),
                 (f'{name}: queries per second, 64 outstanding', lib.stats(mine['rate'], '/s', 0)),
                 (f'{name}: latency at {RATE}/s, p50', lib.stats(mine['p50'], 'ms', 3)),
                 (f'{name}: latency at {RATE}/s, p99', lib.stats(mine['p99'], 'ms', 3)),
                 (f'{name}: memory of the process (PSS)', lib.stats(mine['pss'], 'MiB')),
                 (f'{name}: queries lost', str(mine['lost']))]
    for kind, what in ('fixed', f'{RATE}/s'), ('fast', '64 outstanding'):
        ratios = [a / b for a, b in zip(seen['warren'][kind], seen['dnsmasq'][kind])]
        rows.append((f'CPU per query, warren to dnsmasq, {what}', lib.stats(ratios, 'x', 3)))
    rows.append(('tables', json.dumps(seen['warren']['report'])))
    lib.show(f'names: {SERVICES} services, {ROUNDS} rounds of {SECONDS} s', rows)


if __name__ == '__main__':
    main()
