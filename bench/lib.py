"""What the benchmarks share: test hosts in network namespaces, a Docker daemon in swarm mode, a Warren node, figures.

Everything made here has the prefix `wb` and goes away with `Bench.close`, also when a run fails. Standard library only.
"""
import contextlib, http.client, json, os, shutil, signal, socket, statistics, subprocess, sys, time, urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WARREN = os.environ.get('WARREN', f'{ROOT}/target/x86_64-unknown-linux-gnu/dist/warren')
WORK = os.environ.get('WARREN_BENCH_DIR', '/var/tmp/warren-bench')
HUB, SWARM, NODE = '10.88.0.1', '10.88.0.20', '10.88.0.30'
IMAGE = f'{HUB}:5000/bb:1'


def run(*args, check=True, **kw):
    out = subprocess.run(args, check=False, capture_output=True, text=True, **kw)
    if check and out.returncode:
        raise RuntimeError(f"{' '.join(args)}: exit {out.returncode}\n{out.stdout}{out.stderr}")
    return out.stdout


def need(*packages):
    missing = [p for p in packages if 'install ok' not in run('dpkg-query', '-W', '-f', '${Status}', p, check=False)]
    if missing:
        policy = '/usr/sbin/policy-rc.d'
        if not os.path.exists(policy):
            with open(policy, 'w') as f:
                f.write('#!/bin/sh\nexit 101\n')
            os.chmod(policy, 0o755)
        run('apt-get', 'update', '-q')
        run('apt-get', 'install', '-y', '-q', '--no-install-recommends', *missing, env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})


def within(ns, *args):
    return ['nsenter', f'--net=/run/netns/{ns}', *args]


def stats(values, unit='ms', digits=1):
    v = sorted(values)
    return {'median': round(statistics.median(v), digits), 'min': round(v[0], digits), 'max': round(v[-1], digits), 'n': len(v), 'unit': unit}


def show(title, rows):
    """Rows of (what, stats or text); prints a table and one JSON line."""
    print(f'\n{title}')
    for what, s in rows:
        text = s if isinstance(s, str) else f"median {s['median']} {s['unit']}  (min {s['min']}, max {s['max']}, n={s['n']})"
        print(f'  {what:<56} {text}')
    print(json.dumps({'bench': title, 'rows': dict(rows)}), flush=True)


def ratio(ours, theirs):
    return f'{ours / theirs:.3f}x' if theirs else 'n/a'


def pss_kib(pid):
    try:
        with open(f'/proc/{pid}/smaps_rollup') as f:
            return next(int(line.split()[1]) for line in f if line.startswith('Pss:'))
    except (OSError, StopIteration):
        return 0


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            with open(f'/proc/{pid}/stat') as f:
                fields = f.read().rsplit(')', 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf('SC_CLK_TCK')


def processes():
    for pid in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError):
            with open(f'/proc/{pid}/cmdline') as f:
                yield int(pid), f.read().split('\0')


def get_200(address, port, limit=30.0, every=0.001):
    """Seconds until `GET /` answers 200, from now."""
    start = time.monotonic()
    while time.monotonic() - start < limit:
        try:
            c = http.client.HTTPConnection(address, port, timeout=2)
            c.request('GET', '/')
            ok = c.getresponse().status == 200
            c.close()
            if ok:
                return time.monotonic() - start
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(every)
    raise TimeoutError(f'{address}:{port} did not answer')


class UnixHTTP(http.client.HTTPConnection):
    def __init__(self, path, timeout=120):
        super().__init__('docker', timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Hub:
    """A bridge with a registry; this process lives in its namespace."""

    def __init__(self):
        need('docker.io', 'containerd', 'runc', 'docker-registry', 'skopeo', 'umoci', 'busybox-static', 'iproute2', 'iptables')
        os.makedirs(f'{WORK}/registry', exist_ok=True)
        run('ip', 'netns', 'add', 'wbhub')
        for args in (['link', 'set', 'lo', 'up'], ['link', 'add', 'wbbr0', 'type', 'bridge'], ['addr', 'add', f'{HUB}/24', 'dev', 'wbbr0'], ['link', 'set', 'wbbr0', 'up']):
            run('ip', '-n', 'wbhub', *args)
        self.image()
        with open(f'{WORK}/registry.yml', 'w') as f:
            f.write(f'version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {WORK}/registry}}}}\nhttp: {{addr: "0.0.0.0:5000"}}\n')
        self.registry = subprocess.Popen(within('wbhub', 'docker-registry', 'serve', f'{WORK}/registry.yml'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.setns()
        get = lambda: socket.create_connection((HUB, 5000), 1).close()
        wait_for(get, 'registry')
        run('skopeo', 'copy', '-q', '--dest-tls-verify=false', f'oci:{WORK}/oci:bb', f'docker://{IMAGE}')

    @staticmethod
    def setns():
        import ctypes
        fd = os.open('/run/netns/wbhub', os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000):
            raise OSError(ctypes.get_errno(), 'setns')
        os.close(fd)

    @staticmethod
    def image():
        run(f'{ROOT}/scripts/rootfs', f'{WORK}/rootfs.tar')
        shutil.rmtree(f'{WORK}/oci', ignore_errors=True)
        shutil.rmtree(f'{WORK}/rootfs', ignore_errors=True)
        os.makedirs(f'{WORK}/rootfs')
        run('tar', '-C', f'{WORK}/rootfs', '-xf', f'{WORK}/rootfs.tar')
        oci = f'{WORK}/oci'
        run('umoci', 'init', '--layout', oci)
        run('umoci', 'new', '--image', f'{oci}:bb')
        run('umoci', 'insert', '--image', f'{oci}:bb', f'{WORK}/rootfs', '/')
        command = [x for word in ('/bin/httpd', '-f', '-p', '80', '-h', '/www') for x in ('--config.cmd', word)]
        run('umoci', 'config', '--image', f'{oci}:bb', *command, '--config.env', 'PATH=/bin', '--config.stopsignal', 'SIGKILL', '--architecture', 'amd64', '--os', 'linux')

    def host(self, name, address):
        run('ip', 'netns', 'add', name)
        run('ip', '-n', name, 'link', 'set', 'lo', 'up')
        run('ip', 'link', 'add', name, 'netns', 'wbhub', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name)
        run('ip', '-n', 'wbhub', 'link', 'set', name, 'master', 'wbbr0', 'up')
        run('ip', '-n', name, 'addr', 'add', f'{address}/24', 'dev', 'eth0')
        run('ip', '-n', name, 'link', 'set', 'eth0', 'up')
        run('ip', '-n', name, 'route', 'add', 'default', 'via', HUB)

    def close(self):
        self.registry.terminate()
        self.registry.wait()


def wait_for(probe, what, limit=30.0, every=0.02):
    start = time.monotonic()
    while True:
        try:
            if probe() is not False:
                return time.monotonic() - start
        except (OSError, RuntimeError):
            pass
        if time.monotonic() - start > limit:
            raise TimeoutError(what)
        time.sleep(every)


class Swarm:
    """Docker of Debian in swarm mode, on a host of its own."""

    def __init__(self, hub):
        hub.host('wbswm', SWARM)
        self.dir = f'{WORK}/swarm'
        os.makedirs(f'{self.dir}/exec', exist_ok=True)
        log = open(f'{self.dir}/log', 'w')
        self.daemon = subprocess.Popen(
            within('wbswm', 'dockerd', '--data-root', f'{self.dir}/data', '--exec-root', f'{self.dir}/exec', '--pidfile', f'{self.dir}/pid',
                   '-H', f'unix://{self.dir}/sock', '--storage-driver', 'overlay2', '--insecure-registry', f'{HUB}:5000', '--cgroup-parent', '/wbswm'),
            stdout=log, stderr=log)
        wait_for(lambda: self.api('GET', '/info') and None, 'dockerd')
        run('docker', '-H', f'unix://{self.dir}/sock', 'pull', '-q', IMAGE)
        run('docker', '-H', f'unix://{self.dir}/sock', 'swarm', 'init', '--advertise-addr', SWARM)
        digest = self.api('GET', f'/distribution/{IMAGE}/json')['Descriptor']['digest']
        self.image = f'{IMAGE}@{digest}'

    def api(self, method, path, body=None):
        c = UnixHTTP(f'{self.dir}/sock')
        c.request(method, '/v1.41' + path, json.dumps(body) if body is not None else None, {'Content-Type': 'application/json'})
        r = c.getresponse()
        data = r.read()
        c.close()
        if r.status >= 400:
            raise RuntimeError(f'{method} {path}: {r.status} {data[:300]}')
        return json.loads(data) if data.strip() else None

    def create(self, name, replicas=1, port=None):
        spec = {'Name': name, 'Mode': {'Replicated': {'Replicas': replicas}},
                'TaskTemplate': {'ContainerSpec': {'Image': self.image}, 'RestartPolicy': {'Condition': 'any', 'Delay': 0}}}
        if port:  # IPVS is missing here, so the routing mesh cannot be used: the port is published on the host
            spec['EndpointSpec'] = {'Ports': [{'Protocol': 'tcp', 'TargetPort': 80, 'PublishedPort': port, 'PublishMode': 'host'}]}
        self.api('POST', '/services/create', spec)

    def scale(self, name, replicas):
        s = self.api('GET', f'/services/{name}')
        spec = s['Spec']
        spec['Mode']['Replicated']['Replicas'] = replicas
        self.api('POST', f"/services/{name}/update?version={s['Version']['Index']}", spec)

    def running(self, name=None):
        f = {'desired-state': ['running']}
        if name:
            f['service'] = [name]
        return sum(t['Status']['State'] == 'running' for t in self.api('GET', '/tasks?filters=' + urllib.parse.quote(json.dumps(f))))

    def remove_all(self):
        """Seconds until no container is left."""
        start = time.monotonic()
        for s in self.api('GET', '/services'):
            self.api('DELETE', '/services/' + s['ID'])
        wait_for(lambda: not self.api('GET', '/containers/json') or False, 'containers gone', 300, 0.05)
        return time.monotonic() - start

    def pids(self):
        return [pid for pid, args in processes() if any(f'{WORK}/swarm' in a for a in args[1:]) and 'nsenter' not in args[0]]

    def close(self):
        with contextlib.suppress(Exception):
            self.remove_all()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(20)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Warren:
    """One Warren node on a host of its own."""

    def __init__(self, hub):
        hub.host('wbwrn', NODE)
        self.dir = f'{WORK}/node'
        self.env = {**os.environ, 'WARREN_DATA_DIR': f'{self.dir}/data', 'WARREN_RUN_DIR': f'{self.dir}/run', 'WARREN_SOCKET': f'{self.dir}/run/warren.sock'}
        os.makedirs(self.dir, exist_ok=True)
        self.cli('cluster', 'init', '--detach', ns=True)
        self.cli('image', 'import', f'{WORK}/rootfs.tar', 'bb:1', '--cmd', '/bin/httpd -f -p 80 -h /www', '--stop-signal', 'SIGKILL')

    def cli(self, *args, check=True, ns=False):
        command = [WARREN, *args]
        return run(*(within('wbwrn', *command) if ns else command), check=check, env=self.env)

    def pid(self):
        with open(f'{self.dir}/run/warren.pid') as f:
            return int(f.read())

    def create(self, name, replicas=1, port=None, restart_window='5s'):
        publish = ['-p', f'{port}:80'] if port else []
        self.cli('service', 'create', name, '--image', 'bb:1', '--replicas', str(replicas), '--restart-delay', '0s',
                 '--restart-window', restart_window, '--detach', *publish)

    def scale(self, name, replicas):
        self.cli('service', 'scale', f'{name}={replicas}', '--detach')

    def tasks(self, *names):
        return json.loads(self.cli('service', 'ps', *names, '--format', 'json') if names else self.cli('ps', '--format', 'json'))

    def running(self, name=None):
        return sum(t['state'] == 'running' for t in (self.tasks(name) if name else self.tasks()))

    def remove_all(self):
        """Seconds until no container is left."""
        start = time.monotonic()
        names = [s['name'] for s in json.loads(self.cli('service', 'ls', '--format', 'json'))]
        if names:
            self.cli('service', 'rm', *names)
        return time.monotonic() - start

    def shims(self):
        return [pid for pid, args in processes() if args and args[0].startswith('warren-shim') and self.of_us(pid)]

    def of_us(self, pid):
        with contextlib.suppress(OSError):
            return os.stat(f'/proc/{pid}/ns/net').st_ino == os.stat('/run/netns/wbwrn').st_ino
        return False

    def left(self):
        """What of ours is in the kernel: counted before and after."""
        host = lambda *a: run(*within('wbwrn', *a), check=False)
        cgroups = sum(len(dirs) for d in os.listdir('/sys/fs/cgroup') for base, dirs, _ in os.walk(f'/sys/fs/cgroup/{d}') if '/warren-' in base)
        with open('/proc/self/mounts') as f:
            mounts = sum(self.dir in line for line in f)
        folders = len(os.listdir(f'{self.dir}/run/c')) if os.path.isdir(f'{self.dir}/run/c') else 0
        ns = sum(1 for _ in run('lsns', '-t', 'mnt', '-n', '-o', 'NS').splitlines())
        return {'shims': len(self.shims()), 'mounts': mounts, 'cgroups': cgroups, 'run folders': folders, 'mount namespaces': ns,
                'nft lines': len(host('nft', 'list', 'ruleset').splitlines())}

    def close(self):
        self.cli('node', 'stop', '--with-containers', check=False)


class Bench:
    """Hosts for a benchmark; `with Bench(swarm=True) as b`."""

    def __init__(self, swarm=False):
        self.want_swarm = swarm

    def __enter__(self):
        self.parts = []
        self.sweep()
        os.makedirs(WORK, exist_ok=True)
        try:
            self.hub = self.add(Hub())
            self.warren = self.add(Warren(self.hub))
            self.swarm = self.add(Swarm(self.hub)) if self.want_swarm else None
        except BaseException:
            self.__exit__()
            raise
        return self

    def add(self, part):
        self.parts.append(part)
        return part

    def __exit__(self, *_):
        for part in reversed(self.parts):
            try:
                part.close()
            except Exception as error:  # the rest must still be cleaned
                print(f'clean up: {error}', file=sys.stderr)
        self.sweep()

    @staticmethod
    def sweep():
        with open('/proc/self/mounts') as f:
            mounts = [line.split()[1] for line in f if f' {WORK}/' in line]
        for mount in sorted(mounts, reverse=True):
            run('umount', '-l', mount, check=False)
        for ns in ('wbswm', 'wbwrn', 'wbhub'):
            if os.path.exists(f'/run/netns/{ns}'):
                run('ip', 'netns', 'del', ns, check=False)
        for folder in ('swarm', 'node'):
            shutil.rmtree(f'{WORK}/{folder}', ignore_errors=True)
