//! When runs of a job begin: five fields as in crontab(5), in a time zone.
//!
//! A schedule names times of a wall clock. Each that exists is one moment: what a change of the
//! clocks leaves out is left out, and what there is twice is taken the first time. The time zones
//! are those that are built into the binary, so that all managers of a version agree.

use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};

use crate::Time;
use crate::quantity::format_duration_ms;
use crate::service::{SpecError, wrong};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// As given: `*/5 * * * *`, `0 3 * * MON-FRI`, `@hourly`.
    pub cron: String,
    /// A name of the IANA database, e.g. `Europe/Berlin`.
    pub timezone: String,
    /// When a run is due while another goes on.
    pub concurrency: Concurrency,
    /// When a run was due and nobody was there to begin it.
    pub missed: Missed,
    /// A run that is due for longer is missed; absent: see [`Schedule::late_ms`].
    pub deadline_ms: Option<u64>,
}

/// What becomes of a time at which a run has not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Concurrency {
    /// Another begins beside it.
    Allow,
    /// Nothing begins.
    #[default]
    Forbid,
    /// It is stopped, then the other begins.
    Replace,
}

impl Concurrency {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Forbid => "forbid",
            Self::Replace => "replace",
        }
    }
}

/// What becomes of times that passed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missed {
    /// Nothing.
    #[default]
    Skip,
    /// One run for the last of them, however many there were.
    RunOnce,
}

impl Missed {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::RunOnce => "run-once",
        }
    }
}

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error(
        "is not a schedule: {why}; write minute, hour, day of month, month, day of week, e.g. \
         \"*/5 * * * *\", or @hourly, @daily, @weekly, @monthly, @yearly"
    )]
    Cron { why: String },
    #[error("never comes: no such day is in any calendar")]
    Never,
    #[error("is not a time zone; write a name of the IANA database, e.g. Europe/Berlin or UTC")]
    Zone,
}

impl Schedule {
    pub const TIMEZONE: &'static str = "UTC";
    /// Of the schedule's text and the zone's name: the longest name has 32.
    pub const TEXT_MAX: usize = 256;
    /// A run that begins that late begins still: long enough for any change of leader.
    pub const LATE_MS: u64 = 60_000;
    const DEADLINE_MAX_MS: u64 = 31 * 86_400_000;

    /// In UTC, otherwise by default.
    pub fn new(cron: impl Into<String>) -> Self {
        Self {
            cron: cron.into(),
            timezone: Self::TIMEZONE.to_owned(),
            concurrency: Concurrency::default(),
            missed: Missed::default(),
            deadline_ms: None,
        }
    }

    /// How late a run may begin; `None`: however late.
    pub fn late_ms(&self) -> Option<u64> {
        match (self.deadline_ms, self.missed) {
            (Some(ms), _) => Some(ms),
            (None, Missed::Skip) => Some(Self::LATE_MS),
            (None, Missed::RunOnce) => None,
        }
    }

    /// The times that it names.
    ///
    /// # Errors
    /// [`ScheduleError`] when the schedule or the zone is none.
    pub fn calendar(&self) -> Result<Calendar, ScheduleError> {
        let no = |why: &str| ScheduleError::Cron { why: why.to_owned() };
        let text = self.cron.trim();
        let fields = match text.strip_prefix('@') {
            Some(name) => nickname(name).ok_or_else(|| no("there is no such word"))?,
            None => text,
        };
        if fields.split_whitespace().count() != 5 {
            return Err(no("it has not five fields"));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed);
        let cron = parser.build().parse(fields).map_err(|error| no(&reason(&error.to_string())))?;
        let zone = TimeZoneDatabase::bundled().get(&self.timezone);
        let zone = zone.map_err(|_| ScheduleError::Zone)?;
        Ok(Calendar { cron, zone })
    }

    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        for (field, text) in [("schedule", &self.cron), ("schedule_timezone", &self.timezone)] {
            if text.len() > Self::TEXT_MAX {
                let problem = format!("has more than {} bytes", Self::TEXT_MAX);
                return Err(wrong(field, format!("{} bytes", text.len()), problem));
            }
        }
        let told = |error: &ScheduleError| match error {
            ScheduleError::Zone => wrong("schedule_timezone", &self.timezone, error.to_string()),
            ScheduleError::Cron { .. } | ScheduleError::Never => {
                wrong("schedule", &self.cron, error.to_string())
            }
        };
        let calendar = self.calendar().map_err(|error| told(&error))?;
        if calendar.next_after(Time(0)).is_none() {
            return Err(told(&ScheduleError::Never));
        }
        let max = Self::DEADLINE_MAX_MS;
        match self.deadline_ms {
            Some(ms) if ms == 0 || ms > max => {
                let problem = format!("is not between 1ms and {}", format_duration_ms(max));
                Err(wrong("schedule_deadline", format_duration_ms(ms), problem))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn nickname(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_lowercase().as_str() {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => return None,
    })
}

/// The parser's words as part of a sentence.
fn reason(text: &str) -> String {
    let text = text.rsplit(": ").next().unwrap_or(text).trim_end_matches('.');
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// A schedule that was understood.
#[derive(Debug, Clone)]
pub struct Calendar {
    cron: Cron,
    zone: TimeZone,
}

impl Calendar {
    /// Times in a row that a change of the clocks leaves out or repeats, at one a minute: a whole
    /// day, as when Samoa crossed the date line, and then some.
    const ODD_MAX: u32 = 3000;

    /// The first time after `after`; `None` when there is none that anybody lives to see.
    pub fn next_after(&self, after: Time) -> Option<Time> {
        let from = Timestamp::from_millisecond(i64::try_from(after.0).ok()?).ok()?;
        let mut local = from.to_zoned(self.zone.clone()).datetime();
        for _ in 0..Self::ODD_MAX {
            local = self.next_local(local)?;
            let at = self.zone.to_ambiguous_timestamp(local);
            let offset = match at.offset() {
                AmbiguousOffset::Unambiguous { offset } => offset,
                AmbiguousOffset::Fold { before, .. } => before,
                AmbiguousOffset::Gap { .. } => continue,
            };
            let at = offset.to_timestamp(local).ok()?.as_millisecond();
            let at = Time(u64::try_from(at).ok()?);
            if at > after {
                return Some(at);
            }
        }
        None
    }

    /// What a clock on the wall shows next; in UTC, which leaves nothing out.
    fn next_local(&self, after: DateTime) -> Option<DateTime> {
        let after = after.to_zoned(TimeZone::UTC).ok()?;
        self.cron.find_next_occurrence(&after, false).ok().map(|next| next.datetime())
    }

    /// How that moment is written where the schedule is from: `2026-03-29T02:30:00+01:00`.
    pub fn local(&self, time: Time) -> String {
        let moment = i64::try_from(time.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        match moment {
            Some(moment) => {
                let offset = self.zone.to_offset(moment);
                moment.display_with_offset(offset).to_string()
            }
            None => time.to_string(),
        }
    }
}

impl FromStr for Concurrency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Allow, Self::Forbid, Self::Replace];
        let found = all.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not one of allow, forbid, replace"))
    }
}

impl FromStr for Missed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Skip, Self::RunOnce].into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not one of skip, run-once"))
    }
}

#[cfg(test)]
mod tests;
