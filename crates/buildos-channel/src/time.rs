//! Defines a point in time, as channel files write it.

use std::fmt;
use std::str::FromStr;

use toml::value::{Datetime, Offset};

/// A point in time: seconds since 1970, from 1970 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// A text is not a [`Timestamp`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a time in UTC with whole seconds, such as 2027-01-31T12:00:00Z")]
pub struct InvalidTimestamp;

const DAY: u64 = 86_400;

impl Timestamp {
    /// 9999-12-31T23:59:59Z.
    pub const LAST: Self = Self(253_402_300_799);

    /// Returns the time so many seconds after 1970, at most [`Timestamp::LAST`].
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Self {
        Self(seconds.min(Self::LAST.0))
    }

    /// Returns the seconds since 1970.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0
    }

    /// Returns the time `days` later, at most [`Timestamp::LAST`].
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self::from_seconds(self.0.saturating_add(u64::from(days).saturating_mul(DAY)))
    }

    /// Converts a TOML offset date-time.
    pub(crate) fn from_toml(value: &Datetime) -> Result<Self, InvalidTimestamp> {
        let (Some(date), Some(time), Some(Offset::Z)) = (value.date, value.time, value.offset)
        else {
            return Err(InvalidTimestamp);
        };
        let second = time.second.unwrap_or(0);
        // TOML permits the leap second, which a count since 1970 does not have.
        if date.year < 1970 || second > 59 || time.nanosecond.unwrap_or(0) != 0 {
            return Err(InvalidTimestamp);
        }
        let days = days_since_1970(date.year.into(), date.month.into(), date.day.into());
        let of_day = u64::from(time.hour) * 3600 + u64::from(time.minute) * 60 + u64::from(second);
        Ok(Self(days * DAY + of_day))
    }
}

/// Returns the days from 1970-01-01 to a valid date of the Gregorian calendar. March is
/// the first month here, so that the leap day is the last day of a year.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    // Days from 0000-03-01 to 1970-01-01.
    before + of_year - 719_468
}

/// Returns year, month and day of the inverse of [`days_since_1970`].
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    // Days of 400 years, as the calendar repeats after them.
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.0 / DAY);
        let second = self.0 % DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        f.pad(&format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        ))
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value: Datetime = text.parse().map_err(|_| InvalidTimestamp)?;
        Self::from_toml(&value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_are_read_and_written() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2027-01-31T12:00:00Z", 1_801_396_800),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(text.parse(), Ok(Timestamp(seconds)), "{text}");
            assert_eq!(Timestamp(seconds).to_string(), text);
        }
    }

    #[test]
    fn local_and_broken_times_are_refused() {
        for bad in [
            "",
            "2027-01-31",
            "12:00:00",
            "2027-01-31T12:00:00",
            "2027-01-31T12:00:00+01:00",
            "2027-01-31T12:00:00.5Z",
            "2026-12-31T23:59:60Z",
            "2027-02-29T12:00:00Z",
            "2027-13-01T12:00:00Z",
            "1969-12-31T23:59:59Z",
        ] {
            assert_eq!(bad.parse::<Timestamp>(), Err(InvalidTimestamp), "{bad}");
        }
    }

    #[test]
    fn sum_of_days_is_bounded() {
        assert_eq!(Timestamp(5).plus_days(2), Timestamp(172_805));
        assert_eq!(Timestamp(5).plus_days(u32::MAX), Timestamp::LAST);
    }

    proptest! {
        #[test]
        fn written_time_is_read_back(seconds in 0..=Timestamp::LAST.0) {
            let time = Timestamp::from_seconds(seconds);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
