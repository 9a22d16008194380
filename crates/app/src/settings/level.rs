//! What is logged: a level, or levels by module.
//!
//! A plain level is about Warren: libraries that tell each step of theirs stay
//! quiet under it, and whoever wants to hear them names them.

use std::fmt;
use std::str::FromStr;

const DEFAULT: &str = "info";
const LEVELS: [&str; 5] = ["off", "error", "warn", "info", "debug"];
const QUIET: &str = ",openraft=error,h2=info,hyper=info,tower=info";
pub(crate) const HINT: &str = "write one of off, error, warn, info, debug, or by module: \
                               info,warren_store=debug";

/// As the library for logs takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter(String);

impl Default for Filter {
    fn default() -> Self {
        Self(format!("{DEFAULT}{QUIET}"))
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The library takes any other word for a module of that name, and would log nothing else.
        let sane = |part: &str| LEVELS.contains(&part.rsplit('=').next().unwrap_or_default());
        if !text.split(',').all(sane) {
            return Err(format!("{text:?} is not a log level"));
        }
        Ok(Self(match text {
            "info" | "debug" => format!("{text}{QUIET}"),
            _ => text.to_owned(),
        }))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a person would have written for this filter.
pub(crate) fn shown(filter: &str) -> &str {
    filter.strip_suffix(QUIET).unwrap_or(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = text.parse::<Filter>().map_or_else(|e| e, |filter| filter.to_string());
        assert_eq!(got.replace(QUIET, " and quiet"), expected);
    }

    #[test]
    fn filters() {
        check("info", "info and quiet");
        check("debug", "debug and quiet");
        // Libraries alone would say something, and the shipped program has none of that.
        check("trace", "\"trace\" is not a log level");
        check("warn", "warn");
        check("off", "off");
        check("warn,warren_store=debug", "warn,warren_store=debug");
        check("loud", "\"loud\" is not a log level");
        check("info,warren_store=loud", "\"info,warren_store=loud\" is not a log level");
        check("", "\"\" is not a log level");
        assert_eq!(shown(&Filter::default().to_string()), "info");
        assert_eq!(shown("warn"), "warn");
        assert!(LEVELS.iter().all(|level| HINT.contains(level)));
    }
}
