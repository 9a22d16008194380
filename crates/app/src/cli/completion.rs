//! `warren completion`: scripts that complete our words in a shell.

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use super::failure::Failure;
use super::printer::Printer;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShellFlag {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Shell to complete in
    #[arg(value_enum)]
    shell: ShellFlag,
}

/// `program` is the name it was called by, so that `wrn completion` serves wrn.
pub(crate) fn run(
    printer: &mut Printer,
    args: &CompletionArgs,
    mut command: clap::Command,
    program: &str,
) -> Result<(), Failure> {
    let shell = match args.shell {
        ShellFlag::Bash => Shell::Bash,
        ShellFlag::Zsh => Shell::Zsh,
        ShellFlag::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut script);
    printer.raw(&script)
}
