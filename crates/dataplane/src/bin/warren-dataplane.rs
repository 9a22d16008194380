//! The data plane alone, for tests of this crate: `warren-dataplane RUN_DIR BUILD`. What ships is
//! `warren dataplane`.

use std::path::Path;
use std::process::ExitCode;

use warren_base::telemetry::{self, LogFormat};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run_dir, build] = &arguments[..] else { return ExitCode::from(2) };
    if telemetry::start("info", LogFormat::Text).is_err() {
        return ExitCode::FAILURE;
    }
    match warren_dataplane::run(Path::new(run_dir), build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the data plane");
            ExitCode::FAILURE
        }
    }
}
