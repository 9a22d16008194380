//! The one binary: commands that talk to a node, and the node itself.
//!
//! No logic lives here: `cli` knows the wire and the model, `roles` puts the
//! rooms of a node together, `daemon` makes a process of it.

mod address;
mod cli;
mod daemon;
mod doctor;
mod identity;
mod roles;
mod settings;

use std::process::ExitCode;

use cli::failure::Failure;
use cli::printer::Printer;

fn main() -> ExitCode {
    // Keys and tokens pass through: what is left when it crashes must not hold them.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let mut printer = Printer::standard();
    match run(&mut printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

fn run(printer: &mut Printer) -> Result<(), Failure> {
    match cli::parse(std::env::args_os().collect(), printer)? {
        cli::Asked::Role(role) => roles::run(role, printer),
        cli::Asked::DataPlane(args) => roles::data_plane(&args),
        cli::Asked::Command(command) => {
            // One thread: a command waits, it does not compute.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failure::failed(format!("start the event loop: {e}")))?;
            let outcome =
                runtime.block_on(cli::run(command, printer, &settings::environment, doctor::local));
            // A read of standard input that nobody waits for must not hold up the end.
            runtime.shutdown_background();
            outcome
        }
    }
}
