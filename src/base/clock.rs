//! The source of the current time, and the text format of a moment.
//!
//! Pure functions take the time as a parameter. Other code asks the [`Clock`] that it was given, so that a test moves
//! the time instead of waiting.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A clock: the system's, or a fixed one that only moves when a test moves it.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System,
    /// Milliseconds since the Unix epoch.
    Fixed {
        now: Arc<AtomicI64>,
        /// Like `now`, without the changes by [`Clock::skew_by`].
        uptime: Arc<AtomicI64>,
    },
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self(ClockSource::System)
    }

    /// A clock that stands at `start` until it is [advanced](Clock::advance).
    pub fn fixed(start: Timestamp) -> Self {
        let start = start.as_millis();
        Self(ClockSource::Fixed {
            now: Arc::new(AtomicI64::new(start)),
            uptime: Arc::new(AtomicI64::new(start)),
        })
    }

    /// The current time, in milliseconds.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[expect(
                clippy::disallowed_methods,
                reason = "this is the clock everyone else asks"
            )]
            ClockSource::System => Timestamp::from(OffsetDateTime::now_utc()),
            ClockSource::Fixed { now, .. } => Timestamp(now.load(Ordering::SeqCst)),
        }
    }

    /// A monotonic time for measuring durations. It never goes back, even when the system's wall clock is set.
    pub fn uptime(&self) -> Duration {
        static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        match &self.0 {
            ClockSource::System => BEGIN.elapsed(),
            ClockSource::Fixed { uptime, .. } => {
                Duration::from_millis(u64::try_from(uptime.load(Ordering::SeqCst)).unwrap_or(0))
            }
        }
    }

    /// Changes what a fixed clock shows by `by` milliseconds, as if the machine's clock had been set. [`Clock::uptime`]
    /// does not change.
    pub fn skew_by(&self, by: i64) {
        if let ClockSource::Fixed { now, .. } = &self.0 {
            now.fetch_add(by, Ordering::SeqCst);
        }
    }

    /// Sleeps. A fixed clock advances by `duration` instead and returns at once.
    pub async fn sleep(&self, duration: Duration) {
        match &self.0 {
            ClockSource::System => tokio::time::sleep(duration).await,
            ClockSource::Fixed { .. } => self.advance(duration),
        }
    }

    /// Moves a fixed clock and all its clones forward. Has no effect on the system's clock. The database's clock
    /// (`attesto_now()`) is separate: a test must move it too.
    pub fn advance(&self, by: Duration) {
        if let ClockSource::Fixed { now, uptime } = &self.0 {
            let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            now.fetch_add(by, Ordering::SeqCst);
            uptime.fetch_add(by, Ordering::SeqCst);
        }
    }
}

/// A moment in UTC in milliseconds, which is the resolution of both stores.
///
/// Its text format is RFC 3339 with exactly three decimals and `Z`: `2026-04-10T14:22:10.000Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Reads RFC 3339 with any offset. Digits beyond milliseconds are cut off.
    pub fn parse(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(Self::from)
    }

    /// This moment plus `by`, saturating.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// This moment minus `by`, saturating.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        Self(i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(moment: Timestamp) -> Self {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(moment.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// The length of a moment as text.
const TEXT_LEN: usize = "1970-01-01T00:00:00.000Z".len();

impl Timestamp {
    /// As text, in the years from 0 to 9999. An answer has half a dozen of them, and the formatter takes ten times as long.
    fn to_text(self) -> Option<[u8; TEXT_LEN]> {
        let moment = OffsetDateTime::from(self);
        let year = u16::try_from(moment.year()).ok()?;
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |at: usize, digits: usize, mut number: u16| {
            for place in text[at..at + digits].iter_mut().rev() {
                *place += u8::try_from(number % 10).unwrap_or_default();
                number /= 10;
            }
            number == 0
        };
        let is_whole = put(0, 4, year);
        put(5, 2, u8::from(moment.month()).into());
        put(8, 2, moment.day().into());
        put(11, 2, moment.hour().into());
        put(14, 2, moment.minute().into());
        put(17, 2, moment.second().into());
        put(20, 3, moment.millisecond());
        is_whole.then_some(text)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.to_text() {
            return f.write_str(std::str::from_utf8(&text).unwrap_or_default());
        }
        let moment = OffsetDateTime::from(*self);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            moment.year(),
            u8::from(moment.month()),
            moment.day(),
            moment.hour(),
            moment.minute(),
            moment.second(),
            moment.millisecond()
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_text() {
            Some(text) => serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default()),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_with_three_decimals() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_775_830_930_000, "2026-04-10T14:22:10.000Z"),
            (1_775_830_930_007, "2026-04-10T14:22:10.007Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(Timestamp::from_millis(millis)));
        }
    }

    #[test]
    fn finer_parts_are_cut_and_offsets_are_understood() {
        let expected = Timestamp::parse("2026-04-10T14:22:10.123Z");
        assert_eq!(
            Timestamp::parse("2026-04-10T16:22:10.123999+02:00"),
            expected
        );
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn a_fixed_clock_moves_only_when_told() {
        let clock = Clock::fixed(Timestamp::from_millis(1000));
        let twin = clock.clone();
        assert_eq!(clock.now(), twin.now());
        twin.advance(Duration::from_mins(1));
        assert_eq!(clock.now(), Timestamp::from_millis(61_000));
        let before = clock.uptime();
        twin.skew_by(-60_000);
        assert_eq!(clock.now(), Timestamp::from_millis(1000));
        assert_eq!(clock.uptime(), before);
    }
}
