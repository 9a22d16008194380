//! What is wrong with a command line, in our words: which flag, which value,
//! what is allowed, and a hint.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::failure::{Exit, Failure};
use super::printer::Printer;

/// Words of other tools that fingers know, and what they are here.
const ELSEWHERE: [(&str, &str); 4] = [
    ("--driver", "networks have no driver here: the cluster's overlay carries all of them"),
    ("--name", "the name comes first: warren service create NAME --image REF"),
    ("--with-registry-auth", "credentials stay on the node: warren registry login HOST"),
    ("--password", "arguments can be read by every user: use --password-stdin"),
];

/// Turns a parser's error into a failure; prints help and version.
pub(crate) fn explain(error: clap::Error, printer: &mut Printer) -> Failure {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render().to_string();
            match printer.raw(text.as_bytes()) {
                Ok(()) => Failure::new(Exit::Silent(0), ""),
                Err(failure) => failure,
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            printer.raw_error(error.render().to_string().as_bytes());
            Failure::new(Exit::Silent(Exit::Input.code()), "")
        }
        _ => describe(&error),
    }
}

fn texts(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        Some(ContextValue::StyledStrs(texts)) => texts.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}

fn first(error: &clap::Error, kind: ContextKind) -> Option<String> {
    texts(error, kind).into_iter().next()
}

/// `--publish <PORT>` is `--publish`, `<NAME>` is NAME.
fn bare(argument: &str) -> String {
    match argument.split_once([' ', '=', '[']) {
        Some((flag, _)) if flag.starts_with('-') => flag.to_owned(),
        _ => argument.trim_end_matches('.').trim_matches(['<', '>']).to_owned(),
    }
}

fn describe(error: &clap::Error) -> Failure {
    let argument = first(error, ContextKind::InvalidArg).map(|a| bare(&a)).unwrap_or_default();
    let value = first(error, ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => unknown_flag(error, &argument),
        ErrorKind::InvalidSubcommand => {
            let typed = first(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            let failure = Failure::input(format!("there is no command {typed:?}"));
            // The likeliest comes last.
            match texts(error, ContextKind::SuggestedSubcommand).pop() {
                Some(meant) => failure.hint(format!("did you mean {meant}?")),
                None => failure.hint("warren --help lists the commands"),
            }
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            Failure::input(format!("{argument}: a value is missing"))
        }
        ErrorKind::InvalidValue => {
            let allowed = texts(error, ContextKind::ValidValue).join(", ");
            let failure = Failure::input(format!("{argument}: {value:?} is not one of {allowed}"));
            match first(error, ContextKind::SuggestedValue) {
                Some(meant) => failure.hint(format!("did you mean {meant}?")),
                None => failure,
            }
        }
        ErrorKind::ValueValidation => {
            let why =
                error.source().map_or_else(|| format!("{value:?} is wrong"), |e| e.to_string());
            Failure::input(format!("{argument}: {why}"))
        }
        ErrorKind::MissingRequiredArgument => {
            let missing: Vec<String> =
                texts(error, ContextKind::InvalidArg).iter().map(|a| bare(a)).collect();
            with_usage(error, Failure::input(format!("{} is missing", missing.join(", "))))
        }
        ErrorKind::ArgumentConflict => {
            let other = first(error, ContextKind::PriorArg).map(|a| bare(&a)).unwrap_or_default();
            Failure::input(match other == argument || other.is_empty() {
                true => format!("{argument} can be given once"),
                false => format!("{argument} and {other} exclude each other"),
            })
        }
        ErrorKind::MissingSubcommand => with_usage(error, Failure::input("a command is missing")),
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            with_usage(error, Failure::input(line.trim_start_matches("error: ")))
        }
    }
}

fn unknown_flag(error: &clap::Error, typed: &str) -> Failure {
    let what = if typed.starts_with('-') { "flag" } else { "argument" };
    let failure = Failure::input(format!("there is no {what} {typed:?} here"));
    if let Some((_, hint)) = ELSEWHERE.iter().find(|(flag, _)| *flag == typed) {
        return failure.hint(*hint);
    }
    match first(error, ContextKind::SuggestedArg) {
        Some(meant) => failure.hint(format!("did you mean {}?", bare(&meant))),
        None => with_usage(error, failure),
    }
}

fn with_usage(error: &clap::Error, failure: Failure) -> Failure {
    match first(error, ContextKind::Usage) {
        Some(usage) => {
            let words: Vec<&str> = usage.split_whitespace().collect();
            failure.hint(words.join(" ").replacen("Usage: ", "usage: ", 1))
        }
        None => failure,
    }
}
