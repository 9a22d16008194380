#!/usr/bin/env python3
"""Writes a second of three managers beside three members of Debian's etcd: bench/etcd.py

Both on loopback with their data in the same folder's file system, real syncs, heartbeats of 50 ms and elections from 300 ms on,
by the same load (crates/store/examples/bench_raft.rs). One system runs at a time, in turns, each time from nothing; what counts
is the ratio of the two within a round. WARREN_BENCH_ROUNDS (5), WARREN_BENCH_SECONDS (4) and WARREN_BENCH_CLIENTS (1,8,64,256)
make a run shorter or longer, WARREN_BENCH_DIR says where the data is, WARREN_BENCH_RAFT which build of the example to run.
"""
import contextlib, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RAFT = os.environ.get('WARREN_BENCH_RAFT', f'{ROOT}/target/release/examples/bench_raft')
ROUNDS = int(os.environ.get('WARREN_BENCH_ROUNDS', 5))
SECONDS = int(os.environ.get('WARREN_BENCH_SECONDS', 4))
CLIENTS = [int(n) for n in os.environ.get('WARREN_BENCH_CLIENTS', '1,8,64,256').split(',')]
DIR = os.environ.get('WARREN_BENCH_DIR', '/var/tmp')
READY = 30


def ports(count):
    """Free ones, as far as anybody can tell."""
    held = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
    found = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return found


@contextlib.contextmanager
def started(commands):
    """Processes that end with the block, by their own pids."""
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        yield running
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
        for process in running:
            process.wait()


@contextlib.contextmanager
def warren(folder):
    peers, fronts = ports(3), ports(3)
    address = [f'127.0.0.1:{p}' for p in peers]

    def node(i, *others):
        return [RAFT, 'node', f'{folder}/w{i}', str(i + 1), address[i], f'127.0.0.1:{fronts[i]}', *others]
    # Those that wait come first; the one that forms the cluster says so when all vote.
    with started([node(1), node(2)]) as waiting:
        for process in waiting:
            assert process.stdout.readline() == 'ready\n', 'a manager did not start'
        with started([node(0, f'2={address[1]}', f'3={address[2]}')]) as first:
            assert first[0].stdout.readline() == 'ready\n', 'the managers did not form'
            yield f'127.0.0.1:{fronts[0]}'


@contextlib.contextmanager
def etcd(folder):
    peer, client = ports(3), ports(3)
    cluster = ','.join(f'e{i}=http://127.0.0.1:{peer[i]}' for i in range(3))

    def member(i):
        return ['etcd', '--name', f'e{i}', '--data-dir', f'{folder}/e{i}', '--heartbeat-interval', '50', '--election-timeout', '300',
                '--listen-peer-urls', f'http://127.0.0.1:{peer[i]}', '--initial-advertise-peer-urls', f'http://127.0.0.1:{peer[i]}',
                '--listen-client-urls', f'http://127.0.0.1:{client[i]}', '--advertise-client-urls', f'http://127.0.0.1:{client[i]}',
                '--initial-cluster', cluster, '--initial-cluster-state', 'new', '--log-level', 'error']
    with started([member(i) for i in range(3)]):
        yield leader([f'127.0.0.1:{c}' for c in client])


def leader(endpoints):
    """Whoever leads: a follower would only pass writes on."""
    end = time.monotonic() + READY
    while time.monotonic() < end:
        asked = subprocess.run(['etcdctl', '--endpoints', ','.join(endpoints), 'endpoint', 'status', '-w', 'json'], capture_output=True,
                               text=True, env={**os.environ, 'ETCDCTL_API': '3'})
        with contextlib.suppress(ValueError):
            found = json.loads(asked.stdout or '[]')
            leads = [s['Endpoint'] for s in found if s['Status']['leader'] == s['Status']['header']['member_id']]
            if len(found) == 3 and leads:
                return leads[0]
        time.sleep(0.1)
    raise RuntimeError('etcd elected no leader')


def measure(system, run, folder):
    os.makedirs(folder)
    try:
        with run(folder) as address:
            out = {}
            for clients in CLIENTS:
                line = subprocess.run([RAFT, 'load', system, address, str(clients), str(SECONDS)], capture_output=True, text=True, check=True)
                out[clients] = json.loads(line.stdout)
            return out
    finally:
        shutil.rmtree(folder)


def main():
    for need in (RAFT, shutil.which('etcd'), shutil.which('etcdctl')):
        if not need or not os.path.exists(need):
            sys.exit('needs etcd-server, etcd-client, and: cargo build --release -p warren-store --example bench_raft')
    sides = {'warren': warren, 'etcd': etcd}
    rounds = []
    with tempfile.TemporaryDirectory(dir=DIR, prefix='raft-') as folder:
        for n in range(ROUNDS):
            order = list(sides) if n % 2 == 0 else list(sides)[::-1]
            rounds.append({side: measure(side, sides[side], f'{folder}/{n}-{side}') for side in order})
            print(f'round {n + 1} of {ROUNDS}: {json.dumps(rounds[-1])}', file=sys.stderr, flush=True)
    print('| clients | Warren, writes/s | etcd | ratio (all) | p99 ms, Warren | etcd | p99 lower in |\n|--:|--:|--:|--:|--:|--:|--:|')
    for c in CLIENTS:
        middle = lambda side, what: statistics.median(r[side][c][what] for r in rounds)
        ratios = sorted(r['warren'][c]['writes_per_s'] / r['etcd'][c]['writes_per_s'] for r in rounds)
        lower = sum(r['warren'][c]['p99_ms'] < r['etcd'][c]['p99_ms'] for r in rounds)
        print(f"| {c} | {middle('warren', 'writes_per_s'):.0f} | {middle('etcd', 'writes_per_s'):.0f} "
              f"| **{statistics.median(ratios):.2f}** ({', '.join(f'{r:.2f}' for r in ratios)}) "
              f"| {middle('warren', 'p99_ms'):.2f} | {middle('etcd', 'p99_ms'):.2f} | {lower} of {len(rounds)} |")


if __name__ == '__main__':
    main()
