//! Billing periods as the stores write them: ISO 8601 durations such as `P1M`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime};

use crate::base::clock::Timestamp;

/// An ISO 8601 duration: `P7D`, `P1M`, `P1Y`, `PT5M` (five minutes, as in the stores' test modes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BillingPeriod {
    text: String,
    months: u32,
    seconds: u64,
}

/// The text is not an ISO 8601 duration, or is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a period is an ISO 8601 duration such as P7D, P1M, P1Y or PT5M")]
pub struct ParsePeriodError;

impl BillingPeriod {
    /// `P1M`, the default of both stores.
    pub(crate) fn one_month() -> Self {
        Self {
            text: "P1M".to_owned(),
            months: 1,
            seconds: 0,
        }
    }

    /// When a period that begins at `start` ends. A month from 31 January ends on the last day of February.
    pub(crate) fn end_from(&self, start: Timestamp) -> Timestamp {
        let moment = OffsetDateTime::from(start);
        let month = u32::from(u8::from(moment.month())) - 1 + self.months;
        let year = moment
            .year()
            .saturating_add(i32::try_from(month / 12).unwrap_or(i32::MAX));
        let month = u8::try_from(month % 12 + 1)
            .ok()
            .and_then(|month| Month::try_from(month).ok());
        let date = month.and_then(|month| {
            (1..=moment.day())
                .rev()
                .find_map(|day| Date::from_calendar_date(year, month, day).ok())
        });
        let moment = date.map_or(moment, |date| moment.replace_date(date));
        Timestamp::from(moment).plus(Duration::from_secs(self.seconds))
    }

    /// The ISO 8601 text, as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for BillingPeriod {
    type Error = ParsePeriodError;

    fn try_from(text: String) -> Result<Self, ParsePeriodError> {
        if text.len() > 40 {
            return Err(ParsePeriodError);
        }
        let (mut months, mut seconds) = (0_u32, 0_u64);
        let mut in_time = false;
        let mut digits = String::new();
        for letter in text.strip_prefix('P').ok_or(ParsePeriodError)?.chars() {
            if letter.is_ascii_digit() {
                digits.push(letter);
                continue;
            }
            if letter == 'T' && !in_time && digits.is_empty() {
                in_time = true;
                continue;
            }
            // Four digits of years reach far enough; more would overflow.
            let count: u32 = match digits.len() {
                1..=4 => digits.parse().map_err(|_| ParsePeriodError)?,
                _ => return Err(ParsePeriodError),
            };
            digits.clear();
            let days = u64::from(count) * 86_400;
            match (in_time, letter) {
                (false, 'Y') => months += count * 12,
                (false, 'M') => months += count,
                (false, 'W') => seconds += days * 7,
                (false, 'D') => seconds += days,
                (true, 'H') => seconds += u64::from(count) * 3600,
                (true, 'M') => seconds += u64::from(count) * 60,
                (true, 'S') => seconds += u64::from(count),
                _ => return Err(ParsePeriodError),
            }
        }
        if !digits.is_empty() || (months == 0 && seconds == 0) {
            return Err(ParsePeriodError);
        }
        Ok(Self {
            text,
            months,
            seconds,
        })
    }
}

impl From<BillingPeriod> for String {
    fn from(period: BillingPeriod) -> String {
        period.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_follows_the_calendar() {
        for (period, start, end) in [
            (
                "P1M",
                "2026-01-31T10:00:00.000Z",
                "2026-02-28T10:00:00.000Z",
            ),
            (
                "P1M",
                "2026-12-15T10:00:00.001Z",
                "2027-01-15T10:00:00.001Z",
            ),
            (
                "P1Y",
                "2024-02-29T00:00:00.000Z",
                "2025-02-28T00:00:00.000Z",
            ),
            (
                "P2W",
                "2026-02-20T00:00:00.000Z",
                "2026-03-06T00:00:00.000Z",
            ),
            (
                "P3D",
                "2026-02-27T00:00:00.000Z",
                "2026-03-02T00:00:00.000Z",
            ),
            (
                "PT5M",
                "2026-02-27T23:58:00.000Z",
                "2026-02-28T00:03:00.000Z",
            ),
            (
                "P1DT1H",
                "2026-02-27T00:00:00.000Z",
                "2026-02-28T01:00:00.000Z",
            ),
        ] {
            let start = Timestamp::parse(start).unwrap();
            let period = BillingPeriod::try_from(period.to_owned()).unwrap();
            assert_eq!(
                period.end_from(start).to_string(),
                end,
                "{}",
                period.as_str()
            );
        }
    }

    #[test]
    fn a_text_that_is_no_period_is_refused() {
        for text in [
            "", "P", "1M", "PM", "P1", "P1X", "PT1D", "P0D", "P1M1", "P99999D", "PTT1M",
        ] {
            assert!(BillingPeriod::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
