use super::*;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use proptest::prelude::*;

fn hours(text: &str) -> Hours {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// 2026-06-01 is a Monday.
fn clock(day: i8, time: &str) -> DateTime {
    Date::new(2026, 6, day).unwrap().to_datetime(time.parse().unwrap())
}

#[test]
fn hours_over_midnight_belong_to_the_day_on_which_they_begin() {
    let nights = hours("Mon-Fri 18:00-08:00");
    for (day, time, open) in [
        (1, "07:59", false),
        (1, "17:59:59", false),
        (1, "18:00", true),
        (2, "00:00", true),
        (2, "07:59:59", true),
        (2, "08:00", false),
        (6, "07:00", true),
        (6, "18:00", false),
        (8, "07:00", false),
    ] {
        assert_eq!(nights.open_at(clock(day, time)), open, "{day} {time}");
    }
}

#[test]
fn days_without_a_name_are_all_and_days_may_pass_the_end_of_the_week() {
    assert!((1..=7).all(|day| hours("12:00-13:00").open_at(clock(day, "12:30"))));
    let long = hours("Sat-Mon 10:00-24:00");
    assert_eq!((1..=7).filter(|day| long.open_at(clock(*day, "23:59"))).collect::<Vec<_>>(), [1, 6, 7]);
    assert!(!long.open_at(clock(2, "00:00")));
    let several = hours("Mon 08:00-09:00,Wednesday 10:00-11:00");
    assert!(
        several.open_at(clock(1, "08:30")) && several.open_at(clock(3, "10:30")) && !several.open_at(clock(2, "08:30"))
    );
    assert!((0..24).all(|hour| hours("00:00-24:00").open_at(clock(3, &format!("{hour:02}:30")))));
}

#[test]
fn what_comes_next_is_known() {
    let nights = hours("Mon-Fri 18:00-08:00");
    assert_eq!(nights.opens_after(clock(1, "09:00")), Some(clock(1, "18:00")));
    assert_eq!(nights.opens_after(clock(6, "08:00")), Some(clock(8, "18:00")));
    assert_eq!(nights.border_after(clock(1, "19:00")), Some(clock(2, "08:00")));
    assert_eq!(nights.border_after(clock(6, "02:00")), Some(clock(6, "08:00")));
    // Once a week, and it has just begun.
    assert_eq!(hours("Mon 18:00-19:00").opens_after(clock(1, "18:00")), Some(clock(8, "18:00")));
    assert_eq!(moment(clock(1, "18:00"), clock(1, "09:00")), "18:00");
    assert_eq!(moment(clock(2, "08:00"), clock(1, "09:00")), "08:00");
    assert_eq!(moment(clock(8, "18:00"), clock(6, "09:00")), "Mon 18:00");
}

/// Central Europe by rule, so that no database is needed: clocks go forward on 2026-03-29 from 2 to 3, and back on
/// 2026-10-25 from 3 to 2.
fn at(utc: &str) -> DateTime {
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    zone.to_datetime(utc.parse::<Timestamp>().unwrap())
}

#[test]
fn on_the_nights_when_clocks_change_the_clock_on_the_wall_counts() {
    let night = hours("22:00-02:30");
    // Forward: 01:59 is followed by 03:00, and the night is over with it.
    assert!(night.open_at(at("2026-03-29T00:59:59Z")));
    assert!(!night.open_at(at("2026-03-29T01:00:00Z")));
    // Back: from 02:30 it is closed, and open again for the second time from two to half past.
    let open = |utc| night.open_at(at(utc));
    assert_eq!(
        ["2026-10-25T00:29:00Z", "2026-10-25T00:31:00Z", "2026-10-25T01:29:00Z", "2026-10-25T01:31:00Z"].map(open),
        [true, false, true, false]
    );
    // Begins as the clock says, in summer and in winter.
    for (utc, open) in
        [("2026-07-01T19:59:59Z", false), ("2026-07-01T20:00:00Z", true), ("2026-12-01T20:30:00Z", false)]
    {
        assert_eq!(night.open_at(at(utc)), open, "{utc}");
    }
}

#[test]
fn what_is_no_hours_is_told_why() {
    for (text, said) in [
        ("", "there are no hours in it"),
        ("evenings", "\"evenings\" is no day"),
        ("18:00", "does not say from when to when; hours are such as 18:00-08:00"),
        ("Sat,Sun 10:00-12:00", "Sat does not say from when to when; for the whole day write Sat 00:00-24:00"),
        ("18-8", "\"18\" is no time of the day"),
        ("18:00-25:00", "\"25:00\" is no time of the day"),
        ("18:00-08:0x", "\"08:0x\" is no time of the day"),
        ("18:00-+8:00", "no time of the day"),
        ("18:00-18:00", "begins and ends at the same time"),
        ("00:00-00:00", "the whole day is 00:00-24:00"),
        ("24:00-08:00", "nothing begins at 24:00"),
        ("Mo-Fri 18:00-08:00", "\"mo\" is no day"),
        ("Mon-Fri-Sun 18:00-08:00", "is no day"),
        ("Mon Tue 18:00-08:00", "Mon does not say from when to when"),
    ] {
        let error = text.parse::<Hours>().unwrap_err().to_string();
        assert!(error.to_lowercase().contains(&said.to_lowercase()), "{text:?}: {error}");
    }
}

#[test]
fn hours_are_read_as_they_are_written() {
    for (text, written) in [
        ("18:00-08:00", "18:00-08:00"),
        ("MONDAY-fri 9:05 - 17:30 , sun 00:00-24:00", "Mon-Fri 09:05-17:30, Sun 00:00-24:00"),
        ("Sat-Sat 20:00-00:00", "Sat 20:00-24:00"),
        ("18:00:05-18:00:10", "18:00:05-18:00:10"),
        ("Sat-Sun", "Sat-Sun 00:00-24:00"),
        ("Mon-Fri 18:00-08:00, Sat-Sun", "Mon-Fri 18:00-08:00, Sat-Sun 00:00-24:00"),
        ("Mon-Fri 18:00-08:00 Sat-Sun", "Mon-Fri 18:00-08:00, Sat-Sun 00:00-24:00"),
        ("Sat,Sun", "Sat 00:00-24:00, Sun 00:00-24:00"),
    ] {
        assert_eq!(hours(text).to_string(), written);
        assert_eq!(hours(written), hours(text));
    }
}

proptest! {
    /// Entries are to the minute, so minute by minute is all there is.
    #[test]
    fn nothing_changes_before_the_next_border(
        windows in prop::collection::vec((0..7i8, 0..7i8, 0..1440i64, 1..1440i64, any::<bool>()), 1..4),
        start in 0..10_080i64,
    ) {
        let monday = clock(1, "00:00");
        let minute = |minutes: i64| monday.checked_add(SignedDuration::from_mins(minutes)).unwrap().time();
        let days = |offset: i8| monday.checked_add(Span::new().days(offset)).unwrap().weekday();
        let windows = windows.into_iter().map(|(first, last, from, length, every)| Window {
            days: (!every).then(|| (days(first), days(last))),
            from: minute(from),
            to: Some(minute(from + length)).filter(|to| *to != Time::midnight()),
        });
        let hours = Hours(windows.collect());
        prop_assert_eq!(&hours.to_string().parse::<Hours>().unwrap(), &hours);

        let now = monday.checked_add(SignedDuration::from_mins(start)).unwrap();
        let open = hours.open_at(now);
        let border = hours.border_after(now).unwrap();
        let opens = hours.opens_after(now).unwrap();
        prop_assert!(border > now && border <= opens && hours.open_at(opens));
        let mut at = now;
        while at < border {
            prop_assert_eq!(hours.open_at(at), open, "{} at {}", hours, at);
            at = at.checked_add(SignedDuration::from_mins(1)).unwrap();
        }
    }
}
