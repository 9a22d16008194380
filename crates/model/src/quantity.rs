//! Quantities as people write them: `128MiB`, `1m30s`, `0.5` cores; and [`Time`].

use std::fmt;

/// Milliseconds since the Unix epoch, stamped by whoever owns a clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    pub const MAX: Self = Self(u64::MAX);

    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to here, zero if `earlier` is later.
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Writes RFC 3339 in UTC with milliseconds.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / 86_400_000, self.0 % 86_400_000);
        // Days to a civil date: Howard Hinnant, "chrono-compatible low-level date algorithms".
        let z = days + 719_468;
        let era = z / 146_097;
        let doe = z % 146_097;
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + u64::from(month <= 2);
        let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
    }
}

/// Why a text is not a quantity; says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "{0:?} is not a size; write a number with B, KB, MB, GB, KiB, MiB, GiB, k, m or g, e.g. 128MiB"
    )]
    Size(String),
    #[error("{0:?} is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s")]
    Duration(String),
    #[error("{0:?} is not a number of cores; write e.g. 0.5 or 2 (at least 0.001, at most 1000)")]
    Cores(String),
}

/// Parses a size in bytes. `k`, `m`, `g` alone are binary, as in Docker.
///
/// # Errors
/// [`QuantityError::Size`] with the text.
pub fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let error = || QuantityError::Size(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        _ => return Err(error()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(error);
    }
    let (whole, fraction) = number.split_once('.').ok_or_else(error)?;
    let whole: u64 = whole.parse().map_err(|_| error())?;
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let digits = u32::try_from(fraction.len()).map_err(|_| error())?;
    let part = u128::from(fraction.parse::<u64>().map_err(|_| error())?) * u128::from(scale)
        / 10u128.pow(digits);
    let part = u64::try_from(part).map_err(|_| error())?;
    whole.checked_mul(scale).and_then(|w| w.checked_add(part)).ok_or_else(error)
}

/// Parses a duration into milliseconds: `10s`, `1m30s`, `250ms`, `0`.
///
/// # Errors
/// [`QuantityError::Duration`] with the text.
pub fn parse_duration_ms(text: &str) -> Result<u64, QuantityError> {
    let error = || QuantityError::Duration(text.to_owned());
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error());
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let number: u64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let scale = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error()),
        };
        rest = &rest[letters..];
        total =
            number.checked_mul(scale).and_then(|part| total.checked_add(part)).ok_or_else(error)?;
    }
    Ok(total)
}

/// Writes milliseconds as [`parse_duration_ms`] reads them, largest units first.
pub fn format_duration_ms(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    let mut rest = ms;
    let mut out = String::new();
    for (scale, unit) in units {
        if rest >= scale {
            out.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    out
}

/// Parses cores into thousandths: `0.5` is 500.
///
/// # Errors
/// [`QuantityError::Cores`] with the text.
pub fn parse_cores_milli(text: &str) -> Result<u32, QuantityError> {
    let error = || QuantityError::Cores(text.to_owned());
    let trimmed = text.trim();
    let (whole, fraction) = trimmed.split_once('.').unwrap_or((trimmed, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let whole: u32 = whole.parse().map_err(|_| error())?;
    let part: u32 = format!("{fraction:0<3}").parse().map_err(|_| error())?;
    let milli = whole.checked_mul(1000).and_then(|w| w.checked_add(part)).ok_or_else(error)?;
    if (1..=1_000_000).contains(&milli) { Ok(milli) } else { Err(error()) }
}

/// Writes a size for people, rounded down to a tenth of its unit: `512MiB`, `1.5GiB`, `7B`.
pub fn format_size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((scale, unit)) = units.into_iter().find(|(scale, _)| bytes >= *scale) else {
        return format!("{bytes}B");
    };
    let tenth = u128::from(bytes % scale) * 10 / u128::from(scale);
    match tenth {
        0 => format!("{}{unit}", bytes / scale),
        tenth => format!("{}.{tenth}{unit}", bytes / scale),
    }
}

/// Writes thousandths of a core as [`parse_cores_milli`] reads them: `0.5`, `2`.
pub fn format_cores_milli(millis: u64) -> String {
    let fraction = format!("{:03}", millis % 1000);
    match fraction.trim_end_matches('0') {
        "" => (millis / 1000).to_string(),
        fraction => format!("{}.{fraction}", millis / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_for_people() {
        let sizes = [0, 1023, 1 << 10, 512 << 20, (512 << 20) - 1, 3 << 29, u64::MAX];
        let sizes = sizes.map(format_size);
        assert_eq!(sizes, ["0B", "1023B", "1KiB", "512MiB", "511.9MiB", "1.5GiB", "16777215.9TiB"]);
        let cores = [0, 1, 500, 1250, 2000].map(format_cores_milli);
        assert_eq!(cores, ["0", "0.001", "0.5", "1.25", "2"]);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("128MiB", 128 << 20),
            ("1.5g", 3 << 29),
            ("10MB", 10_000_000),
            ("64k", 65536),
            ("7 B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1e3", "99999999999999999999", "20000000TiB", "1.5.2m", "1.m"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("10s", 10_000), ("1m30s", 90_000), ("250ms", 250), ("0", 0), ("2h", 7_200_000)]
        {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
            assert_eq!(parse_duration_ms(&format_duration_ms(ms)), Ok(ms));
        }
        for text in
            ["", "10", "s", "-1s", "1x", "1s2", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores() {
        assert_eq!(parse_cores_milli("0.5"), Ok(500));
        assert_eq!(parse_cores_milli("2"), Ok(2000));
        for text in ["", "0", "-1", "0.0001", "1001", "abc", "9999999999"] {
            assert!(parse_cores_milli(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(Time(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Time(1_709_210_096_789).to_string(), "2024-02-29T12:34:56.789Z");
    }
}
