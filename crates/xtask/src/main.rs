//! Chores of the repository: generated code, layers, size of the binary.

// Chores speak to a terminal.
#![allow(clippy::print_stdout)]

mod codegen;
mod layers;
mod size;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["codegen"] => codegen::write(),
        ["codegen", "--check"] => codegen::check(),
        ["layers"] => layers::check(),
        ["size", binary] => size::check(Path::new(binary)),
        _ => bail!("usage: cargo xtask codegen [--check] | layers | size BINARY"),
    }
}
