//! Finds what is new since the last poll.
//!
//! Rows become visible when they are committed, which is not the order of their timestamps. Asking for rows newer than the last
//! one seen would miss those that are committed late, so each poll reads the newest rows again and compares.

use std::collections::{HashMap, HashSet};

use super::TailLine;
use crate::audit;
use crate::base::clock::Timestamp;
use crate::base::id::{DeliveryId, TenantId};
use crate::db::{Database, Error};
use crate::deliveries::history::{self, DeliveryRow};
use crate::deliveries::redelivery::EventStatus;

/// How many rows of each kind one poll reads, and can show at most.
const WINDOW_SIZE: u32 = 500;

/// Polls for one tenant.
pub struct TailWatcher {
    tenant: TenantId,
    seen_verifications: SeenWindow,
    seen_events: SeenWindow,
    seen_deliveries: SeenWindow,
    /// The state of the newest deliveries, and of all that are pending.
    snapshots: HashMap<DeliveryId, DeliverySnapshot>,
    /// Whether more deliveries are pending than one poll reads: changes of the older ones are not seen.
    is_backlog_truncated: bool,
}

impl TailWatcher {
    /// The first poll returns the newest rows.
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            seen_verifications: SeenWindow::new("verifications"),
            seen_events: SeenWindow::new("events"),
            seen_deliveries: SeenWindow::new("deliveries"),
            snapshots: HashMap::new(),
            is_backlog_truncated: false,
        }
    }

    /// What happened since the last poll, oldest first.
    pub async fn poll_lines(&mut self, database: &Database) -> Result<Vec<TailLine>, Error> {
        let mut lines = Vec::new();
        let rows =
            audit::store::list_verifications(database, &self.tenant, None, WINDOW_SIZE).await?;
        let overflow = self.seen_verifications.take_unseen(
            rows,
            |row| (row.id.clone(), row.occurred_at),
            |row| {
                lines.push(TailLine::from_verification(row));
            },
        );
        lines.extend(overflow);
        let rows =
            history::store::list_events(database, &self.tenant, None, None, WINDOW_SIZE).await?;
        let overflow = self.seen_events.take_unseen(
            rows,
            |row| (row.id.to_string(), row.received_at),
            |row| {
                lines.push(TailLine::from_event(row));
            },
        );
        lines.extend(overflow);
        self.poll_deliveries(database, &mut lines).await?;
        lines.sort_by_key(TailLine::occurred_at);
        Ok(lines)
    }

    async fn poll_deliveries(
        &mut self,
        database: &Database,
        lines: &mut Vec<TailLine>,
    ) -> Result<(), Error> {
        let read = |status, ids| {
            let tenant = &self.tenant;
            async move {
                history::store::list_deliveries(database, tenant, status, None, ids, WINDOW_SIZE)
                    .await
            }
        };
        let newest = read(None, None).await?;
        let waiting = read(Some(EventStatus::Pending), None).await?;
        let too_many_wait = waiting.len() >= WINDOW_SIZE as usize;
        if too_many_wait && !self.is_backlog_truncated {
            lines.extend(waiting.last().map(|oldest| TailLine::Overflow {
                at: oldest.created_at,
                of: "waiting deliveries",
            }));
        }
        self.is_backlog_truncated = too_many_wait;
        let mut found: HashMap<_, _> = newest
            .iter()
            .chain(&waiting)
            .map(|row| (row.id.clone(), row.clone()))
            .collect();
        // Deliveries that were pending when last seen and are in neither list have ended meanwhile.
        let gone: Vec<_> = self
            .snapshots
            .iter()
            .filter(|(id, standing)| standing.is_pending && !found.contains_key(*id))
            .map(|(id, _)| id.clone())
            .collect();
        if !gone.is_empty() {
            for row in read(None, Some(&gone)).await? {
                found.insert(row.id.clone(), row);
            }
        }
        let mut is_new = HashSet::new();
        let overflow = self.seen_deliveries.take_unseen(
            newest,
            |row| (row.id.to_string(), row.created_at),
            |row| {
                is_new.insert(row.id);
            },
        );
        lines.extend(overflow);
        for row in found.values() {
            let standing = DeliverySnapshot::from_row(row);
            let moved = match self.snapshots.get(&row.id) {
                Some(before) => *before != standing,
                None => is_new.contains(&row.id),
            };
            // Before the first attempt the event's own line says it all.
            if moved && (row.attempt_count > 0 || row.parked_at.is_some()) {
                lines.push(TailLine::from_delivery(row));
            }
        }
        self.snapshots = found
            .into_values()
            .map(|row| (row.id.clone(), DeliverySnapshot::from_row(&row)))
            .collect();
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct DeliverySnapshot {
    status: String,
    attempts: i32,
    is_parked: bool,
    is_pending: bool,
}

impl DeliverySnapshot {
    fn from_row(row: &DeliveryRow) -> Self {
        Self {
            status: row.status.clone(),
            attempts: row.attempt_count,
            is_parked: row.parked_at.is_some(),
            is_pending: row.status == EventStatus::Pending.as_str(),
        }
    }
}

/// The newest rows of one kind, as the last poll saw them.
struct SeenWindow {
    /// Their kind, for [`TailLine::Overflow`].
    label: &'static str,
    seen_ids: HashSet<String>,
    /// The time of the oldest, when there may be older ones that were not read. Rows older than this that appear later only
    /// took the place of rows that were removed.
    oldest_seen: Option<Timestamp>,
    is_initialized: bool,
}

impl SeenWindow {
    fn new(label: &'static str) -> Self {
        Self {
            label,
            seen_ids: HashSet::new(),
            oldest_seen: None,
            is_initialized: false,
        }
    }

    /// Passes unseen rows to `emit`. Returns a line when rows between the last poll and this one may be missing.
    fn take_unseen<T>(
        &mut self,
        rows: Vec<T>,
        key: impl Fn(&T) -> (String, Timestamp),
        mut emit: impl FnMut(T),
    ) -> Option<TailLine> {
        let is_full = rows.len() >= WINDOW_SIZE as usize;
        let keys: Vec<_> = rows.iter().map(&key).collect();
        let oldest = keys.iter().map(|(_, at)| *at).min();
        let meets = keys.iter().any(|(id, _)| self.seen_ids.contains(id));
        let overflowed = self.is_initialized && is_full && !meets;
        for (row, (id, at)) in rows.into_iter().zip(&keys) {
            let is_below = self.oldest_seen.is_some_and(|floor| *at < floor);
            if !self.seen_ids.contains(id) && !is_below {
                emit(row);
            }
        }
        self.seen_ids = keys.into_iter().map(|(id, _)| id).collect();
        self.oldest_seen = oldest.filter(|_| is_full);
        self.is_initialized = true;
        let at = oldest.filter(|_| overflowed)?;
        Some(TailLine::Overflow { at, of: self.label })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_unseen_rows(
        window: &mut SeenWindow,
        rows: impl IntoIterator<Item = i64>,
    ) -> (Vec<i64>, Option<i64>) {
        let mut emitted = Vec::new();
        let key = |row: &i64| (row.to_string(), Timestamp::from_millis(*row));
        let overflow = window.take_unseen(rows.into_iter().collect(), key, |row| emitted.push(row));
        (emitted, overflow.map(|line| line.occurred_at().as_millis()))
    }

    #[test]
    fn rows_are_shown_once_and_late_commits_are_not_missed() {
        let mut window = SeenWindow::new("rows");
        assert_eq!(
            take_unseen_rows(&mut window, [30, 10]),
            (vec![30, 10], None)
        );
        assert_eq!(
            take_unseen_rows(&mut window, [30, 20, 10]),
            (vec![20], None)
        );
        assert_eq!(
            take_unseen_rows(&mut window, [40, 30, 20, 10]),
            (vec![40], None)
        );
        assert_eq!(take_unseen_rows(&mut window, [40, 30]), (vec![], None));
    }

    #[test]
    fn rows_that_take_the_place_of_removed_ones_are_not_new() {
        let mut window = SeenWindow::new("rows");
        let full = i64::from(WINDOW_SIZE);
        take_unseen_rows(&mut window, (1000..1000 + full).rev());
        // Three of them were removed.
        let (emitted, overflow) = take_unseen_rows(&mut window, (997..997 + full).rev());
        assert_eq!((emitted, overflow), (vec![], None));
    }

    #[test]
    fn more_than_one_poll_can_show_is_reported() {
        let mut window = SeenWindow::new("rows");
        let full = i64::from(WINDOW_SIZE);
        let (emitted, overflow) = take_unseen_rows(&mut window, (0..full).rev());
        assert_eq!((emitted.len(), overflow), (500, None), "the first poll");
        let (emitted, overflow) = take_unseen_rows(&mut window, (9000..9000 + full).rev());
        assert_eq!((emitted.len(), overflow), (500, Some(9000)));
    }
}
