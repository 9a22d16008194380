#!/usr/bin/env python3
"""How soon a change of one backend is in the kernel of every node, among thousands of services.

One manager, three workers with real containers, and agents that only say that their tasks run: those have the thousands of
services. One service more runs on the three workers; it is scaled from three to four and back. What is measured begins when the
new task runs, by its own node's word, and ends when the kernel of a node has its address, as that kernel tells (`nft monitor`).
The processor time is that of all processes of Warren on a worker that does not run the new task, whatever they did meanwhile.

WARREN_BENCH_SERVICES (5000), WARREN_BENCH_ROUNDS (100) and WARREN_BENCH_AGENTS (50) make a run shorter or longer.
"""
import concurrent.futures, datetime, os, subprocess, threading, time
from bed import Bed, Load
from lib import need, pss_kib, show, stats, wait_for

SERVICES = int(os.environ.get('WARREN_BENCH_SERVICES', 5000))
ROUNDS = int(os.environ.get('WARREN_BENCH_ROUNDS', 100))
AGENTS = int(os.environ.get('WARREN_BENCH_AGENTS', 50))
BACKENDS = 3


class Ear:
    """When the kernel of a host got which backend."""

    def __init__(self, host):
        self.seen = {}
        self.process = subprocess.Popen(host.within('nft', 'monitor', 'new', 'elements'), stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            if line.startswith('add element ip warren-') and ' backends ' in line:
                self.seen[line.rsplit(' : ', 1)[1].split()[0]] = time.time()

    def end(self):
        self.process.kill()
        self.process.wait()


def running_since(task):
    return datetime.datetime.fromisoformat(task['started_at'].replace('Z', '+00:00')).timestamp()


def cpu_ms(host):
    """Processor time of Warren's processes on a host, by the scheduler's own count, threads that have ended included."""
    total = 0
    for pid in daemons(host):
        try:
            # A process' clock by its number: see clock_getcpuclockid(3).
            total += time.clock_gettime_ns((~pid << 3) | 2)
        except OSError:
            pass
    return total / 1e6


def daemons(host):
    """Daemon and data plane; supervisors of containers are another program."""
    found = set()
    for pid in host.processes():
        try:
            if os.path.basename(os.readlink(f'/proc/{pid}/exe')).split()[0] == 'warren':
                found.add(pid)
        except OSError:
            pass
    return found


def fill(c):
    """The thousands of services, on agents that run nothing."""
    def create(number):
        c.asked().cli('service', 'create', f's{number}', '--image', 'none:1', '--replicas', str(BACKENDS), '--no-check', '--detach',
                      '--constraint', 'node.labels.real!=yes')
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(SERVICES)))

    def all_run():
        return all(s['running'] == BACKENDS for s in c.asked().json('service', 'ls') if s['name'].startswith('s')) or False
    wait_for(all_run, 'all services', 600, 0.5)


def main():
    need('nftables')
    with Bed() as bed:
        c = bed.cluster(1, 3)
        c.form()
        c.image()
        for w in c.workers:
            c.asked().cli('node', 'update', '--label-add', 'real=yes', w.name)
        load = Load('agents', '--obey', '--count', str(AGENTS), '--manager', f'{c.managers[0].host.address}:2377', WARREN_TOKEN=c.token('worker'))
        began = time.monotonic()
        fill(c)
        filled = time.monotonic() - began
        c.create('web', BACKENDS, '--no-check', '--constraint', 'node.labels.real==yes', '-p', '8080:80')
        time.sleep(5)
        ears = {w.name: Ear(w.host) for w in c.workers}
        time.sleep(1)
        waits, worst, spent = [], [], []
        try:
            for _ in range(ROUNDS):
                before = {w.name: cpu_ms(w.host) for w in c.workers}
                c.asked().cli('service', 'scale', f'web={BACKENDS + 1}')
                new = next(t for t in c.running('web') if t['slot'] == BACKENDS + 1)
                wait_for(lambda: all(new['address'] in e.seen for e in ears.values()), 'all kernels', 10, 0.002)
                took = {name: (ear.seen[new['address']] - running_since(new)) * 1000 for name, ear in ears.items()}
                # What comes after belongs to it: names, acknowledgements.
                time.sleep(0.2)
                spent += [cpu_ms(w.host) - before[w.name] for w in c.workers if w.name != new['node']]
                waits += took.values()
                worst.append(max(took.values()))
                c.asked().cli('service', 'scale', f'web={BACKENDS}')
                wait_for(lambda: len(c.tasks('web', wanted=False)) == BACKENDS or False, 'the fourth is gone', 30)
                for ear in ears.values():
                    ear.seen.clear()
        finally:
            for ear in ears.values():
                ear.end()
            load.end()
        pss = max(pss_kib(pid) for w in c.workers for pid in daemons(w.host)) / 1024
        show(f'one backend more among {SERVICES} services x {BACKENDS} backends on {AGENTS + 3} nodes', [
            ('created and running after', f'{filled:.1f} s'),
            ('from running to the kernel of each node', stats(waits)), ('to the last of them', stats(worst)),
            ('p90 of that', f'{sorted(worst)[len(worst) * 9 // 10]:.1f} ms (median at most 100)'),
            ('CPU on each other node', stats(spent)), ('largest process of a worker', f'{pss:.1f} MiB PSS')])


if __name__ == '__main__':
    main()
