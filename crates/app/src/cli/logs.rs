//! `warren service logs`: what containers wrote, each line told by its replica.
//!
//! A container's standard output goes to ours, its standard error to ours.

use std::collections::BTreeSet;

use clap::Args;
use warren_model::Time;
use warren_model::service::Hook;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::context::{Context, now};
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::moment::{self, Moment};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Service, SERVICE.SLOT or task id
    #[arg(value_name = "TARGET")]
    target: String,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of each replica
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true, value_parser = tail)]
    tail: Option<Tail>,
    /// Only what is newer, e.g. 10m or 2026-01-31T08:00:00Z
    #[arg(long, value_name = "MOMENT", value_parser = moment::parse)]
    since: Option<Moment>,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Only of this container: an init container, a sidecar, or main
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    container: String,
    /// Do not say which replica wrote a line
    #[arg(long)]
    raw: bool,
}

/// `all` is Docker's word for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    All,
    Last(u64),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        _ => text
            .parse()
            .map(Tail::Last)
            .map_err(|_| format!("{text:?} is not a number of lines; write e.g. 100 or all")),
    }
}

pub(crate) async fn run(context: &mut Context<'_>, args: LogsArgs) -> Result<(), Failure> {
    let request = v1::Logs {
        target: args.target.clone(),
        follow: args.follow,
        tail: match args.tail {
            None | Some(Tail::All) => None,
            Some(Tail::Last(lines)) => Some(lines),
        },
        since: args.since.map(|moment| moment.resolve(now()).0),
        tasks: Vec::new(),
        container: args.container.clone(),
    };
    let mut frames = context.client.open(open_stream::Kind::Logs(request)).await?;
    let mut prefixes = Prefixes::default();
    // Without following it is the end of the program, as everywhere.
    let mut interrupt = args.follow.then(Interrupt::new);
    let pressed = async |interrupt: &mut Option<Interrupt>| match interrupt {
        Some(interrupt) => interrupt.pressed().await,
        None => std::future::pending().await,
    };
    loop {
        let message = tokio::select! {
            message = frames.from.message() => message?,
            // Following has no other end: stopping it is no error.
            () = pressed(&mut interrupt) => return Ok(()),
        };
        let Some(message) = message else { return Ok(()) };
        match message.kind {
            Some(frame::Kind::Log(line)) => {
                let text = render(&line, &args, &mut prefixes);
                match line.stderr {
                    true => context.printer.raw_error(&text),
                    false => context.printer.raw(&text)?,
                }
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
}

/// Names of the replicas seen so far, to align the bars behind them.
#[derive(Default)]
struct Prefixes {
    width: usize,
    seen: BTreeSet<String>,
}

impl Prefixes {
    fn pad(&mut self, name: &str) -> usize {
        if !self.seen.contains(name) {
            self.width = self.width.max(name.len());
            self.seen.insert(name.to_owned());
        }
        self.width
    }
}

fn render(line: &v1::LogLine, args: &LogsArgs, prefixes: &mut Prefixes) -> Vec<u8> {
    let mut text = Vec::with_capacity(line.line.len() + 48);
    if !args.raw {
        let container = match line.container.as_str() {
            "" => String::new(),
            name => format!(" {name}"),
        };
        let name = match Hook::from_number(line.hook) {
            Some(hook) => format!("{}.{}{container}", line.service, hook.as_str()),
            None => format!("{}.{}{container}", line.service, line.slot),
        };
        let width = prefixes.pad(&name);
        text.extend(format!("{name:<width$} | ").into_bytes());
    }
    if args.timestamps {
        let at = Time(line.time_ns / 1_000_000).to_string();
        // Nanoseconds, as Docker shows them.
        let fine = format!("{:09}", line.time_ns % 1_000_000_000);
        let seconds = at.split('.').next().unwrap_or_default();
        text.extend(format!("{seconds}.{fine}Z ").into_bytes());
    }
    text.extend_from_slice(&line.line);
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut args = LogsArgs {
            target: "web".into(),
            follow: false,
            tail: None,
            since: None,
            timestamps: false,
            container: String::new(),
            raw: false,
        };
        let mut prefixes = Prefixes::default();
        let mut line = v1::LogLine {
            time_ns: 1_709_210_096_789_000_001,
            line: b"hello".to_vec(),
            service: "web".into(),
            slot: 12,
            ..v1::LogLine::default()
        };
        assert_eq!(render(&line, &args, &mut prefixes), b"web.12 | hello\n");
        line.slot = 2;
        args.timestamps = true;
        let text = String::from_utf8(render(&line, &args, &mut prefixes)).unwrap();
        assert_eq!(text, "web.2  | 2024-02-29T12:34:56.789000001Z hello\n");
        args.raw = true;
        args.timestamps = false;
        assert_eq!(render(&line, &args, &mut prefixes), b"hello\n");
        (args.raw, line.container) = (false, "proxy".into());
        assert_eq!(render(&line, &args, &mut prefixes), b"web.2 proxy | hello\n");
    }

    #[test]
    fn tails() {
        assert_eq!(tail("all"), Ok(Tail::All));
        assert_eq!(tail("5"), Ok(Tail::Last(5)));
        assert!(tail("-1").is_err());
    }
}
