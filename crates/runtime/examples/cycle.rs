//! Starts one container, waits for its end and removes it, again and again: the runtime's own cost.
//!
//! `cycle --layers DIR[:DIR…] [--count N] [--netns FILE] [--memory BYTES] [--cpu-millis N]
//! [--base DIR] [-- COMMAND…]` (default `/bin/true`, topmost layer first) prints one JSON object:
//! for each round the wall time from the call of `start` to the return of `remove`, the part up to
//! the return of `start`, and the CPU time of this process and its children (shim and container
//! included, since shims are children here), in milliseconds; then the medians.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_runtime::native::{Native, Options};
use warren_runtime::{ContainerSpec, Limits, LogPolicy, Privileges, Runtime, Seccomp};

struct Settings {
    spec: ContainerSpec,
    base: PathBuf,
    count: usize,
}

fn settings() -> Result<Settings, Box<dyn Error>> {
    let mut settings = Settings {
        spec: ContainerSpec {
            id: String::new(),
            layers: Vec::new(),
            args: vec!["/bin/true".to_owned()],
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            hostname: "cycle".to_owned(),
            read_only: false,
            limits: Limits::default(),
            mounts: Vec::new(),
            shm_bytes: None,
            devices: Vec::new(),
            files: Vec::new(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            privileges: Privileges::default(),
            stop_signal: 15,
            netns: None,
            keep: Vec::new(),
            log: LogPolicy { dir: PathBuf::new(), max_bytes: 1 << 20, max_files: 2 },
            labels: Default::default(),
        },
        base: std::env::temp_dir().join(format!("warren-cycle-{}", std::process::id())),
        count: 100,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--" {
            settings.spec.args = args.by_ref().collect();
            break;
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let spec = &mut settings.spec;
        match name.as_str() {
            "--layers" => spec.layers = value.split(':').map(PathBuf::from).collect(),
            "--count" => settings.count = value.parse()?,
            "--netns" => spec.netns = Some(Arc::new(File::open(value)?.into())),
            "--memory" => spec.limits.memory_bytes = Some(value.parse()?),
            "--cpu-millis" => spec.limits.cpu_millis = Some(value.parse()?),
            "--base" => settings.base = value.into(),
            _ => return Err(format!("unknown flag {name}").into()),
        }
    }
    settings.spec.log.dir = settings.base.join("logs");
    Ok(settings)
}

/// User and system time of this process and of the children it has reaped.
fn cpu() -> Result<Duration, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/schedstat")?;
    let own = stat.split(' ').next().ok_or("schedstat")?.parse::<u64>()?;
    let threads = std::fs::read_dir("/proc/self/task")?
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum::<u64>();
    Ok(Duration::from_nanos(own.max(threads)) + children()?)
}

#[allow(unsafe_code)]
fn children() -> Result<Duration, Box<dyn Error>> {
    // SAFETY: rusage is plain numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the struct that lives here.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let of = |time: libc::timeval| -> Result<Duration, Box<dyn Error>> {
        let micros = Duration::from_micros(u64::try_from(time.tv_usec)?);
        Ok(Duration::from_secs(u64::try_from(time.tv_sec)?) + micros)
    };
    Ok(of(usage.ru_utime)? + of(usage.ru_stime)?)
}

struct Round {
    wall: Duration,
    start: Duration,
    cpu: Duration,
}

async fn round(
    native: &Native,
    template: &ContainerSpec,
    number: usize,
) -> Result<Round, Box<dyn Error>> {
    let mut spec = template.clone();
    spec.id = format!("cycle.{number}");
    let id = spec.id.clone();
    let (cpu_before, begin) = (cpu()?, Instant::now());
    native.start(spec).await?;
    let start = begin.elapsed();
    native.wait(&id).await?;
    native.remove(&id).await?;
    let wall = begin.elapsed();
    Ok(Round { wall, start, cpu: cpu()? - cpu_before })
}

fn milliseconds(
    rounds: &[Round],
    of: impl Fn(&Round) -> Duration,
) -> (serde_json::Value, serde_json::Value) {
    let all = rounds.iter().map(|round| of(round).as_secs_f64() * 1e3).collect::<Vec<_>>();
    let mut sorted = all.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied();
    (all.into(), median.into())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let settings = settings()?;
    let native = Native::open(Options {
        run_dir: settings.base.join("run"),
        data_dir: settings.base.join("data"),
        node_key: format!("cycle{}", std::process::id()),
    })?;
    let mut rounds = Vec::with_capacity(settings.count);
    for number in 0..settings.count {
        rounds.push(round(&native, &settings.spec, number).await?);
    }
    let (wall, wall_median) = milliseconds(&rounds, |round| round.wall);
    let (start, start_median) = milliseconds(&rounds, |round| round.start);
    let (cpu, cpu_median) = milliseconds(&rounds, |round| round.cpu);
    native.dispose()?;
    std::fs::remove_dir_all(&settings.base)?;
    let report = serde_json::json!({
        "count": rounds.len(),
        "wall_ms_median": wall_median,
        "start_ms_median": start_median,
        "cpu_ms_median": cpu_median,
        "wall_ms": wall,
        "start_ms": start,
        "cpu_ms": cpu,
    });
    println!("{report}");
    Ok(())
}
