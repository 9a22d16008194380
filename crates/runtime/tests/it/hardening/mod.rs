//! The hardening list, item by item: each test plays an attack from inside a real container, or
//! looks from there at what it has.
//!
//! Each protection of `warren_shim::protection` has the test `host_<its name>`, which fails when
//! that protection is left out, and no other does: `make test-hardening-mutants`. So a test here
//! looks at one thing only.
//!
//! x86_64 alone: the attacks are programs of a few instructions.

mod descriptors;
mod devices;
mod filter;
mod identity;
mod kernel;
mod mounts;
mod namespaces;
mod probe;
mod state;
mod supervisor;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tokio::io::AsyncReadExt;
use warren_runtime::{Error, ExecSpec, Runtime};

use crate::host::{Host, bounded};

/// Does something on a thread of its own, whose attributes (namespaces, user, keys) the daemon and
/// its shims have from there on, and nobody else of this process.
fn alone<F: Future<Output = ()>>(
    prepare: impl FnOnce() + Send + 'static,
    work: impl FnOnce() -> F + Send + 'static,
) {
    let thread = std::thread::spawn(|| {
        prepare();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Of a system call that must work.
#[track_caller]
fn done(answer: libc::c_long) {
    assert!(answer >= 0, "{}", std::io::Error::last_os_error());
}

fn exec(script: &str) -> ExecSpec {
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    ExecSpec { args, ..ExecSpec::default() }
}

impl Host {
    /// Code and standard output of something beside the container's own program.
    async fn executed_in(&self, id: &str, exec: ExecSpec) -> Result<(i32, String), Error> {
        let mut exec = bounded(self.native().exec(id, exec)).await?;
        let mut stdout = Vec::new();
        bounded(exec.stdout.read_to_end(&mut stdout)).await.unwrap();
        let code = bounded(exec.control.wait()).await?;
        Ok((code, String::from_utf8(stdout).unwrap()))
    }

    /// A container that waits, for execs.
    async fn waiting(&self, id: &str) {
        let spec = self.shell(id, "echo up; while :; do sleep 1000; done");
        self.native().start(spec).await.unwrap();
        self.printed("up").await;
    }

    /// A program in the image.
    fn add_program(&self, name: &str, program: &[u8], mode: u32) {
        let path = self.image().join("bin").join(name);
        fs::write(&path, program).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Exit codes of programs of the image, one after another, as `name code` lines.
    async fn codes(&self, programs: &[(&str, Vec<u8>)]) -> String {
        let mut script = String::new();
        for (name, program) in programs {
            self.add_program(name, program, 0o755);
            // By path: the shell knows some names itself.
            script += &format!("/bin/{name}; echo {name} $?\n");
        }
        let (_, text) = self.run(self.shell("codes", &script)).await;
        text
    }
}
