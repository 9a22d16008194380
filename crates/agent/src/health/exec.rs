//! A program within the container that says by its exit code how it is.

use tokio::io::AsyncReadExt;
use warren_base::clock::Sleep;
use warren_model::health::Probe;
use warren_runtime::{Exec, ExecControl, ExecSpec};

use super::{OUTPUT_BYTES, late};
use crate::effects::chain;
use crate::worker::Tools;

/// Read of what a program says; the rest is thrown away so that it does not wait for us.
const SAID_BYTES: usize = 4096;
/// What a program wrote arrives well within this after its end; children that it left behind may
/// keep its output open for ever.
const DRAIN_MS: u64 = 100;
/// A program that was killed ends within this, or never.
const KILL_MS: u64 = 1_000;
const SIGKILL: i32 = 9;

pub(super) async fn ask(
    tools: &Tools,
    container: &str,
    probe: &Probe,
    mut timeout: Sleep,
    timeout_ms: u64,
) -> Result<(), String> {
    let spec = ExecSpec { args: args(probe), ..ExecSpec::default() };
    let started = tokio::select! {
        started = tools.runtime.exec(container, spec) => started.map_err(|e| chain(&e))?,
        () = &mut timeout => return Err(late(timeout_ms)),
    };
    let Exec { stdin, mut stdout, stderr, control } = started;
    drop(stdin);
    let mut running = Running(Some(control));
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let ended = {
        let listen = async {
            let errors = async {
                if let Some(mut stderr) = stderr {
                    gather(&mut stderr, &mut complained).await;
                }
            };
            tokio::join!(gather(&mut stdout, &mut said), errors);
        };
        tokio::pin!(listen);
        let mut silent = false;
        let ended = loop {
            let Some(control) = running.0.as_mut() else { break None };
            tokio::select! {
                ended = control.wait() => break Some(ended),
                () = &mut listen, if !silent => silent = true,
                () = &mut timeout => break None,
            }
        };
        if ended.is_some() && !silent {
            tokio::select! {
                () = &mut listen => {}
                () = tools.clock.sleep(DRAIN_MS) => {}
            }
        }
        ended
    };
    let said = if complained.is_empty() { said } else { complained };
    let said = String::from_utf8_lossy(&said[..said.len().min(OUTPUT_BYTES)]).into_owned();
    match ended {
        // Dropping it kills what still runs.
        None => Err(format!("{} {said}", late(timeout_ms))),
        Some(Err(error)) => {
            running.0 = None;
            Err(chain(&error))
        }
        Some(Ok(0)) => {
            running.0 = None;
            Ok(())
        }
        Some(Ok(code)) => {
            running.0 = None;
            Err(format!("exit code {code} {said}"))
        }
    }
}

fn args(probe: &Probe) -> Vec<String> {
    match probe {
        Probe::Exec(args) => args.clone(),
        Probe::Shell(command) => vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()],
        Probe::Http(_) | Probe::Tcp { .. } | Probe::Grpc { .. } => Vec::new(),
    }
}

/// A program that runs; killed with all of its session when this goes.
struct Running(Option<Box<dyn ExecControl>>);

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut control) = self.0.take() else { return };
        // Without a runtime the process ends, and containers' programs are found by the next one.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let kill = async {
                if control.signal(SIGKILL).await.is_ok() {
                    // Whatever it ended with, it has.
                    let _ = control.wait().await;
                }
            };
            let _ = tokio::time::timeout(std::time::Duration::from_millis(KILL_MS), kill).await;
        });
    }
}

/// Keeps the beginning, reads all.
async fn gather(from: &mut (dyn tokio::io::AsyncRead + Send + Unpin), into: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let room = SAID_BYTES.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..read.min(room)]);
    }
}
