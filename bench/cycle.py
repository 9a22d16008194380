#!/usr/bin/env python3
"""start + exit + delete of one container by the runtime alone, beside crun, alternating.

Both run /bin/true of the same busybox root by overlayfs in the same network namespace with the same memory and CPU
limits and an equal seccomp profile. crun's overlay is mounted and unmounted within its time, as whoever calls crun must.
CPU is that of the caller and of every child it reaped: supervisor and container included, on both sides.
"""
import ctypes, json, os, resource, shutil, subprocess, sys, time
from lib import ROOT, need, ratio, run, show, stats

# crun 1.8 refuses the hybrid cgroup layout: in this mount namespace the unified hierarchy is not mounted.
if not os.environ.get('WARREN_CYCLE_NS') and os.path.exists('/sys/fs/cgroup/unified'):
    os.environ['WARREN_CYCLE_NS'] = '1'
    os.execvp('unshare', ['unshare', '-m', '--propagation', 'private', 'sh', '-c', 'umount /sys/fs/cgroup/unified; exec python3 "$@"', 'x', *sys.argv])

WORK = '/var/tmp/warren-cycle'
N, BLOCK = int(os.environ.get('N', 120)), 10
PROFILE = f'{ROOT}/crates/runtime/src/native/seccomp/profile.txt'
libc = ctypes.CDLL(None, use_errno=True)


def cpu_ms():
    who = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in who) * 1000


def overlay(mount):
    target = f'{WORK}/crun/rootfs'
    if mount:
        data = f'lowerdir={WORK}/rootfs,upperdir={WORK}/crun/upper,workdir={WORK}/crun/work'
        if libc.mount(b'overlay', target.encode(), b'overlay', 0, data.encode()):
            raise OSError(ctypes.get_errno(), 'mount overlay')
    else:
        libc.umount2(target.encode(), 2)


def seccomp():
    """The allowed system calls of our profile as an OCI profile, with its argument rules."""
    allow, section = [], ''
    with open(PROFILE) as f:
        for line in f:
            line = line.split('#')[0].strip()
            if line.startswith('['):
                section = line.strip('[]')
            elif line and section == 'allow':
                allow.append(line.split()[0])
    args = lambda value, op, index=0, two=None: [{'index': index, 'value': value, 'op': op, **({'valueTwo': two} if two is not None else {})}]
    rules = [{'names': sorted(set(allow)), 'action': 'SCMP_ACT_ALLOW'},
             {'names': ['clone'], 'action': 'SCMP_ACT_ALLOW', 'args': args(2114060288, 'SCMP_CMP_MASKED_EQ', two=0)},
             {'names': ['clone3'], 'action': 'SCMP_ACT_ERRNO', 'errnoRet': 38}, {'names': ['chroot'], 'action': 'SCMP_ACT_ALLOW'}]
    rules += [{'names': ['personality'], 'action': 'SCMP_ACT_ALLOW', 'args': args(v, 'SCMP_CMP_EQ')} for v in (0, 8, 131072, 131080, 4294967295)]
    rules += [{'names': ['socket'], 'action': 'SCMP_ACT_ALLOW', 'args': args(40, 'SCMP_CMP_NE')}]
    return {'defaultAction': 'SCMP_ACT_ERRNO', 'defaultErrnoRet': 38, 'architectures': ['SCMP_ARCH_X86_64'], 'syscalls': rules}


def bundle(netns):
    folder = f'{WORK}/crun'
    for d in ('rootfs', 'upper', 'work'):
        os.makedirs(f'{folder}/{d}')
    run('crun', 'spec', cwd=folder)
    with open(f'{folder}/config.json') as f:
        c = json.load(f)
    caps = ['CAP_' + x for x in 'CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP'.split()]
    c['process'].update(terminal=False, args=['/bin/true'], noNewPrivileges=True, capabilities={k: caps for k in ('bounding', 'effective', 'permitted')})
    c['root'] = {'path': 'rootfs', 'readonly': False}
    c['linux']['cgroupsPath'] = '/warren-cycle-crun/c'
    c['linux']['resources'] = {'memory': {'limit': 67108864}, 'cpu': {'quota': 50000, 'period': 100000}, 'pids': {'limit': 4096}}
    c['linux']['seccomp'] = seccomp()
    for n in c['linux']['namespaces']:
        if n['type'] == 'network':
            n['path'] = netns
    with open(f'{folder}/config.json', 'w') as f:
        json.dump(c, f)
    return folder


def main():
    need('crun', 'busybox-static')
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(f'{WORK}/rootfs')
    run(f'{ROOT}/scripts/rootfs', f'{WORK}/rootfs.tar')
    run('tar', '-C', f'{WORK}/rootfs', '-xf', f'{WORK}/rootfs.tar')
    ns = f'/run/netns/wbcycle'
    run('ip', 'netns', 'add', 'wbcycle')
    try:
        folder = bundle(ns)
        wall, cpu = {'warren': [], 'crun': []}, {'warren': [], 'crun': []}
        example = f'{ROOT}/target/release/examples/cycle'
        base = f'{WORK}/warren'
        for block in range(N // BLOCK):
            out = json.loads(run(example, '--layers', f'{WORK}/rootfs', '--netns', ns, '--memory', '67108864', '--cpu-millis', '500', '--count', str(BLOCK), '--base', f'{base}{block}'))
            wall['warren'] += out['wall_ms']
            cpu['warren'] += out['cpu_ms']
            for i in range(BLOCK):
                c0, t0 = cpu_ms(), time.perf_counter()
                overlay(True)
                subprocess.run(['crun', 'run', '--bundle', folder, f'wbcycle{block}x{i}'], check=True, stdin=subprocess.DEVNULL)
                overlay(False)
                wall['crun'].append((time.perf_counter() - t0) * 1000)
                cpu['crun'].append(cpu_ms() - c0)
        rows = []
        for what, took in (('wall', wall), ('CPU', cpu)):
            ours, theirs = stats(took['warren'], 'ms', 2), stats(took['crun'], 'ms', 2)
            rows += [(f'{what}: Warren', ours), (f'{what}: crun', theirs), (f'{what}: ratio of medians', ratio(ours['median'], theirs['median']))]
        show('start + exit + delete of one container', rows)
    finally:
        overlay(False)
        run('ip', 'netns', 'del', 'wbcycle', check=False)
        run('sh', '-c', 'rmdir /sys/fs/cgroup/*/warren-cycle-crun 2>/dev/null', check=False)
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == '__main__':
    main()
