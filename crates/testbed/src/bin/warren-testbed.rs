//! A cluster on this machine for people to play with and to break: prints how
//! to talk to each node, takes commands, and removes everything at the end.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};

use anyhow::{Context, Result};
use clap::Parser;
use warren_testbed::console::{self, Command};
use warren_testbed::{Cluster, Options};

/// Warren on several machines of one kernel.
#[derive(Debug, Parser)]
#[command(name = "warren-testbed")]
struct Args {
    /// Nodes that manage
    #[arg(long, default_value_t = 3)]
    managers: usize,
    /// Nodes that work
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Managers run containers too
    #[arg(long)]
    hybrid: bool,
    /// Machines alone, without the program on them
    #[arg(long)]
    bare: bool,
    /// For what happens by chance on the lines
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Of the daemons
    #[arg(long, default_value = "info")]
    log_level: String,
    /// How containers' packets travel between the machines
    #[arg(long)]
    overlay: Option<String>,
    /// The program [default: $WARREN, else the one built along with this]
    #[arg(long)]
    warren: Option<PathBuf>,
}

/// What ends a wait for the next command.
enum Heard {
    Line(String),
    Interrupted,
    /// Standard input has ended: only an interrupt ends it now.
    NoMore,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let heard = listen()?;
    let options = Options {
        hybrid: args.hybrid,
        registry: !args.bare,
        seed: args.seed,
        log_level: args.log_level,
        overlay: args.overlay,
        binary: if args.bare { Some(PathBuf::from("/bin/false")) } else { args.warren },
    };
    let cluster = if args.bare {
        Cluster::bare(args.managers, args.workers, &options)?
    } else {
        Cluster::form(args.managers, args.workers, &options)?
    };
    print!("{}", console::directions(&cluster));
    if !args.bare {
        println!("image {}", cluster.image());
        println!("formed in {:.2} s", cluster.formed_in().as_secs_f32());
    }
    println!("ready: type `help`, or Ctrl-C to remove it all");
    loop {
        match heard.recv().context("nobody listens any more")? {
            Heard::Interrupted => return Ok(()),
            Heard::NoMore => {}
            Heard::Line(line) => match console::parse(&line) {
                Ok(Command::Quit) => return Ok(()),
                Ok(command) => match console::act(&cluster, &command) {
                    Ok(text) => print!("{text}"),
                    Err(error) => eprintln!("{error:#}"),
                },
                Err(error) => eprintln!("{error:#}"),
            },
        }
    }
}

/// Lines and signals, in the order they come.
fn listen() -> Result<Receiver<Heard>> {
    let (tell, heard) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kind = tokio::signal::unix::SignalKind::terminate();
    // Before anything is started: a signal must never find the default action.
    let guard = runtime.enter();
    let mut terminate = tokio::signal::unix::signal(kind)?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    drop(guard);
    let tell_signals = tell.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        // Nobody listens: it ends anyway.
        let _ = tell_signals.send(Heard::Interrupted);
    });
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = tell.send(Heard::Line(line));
        }
        let _ = tell.send(Heard::NoMore);
    });
    Ok(heard)
}
