//! What an image's `HEALTHCHECK` means here.
//!
//! As Docker reads it, with Docker's defaults where the image says nothing: its
//! author had those in mind. A start period is always granted: Docker waits for
//! an interval before it asks for the first time, Warren asks at once.

use warren_image::ImageHealth;
use warren_model::health::{HealthSpec, Healthcheck, Probe};

/// Docker's, for both.
const INTERVAL_MS: u64 = 30_000;
const TIMEOUT_MS: u64 = 30_000;
const NS: i64 = 1_000_000;

/// Nothing, if the image has none or says that there is none.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn of_image(health: &ImageHealth) -> Result<Option<HealthSpec>, String> {
    let probe = match health.test.split_first().map(|(kind, args)| (kind.as_str(), args)) {
        None | Some(("NONE", _)) => return Ok(None),
        Some(("CMD", args)) => Probe::Exec(args.to_vec()),
        Some(("CMD-SHELL", [line])) => Probe::Shell(line.clone()),
        Some(("CMD-SHELL", args)) => {
            return Err(format!("CMD-SHELL has {} lines, not one", args.len()));
        }
        Some((kind, _)) => {
            return Err(format!("{kind:?} is none of NONE, CMD, CMD-SHELL"));
        }
    };
    let spec = HealthSpec {
        interval_ms: duration_ms(health.interval, INTERVAL_MS, HealthSpec::INTERVAL_MIN_MS),
        timeout_ms: duration_ms(health.timeout, TIMEOUT_MS, 1),
        retries: match u32::try_from(health.retries) {
            Ok(0) | Err(_) => HealthSpec::RETRIES,
            Ok(retries) => retries.min(HealthSpec::RETRIES_MAX),
        },
        start_period_ms: duration_ms(health.start_period, HealthSpec::START_PERIOD_MS, 0),
        start_interval_ms: duration_ms(
            health.start_interval,
            HealthSpec::START_INTERVAL_MS,
            HealthSpec::INTERVAL_MIN_MS,
        ),
        ..HealthSpec::new(probe)
    };
    let check = Healthcheck::Image(Box::new(spec.clone()));
    check.validate().map_err(|error| error.to_string())?;
    Ok(Some(spec))
}

/// Within what we allow; `default_ms` where the image says nothing.
fn duration_ms(ns: i64, default_ms: u64, least_ms: u64) -> u64 {
    match u64::try_from(ns / NS) {
        Ok(0) if ns <= 0 => default_ms,
        Ok(ms) => ms.clamp(least_ms, HealthSpec::DURATION_MAX_MS),
        Err(_) => default_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(test: &[&str], expected: &str) {
        let test = test.iter().map(|word| (*word).to_owned()).collect();
        let health = ImageHealth { test, ..ImageHealth::default() };
        let got = match of_image(&health) {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(spec)) => spec.probe.to_string(),
            Err(why) => why,
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn forms() {
        check(&[], "nothing");
        check(&["NONE"], "nothing");
        check(&["CMD", "/check", "-q"], "cmd /check -q");
        check(&["CMD-SHELL", "test -f /ok"], "cmd test -f /ok");
        check(&["CMD-SHELL"], "CMD-SHELL has 0 lines, not one");
        check(&["TRUE"], "\"TRUE\" is none of NONE, CMD, CMD-SHELL");
        check(&["CMD"], "health_cmd: \"\" names no program");
    }

    #[test]
    fn times() {
        let test = vec!["CMD-SHELL".to_owned(), "true".to_owned()];
        let plain = of_image(&ImageHealth { test: test.clone(), ..ImageHealth::default() });
        let plain = plain.unwrap().unwrap();
        assert_eq!((plain.interval_ms, plain.timeout_ms, plain.retries), (30_000, 30_000, 3));
        assert_eq!((plain.start_period_ms, plain.start_interval_ms), (30_000, 1_000));
        let own = of_image(&ImageHealth {
            test,
            interval: 5_000_000_000,
            timeout: 1,
            start_period: 2_000_000_000,
            start_interval: i64::MAX,
            retries: -1,
        });
        let own = own.unwrap().unwrap();
        assert_eq!((own.interval_ms, own.timeout_ms, own.retries), (5_000, 1, 3));
        assert_eq!((own.start_period_ms, own.start_interval_ms), (2_000, 86_400_000));
    }
}
