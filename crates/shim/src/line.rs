//! One line of a log file: `2025-11-23T22:31:00.123456789Z o hello`.
//!
//! The time has a fixed width, so that a reader finds the first line after a moment by halving the
//! file, and people read the files with the tools they know. A line ends with a newline, which its
//! text never holds.
//!
//! Not here: files and rotation (the shim writes, `warren-runtime` reads).

/// Text of one line at most; longer ones go on in a line of their own, as with Docker.
pub const LINE_MAX: usize = 16 * 1024;
/// `2025-11-23T22:31:00.123456789Z o ` with its last space.
pub const PREFIX_LEN: usize = 33;
/// Longest line with prefix and newline.
pub const WHOLE_MAX: usize = PREFIX_LEN + LINE_MAX + 1;
/// Files are named by rising numbers of this width, `0000000001.log`; the highest is written to.
pub const NAME_DIGITS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Writes the prefix for a moment in nanoseconds since 1970.
pub fn prefix(at_ns: u64, stream: Stream) -> [u8; PREFIX_LEN] {
    let (seconds, nanos) = (at_ns / 1_000_000_000, at_ns % 1_000_000_000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let mut out = *b"0000-00-00T00:00:00.000000000Z o ";
    digits(&mut out[0..4], year);
    digits(&mut out[5..7], month);
    digits(&mut out[8..10], day);
    digits(&mut out[11..13], of_day / 3600);
    digits(&mut out[14..16], of_day / 60 % 60);
    digits(&mut out[17..19], of_day % 60);
    digits(&mut out[20..29], nanos);
    out[31] = match stream {
        Stream::Stdout => b'o',
        Stream::Stderr => b'e',
    };
    out
}

/// Moment, stream and text of a line without its newline; `None` when it is not one of ours.
pub fn parse(line: &[u8]) -> Option<(u64, Stream, &[u8])> {
    let (head, text) = line.split_at_checked(PREFIX_LEN)?;
    let stream = match head[31] {
        b'o' => Stream::Stdout,
        b'e' => Stream::Stderr,
        _ => return None,
    };
    let shape = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (29, b'Z')];
    if shape.iter().any(|(at, byte)| head[*at] != *byte) {
        return None;
    }
    let (year, month, day) = (number(&head[0..4])?, number(&head[5..7])?, number(&head[8..10])?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (hour, minute, second) =
        (number(&head[11..13])?, number(&head[14..16])?, number(&head[17..19])?);
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let at_ns = seconds.checked_mul(1_000_000_000)?.checked_add(number(&head[20..29])?)?;
    Some((at_ns, stream, text))
}

/// The number in a log file's name, e.g. 12 of `0000000012.log`.
pub fn file_number(name: &[u8]) -> Option<u64> {
    let digits = name.strip_suffix(b".log")?;
    if digits.len() != NAME_DIGITS { None } else { number(digits) }
}

/// The name of a log file, ending in NUL.
pub fn file_name(number: u64) -> [u8; NAME_DIGITS + 5] {
    let mut name = *b"0000000000.log\0";
    digits(&mut name[..NAME_DIGITS], number);
    name
}

fn digits(out: &mut [u8], mut number: u64) {
    for byte in out.iter_mut().rev() {
        *byte = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

fn number(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Year, month and day of a day since 1970, by eras of 400 years that begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// The other way round.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(at_ns: u64, expected: &str) {
        let mut line = prefix(at_ns, Stream::Stderr).to_vec();
        assert_eq!(String::from_utf8_lossy(&line), format!("{expected} e "));
        line.extend_from_slice(b"text");
        assert_eq!(parse(&line), Some((at_ns, Stream::Stderr, b"text".as_slice())));
    }

    #[test]
    fn prefixes() {
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_399_999_999_999, "2000-02-28T23:59:59.999999999Z");
        check(951_868_800_000_000_001, "2000-03-01T00:00:00.000000001Z");
        check(1_709_164_800_000_000_000, "2024-02-29T00:00:00.000000000Z");
        check(1_763_937_060_123_456_789, "2025-11-23T22:31:00.123456789Z");
        check(4_102_444_800_000_000_000, "2100-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn foreign_lines_are_refused() {
        for line in [
            "",
            "hello",
            "2025-11-23T22:31:00.123456789Z x text",
            "2025-11-23 22:31:00.123456789Z o text",
            "2025-13-23T22:31:00.123456789Z o text",
            "1969-11-23T22:31:00.123456789Z o text",
            "aaaa-11-23T22:31:00.123456789Z o text",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(&file_name(42), b"0000000042.log\0");
        assert_eq!(file_number(b"0000000042.log"), Some(42));
        assert_eq!(file_number(b"42.log"), None);
        assert_eq!(file_number(b"000000004x.log"), None);
        assert_eq!(file_number(b"current"), None);
    }
}
