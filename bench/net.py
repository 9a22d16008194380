#!/usr/bin/env python3
"""Kernel state of thousands of services, and the processor time of requests by a service's address and by the mesh.

usage: bench/net.py [services|paths]
"""
import json, subprocess, sys

import lib

LIMITS = {'change_wall_ms': 100, 'change_cpu_ms': 3, 'resync_s': 2, 'path_ratio': 1.1}


def example(name, *args, apart=False):
    """One of the network crate's measuring programs; in a namespace of its own if asked."""
    subprocess.run(['cargo', 'build', '--release', '--locked', '-q', '-p', 'warren-net', '--example', name], cwd=lib.ROOT, check=True)
    target = json.loads(lib.run('cargo', 'metadata', '--format-version', '1', '--no-deps', cwd=lib.ROOT))['target_directory']
    unshare = ['unshare', '-n'] if apart else []
    return json.loads(lib.run(*unshare, f'{target}/release/examples/{name}', *args))


def row(times, scale, unit):
    return f"p50 {times['p50'] / scale:.2f} {unit}, p95 {times['p95'] / scale:.2f}, max {times['max'] / scale:.2f} (n={times['n']})"


def services():
    report = example('services', apart=True)
    rows = []
    for what in ['one_backend_replaced', 'one_backend_added']:
        rows.append((f'{what}: until the kernel has it', row(report[what]['wall_us'], 1000, 'ms')))
        rows.append((f'{what}: CPU (schedstat)', row(report[what]['cpu_us'], 1000, 'ms')))
    rows.append(('all of them: until the kernel has it', row(report['resync']['wall_us'], 1e6, 's')))
    rows.append(('all of them: CPU (schedstat)', row(report['resync']['cpu_us'], 1e6, 's')))
    lib.show(f"{report['services']} services x {report['backends_each']} backends", rows)
    change = max((report[w] for w in ['one_backend_replaced', 'one_backend_added']), key=lambda r: r['cpu_us']['p50'])
    return [
        ('change p50 ms', change['wall_us']['p50'] / 1000, LIMITS['change_wall_ms']),
        ('change CPU p50 ms', change['cpu_us']['p50'] / 1000, LIMITS['change_cpu_ms']),
        ('resync p50 s', report['resync']['wall_us']['p50'] / 1e6, LIMITS['resync_s']),
    ]


def paths():
    report = example('paths')
    rows, limits = [], []
    for what, r in report.items():
        for way, us in r['cpu_us_per_request'].items():
            rows.append((f'{what}: {way}', f"{us:.1f} us CPU a request (median of {r['rounds']} rounds of {r['requests_each']})"))
        for ratio in ['vip_to_direct', 'mesh_to_direct']:
            rows.append((f'{what}: {ratio}', f'{r[ratio]:.3f}x'))
            limits.append((f'{what}: {ratio}', r[ratio], LIMITS['path_ratio']))
    lib.show('CPU of a request across two nodes', rows)
    return limits


def main():
    chosen = sys.argv[1:] or ['services', 'paths']
    limits = [limit for name in chosen for limit in {'services': services, 'paths': paths}[name]()]
    missed = [f'{what}: {value:.3f} > {limit}' for what, value, limit in limits if value > limit]
    print('\n'.join(missed) or 'all limits kept')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
