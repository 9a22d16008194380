//! `warren dataplane`: what the daemon starts for itself; nobody types it.

use std::path::PathBuf;

use clap::Parser;

/// What it is called.
pub(super) const VERB: &str = "dataplane";

/// Answer names and carry packets, for the daemon that starts it
#[derive(Debug, Parser)]
#[command(name = VERB)]
pub(crate) struct DataPlaneArgs {
    /// Where it is found again
    #[arg(value_name = "RUN_DIR")]
    pub(crate) run_dir: PathBuf,
    /// As of the daemon
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: String,
}
