//! Logs of the daemon: text or JSON lines on standard error, levels per module.
//!
//! The levels can be changed while the process runs. JSON lines are flat: the
//! fields of an event and of the spans around it (`node_id`, `task_id`, …) are
//! keys of one object.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

mod json;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A log filter that cannot be understood, or not be set.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error(
        "log level {0:?} is not understood; write error, warn, info, debug or e.g. info,warren_store=debug"
    )]
    Shape(String),
    #[error("log level {0:?} has {1} characters, at most {FILTER_LEN_MAX} are read")]
    TooLong(String, usize),
    #[error("this process does not log")]
    Off,
}

/// More modules than there are.
pub const FILTER_LEN_MAX: usize = 4096;

/// What was set last, and how to set something else.
struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
    set: Mutex<String>,
}

static LEVELS: OnceLock<Levels> = OnceLock::new();

/// Starts logging to standard error. A second call changes nothing.
///
/// # Errors
/// [`FilterError`] when `filter` is not a level or a list of `module=level`.
pub fn start(filter: &str, format: LogFormat) -> Result<(), FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    // The only failure is "set already", which tests in one process run into.
    let started = match format {
        LogFormat::Text => registry
            .with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Json => registry.with(json::Lines::new(std::io::stderr)).try_init(),
    };
    if started.is_ok() {
        // The first one to start is the only one.
        let _ = LEVELS.set(Levels { handle, set: Mutex::new(filter.to_owned()) });
    }
    Ok(())
}

/// Logs by `filter` from now on; returns what was set before.
///
/// # Errors
/// [`FilterError`]; nothing has changed then.
pub fn set(filter: &str) -> Result<String, FilterError> {
    let parsed = parse(filter)?;
    let levels = LEVELS.get().ok_or(FilterError::Off)?;
    levels.handle.reload(parsed).map_err(|_| FilterError::Off)?;
    let mut set = levels.set.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::replace(&mut *set, filter.to_owned()))
}

fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    if filter.len() > FILTER_LEN_MAX {
        let start = filter.chars().take(32).collect();
        return Err(FilterError::TooLong(start, filter.len()));
    }
    EnvFilter::try_new(filter).map_err(|_| FilterError::Shape(filter.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_change_while_running() {
        assert!(matches!(set("info"), Err(FilterError::Off)));
        start("warn", LogFormat::Json).unwrap();
        assert!(!tracing::enabled!(tracing::Level::INFO));
        assert_eq!(set("info,warren_store=debug").unwrap(), "warn");
        assert!(tracing::enabled!(tracing::Level::INFO));
        assert!(matches!(set("=x=y"), Err(FilterError::Shape(_))));
        assert!(matches!(set(&"a".repeat(5000)), Err(FilterError::TooLong(_, 5000))));
        assert_eq!(set("warn").unwrap(), "info,warren_store=debug");
    }
}
