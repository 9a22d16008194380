#!/usr/bin/env python3
"""Clusters: bench/cluster.py form | failover | worker-loss | pause | edge | quorum | idle | agents | replicas | soak

WARREN_BENCH_ROUNDS, WARREN_BENCH_SECONDS and WARREN_BENCH_AGENTS make a run shorter or longer.
"""
import http.client, os, random, signal, statistics, sys, threading, time
from bed import Bed, Etcd, Load, end, finish, silence
from lib import cpu_seconds, get_200, pss_kib, show, stats, wait_for

ROUNDS = int(os.environ.get('WARREN_BENCH_ROUNDS', 0))
SECONDS = int(os.environ.get('WARREN_BENCH_SECONDS', 0))
AGENTS = int(os.environ.get('WARREN_BENCH_AGENTS', 1000))
failures = []


def must(what, ok):
    """Something that is no figure: it holds, or the benchmark fails."""
    if not ok:
        failures.append(what)
        print(f'FAILED: {what}', flush=True)
    return ok


def seconds(values):
    return {**stats(values, 's', 3), 'all': [round(v, 3) for v in values]}


def millis(values):
    v = sorted(values)
    return {**stats(values), 'p90': round(v[min(len(v) - 1, len(v) * 9 // 10)], 1), 'all': [round(x, 1) for x in values]}


def tail(values, limit):
    out = [round(v, 1) for v in values if v > limit]
    return f'{len(out)} of {len(values)} above {limit:.0f} ms: {out}'


def identity(tasks):
    return {t['id']: (t['pid'], t['attempt']) for t in tasks}


def form(bed):
    formed, joined = [], []
    for _ in range(ROUNDS or 5):
        c = bed.cluster(3, 4)
        formed.append(c.form(but=c.workers[3:]))
        token, last = c.token('worker'), c.workers[3]
        start = time.monotonic()
        finish(c.joining(last, token))
        c.ready()
        joined.append(time.monotonic() - start)
        bed.drop(c)
    show('a cluster from nothing', [('3 managers and 3 workers, all ready, all managers voting', seconds(formed)), ('one more worker, until listed as ready', seconds(joined))])


class WarrenSide:
    name = 'Warren'

    def __init__(self, bed):
        c = self.cluster = bed.cluster(3, 3)
        c.form()
        c.image()
        c.create('steady', 6)
        self.steady = identity(c.running('steady'))
        self.endpoints = [f'unix:{n.host.dir}/run/warren.sock' for n in c.managers]

    def end_leader(self, sig):
        self.ended = self.cluster.leader()
        return self.ended.kill(sig)

    def back(self):
        self.ended.run()
        self.cluster.ready()
        must('no container of a running service is touched', identity(self.cluster.running('steady')) == self.steady)

    def forget(self, prefix):
        self.cluster.remove(*(s['name'] for s in self.cluster.asked().json('service', 'ls') if s['name'].startswith(prefix)))


class EtcdSide:
    name = 'etcd'

    def __init__(self, bed):
        self.etcd = bed.add(Etcd(bed.hub))
        self.endpoints = self.etcd.endpoints()

    def end_leader(self, sig):
        self.ended = self.etcd.leader()
        return self.etcd.kill(self.ended, sig)

    def back(self):
        self.etcd.run(self.ended)
        self.etcd.ready()

    def forget(self, prefix):
        pass


def failover(bed):
    """The leader ends under eight writing clients."""
    sides = [WarrenSide(bed), EtcdSide(bed)]
    kinds = [('kill -9', signal.SIGKILL, ROUNDS or 30), ('graceful stop', signal.SIGTERM, max(1, (ROUNDS or 30) // 3))]
    rows = []
    for what, sig, rounds in kinds:
        waits, writes, lost = {s.name: [] for s in sides}, {s.name: 0 for s in sides}, {s.name: 0 for s in sides}
        for i in range(rounds):
            for side in sides if i % 2 else sides[::-1]:
                prefix = f"{what.split()[0]}{i}"
                load = Load.writers(side.endpoints, prefix)
                try:
                    time.sleep(random.uniform(0.5, 1.0))
                    sent = side.end_leader(sig)
                    time.sleep(4)
                    until = time.monotonic_ns()
                    seen = load.done()
                finally:
                    load.end()
                until, length = silence(seen['acks_ns'], sent, until)
                # After a graceful stop writes go on for a moment: the silence itself is what clients see.
                waits[side.name].append(until if sig == signal.SIGKILL else length)
                writes[side.name] += len(seen['acks_ns'])
                lost[side.name] += seen['lost']
                if seen['lost']:
                    print(side.name, i, seen['lost_first'])
                side.back()
                side.forget(prefix)
        for side in sides:
            rows.append((f'{what} of the leader, next accepted write, {side.name}', millis(waits[side.name])))
            rows.append((f'  {what}: outliers, {side.name}', tail(waits[side.name], 1000 if sig == signal.SIGKILL else 100)))
            rows.append((f'  {what}: acknowledged writes lost, {side.name}', f'{lost[side.name]} of {writes[side.name]}'))
            must(f'{side.name} loses nothing that it acknowledged', not lost[side.name])
        medians = [statistics.median(waits[s.name]) for s in sides]
        rows.append((f'{what}: ratio of medians, Warren to etcd', f'{medians[0] / medians[1]:.2f}x'))
    show('the leader ends under 8 writing clients', rows)


def busiest(c):
    count = {w.name: sum(t['node'] == w.name for t in c.running('s')) for w in c.workers}
    return c.node(max(count, key=count.get))


def elsewhere(c, lost, sent, but=()):
    """Seconds until all tasks run on other nodes."""
    def look():
        tasks = c.tasks('s', but)
        return (len(tasks) == 6 and all(t['state'] == 'running' and t['node'] != lost.name for t in tasks)) or False
    wait_for(look, 'tasks elsewhere', 40, 0.02)
    return (time.monotonic_ns() - sent) / 1e9


def worker_loss(bed):
    c = bed.cluster(3, 3)
    c.form()
    c.image()
    took = {'kill': [], 'cut': [], 'both': []}
    for _ in range(ROUNDS or 5):
        for what in took:
            c.create('s', 6)
            time.sleep(random.uniform(1.0, 2.0))
            lost, dead = busiest(c), None
            if what == 'kill':
                sent = lost.down()
            elif what == 'cut':
                sent = lost.host.cut()
            else:
                dead = c.leader()
                sent = dead.down()
                lost.down()
            took[what].append(elsewhere(c, lost, sent))
            if what == 'cut':
                lost.host.mend()
                # The stale copies end once the node is told.
                wait_for(lambda: len(lost.host.processes('/bin/httpd')) == 0 or False, 'stale copies gone', 20)
            else:
                lost.reboot()
            if dead:
                dead.reboot()
            c.ready()
            c.remove('s')
    show('tasks of a lost node running elsewhere (Docker Swarm 20.10, measured apart: 18.6 s)', [
        ('kill -9 of a whole worker', seconds(took['kill'])), ('link of a worker cut', seconds(took['cut'])),
        ('whole leader and whole worker killed together', seconds(took['both']))])


def pause(bed):
    """SIGSTOP for a while: what is rescheduled, against what the rules ask for."""
    c = bed.cluster(3, 3)
    c.form()
    c.image()
    c.create('r', 3)
    c.create('k', 3, '--on-disconnect', 'keep')
    rows = []
    lengths = [int(x) for x in os.environ.get('WARREN_BENCH_PAUSES', '1,2,5,10,30').split(',')]
    for what in ('leader', 'worker', 'host of the leader', 'host of a worker'):
        for length in lengths:
            on = {s: {t['id']: t['node'] for t in c.running(s)} for s in 'rk'}
            attempts = {s: identity(c.running(s)) for s in 'rk'}
            node = c.leader() if 'leader' in what else c.node(next(iter(on['r'].values())))
            if 'host' in what:
                node.answers = False
                node.host.signal_all('STOP')
                time.sleep(length)
                node.host.signal_all('CONT')
                node.answers = True
            else:
                node.signal(signal.SIGSTOP)
                time.sleep(length)
                node.signal(signal.SIGCONT)
            # Nodes are down after 3 s of silence: whoever sleeps longer loses what may be replaced, and that alone.
            expected = {s: {i for i, n in on[s].items() if n == node.name and s == 'r' and length > 3} for s in 'rk'}
            c.ready()
            settled(c)
            gone = {s: set(on[s]) - {t['id'] for t in c.running(s)} for s in 'rk'}
            touched = [i for s in 'rk' for i, seen in identity(c.running(s)).items() if i in attempts[s] and attempts[s][i] != seen]
            counted = f"{sum(map(len, gone.values()))} rescheduled, {sum(map(len, expected.values()))} asked for, {len(touched)} restarted"
            rows.append((f'SIGSTOP of {what} for {length} s', counted))
            must(f'{what}, {length} s: {counted}', gone == expected and not touched)
    show('pauses', rows)


def settled(c):
    """Nothing changes for two seconds."""
    last, since = None, time.monotonic()
    while time.monotonic() - since < 2:
        now = c.asked().json('cluster', 'info')['revision']
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)


def edge(bed):
    c = bed.cluster(3, 1)
    c.form()
    c.image()
    (w,) = c.workers
    served = lambda: w.host.processes('/bin/httpd')
    c.create('k', 10, '--on-disconnect', 'keep', '--restart-window', '100ms')
    restarted, back, healed = [], [], []
    w.host.cut()
    time.sleep(5)
    for _ in range(2 * (ROUNDS or 5)):
        victim = random.choice(sorted(served()))
        sent = end(victim)
        wait_for(lambda: len(served()) == 10 or False, 'restarted', 20, 0.005)
        restarted.append((time.monotonic_ns() - sent) / 1e9)
        time.sleep(0.3)
    for i in range(ROUNDS or 5):
        w.down()
        start = time.monotonic()
        w.host.up()
        daemon = w.daemon('node', 'run')
        wait_for(lambda: len(served()) == 10 or False, 'all up', 60, 0.01)
        back.append(time.monotonic() - start)
        finish(daemon)
        before = served()
        w.host.mend()
        wait_for(lambda: any(n['hostname'] == w.name and n['status'] == 'ready' for n in c.asked().json('node', 'ls')) or False, 'ready again')
        wait_for(lambda: len(c.running('k')) == 10 or False, 'reported')
        settled(c)
        healed.append(len(before ^ served()))
        if i + 1 < (ROUNDS or 5):
            w.host.cut()
            time.sleep(4)
    must('nothing is restarted after healing', not sum(healed))
    show('a worker without managers, policy keep, 10 tasks', [
        ('kill -9 of a container to 10 running again, cut off', seconds(restarted)), ('reboot without managers, power on to all running', seconds(back)),
        ('containers touched after healing', f'{sum(healed)} in {len(healed)} times')])


def quorum(bed):
    refused, stale, stopped, recovered, exits = [], [], [], [], set()
    for i in range(ROUNDS or 3):
        c = bed.cluster(3, 2)
        c.form()
        c.image()
        c.create('web', 2, '-p', '9000:80')
        c.asked().cli('service', 'create', f'last{i}', '--image', 'bb:1', '--replicas', '0', '--no-check', '--detach')
        before = {s['name']: (s['id'], s['desired']) for s in c.asked().json('service', 'ls')}
        steady = identity(c.running('web'))
        leader = c.leader()
        left = next(n for n in c.managers if n is not leader)
        for node in c.managers:
            if node is not left:
                node.down()
        time.sleep(2)
        for w in c.workers:
            get_200(w.host.address, 9000)
        read = left.ask('service', 'ls')
        info = left.json('cluster', 'info')
        must(f'reads are answered and marked stale: {read.returncode} {read.stderr!r}', read.returncode == 0 and 'may be old' in read.stderr and info['stale_ms'] > 0)
        stale.append(info['stale_ms'])
        for args in (('service', 'scale', 'web=3', '--detach'), ('service', 'create', 'new', '--image', 'bb:1', '--no-check', '--detach'), ('service', 'rm', 'web')):
            start = time.monotonic()
            out = left.ask(*args)
            refused.append(time.monotonic() - start)
            exits.add(out.returncode)
        # Workloads are left alone, however long it takes.
        time.sleep(6)
        for w in c.workers:
            get_200(w.host.address, 9000)
        start = time.monotonic()
        left.apart('node', 'stop')
        left.answers = False
        stopped.append(time.monotonic() - start)
        start = time.monotonic()
        left.apart('cluster', 'recover', '--yes')
        left.run()
        wait_for(lambda: left.ask('cluster', 'info').returncode == 0 and left.json('cluster', 'info')['stale_ms'] == 0 or False, 'a leader')
        left.cli('service', 'create', 'after', '--image', 'bb:1', '--replicas', '0', '--no-check', '--detach')
        recovered.append(time.monotonic() - start)
        after = {s['name']: (s['id'], s['desired']) for s in left.json('service', 'ls')}
        after.pop('after')
        must(f'the last state is back: {before} {after}', before == after)
        wait_for(lambda: sum(n['status'] == 'ready' and n['role'] == 'worker' for n in left.json('node', 'ls')) == 2 or False, 'workers back')
        settled(c)
        now = identity(c.running('web'))
        must(f'no container is touched by loss and recovery: {steady} {now}', now == steady)
        bed.drop(c)
    must(f'writes end with 5: {exits}', exits == {5})
    must(f'writes are refused in time: {max(refused):.2f} s', max(refused) <= 5)
    show('two of three managers lost', [('a write is refused (exit 5) after', seconds(refused)), ('reads say how old they may be, ms', str(stale)),
                                         ('graceful stop of the survivor', seconds(stopped)),
                                         ('recover on the survivor, until the next accepted write', seconds(recovered))])


def rss_kib(pid):
    with open(f'/proc/{pid}/smaps_rollup') as f:
        return next(int(line.split()[1]) for line in f if line.startswith('Rss:'))


def rest(c, length, pids):
    """What each daemon costs over a time: percent of a core, PSS, RSS."""
    start = {name: cpu_seconds([pid]) for name, pid in pids.items()}
    began = time.monotonic()
    time.sleep(length)
    took = time.monotonic() - began
    return {name: ((cpu_seconds([pid]) - start[name]) / took * 100, pss_kib(pid) / 1024, rss_kib(pid) / 1024) for name, pid in pids.items()}


def cost(seen):
    return f'{seen[0]:.2f} % of a core, {seen[1]:.1f} MiB PSS, {seen[2]:.1f} MiB RSS'


def idle(bed):
    c = bed.cluster(3, 3)
    c.form()
    c.image()
    c.create('s', 6)
    time.sleep(10)
    pids = {n.name: n.pid() for n in c.nodes}
    leader, length = c.leader(), SECONDS or 300
    info = lambda: c.asked().json('cluster', 'info')['revision']
    state = lambda: [(n.name, n.store_bytes()) for n in c.managers]
    revision, stored, applied = info(), state(), entries(leader)
    seen = rest(c, length, pids)
    written = info() - revision
    rows = [(f'revisions and log entries in {length} s', f'{written}, {entries(leader) - applied}'), ('bytes of logs grown', str([b - a for (_, a), (_, b) in zip(stored, state())]))]
    rows += [(f'{n.name} ({"leader" if n is leader else n.kind})', cost(seen[n.name])) for n in c.nodes]
    must('the same node leads all the time', c.leader() is leader)
    must(f'an idle cluster writes nothing: {rows[0][1]}', rows[0][1] == '0, 0')
    show('3 managers and 3 workers at rest, 6 containers', rows)


def entries(node):
    """Index of the last entry in a manager's log of consensus."""
    connection = http.client.HTTPConnection(node.host.address, 9090, timeout=5)
    connection.request('GET', '/metrics')
    text = connection.getresponse().read().decode()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith('warren_store_last_index '))


def agents(bed):
    c = bed.cluster(3, 0)
    c.form()
    token = c.token('worker')
    managers = [x for n in c.managers for x in ('--manager', f'{n.host.address}:2377')]
    load = Load('agents', '--count', str(AGENTS), *managers, WARREN_TOKEN=token)
    try:
        time.sleep(10)
        leader, length = c.leader(), SECONDS or 60
        revision = c.asked().json('cluster', 'info')['revision']
        seen = rest(c, length, {n.name: n.pid() for n in c.managers})
        written = c.asked().json('cluster', 'info')['revision'] - revision
        nodes = c.asked().json('node', 'ls')
        ready = sum(n['status'] == 'ready' for n in nodes)
        told = load.done()
    finally:
        load.end()
    must(f'all agents are ready: {ready} of {AGENTS + 3}', ready == AGENTS + 3)
    rows = [(f'{AGENTS} joined and in session after', f"{told['joined_s']:.1f} s, {AGENTS / told['joined_s']:.0f}/s"),
            ('sessions at the end, ended, beats, answers', f"{told['open']}, {told['ended']}, {told['beats']}, {told['answers']}"),
            (f'revisions in {length} s', str(written))]
    rows += [(f'{n.name} ({"leader" if n is leader else "manager"})', cost(seen[n.name])) for n in c.managers]
    show(f'{AGENTS} agents on 3 managers', rows)


def replicas(bed):
    """A service of one replica gets a thousand, on agents that only say that they run."""
    c = bed.cluster(3, 0)
    c.form()
    managers = [x for n in c.managers for x in ('--manager', f'{n.host.address}:2377')]
    load = Load('agents', '--obey', '--count', '100', *managers, WARREN_TOKEN=c.token('worker'))
    up, down = [], []
    try:
        for _ in range(ROUNDS or 5):
            c.asked().cli('service', 'create', 'wide', '--image', 'none:1', '--no-check')
            for count, waits in ((1000, up), (1, down)):
                sent = time.monotonic()
                c.asked().cli('service', 'scale', f'wide={count}', '--detach')

                def all_there():
                    (wide,) = c.asked().json('service', 'ls')
                    return (wide['running'] == count) or False
                wait_for(all_there, f'{count} replicas', 60, 0.02)
                waits.append(1000 * (time.monotonic() - sent))
            c.remove('wide')
            wait_for(lambda: not c.asked().json('service', 'ls'), 'the end of all', 60)
    finally:
        load.end()
    show('1 to 1,000 replicas on 100 agents, 3 managers', [('until all run', millis(up)), ('back to one', millis(down))])


def slope(samples):
    """Per hour, by least squares."""
    if len(samples) < 2:
        return 0.0
    x, y = [s[0] / 3600 for s in samples], [s[1] for s in samples]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def soak(bed):
    """Services come and go at an even rate; what grows?"""
    length, warm = SECONDS or 3600, (SECONDS or 3600) / 6
    c = bed.cluster(3, 3)
    c.form()
    c.image()
    c.create('steady', 6)
    steady = identity(c.running('steady'))
    pids = {n.name: n.pid() for n in c.nodes}
    samples, stop, rounds = {name: [] for name in pids}, threading.Event(), [0]

    def churn(number):
        while not stop.is_set():
            name = f'c{number}'
            c.create(name, 2, '--detach')
            c.asked().cli('wait', 'service', name, '--timeout', '60s')
            c.asked().cli('service', 'scale', f'{name}=4')
            c.remove(name)
            rounds[0] += 1
            stop.wait(0.5)

    load = Load.writers([f'unix:{n.host.dir}/run/warren.sock' for n in c.managers], 'soak', clients=2, pace_ms=50)
    threads = [threading.Thread(target=churn, args=(i,), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        began = time.monotonic()
        while time.monotonic() - began < length:
            time.sleep(max(2, length / 360))
            now = time.monotonic() - began
            for node in c.nodes:
                pid = pids[node.name]
                stored = node.store_bytes() / 2**20 if node in c.managers else 0
                samples[node.name].append((now, pss_kib(pid) / 1024, len(os.listdir(f'/proc/{pid}/fd')), stored))
            must('churn goes on', all(t.is_alive() for t in threads))
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
        told = load.done()
        load.end()
    rows = [('rounds of create, scale, remove', str(rounds[0])), ('acknowledged writes, lost', f"{len(told['acks_ns'])}, {told['lost']}")]
    for name, seen in samples.items():
        late = [s for s in seen if s[0] >= warm]
        memory, files = slope([(s[0], s[1]) for s in late]), slope([(s[0], s[2]) for s in late])
        rows.append((name, f'{late[-1][1]:.1f} MiB PSS, {memory:+.2f} MiB/h; {late[-1][2]} descriptors, {files:+.1f}/h (min {min(s[2] for s in late)}, '
                           f'max {max(s[2] for s in late)}); store {late[-1][3]:.1f} MiB, at most {max(s[3] for s in seen):.1f}'))
    must('no container of a steady service is touched', identity(c.running('steady')) == steady)
    must('nothing acknowledged is lost', told['lost'] == 0)
    show(f'{length} s of churn', rows)


def main():
    all = {'form': form, 'failover': failover, 'worker-loss': worker_loss, 'pause': pause, 'edge': edge, 'quorum': quorum, 'idle': idle,
           'agents': agents, 'replicas': replicas, 'soak': soak}
    wanted = sys.argv[1:]
    if not wanted or not set(wanted) <= set(all):
        sys.exit(__doc__)
    with Bed() as bed:
        for what in wanted:
            all[what](bed)
            for part in bed.parts[:0:-1]:
                bed.drop(part)
    if failures:
        sys.exit('\n'.join(failures))


if __name__ == '__main__':
    main()
