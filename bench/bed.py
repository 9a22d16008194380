"""Hosts of a cluster in one kernel, Warren or etcd on them, and load: what bench/cluster.py measures with.

A host is a network namespace on the bridge of `lib.Hub` and a first process with namespaces of processes, mounts and name;
when that one is killed the kernel ends all that runs on the host, as a power cut would. Standard library only.
"""
import contextlib, json, os, shutil, signal, subprocess, sys, time, uuid
from lib import ROOT, WARREN, WORK, Hub, need, processes, run, wait_for

LOAD = os.environ.get('WARREN_LOAD', f'{ROOT}/target/release/warren-load')
BED = f'{WORK}/bed'
PREFIX = 'wbc'
FIRST = '''set -eu
mount -t proc proc /proc
echo "$1" >/proc/sys/kernel/hostname
mount --bind "$2" /proc/sys/kernel/random/boot_id
echo up
trap '' HUP INT TERM
read -r _ || true'''


def parents():
    """Parent of each process."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError), open(f'/proc/{pid}/stat') as f:
            found[int(pid)] = int(f.read().rsplit(')', 1)[1].split()[1])
    return found


def end(pid, sig=signal.SIGKILL, limit=30):
    """A signal, then the end of the process: what runs next must find its locks free. When it was sent."""
    fd = os.pidfd_open(pid)
    try:
        sent = time.monotonic_ns()
        signal.pidfd_send_signal(fd, sig)
        wait_for(lambda: not alive(pid) or False, f'end of {pid}', limit, 0.001)
        return sent
    finally:
        os.close(fd)


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


class Host:
    def __init__(self, hub, name, address):
        self.name, self.address, self.dir = name, address, f'{BED}/{name}'
        self.link = PREFIX + name
        os.makedirs(self.dir)
        hub.host(self.link, address)
        self.keeper = None
        self.up()

    def up(self):
        with open(f'{self.dir}/boot_id', 'w') as f:
            f.write(f'{uuid.uuid4()}\n')
        shutil.rmtree(f'{self.dir}/run', ignore_errors=True)
        # At its end unshare complains of its own death.
        self.keeper = subprocess.Popen(
            ['nsenter', f'--net=/run/netns/{self.link}', 'unshare', '--uts', '--pid', '--mount', '--ipc', '--fork', '--kill-child', '--',
             'bash', '-c', FIRST, 'first', self.name, f'{self.dir}/boot_id'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if self.keeper.stdout.read(3) != b'up\n':
            raise RuntimeError(f'host {self.name} does not come up')
        with open(f'/proc/{self.keeper.pid}/task/{self.keeper.pid}/children') as f:
            self.init = int(f.read().split()[0])

    def remove(self):
        self.down()
        # The namespace takes its time; the other end of the link must not be there for the next of this name.
        run('ip', '-n', 'wbhub', 'link', 'del', self.link, check=False)
        run('ip', 'netns', 'del', self.link, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def within(self, *args):
        return ['nsenter', '--target', str(self.init), '--all', *args]

    def down(self):
        """Power off; returns when all is gone. When it was done."""
        if not self.keeper:
            return None
        sent = time.monotonic_ns()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self.keeper.wait(30)
        self.keeper = None
        return sent

    def cut(self):
        run('ip', '-n', 'wbhub', 'link', 'set', self.link, 'down')
        return time.monotonic_ns()

    def mend(self):
        run('ip', '-n', 'wbhub', 'link', 'set', self.link, 'up')

    def signal_all(self, name):
        run(*self.within('/bin/kill', f'-{name}', '--', '-1'), check=False)

    def processes(self, command=None):
        """Pids, as seen from here, of what runs on the host."""
        parent, found, own = parents(), set(), os.stat(f'/proc/{self.init}/ns/pid').st_ino
        for pid in parent:
            with contextlib.suppress(OSError):
                if os.stat(f'/proc/{pid}/ns/pid').st_ino == own:
                    found.add(pid)
        # Containers have a namespace of their own.
        grown = True
        while grown:
            more = {pid for pid, of in parent.items() if of in found} - found
            found |= more
            grown = bool(more)
        if command is None:
            return found
        return {pid for pid, args in processes() if pid in found and args[0] == command and alive(pid)}

    def outer(self, inner):
        """Pid as seen from here of one as seen there."""
        for pid in self.processes():
            with contextlib.suppress(OSError), open(f'/proc/{pid}/status') as f:
                line = next((line for line in f if line.startswith('NSpid:')), '')
                if line.split()[-1:] == [str(inner)] and len(line.split()) == 3:
                    return pid
        raise RuntimeError(f'{self.name}: no process {inner}')


class Node:
    """The program on a host."""

    def __init__(self, host, kind):
        self.host, self.kind, self.name = host, kind, host.name
        self.answers = False
        d = host.dir
        self.env = {k: v for k, v in os.environ.items() if not k.startswith('WARREN')}
        self.env |= {'WARREN_DATA_DIR': f'{d}/data', 'WARREN_RUN_DIR': f'{d}/run', 'WARREN_SOCKET': f'{d}/run/warren.sock',
                     'WARREN_ADVERTISE': host.address, 'WARREN_ADMIN': '0.0.0.0:9090'}

    def daemon(self, *args, **env):
        """A verb that runs a node, in the background."""
        return subprocess.Popen(self.host.within(WARREN, *args, '--detach'), env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def start(self, *args, **env):
        finish(self.daemon(*args, **env))
        self.answers = True

    def run(self):
        self.start('node', 'run')

    def apart(self, *args):
        """A verb that works on the files or the process of its own node: where those are."""
        run(*self.host.within(WARREN, *args), env=self.env)

    def down(self):
        self.answers = False
        return self.host.down()

    def reboot(self):
        self.host.up()
        self.run()

    def ask(self, *args, timeout=60):
        return subprocess.run([WARREN, *args], env=self.env, capture_output=True, text=True, timeout=timeout)

    def cli(self, *args):
        out = self.ask(*args)
        if out.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(args)}: exit {out.returncode}\n{out.stdout}{out.stderr}")
        return out.stdout

    def json(self, *args):
        return json.loads(self.cli(*args, '--format', 'json'))

    def pid(self):
        with open(f'{self.host.dir}/run/warren.pid') as f:
            return self.host.outer(int(f.read()))

    def kill(self, sig=signal.SIGKILL):
        self.answers = False
        return end(self.pid(), sig)

    def signal(self, sig):
        self.answers = sig == signal.SIGCONT
        os.kill(self.pid(), sig)

    def store_bytes(self):
        store = f'{self.host.dir}/data/store'
        return sum(os.path.getsize(os.path.join(base, f)) for base, _, files in os.walk(store) for f in files)

    def sweep(self):
        with contextlib.suppress(OSError, ValueError), open(f'{self.host.dir}/data/node.json') as f:
            key = json.load(f)['node_id'][:8]
            for controller in os.listdir('/sys/fs/cgroup'):
                for base, _, _ in os.walk(f'/sys/fs/cgroup/{controller}/warren-{key}', topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(base)


def finish(process, limit=60):
    out, _ = process.communicate(timeout=limit)
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args)}: exit {process.returncode}\n{out}")


class Cluster:
    """Managers m1… that run no containers, and workers w1…"""

    def __init__(self, hub, managers, workers):
        place = [(f'm{i}', 'manager', f'10.88.0.{40 + i}') for i in range(1, managers + 1)]
        place += [(f'w{i}', 'worker', f'10.88.0.{60 + i}') for i in range(1, workers + 1)]
        self.nodes = [Node(Host(hub, name, address), kind) for name, kind, address in place]
        self.managers = [n for n in self.nodes if n.kind == 'manager']
        self.workers = [n for n in self.nodes if n.kind == 'worker']

    def node(self, name):
        return next(n for n in self.nodes if n.name == name)

    def form(self, but=()):
        """Seconds from the first command to all nodes ready and all managers voting."""
        start = time.monotonic()
        first = self.managers[0]
        first.start('cluster', 'init', '--manager-only')
        tokens = {kind: self.token(kind) for kind in ('manager', 'worker')}
        rest = [n for n in self.nodes[1:] if n not in but]
        joins = [self.joining(n, tokens[n.kind]) for n in rest]
        for node, join in zip(rest, joins):
            finish(join)
            node.answers = True
        self.ready(len(rest) + 1)
        return time.monotonic() - start

    def token(self, kind):
        return self.managers[0].cli('cluster', 'token', kind, '-q').strip()

    def joining(self, node, token):
        mode = ['--manager-only'] if node.kind == 'manager' else []
        return node.daemon('node', 'join', *mode, f'{self.managers[0].host.address}:2377', WARREN_TOKEN=token)

    def ready(self, count=None, limit=60):
        """Waits until all nodes are ready and all managers vote."""
        count = count or len(self.nodes)

        def look():
            nodes = self.asked().json('node', 'ls', '--linearizable')
            voting = sum(n['manager_status'] in ('leader', 'voter', 'reachable') for n in nodes)
            return (sum(n['status'] == 'ready' for n in nodes) == count and voting == len(self.managers)) or False
        return wait_for(look, f'{count} nodes ready', limit, 0.01)

    def asked(self, but=()):
        """A manager that answers."""
        for node in self.managers:
            if node not in but and node.answers:
                return node
        raise RuntimeError('no manager runs')

    def leader(self):
        def look():
            found = [n for n in self.asked().json('node', 'ls') if n['leader']]
            self.led = found and self.node(found[0]['hostname'])
            return bool(found)
        wait_for(look, 'a leader')
        return self.led

    def image(self):
        """All workers have it: fetching is not what is measured."""
        for node in self.workers:
            node.cli('image', 'import', f'{WORK}/rootfs.tar', 'bb:1', '--cmd', '/bin/httpd -f -p 80 -h /www')

    def create(self, name, replicas, *flags):
        self.asked().cli('service', 'create', name, '--image', 'bb:1', '--replicas', str(replicas), '--restart-delay', '0s', '--stop-signal', 'SIGKILL', *flags)

    def tasks(self, name, but=(), wanted=True):
        tasks = self.asked(but).json('service', 'ps', name)
        return [t for t in tasks if t['desired_state'] == 'running'] if wanted else tasks

    def running(self, name, but=()):
        return [t for t in self.tasks(name, but) if t['state'] == 'running']

    def remove(self, *names):
        if names:
            self.asked().cli('service', 'rm', *names)

    def close(self):
        for node in self.nodes:
            node.host.down()
            node.sweep()
        for node in self.nodes:
            node.host.remove()


class Etcd:
    """Debian's etcd, three members, with the election times of Warren's profile for local networks."""

    def __init__(self, hub):
        need('etcd-server')
        self.hosts = [Host(hub, f'e{i}', f'10.88.0.{80 + i}') for i in (1, 2, 3)]
        self.members = {}
        for host in self.hosts:
            self.run(host)
        self.ready()

    def run(self, host):
        peers = ','.join(f'{h.name}=http://{h.address}:2380' for h in self.hosts)
        log = open(f'{host.dir}/log', 'a')
        self.members[host.name] = subprocess.Popen(
            host.within('etcd', '--name', host.name, '--data-dir', f'{host.dir}/data', '--heartbeat-interval', '50', '--election-timeout', '300',
                        '--listen-peer-urls', 'http://0.0.0.0:2380', '--initial-advertise-peer-urls', f'http://{host.address}:2380',
                        '--listen-client-urls', 'http://0.0.0.0:2379', '--advertise-client-urls', f'http://{host.address}:2379',
                        '--initial-cluster', peers, '--initial-cluster-state', 'new', '--logger', 'zap', '--log-level', 'error'),
            stdout=log, stderr=log, env={'PATH': os.environ['PATH']})
        log.close()

    def endpoints(self):
        return [f'http://{h.address}:2379' for h in self.hosts]

    def status(self, host):
        import urllib.request
        with urllib.request.urlopen(urllib.request.Request(f'http://{host.address}:2379/v3/maintenance/status', b'{}'), timeout=2) as answer:
            return json.load(answer)

    def ready(self):
        def look():
            all = [self.status(h) for h in self.hosts]
            return (len({s.get('leader') for s in all}) == 1 and all[0].get('leader', '0') != '0') or False
        wait_for(look, 'etcd ready')

    def leader(self):
        for host in self.hosts:
            status = self.status(host)
            if status['leader'] == status['header']['member_id']:
                return host
        raise RuntimeError('etcd has no leader')

    def kill(self, host, sig=signal.SIGKILL):
        (pid,) = host.processes('etcd')
        sent = end(pid, sig)
        self.members[host.name].wait()
        return sent

    def close(self):
        for host in self.hosts:
            host.remove()


class Load:
    """warren-load: started, then ended by `done`, which says what it saw."""

    def __init__(self, *args, **env):
        self.process = subprocess.Popen([LOAD, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **env})
        if self.process.stdout.readline() != 'ready\n':
            self.process.kill()
            raise RuntimeError(f'load: {self.process.stderr.read()}')

    @classmethod
    def writers(cls, endpoints, prefix, clients=8, keys=4, pace_ms=0):
        return cls('write', '--clients', str(clients), '--keys', str(keys), '--prefix', prefix, '--pace-ms', str(pace_ms),
                   *(x for e in endpoints for x in ('--endpoint', e)))

    def done(self, limit=90):
        out, err = self.process.communicate(timeout=limit)
        if self.process.returncode:
            raise RuntimeError(f'load: {err}')
        return json.loads(out)

    def end(self):
        self.process.kill()
        self.process.wait()


def silence(acks, after_ns, until_ns):
    """The longest time without an acknowledgement that ends after a moment: its end counted from there, and its length, in ms."""
    longest, at = 0, after_ns
    for one, two in zip(acks, acks[1:] + [until_ns]):
        if two > after_ns and two - one > longest:
            longest, at = two - one, two
    return (at - after_ns) / 1e6, longest / 1e6


class Bed:
    """`with Bed() as bed`: everything that is added goes away, also when a run fails."""

    def __enter__(self):
        for binary in (WARREN, LOAD):
            if not os.path.exists(binary):
                sys.exit(f'{binary} is missing: run this by make')
        self.parts = []
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.sweep()
        os.makedirs(BED)
        try:
            self.hub = self.add(Hub())
        except BaseException:
            self.__exit__()
            raise
        return self

    def add(self, part):
        self.parts.append(part)
        return part

    def cluster(self, managers, workers):
        return self.add(Cluster(self.hub, managers, workers))

    def drop(self, part):
        self.parts.remove(part)
        part.close()

    def __exit__(self, *_):
        for part in reversed(self.parts):
            try:
                part.close()
            except Exception as error:  # the rest must still be cleaned
                print(f'clean up: {error}', file=sys.stderr)
        self.sweep()

    @staticmethod
    def sweep():
        for name in os.listdir('/run/netns') if os.path.isdir('/run/netns') else []:
            if name.startswith(PREFIX) or name == 'wbhub':
                run('ip', 'netns', 'del', name, check=False)
        shutil.rmtree(BED, ignore_errors=True)
