//! Names of backup files, when the next one is due, which ones are too many.
//!
//! Pure. A name says whose backup it is and of when, so that the folder needs
//! no list beside it, another leader goes on where the last one stopped (if
//! they share the folder), and whatever else lies there is left alone.

use time::{Date, OffsetDateTime};
use warren_model::{ClusterId, Time};

const PREFIX: &str = "warren-";
const SUFFIX: &str = ".backup";
/// While it is being written.
pub(super) const UNFINISHED_SUFFIX: &str = ".backup.tmp";

/// `warren-<cluster>-20260102T030405Z.backup`
pub(super) fn name(cluster: ClusterId, at: Time) -> String {
    format!("{PREFIX}{cluster}-{}{SUFFIX}", stamp(at))
}

fn stamp(at: Time) -> String {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    // Past the year 9999 all names are alike, which harms nobody.
    let moment = OffsetDateTime::from_unix_timestamp(seconds);
    let moment = moment.unwrap_or(Date::MAX.midnight().assume_utc());
    let (year, month, day) = moment.to_calendar_date();
    let (hour, minute, second) = moment.to_hms();
    let month = u8::from(month);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn time_of(cluster: ClusterId, name: &str) -> Option<Time> {
    let stamp = name.strip_prefix(PREFIX)?.strip_prefix(&cluster.to_string())?;
    let stamp = stamp.strip_prefix('-')?.strip_suffix(SUFFIX)?;
    let number = |from: usize, to: usize| stamp.get(from..to)?.parse::<u8>().ok();
    let month = number(4, 6)?.try_into().ok()?;
    let date = Date::from_calendar_date(stamp.get(..4)?.parse().ok()?, month, number(6, 8)?);
    let moment = date.ok()?.with_hms(number(9, 11)?, number(11, 13)?, number(13, 15)?).ok()?;
    let seconds = u64::try_from(moment.assume_utc().unix_timestamp()).ok()?;
    let time = Time(seconds.checked_mul(1000)?);
    // Nothing but what we write: no signs, no blanks, nothing after it.
    (self::stamp(time) == stamp).then_some(time)
}

/// Our files among `names`, oldest first.
fn ours(cluster: ClusterId, names: &[String]) -> Vec<(Time, &str)> {
    let mut ours: Vec<(Time, &str)> =
        names.iter().filter_map(|name| Some((time_of(cluster, name)?, name.as_str()))).collect();
    ours.sort();
    ours
}

/// When the next one is due; a file from the future, of a clock that was wrong, does not count.
pub(super) fn due(cluster: ClusterId, names: &[String], interval_ms: u64, now: Time) -> Time {
    let last = ours(cluster, names).into_iter().map(|(at, _)| at).rfind(|at| *at <= now);
    last.map_or(now, |last| last.plus_ms(interval_ms))
}

/// Files beyond the newest `keep`.
pub(super) fn surplus(cluster: ClusterId, names: &[String], keep: u32) -> Vec<&str> {
    let ours = ours(cluster, names);
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let too_many = ours.len().saturating_sub(keep);
    ours.into_iter().take(too_many).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 10]);

    /// 2026-01-02 03:04:05 UTC
    const THEN: Time = Time(1_767_323_045_000);

    fn names(times: &[u64]) -> Vec<String> {
        let own = times.iter().map(|ms| name(CLUSTER, Time(THEN.0 + ms)));
        let others = ["notes.txt", "warren-x.backup", "warren--20260102T030405Z.backup"];
        own.chain(others.map(str::to_owned)).collect()
    }

    #[test]
    fn names_hold_the_time() {
        let name = name(CLUSTER, THEN.plus_ms(999));
        assert!(name.ends_with("-20260102T030405Z.backup"), "{name}");
        assert_eq!(time_of(CLUSTER, &name), Some(THEN));
        assert_eq!(time_of(ClusterId::from_bytes([2; 10]), &name), None);
        assert_eq!(time_of(CLUSTER, &format!("{name}.tmp")), None);
    }

    #[test]
    fn the_next_one_is_due() {
        let hour = 3_600_000;
        let due = |times: &[u64], now_ms: u64| {
            due(CLUSTER, &names(times), hour, THEN.plus_ms(now_ms)).since_ms(THEN)
        };
        assert_eq!(due(&[], 5000), 5000);
        assert_eq!(due(&[0, 2000], 5000), hour + 2000);
        assert_eq!(due(&[0], 3 * hour), hour);
        // The clock was ahead once: that one does not hold up the next.
        assert_eq!(due(&[0, 9 * hour], 5000), hour);
    }

    #[test]
    fn the_oldest_go() {
        let names = names(&[3000, 1000, 2000]);
        assert_eq!(surplus(CLUSTER, &names, 2), [name(CLUSTER, THEN.plus_ms(1000))]);
        assert_eq!(surplus(CLUSTER, &names, 9), Vec::<&str>::new());
    }
}
