//! Times that a schedule names, over changes of the clocks; what is none.

use super::*;

/// Milliseconds of `2026-03-29T01:59:00Z`.
fn time(text: &str) -> Time {
    let at: Timestamp = text.parse().unwrap();
    Time(u64::try_from(at.as_millisecond()).unwrap())
}

fn calendar(cron: &str, zone: &str) -> Calendar {
    Schedule { timezone: zone.into(), ..Schedule::new(cron) }.calendar().unwrap()
}

/// The times after `from`, as clocks there show them.
#[track_caller]
fn check(cron: &str, zone: &str, from: &str, expected: &[&str]) {
    let calendar = calendar(cron, zone);
    let mut at = time(from);
    for expected in expected {
        at = calendar.next_after(at).unwrap();
        assert_eq!(calendar.local(at), *expected, "{cron} in {zone}");
    }
}

#[track_caller]
fn refused(cron: &str, zone: &str, expected: &str) {
    let schedule = Schedule { timezone: zone.into(), ..Schedule::new(cron) };
    assert_eq!(schedule.validate().unwrap_err().to_string(), expected);
}

#[test]
fn fields_names_and_words() {
    let from = "2026-01-30T10:02:03Z";
    check("*/5 * * * *", "UTC", from, &["2026-01-30T10:05:00+00:00", "2026-01-30T10:10:00+00:00"]);
    check(
        "30 3 * * mon-fri",
        "UTC",
        from,
        &["2026-02-02T03:30:00+00:00", "2026-02-03T03:30:00+00:00"],
    );
    check("0 0 29 feb *", "UTC", from, &["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]);
    check("@hourly", "UTC", from, &["2026-01-30T11:00:00+00:00"]);
    check("@Daily", "Asia/Tokyo", from, &["2026-01-31T00:00:00+09:00"]);
    check("@weekly", "UTC", from, &["2026-02-01T00:00:00+00:00"]);
    check("@monthly", "UTC", from, &["2026-02-01T00:00:00+00:00"]);
    check("@yearly", "UTC", from, &["2027-01-01T00:00:00+00:00"]);
    // Days of month and of week, both given: either, as in crontab(5).
    check(
        "0 0 13 * FRI",
        "UTC",
        "2026-03-10T00:00:00Z",
        &["2026-03-13T00:00:00+00:00", "2026-03-20T00:00:00+00:00"],
    );
}

#[test]
fn times_that_a_change_of_the_clocks_leaves_out() {
    // On 29 March 2026 the clock of Berlin goes from 2:00 to 3:00.
    check(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-03-27T12:00:00Z",
        &["2026-03-28T02:30:00+01:00", "2026-03-30T02:30:00+02:00"],
    );
    check(
        "*/30 1-3 * * *",
        "Europe/Berlin",
        "2026-03-29T00:00:00Z",
        &["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"],
    );
    // Samoa had no 30 December 2011.
    check(
        "0 12 * * *",
        "Pacific/Apia",
        "2011-12-28T23:00:00Z",
        &["2011-12-29T12:00:00-10:00", "2011-12-31T12:00:00+14:00"],
    );
}

#[test]
fn times_that_there_are_twice() {
    // On 25 October 2026 the clock of Berlin goes from 3:00 to 2:00.
    check(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-24T12:00:00Z",
        &["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
    );
    check(
        "*/30 * * * *",
        "Europe/Berlin",
        "2026-10-24T23:59:00Z",
        &["2026-10-25T02:00:00+02:00", "2026-10-25T02:30:00+02:00", "2026-10-25T03:00:00+01:00"],
    );
    // Asked in the second of both hours.
    check("*/30 * * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", &["2026-10-25T03:00:00+01:00"]);
}

#[test]
fn what_is_no_schedule() {
    let form = "write minute, hour, day of month, month, day of week, e.g. \"*/5 * * * *\", or \
                @hourly, @daily, @weekly, @monthly, @yearly";
    let no = |cron: &str, why: &str| {
        refused(cron, "UTC", &format!("schedule: {cron:?} is not a schedule: {why}; {form}"));
    };
    no("* * * *", "it has not five fields");
    no("0 0 * * * *", "it has not five fields");
    no("", "it has not five fields");
    no("@often", "there is no such word");
    let calendar = Schedule::new("61 * * * *").calendar();
    assert!(matches!(calendar, Err(ScheduleError::Cron { .. })), "{calendar:?}");
    for bad in ["a * * * *", "* 24 * * *", "*/0 * * * *", "5-1 * * * *", "* * * * 8", "* * 0 * *"] {
        assert!(Schedule::new(bad).calendar().is_err(), "{bad}");
    }
    refused(
        "0 0 31 2 *",
        "UTC",
        "schedule: \"0 0 31 2 *\" never comes: no such day is in any calendar",
    );
    refused(
        "@daily",
        "Berlin",
        "schedule_timezone: \"Berlin\" is not a time zone; write a name of the IANA database, \
         e.g. Europe/Berlin or UTC",
    );
    let long = "0".repeat(300);
    refused(&long, "UTC", "schedule: \"300 bytes\" has more than 256 bytes");
}

#[test]
fn each_local_time_of_a_year_is_named_once() {
    for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"] {
        let calendar = calendar("*/10 * * * *", zone);
        let (mut at, end) = (time("2025-12-31T23:59:59Z"), time("2027-01-01T00:00:00Z"));
        let mut seen = std::collections::BTreeSet::new();
        while let Some(next) = calendar.next_after(at).filter(|next| *next < end) {
            assert!(next > at);
            assert!(seen.insert(calendar.local(next)[..16].to_owned()), "{zone}: twice");
            at = next;
        }
        // A year of 365 days, less what its spring leaves out.
        let missing = 365 * 144 - seen.len();
        assert!(missing <= 6, "{zone}: {missing}");
    }
}
