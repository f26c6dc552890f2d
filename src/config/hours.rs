//! Hours of the week, by the clock on the wall.
//!
//! All here is civil time: whether it is open is decided by what a clock in the room shows. On the night when clocks go
//! back the hour that comes twice is open twice or not at all, and one that is left out does not matter.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time, Weekday};

/// What an entry looks like, for people.
const SHAPE: &str = "hours are such as 18:00-08:00, Mon-Fri 18:00-08:00, or Sat-Sun for whole days";

/// When something is open, each week anew.
///
/// Written as `18:00-08:00`, `Mon-Fri 18:00-08:00` or `Sat-Sun`, several with commas. Without days it is every day, without
/// times the whole day; what ends before it begins ends the next day, and belongs to the day on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours(Vec<Window>);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    /// The first and the last of the days on which it begins, around the end of the week if need be; else every day.
    days: Option<(Weekday, Weekday)>,
    from: Time,
    /// `None` is midnight at the day's end.
    to: Option<Time>,
}

// === impl Hours ===

impl Hours {
    /// Whether it is open when the clock shows this.
    pub fn open_at(&self, clock: DateTime) -> bool {
        self.0.iter().any(|window| window.covers(clock))
    }

    /// When it opens next, if it is not open; nothing only at the end of the calendar.
    pub fn opens_after(&self, clock: DateTime) -> Option<DateTime> {
        self.borders(clock, |window, date| Some(date.to_datetime(window.from))).filter(|at| *at > clock).min()
    }

    /// When something may change next. Where two entries meet, nothing does.
    pub fn border_after(&self, clock: DateTime) -> Option<DateTime> {
        let ends = self.borders(clock, Window::end).filter(|at| *at > clock).min();
        self.opens_after(clock).into_iter().chain(ends).min()
    }

    /// A moment of each window of the days around: one that began yesterday may end today, and one may come once a week.
    fn borders<'a>(
        &'a self,
        clock: DateTime,
        of: impl Fn(&Window, Date) -> Option<DateTime> + Copy + 'a,
    ) -> impl Iterator<Item = DateTime> + 'a {
        let days = std::iter::successors(clock.date().yesterday().ok(), |date| date.tomorrow().ok()).take(9);
        days.flat_map(move |date| {
            self.0.iter().filter(move |window| window.is_on(date)).filter_map(move |window| of(window, date))
        })
    }

    /// Reads entries that were split at their commas.
    pub(super) fn parse(entries: &[String]) -> Result<Self, String> {
        let mut windows = Vec::new();
        let mut last: Option<Entry> = None;
        for entry in entries {
            for found in entries_of(entry).map_err(|problem| format!("{entry:?}: {problem}"))? {
                // `Sat,Sun 10:00-12:00` could mean two things; the one that shares more would be a bad guess.
                if let Some(days) = last.as_ref().filter(|last| last.whole_days && found.has_days && !found.whole_days)
                {
                    let days = Days(days.window.days);
                    return Err(format!(
                        "{days}does not say from when to when; for the whole day write {days}00:00-24:00"
                    ));
                }
                windows.push(found.window.clone());
                last = Some(found);
            }
        }
        if windows.is_empty() { Err(format!("there are no hours in it; {SHAPE}")) } else { Ok(Self(windows)) }
    }

    /// Its entries as they are written to a file.
    pub fn entries(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl FromStr for Hours {
    type Err = ParseHoursError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(&super::layers::split(text)).map_err(ParseHoursError)
    }
}

/// As it can be written.
impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, window) in self.0.iter().enumerate() {
            write!(f, "{}{window}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a text says no hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseHoursError(String);

// === impl Window ===

impl Window {
    fn is_on(&self, date: Date) -> bool {
        let Some((first, last)) = self.days else { return true };
        first.until(date.weekday()) <= first.until(last)
    }

    /// When the one ends that begins on this day.
    fn end(&self, date: Date) -> Option<DateTime> {
        let next = || date.tomorrow().ok();
        match self.to {
            None => Some(next()?.to_datetime(Time::midnight())),
            Some(to) if to <= self.from => Some(next()?.to_datetime(to)),
            Some(to) => Some(date.to_datetime(to)),
        }
    }

    fn covers(&self, clock: DateTime) -> bool {
        let begun = [Some(clock.date()), clock.date().yesterday().ok()];
        begun.into_iter().flatten().filter(|date| self.is_on(*date)).any(|date| {
            // At the end of the calendar a day has no end.
            date.to_datetime(self.from) <= clock && self.end(date).is_none_or(|end| clock < end)
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}-", Days(self.days), Clock(self.from))?;
        match self.to {
            None => f.write_str("24:00"),
            Some(to) => write!(f, "{}", Clock(to)),
        }
    }
}

/// Days before times, with a space between them.
struct Days(Option<(Weekday, Weekday)>);

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((first, last)) if first == last => write!(f, "{} ", short(first)),
            Some((first, last)) => write!(f, "{}-{} ", short(first), short(last)),
            None => Ok(()),
        }
    }
}

/// A window as it was written.
#[derive(Debug, Clone)]
struct Entry {
    window: Window,
    has_days: bool,
    /// Days without times.
    whole_days: bool,
}

/// The entries between two commas: days with times, either alone, or several of them where a shell took the quotes
/// away.
fn entries_of(text: &str) -> Result<Vec<Entry>, String> {
    // `18:00 - 08:00` as well.
    let text = text.split('-').map(str::trim).collect::<Vec<_>>().join("-");
    let is_time = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    let mut words = text.split_whitespace().peekable();
    let mut entries = Vec::new();
    while let Some(word) = words.next() {
        let (days, times) = match is_time(&word) {
            true => (None, Some(word)),
            false => (Some(run(word)?), words.next_if(is_time)),
        };
        let (from, to) = match times {
            Some(times) => span(times)?,
            None => (Time::midnight(), None),
        };
        entries.push(Entry {
            window: Window { days, from, to },
            has_days: days.is_some(),
            whole_days: times.is_none(),
        });
    }
    Ok(entries)
}

/// `18:00-08:00`; nothing is midnight at the day's end.
fn span(times: &str) -> Result<(Time, Option<Time>), String> {
    let (from, to) = times.split_once('-').ok_or_else(|| format!("it does not say from when to when; {SHAPE}"))?;
    let from = time(from)?.ok_or("nothing begins at 24:00; write 00:00")?;
    let to = time(to)?;
    if to == Some(from) {
        return Err("it begins and ends at the same time; the whole day is 00:00-24:00".to_owned());
    }
    // A whole day, so that no border is where nothing changes.
    Ok((from, to.filter(|to| *to != Time::midnight())))
}

/// `Mon`, `Monday` or `Mon-Fri`.
fn run(text: &str) -> Result<(Weekday, Weekday), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok((day(first.trim())?, day(last.trim())?))
}

fn day(text: &str) -> Result<Weekday, String> {
    let text = text.to_ascii_lowercase();
    let mut days = Weekday::Monday.cycle_forward().take(7);
    let found = days.find(|day| {
        let name = name(*day).to_ascii_lowercase();
        name == text || name.get(..3) == Some(&text)
    });
    found.ok_or_else(|| format!("{text:?} is no day (Mon, Tue, Wed, Thu, Fri, Sat, Sun); {SHAPE}"))
}

/// `18:00`, or to the second; nothing is 24:00.
fn time(text: &str) -> Result<Option<Time>, String> {
    let wrong = || format!("{text:?} is no time of the day; {SHAPE}");
    if text == "24:00" {
        return Ok(None);
    }
    let digits = |part: &str| matches!(part.len(), 1 | 2) && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = text.split(':').map(|part| part.parse::<i8>().ok().filter(|_| digits(part)));
    let (Some(hour), Some(minute), second, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    let made = hour.zip(minute).zip(second.unwrap_or(Some(0)));
    let made = made.and_then(|((hour, minute), second)| Time::new(hour, minute, second, 0).ok());
    made.map(Some).ok_or_else(wrong)
}

const fn name(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "Monday",
        Weekday::Tuesday => "Tuesday",
        Weekday::Wednesday => "Wednesday",
        Weekday::Thursday => "Thursday",
        Weekday::Friday => "Friday",
        Weekday::Saturday => "Saturday",
        Weekday::Sunday => "Sunday",
    }
}

/// A moment after `clock` as people say it: `18:00`, and `Mon 18:00` where that is more than a day away.
pub fn moment(at: DateTime, clock: DateTime) -> String {
    let time = Clock(at.time());
    match clock.date().tomorrow() {
        Ok(tomorrow) if tomorrow.to_datetime(clock.time()) < at => format!("{} {time}", short(at.weekday())),
        _ => time.to_string(),
    }
}

/// `Mon`.
fn short(day: Weekday) -> &'static str {
    name(day).get(..3).unwrap_or_default()
}

/// A time as people write it: to the minute, where that is all of it.
struct Clock(Time);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())?;
        match self.0.second() {
            0 => Ok(()),
            second => write!(f, ":{second:02}"),
        }
    }
}

#[cfg(test)]
mod tests;
