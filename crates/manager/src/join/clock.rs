//! Whether a node's clock agrees with ours.
//!
//! Pure. Certificates are good for a while around now: a clock that is far off
//! makes a member that nobody can talk to, and says so in words that nobody
//! understands. Better to say it at the door.

/// From here on the node is told.
const WARN_MS: u64 = 10 * 60_000;
/// From here on it is not let in.
const REFUSE_MS: u64 = 3_600_000;

pub(super) const HINT: &str = "set the clock of one of them, e.g. by NTP";

/// # Errors
/// When the clocks are more than an hour apart; `Ok` with a text from ten minutes on.
pub(super) fn check(theirs_ms: u64, ours_ms: u64) -> Result<Option<String>, String> {
    let apart = theirs_ms.abs_diff(ours_ms);
    if apart < WARN_MS {
        return Ok(None);
    }
    let side = if theirs_ms > ours_ms { "ahead of" } else { "behind" };
    let text = format!("the node's clock is {} {side} the manager's", in_words(apart));
    if apart < REFUSE_MS { Ok(Some(text)) } else { Err(text) }
}

fn in_words(ms: u64) -> String {
    let minutes = ms / 60_000;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        let now = 1_767_225_600_000;
        let minutes = |n: u64| n * 60_000;
        assert_eq!(check(now + minutes(9), now), Ok(None));
        assert_eq!(
            check(now - minutes(10), now),
            Ok(Some("the node's clock is 10 min behind the manager's".into()))
        );
        assert_eq!(
            check(now + minutes(61), now),
            Err("the node's clock is 1 h 1 min ahead of the manager's".into())
        );
        assert!(check(0, now).unwrap_err().contains("20454 d 0 h behind"));
        assert!(check(u64::MAX, now).is_err());
    }
}
