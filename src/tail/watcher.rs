//! Finds what is new since it last looked.
//!
//! Rows become visible when they are committed, which is not the order of their moments. So it does not ask for what is
//! younger than the last one seen, which would miss the late ones, but reads the newest window again and compares.

use std::collections::{HashMap, HashSet};

use super::Line;
use crate::audit;
use crate::clock::Timestamp;
use crate::db::{Database, Error};
use crate::deliveries::history::{self, DeliveryRow};
use crate::deliveries::redelivery::Status;
use crate::id::{DeliveryId, TenantId};

/// How many of each are looked at: what one look can show at most.
const WINDOW: u32 = 500;

/// Watches one tenant.
pub struct Watcher {
    tenant: TenantId,
    verifications: Window,
    events: Window,
    deliveries: Window,
    /// Where each delivery stood that may still move, and each of the newest.
    standing: HashMap<DeliveryId, Standing>,
    /// More deliveries wait than are looked at: what becomes of the older ones is not seen.
    too_many_wait: bool,
}

impl Watcher {
    /// One that has seen nothing yet: its first look finds what is newest.
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            verifications: Window::of("verifications"),
            events: Window::of("events"),
            deliveries: Window::of("deliveries"),
            standing: HashMap::new(),
            too_many_wait: false,
        }
    }

    /// What happened since the last look, oldest first.
    pub async fn look(&mut self, database: &Database) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        let rows = audit::store::list(database, &self.tenant, None, WINDOW).await?;
        let overflow = self.verifications.pass(
            rows,
            |row| (row.id.clone(), row.occurred_at),
            |row| {
                lines.push(Line::verification(row));
            },
        );
        lines.extend(overflow);
        let rows = history::store::events(database, &self.tenant, None, WINDOW).await?;
        let overflow = self.events.pass(
            rows,
            |row| (row.id.to_string(), row.received_at),
            |row| {
                lines.push(Line::event(row));
            },
        );
        lines.extend(overflow);
        self.deliveries(database, &mut lines).await?;
        lines.sort_by_key(Line::at);
        Ok(lines)
    }

    async fn deliveries(
        &mut self,
        database: &Database,
        lines: &mut Vec<Line>,
    ) -> Result<(), Error> {
        let read = |status, ids| {
            let tenant = &self.tenant;
            async move { history::store::deliveries(database, tenant, status, ids, WINDOW).await }
        };
        let newest = read(None, None).await?;
        let waiting = read(Some(Status::Pending), None).await?;
        let too_many_wait = waiting.len() >= WINDOW as usize;
        if too_many_wait && !self.too_many_wait {
            lines.extend(waiting.last().map(|oldest| Line::Overflow {
                at: oldest.created_at,
                of: "waiting deliveries",
            }));
        }
        self.too_many_wait = too_many_wait;
        let mut found: HashMap<_, _> = newest
            .iter()
            .chain(&waiting)
            .map(|row| (row.id.clone(), row.clone()))
            .collect();
        // Those that could still move when last seen and are in neither: what became of them?
        let gone: Vec<_> = self
            .standing
            .iter()
            .filter(|(id, standing)| standing.may_move && !found.contains_key(*id))
            .map(|(id, _)| id.clone())
            .collect();
        if !gone.is_empty() {
            for row in read(None, Some(&gone)).await? {
                found.insert(row.id.clone(), row);
            }
        }
        let mut is_new = HashSet::new();
        let overflow = self.deliveries.pass(
            newest,
            |row| (row.id.to_string(), row.created_at),
            |row| {
                is_new.insert(row.id);
            },
        );
        lines.extend(overflow);
        for row in found.values() {
            let standing = Standing::of(row);
            let moved = match self.standing.get(&row.id) {
                Some(before) => *before != standing,
                None => is_new.contains(&row.id),
            };
            // Before its first attempt there is nothing to tell that its event does not.
            if moved && (row.attempt_count > 0 || row.parked_at.is_some()) {
                lines.push(Line::delivery(row));
            }
        }
        self.standing = found
            .into_values()
            .map(|row| (row.id.clone(), Standing::of(&row)))
            .collect();
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    status: String,
    attempts: i32,
    is_parked: bool,
    may_move: bool,
}

impl Standing {
    fn of(row: &DeliveryRow) -> Self {
        Self {
            status: row.status.clone(),
            attempts: row.attempt_count,
            is_parked: row.parked_at.is_some(),
            may_move: row.status == Status::Pending.as_str(),
        }
    }
}

/// The newest rows, as they were seen last.
struct Window {
    /// What they are rows of.
    of: &'static str,
    seen: HashSet<String>,
    /// The moment of the oldest, when there may be older ones that were not seen. What is older than that and turns up
    /// later only took the place of rows that were removed.
    floor: Option<Timestamp>,
    was_looked_at: bool,
}

impl Window {
    fn of(of: &'static str) -> Self {
        Self {
            of,
            seen: HashSet::new(),
            floor: None,
            was_looked_at: false,
        }
    }

    /// Hands on what was not seen before. A line that says so when rows between this look and the last one may be missing.
    fn pass<T>(
        &mut self,
        rows: Vec<T>,
        key: impl Fn(&T) -> (String, Timestamp),
        mut tell: impl FnMut(T),
    ) -> Option<Line> {
        let is_full = rows.len() >= WINDOW as usize;
        let keys: Vec<_> = rows.iter().map(&key).collect();
        let oldest = keys.iter().map(|(_, at)| *at).min();
        let meets = keys.iter().any(|(id, _)| self.seen.contains(id));
        let overflowed = self.was_looked_at && is_full && !meets;
        for (row, (id, at)) in rows.into_iter().zip(&keys) {
            let is_below = self.floor.is_some_and(|floor| *at < floor);
            if !self.seen.contains(id) && !is_below {
                tell(row);
            }
        }
        self.seen = keys.into_iter().map(|(id, _)| id).collect();
        self.floor = oldest.filter(|_| is_full);
        self.was_looked_at = true;
        let at = oldest.filter(|_| overflowed)?;
        Some(Line::Overflow { at, of: self.of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(window: &mut Window, rows: impl IntoIterator<Item = i64>) -> (Vec<i64>, Option<i64>) {
        let mut told = Vec::new();
        let key = |row: &i64| (row.to_string(), Timestamp::from_millis(*row));
        let overflow = window.pass(rows.into_iter().collect(), key, |row| told.push(row));
        (told, overflow.map(|line| line.at().millis()))
    }

    #[test]
    fn what_was_seen_is_not_told_again_and_what_comes_late_is() {
        let mut window = Window::of("rows");
        assert_eq!(pass(&mut window, [30, 10]), (vec![30, 10], None));
        assert_eq!(pass(&mut window, [30, 20, 10]), (vec![20], None));
        assert_eq!(pass(&mut window, [40, 30, 20, 10]), (vec![40], None));
        assert_eq!(pass(&mut window, [40, 30]), (vec![], None));
    }

    #[test]
    fn what_takes_the_place_of_removed_rows_is_not_news() {
        let mut window = Window::of("rows");
        let full = i64::from(WINDOW);
        pass(&mut window, (1000..1000 + full).rev());
        // Three of them were removed.
        let (told, overflow) = pass(&mut window, (997..997 + full).rev());
        assert_eq!((told, overflow), (vec![], None));
    }

    #[test]
    fn more_than_a_window_is_said_to_be_more() {
        let mut window = Window::of("rows");
        let full = i64::from(WINDOW);
        let (told, overflow) = pass(&mut window, (0..full).rev());
        assert_eq!((told.len(), overflow), (500, None), "the first look");
        let (told, overflow) = pass(&mut window, (9000..9000 + full).rev());
        assert_eq!((told.len(), overflow), (500, Some(9000)));
    }
}
