//! How far the database's clock is ahead of this process' clock, as last measured. It makes times of several processes
//! comparable without a query for each.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::{Database, Error};
use crate::base::clock::{Clock, Timestamp};

/// A measurement is repeated when it is older. The heartbeat measures more often.
const MAX_OFFSET_AGE: Duration = Duration::from_secs(30);
/// A measurement is exact to half of the time that it took: one that took longer is not used.
const MAX_MEASURING_TIME: Duration = Duration::from_secs(1);
/// Not measured yet.
const NEVER: i64 = -1;

/// How far the database's clock is ahead of this process' clock, in milliseconds.
#[derive(Debug)]
pub(super) struct ClockOffset {
    ahead: AtomicI64,
    /// By the uptime of this process.
    measured_at: AtomicI64,
}

impl Default for ClockOffset {
    fn default() -> Self {
        Self {
            ahead: AtomicI64::new(0),
            measured_at: AtomicI64::new(NEVER),
        }
    }
}

fn uptime_millis(clock: &Clock) -> i64 {
    i64::try_from(clock.uptime().as_millis()).unwrap_or(i64::MAX)
}

impl Database {
    /// The time `ours` of this process' clock by the database's clock. The same until the difference was first measured.
    pub fn to_database_time(&self, ours: Timestamp) -> Timestamp {
        let ahead = self.clock_offset.ahead.load(Ordering::Relaxed);
        Timestamp::from_millis(ours.as_millis().saturating_add(ahead))
    }

    /// Measures the difference by the time `theirs` that a statement returned which was sent at `asked`.
    pub(crate) fn record_database_time(&self, clock: &Clock, asked: Timestamp, theirs: Timestamp) {
        let answered = clock.now();
        if answered.duration_since(asked) > MAX_MEASURING_TIME {
            return;
        }
        let between = i64::midpoint(asked.as_millis(), answered.as_millis());
        let ahead = theirs.as_millis().saturating_sub(between);
        self.clock_offset.ahead.store(ahead, Ordering::Relaxed);
        self.clock_offset
            .measured_at
            .store(uptime_millis(clock), Ordering::Relaxed);
    }

    /// Measures the difference, unless it was measured within the last half a minute.
    pub(crate) async fn refresh_clock_offset(&self, clock: &Clock) -> Result<(), Error> {
        let measured_at = self.clock_offset.measured_at.load(Ordering::Relaxed);
        let age = uptime_millis(clock).saturating_sub(measured_at);
        if measured_at != NEVER
            && u128::try_from(age).is_ok_and(|age| age < MAX_OFFSET_AGE.as_millis())
        {
            return Ok(());
        }
        let mut connection = self.pool().begin().await?;
        let asked = clock.now();
        let theirs = sqlx::query_scalar!(r#"select attesto_now() as "now!""#)
            .fetch_one(&mut *connection)
            .await?;
        self.record_database_time(clock, asked, theirs.into());
        Ok(())
    }
}
