#!/usr/bin/env python3
"""Pulls of one image, side by side: Warren, skopeo copy into a folder (download alone), containerd (ctr pull).

All in a network namespace of its own, from Debian's docker-registry on loopback: three layers of this machine's own
files (programs, libraries, many small ones). Wall time and CPU of daemon and client together, of the same rounds.
"""
import os, resource, shutil, signal, subprocess, sys, time

from lib import ROOT, WARREN, WORK, cpu_seconds, need, ratio, run, show, stats, wait_for

ROUNDS = int(os.environ.get('ROUNDS', '7'))
REGISTRY = '127.0.0.1:5000'
NAME = f'{REGISTRY}/bench/image:1'
LAYERS = (['usr/bin', 'usr/sbin'], ['usr/lib/x86_64-linux-gnu'], ['usr/share/doc', 'usr/share/perl', 'usr/share/man', 'usr/lib/python3', 'usr/include'])
LAYER_BYTES_MAX = int(os.environ.get('LAYER_MB', '160')) << 20


def layer(target, folders):
    """A tar of files below these folders, up to a size: the same bytes each time."""
    names, size = [], 0
    for folder in folders:
        for at, inside, files in os.walk(f'/{folder}'):
            inside.sort()
            for name in sorted(files):
                path = os.path.join(at, name)
                if not os.path.isfile(path) or os.path.islink(path):
                    continue
                size += os.path.getsize(path)
                if size > LAYER_BYTES_MAX:
                    break
                names.append(path[1:])
    listing = f'{target}.list'
    with open(listing, 'w') as f:
        f.write('\0'.join(names))
    run('tar', '-C', '/', '--null', '--no-recursion', '--mtime=@0', '-T', listing, '-cf', target)
    return len(names)


def build():
    oci = f'{WORK}/images/oci'
    run('umoci', 'init', '--layout', oci)
    run('umoci', 'new', '--image', f'{oci}:1')
    files = 0
    for number, folders in enumerate(LAYERS):
        tar = f'{WORK}/images/{number}.tar'
        files += layer(tar, folders)
        run('umoci', 'raw', 'add-layer', '--image', f'{oci}:1', tar)
    run('umoci', 'config', '--image', f'{oci}:1', '--config.cmd', 'true', '--architecture', 'amd64', '--os', 'linux')
    size = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(oci) for name in names)
    unpacked = sum(os.path.getsize(f'{WORK}/images/{number}.tar') for number in range(len(LAYERS)))
    return oci, files, size, unpacked


def timed(daemon, *args, env=None):
    """Seconds of wall time and of CPU, daemon and client."""
    os.sync()
    before = (time.monotonic(), cpu_seconds([daemon] if daemon else []), resource.getrusage(resource.RUSAGE_CHILDREN))
    run(*args, env={**os.environ, **(env or {})})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.monotonic() - before[0]
    cpu = cpu_seconds([daemon] if daemon else []) - before[1]
    cpu += after.ru_utime + after.ru_stime - before[2].ru_utime - before[2].ru_stime
    return wall, cpu


class Containerd:
    """An instance of its own: root, state and socket below the bench's folder."""

    def __init__(self):
        home = f'{WORK}/images/containerd'
        os.makedirs(home)
        self.socket = f'{home}/sock'
        config = f'{home}/config.toml'
        with open(config, 'w') as f:
            f.write(f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.socket}"\n')
        self.process = subprocess.Popen(['containerd', '-c', config, '-l', 'error'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: run(*self.ctr('version')), 'containerd')

    def ctr(self, *args):
        return ['ctr', '-a', self.socket, *args]

    def pull(self):
        return timed(self.process.pid, *self.ctr('images', 'pull', '--plain-http', NAME))

    def forget(self):
        run(*self.ctr('images', 'rm', '--sync', NAME), check=False)

    def close(self):
        self.process.terminate()
        self.process.wait()


class Node:
    def __init__(self):
        home = f'{WORK}/images/node'
        self.env = {'WARREN_DATA_DIR': f'{home}/data', 'WARREN_RUN_DIR': f'{home}/run', 'WARREN_ADMIN': 'off', 'WARREN_OVERLAY_PORT': 'off', 'WARREN_SOCKET': f'{home}/run/warren.sock'}
        self.warren('cluster', 'init', '--detach')
        with open(f'{home}/run/warren.pid') as f:
            self.pid = int(f.read())

    def warren(self, *args):
        return run(WARREN, *args, env={**os.environ, **self.env})

    def pull(self):
        return timed(self.pid, WARREN, 'image', 'pull', NAME, env=self.env)

    def load(self, path):
        return timed(self.pid, WARREN, 'image', 'load', path, env=self.env)

    def save(self, path):
        return timed(self.pid, WARREN, 'image', 'save', '-o', path, NAME, env=self.env)

    def forget(self):
        self.warren('image', 'prune', '--all')

    def close(self):
        self.warren('node', 'stop')


def skopeo():
    target = f'{WORK}/images/copy'
    shutil.rmtree(target, ignore_errors=True)
    return timed(None, 'skopeo', 'copy', '-q', '--insecure-policy', '--src-tls-verify=false', f'docker://{NAME}', f'dir:{target}')


def main():
    need('containerd', 'docker-registry', 'skopeo', 'umoci', 'iproute2')
    shutil.rmtree(f'{WORK}/images', ignore_errors=True)
    os.makedirs(f'{WORK}/images')
    run('ip', 'link', 'set', 'lo', 'up')
    oci, files, size, unpacked = build()
    config = f'{WORK}/images/registry.yml'
    with open(config, 'w') as f:
        f.write(f'version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {WORK}/images/registry}}}}\nhttp: {{addr: "{REGISTRY}"}}\n')
    registry = subprocess.Popen(['docker-registry', 'serve', config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    closing = [lambda: (registry.send_signal(signal.SIGKILL), registry.wait())]
    try:
        import socket
        wait_for(lambda: socket.create_connection(tuple(REGISTRY.split(':')), 1).close(), 'registry')
        run('skopeo', 'copy', '-q', '--insecure-policy', '--dest-tls-verify=false', f'oci:{oci}:1', f'docker://{NAME}')
        node = Node()
        closing.append(node.close)
        containerd = Containerd()
        closing.append(containerd.close)
        archive = f'{WORK}/images/saved.tar'
        ways = {'warren': node.pull, 'skopeo': skopeo, 'containerd': containerd.pull, 'save': lambda: node.save(archive), 'load': lambda: node.load(archive)}
        got = {way: [] for way in ways}
        # The first round warms the registry's pages and is not counted.
        for number in range(ROUNDS + 1):
            node.forget()
            containerd.forget()
            for way, work in ways.items():
                if way == 'load':
                    node.forget()
                figures = work()
                if number:
                    got[way].append(figures)
        walls = {way: stats([wall for wall, _ in all], 's', 2) for way, all in got.items()}
        cpus = {way: stats([cpu for _, cpu in all], 's', 2) for way, all in got.items()}
        recipes = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(f'{WORK}/images/node/data/images/recipes') for name in names)
        rate = lambda way: f"{size / walls[way]['median'] / 1e6:.0f} MB/s compressed, {unpacked / walls[way]['median'] / 1e6:.0f} MB/s unpacked"
        rows = [('image', f'{files} files in {len(LAYERS)} layers, {size / 1e6:.0f} MB compressed, {unpacked / 1e6:.0f} MB unpacked')]
        for way, what in (('warren', 'image pull (download, unpack, flush)'), ('skopeo', 'skopeo copy to dir: (download alone)'), ('containerd', 'ctr images pull (download, keep, unpack)')):
            rows += [(f'{what}: wall', walls[way]), (f'{what}: CPU', cpus[way]), (f'{what}: rate', rate(way))]
        rows += [('image save: wall', walls['save']), ('image save: CPU', cpus['save']), ('image load: wall', walls['load']), ('image load: CPU', cpus['load'])]
        rows += [
            ('wall, Warren to skopeo', ratio(walls['warren']['median'], walls['skopeo']['median'])),
            ('wall, Warren to containerd', ratio(walls['warren']['median'], walls['containerd']['median'])),
            ('CPU, Warren to containerd', ratio(cpus['warren']['median'], cpus['containerd']['median'])),
            ('recipes on disk, of the unpacked layers', f'{100 * recipes / unpacked:.2f} %'),
        ]
        show('images', rows)
    finally:
        for close in reversed(closing):
            try:
                close()
            except Exception as error:
                print(error, file=sys.stderr)
        shutil.rmtree(f'{WORK}/images', ignore_errors=True)


if __name__ == '__main__':
    if os.environ.get('WARREN_BENCH_INSIDE') != '1':
        os.environ['WARREN_BENCH_INSIDE'] = '1'
        os.execvp('unshare', ['unshare', '-n', sys.executable, *sys.argv])
    main()
