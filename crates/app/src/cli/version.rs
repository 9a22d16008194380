//! `warren version`.

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::printer::Printer;
use super::template::Format;

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// table, json, yaml or a template such as '{{.Version}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(crate) fn run(printer: &mut Printer, args: &VersionArgs) -> Result<(), Failure> {
    let object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("WARREN_COMMIT"),
        "rustc": env!("WARREN_RUSTC"),
        "target": env!("WARREN_TARGET"),
    });
    printer.object(&object, &args.format)
}
