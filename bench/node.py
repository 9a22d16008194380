#!/usr/bin/env python3
"""One Warren node by itself: bench/node.py heal | memory | crash | loop"""
import http.client, json, os, random, select, signal, sys, threading, time
from lib import Bench, NODE, cpu_seconds, get_200, pss_kib, run, show, stats, wait_for, within

KILLS = 50


def heal(b):
    """kill -9 of a container's process -> its replacement running (delay 0)."""
    w = b.warren
    w.create('h', restart_window='100ms')
    wait_for(lambda: w.running('h') == 1 or False, 'running')
    took = []
    for _ in range(30):
        old = w.tasks('h')[0]
        start = time.monotonic()
        os.kill(old['pid'], signal.SIGKILL)
        wait_for(lambda: any(t['state'] == 'running' and t['pid'] != old['pid'] for t in w.tasks('h')) or False, 'replacement', 30, 0.001)
        took.append((time.monotonic() - start) * 1000)
        # An attempt that ran for the restart window forgets earlier crashes; a crash loop would back off.
        time.sleep(0.2)
    w.remove_all()
    show('kill -9 of a container -> replacement running, delay 0', [('Warren (seen by the CLI)', stats(took))])


def memory(b):
    w = b.warren
    time.sleep(5)
    rows = [('daemon idle, 0 containers', f'{pss_kib(w.pid()) / 1024:.1f} MiB PSS')]
    w.create('m', 100)
    wait_for(lambda: w.running('m') == 100 or False, '100 running', 120)
    time.sleep(10)
    shims = [pss_kib(p) for p in w.shims()]
    rows.append(('daemon, 100 containers', f'{pss_kib(w.pid()) / 1024:.1f} MiB PSS'))
    rows.append(('supervising process', stats(shims, 'KiB PSS', 0)))
    pids = [w.pid(), *w.shims()]
    seconds = 60
    start = cpu_seconds(pids)
    time.sleep(seconds)
    rows.append((f'idle CPU of daemon and supervisors over {seconds} s', f'{(cpu_seconds(pids) - start) / seconds * 100:.3f} % of a core'))
    w.remove_all()
    show('memory and idle CPU', rows)


def kill_and_wait(pid):
    """SIGKILL, then the end of the process: what runs next must find its locks free."""
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    select.select([fd], [], [], 30)
    os.close(fd)


class Load(threading.Thread):
    """HTTP requests to a running service, one connection each; every failure is kept."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.done, self.failed, self.stop = port, 0, [], threading.Event()

    def run(self):
        while not self.stop.is_set():
            try:
                c = http.client.HTTPConnection(NODE, self.port, timeout=5)
                c.request('GET', '/')
                status = c.getresponse().status
                c.close()
                if status != 200:
                    raise OSError(f'status {status}')
                self.done += 1
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f'{time.time():.3f} {error!r}')
            time.sleep(0.002)


def crash(b):
    """kill -9 of the daemon at random moments under creates, scales and HTTP load."""
    w = b.warren
    w.create('steady', 5, port=9100)
    wait_for(lambda: w.running('steady') == 5 or False, 'running')
    get_200(NODE, 9100)
    steady = {t['id']: (t['pid'], t['attempt']) for t in w.tasks('steady')}
    loads = [Load(9100) for _ in range(4)]
    for load in loads:
        load.start()
    acknowledged, busy = {}, threading.Event()

    def change():
        i = 0
        while not busy.is_set():
            i += 1
            name, replicas = f'k{i % 20}', random.randint(1, 3)
            try:
                if name in acknowledged:
                    w.scale(name, replicas)
                else:
                    w.create(name, replicas)
                acknowledged[name] = replicas
            except RuntimeError as error:
                # Not acknowledged: either value may hold afterwards.
                if name in acknowledged and 'exists' not in str(error):
                    acknowledged[name] = None
                elif 'exists' in str(error):
                    acknowledged[name] = None
                time.sleep(0.05)

    worker = threading.Thread(target=change, daemon=True)
    worker.start()
    back = []
    for _ in range(KILLS):
        time.sleep(random.uniform(0.05, 1.0))
        start = time.monotonic()
        kill_and_wait(w.pid())
        w.cli('node', 'run', '--detach', ns=True)
        back.append((time.monotonic() - start) * 1000)
    busy.set()
    worker.join()
    services = {s['name']: s for s in json.loads(w.cli('service', 'ls', '--format', 'json'))}
    lost = [n for n, r in acknowledged.items() if n not in services or (r is not None and services[n]['desired'] != r)]
    for name in services:
        w.cli('wait', 'service', name, '--timeout', '60s')
    for load in loads:
        load.stop.set()
        load.join()
    now = {t['id']: (t['pid'], t['attempt']) for t in w.tasks('steady') if t['state'] == 'running'}
    failed = [f for load in loads for f in load.failed]
    show(f'kill -9 of the daemon, {KILLS} times', [
        ('daemon back (node run --detach)', stats(back)), ('services acknowledged', str(len(acknowledged))), ('acknowledged changes lost', str(lost)),
        ('steady containers untouched', str(now == steady)), ('requests answered', str(sum(load.done for load in loads))), ('requests failed', f'{len(failed)} {failed[:3]}')])
    w.remove_all()
    if lost or failed or now != steady:
        sys.exit(1)


LOOP_SECONDS = int(os.environ.get('WARREN_BENCH_SECONDS', 600))
LOOPING = 3


def loop(b):
    """Containers that end as soon as they begin, for ten minutes: what it costs, and what stays of it."""
    w = b.warren
    w.create('neighbour', 1, 8080)
    wait_for(lambda: w.running('neighbour') == 1 or False, 'a neighbour', 30)
    time.sleep(10)
    disk = lambda: sum(os.path.getsize(os.path.join(base, f)) for base, _, files in os.walk(f'{w.dir}/data/store') for f in files)
    tasks = lambda: json.loads(w.cli('ps', '--all', '--format', 'json'))
    before, memory_before = disk(), pss_kib(w.pid())
    w.cli('service', 'create', 'bad', '--image', 'bb:1', '--replicas', str(LOOPING), '--restart-window', '5s', '--no-check', '--detach', '/bin/false')
    marks, cpu, at = [], cpu_seconds([w.pid()]), time.monotonic()
    for _ in range(5):
        time.sleep(LOOP_SECONDS / 5)
        ended = [t for t in tasks() if t['service'] == 'bad']
        now = cpu_seconds([w.pid()])
        passed = time.monotonic() - at
        marks.append({'seconds': round(passed), 'disk_kib': (disk() - before) // 1024, 'pss_mib': round(pss_kib(w.pid()) / 1024, 1), 'tasks': len(ended),
                      'attempts': sum(t['attempt'] for t in ended), 'cpu_percent': round((now - cpu) / passed * 100, 2)})
        print(marks[-1], flush=True)
    answers = run(*within('wbwrn', 'curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', f'http://{NODE}:8080/'), check=False)
    log = os.path.getsize(f'{w.dir}/data/daemon.log')
    left = w.left()
    w.remove_all()
    last = marks[-1]
    show(f'{LOOPING} containers that end at once, for {LOOP_SECONDS} s', [
        ('CPU of the daemon', f"{last['cpu_percent']} % of a core"), ('memory of the daemon: before, after', f"{memory_before / 1024:.1f}, {last['pss_mib']} MiB PSS"),
        ('written to the store', f"{last['disk_kib']} KiB; after each fifth: {[m['disk_kib'] for m in marks]}"),
        ('tasks remembered after each fifth', str([m['tasks'] for m in marks])), ("the daemon's log", f'{log // 1024} KiB'),
        ('a neighbour answers', answers), ('in the kernel meanwhile, in the end', f'{left}, {w.left()}')])


if __name__ == '__main__':
    what = sys.argv[1:] or ['heal', 'memory', 'crash']
    with Bench() as b:
        for x in what:
            {'heal': heal, 'memory': memory, 'crash': crash, 'loop': loop}[x](b)
