//! Moments as people write them: `10m` ago, or RFC 3339.

use warren_model::Time;
use warren_model::quantity::parse_duration_ms;

/// A moment given on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Ago(u64),
    At(Time),
}

impl Moment {
    pub(crate) fn resolve(self, now: Time) -> Time {
        match self {
            Self::Ago(ms) => Time(now.0.saturating_sub(ms)),
            Self::At(time) => time,
        }
    }
}

pub(crate) fn parse(text: &str) -> Result<Moment, String> {
    if let Ok(ms) = parse_duration_ms(text) {
        return Ok(Moment::Ago(ms));
    }
    rfc3339(text)
        .map(Moment::At)
        .ok_or_else(|| format!("{text:?} is not a moment; write e.g. 10m or 2026-01-31T08:00:00Z"))
}

/// `2026-01-31T08:00:00[.123](Z|+01:00)`, the date alone being its midnight in UTC.
fn rfc3339(text: &str) -> Option<Time> {
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    if day == 0 || day > days_of_month(year, month) {
        return None;
    }
    let (clock, offset_minutes) = split_offset(time)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    // 60 is a leap second; it counts as the next one.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let days = days_before_year(year) + days_before_month(year, month) + day - 1;
    let minutes = days * 1440 + hour * 60 + minute - offset_minutes;
    u64::try_from((minutes * 60 + second) * 1000 + ms).ok().map(Time)
}

fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut out = [0; 3];
    for (slot, digits) in out.iter_mut().zip(digits) {
        let part = parts.next().filter(|p| p.len() == digits)?;
        *slot = part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())??;
    }
    parts.next().is_none().then_some(out)
}

fn split_offset(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let at = time.rfind(['+', '-'])?;
    let (clock, offset) = time.split_at(at);
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let [hours, minutes, _] = numbers(&format!("{}:00", &offset[1..]), ':', [2, 2, 2])?;
    (hours < 24 && minutes < 60).then_some((clock, sign * (hours * 60 + minutes)))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_before_month(year: i64, month: i64) -> i64 {
    (1..month).map(|m| days_of_month(year, m)).sum()
}

/// Days from 1970 to the first of January of `year`.
fn days_before_year(year: i64) -> i64 {
    (1970..year).map(|y| 365 + i64::from(is_leap(y))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(parse("10m"), Ok(Moment::Ago(600_000)));
        assert_eq!(Moment::Ago(600_000).resolve(Time(1)), Time(0));
        for (text, expected) in [
            ("2024-02-29T12:34:56.789Z", "2024-02-29T12:34:56.789Z"),
            ("2024-02-29T12:34:56Z", "2024-02-29T12:34:56.000Z"),
            ("2024-03-01 01:00:00+02:00", "2024-02-29T23:00:00.000Z"),
            ("2024-02-29T12:34:56.123456789-00:30", "2024-02-29T13:04:56.123Z"),
            ("1970-01-01", "1970-01-01T00:00:00.000Z"),
        ] {
            let Ok(Moment::At(time)) = parse(text) else { panic!("{text}") };
            assert_eq!(time.to_string(), expected, "{text}");
        }
        for text in [
            "",
            "yesterday",
            "10",
            "2023-02-29",
            "2024-13-01",
            "2024-1-1",
            "2024-01-01T25:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00+1",
            "1969-12-31",
            "2024-01-01T00:00:00.Z",
            "é024-01-01",
            "2024-01-01T00:00:00+é:00",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
