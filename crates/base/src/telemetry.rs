//! Logs of the daemon: text or JSON lines on standard error, levels per module.

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A log filter that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "log level {0:?} is not understood; write error, warn, info, debug, trace or e.g. info,warren_store=debug"
)]
pub struct FilterError(pub String);

/// Starts logging to standard error. A second call changes nothing.
///
/// # Errors
/// [`FilterError`] when `filter` is not a level or a list of `module=level`.
pub fn start(filter: &str, format: LogFormat) -> Result<(), FilterError> {
    let parsed = EnvFilter::try_new(filter).map_err(|_| FilterError(filter.to_owned()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // The only failure is "set already", which tests in one process run into.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
