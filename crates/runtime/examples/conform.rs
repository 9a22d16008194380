//! One container by our runtime, for `scripts/conformance`: what it prints and how it ends.
//!
//!     conform WORK ROOTFS [KEY=VALUE...] -- PROGRAM [ARGUMENT...]
//!
//! Keys: user, cwd, hostname, env, read_only, memory, pids, cap_drop, no_new_privileges, tmpfs.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use warren_runtime::native::{Native, Options};
use warren_runtime::{
    ContainerSpec, Limits, LogPolicy, LogQuery, Mount, MountKind, Runtime, Seccomp, Stream,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let work = PathBuf::from(args.next().ok_or("no work folder")?);
    let rootfs = PathBuf::from(args.next().ok_or("no root file system")?);
    let mut spec = plain(rootfs, work.join("logs"));
    for arg in args.by_ref().take_while(|arg| arg != "--") {
        let (key, value) = arg.split_once('=').ok_or("KEY=VALUE")?;
        set(&mut spec, key, value)?;
    }
    spec.args = args.collect();
    let native = Native::open(Options {
        run_dir: work.join("run"),
        data_dir: work.join("data"),
        node_key: format!("conform{}", std::process::id()),
    })?;
    let code = match native.start(spec.clone()).await {
        Ok(_) => native.wait(&spec.id).await?.code,
        Err(error) => {
            eprintln!("{error}");
            // As runc and crun answer for what cannot be started.
            1
        }
    };
    native.remove(&spec.id).await?;
    let mut lines = native.logs(spec.log.dir, LogQuery::default()).await?;
    while let Some(line) = lines.recv().await {
        let mut text = line.line;
        text.push(b'\n');
        match line.stream {
            Stream::Stdout => std::io::stdout().write_all(&text)?,
            Stream::Stderr => std::io::stderr().write_all(&text)?,
        }
    }
    native.dispose()?;
    std::process::exit(code)
}

fn plain(rootfs: PathBuf, log: PathBuf) -> ContainerSpec {
    ContainerSpec {
        privileges: Default::default(),
        shm_bytes: None,
        id: "conform".to_owned(),
        layers: vec![rootfs],
        args: Vec::new(),
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        hostname: "box".to_owned(),
        read_only: false,
        limits: Limits::default(),
        mounts: Vec::new(),
        devices: Vec::new(),
        files: Vec::new(),
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        no_new_privileges: true,
        seccomp: Seccomp::Default,
        stop_signal: 15,
        netns: None,
        keep: Vec::new(),
        log: LogPolicy { dir: log, max_bytes: 1 << 20, max_files: 3 },
        labels: BTreeMap::new(),
    }
}

fn set(spec: &mut ContainerSpec, key: &str, value: &str) -> Result<(), Box<dyn Error>> {
    match key {
        "user" => value.clone_into(&mut spec.user),
        "cwd" => value.clone_into(&mut spec.cwd),
        "hostname" => value.clone_into(&mut spec.hostname),
        "env" => spec.env.push(value.to_owned()),
        "read_only" => spec.read_only = value == "true",
        "memory" => spec.limits.memory_bytes = Some(value.parse()?),
        "pids" => spec.limits.pids = Some(value.parse()?),
        "cap_drop" => spec.cap_drop.push(value.to_owned()),
        "no_new_privileges" => spec.no_new_privileges = value == "true",
        "tmpfs" => spec.mounts.push(Mount {
            kind: MountKind::Tmpfs { size_bytes: Some(1 << 20), mode: 0o1777, exec: false },
            target: value.to_owned(),
            read_only: false,
        }),
        _ => return Err(format!("no key {key}").into()),
    }
    Ok(())
}
