//! When what was away.

use std::collections::BTreeSet;
use std::time::Duration;

use attesto::base::clock::Timestamp;

use super::ledger::Store;
use super::plan::Outage;

/// A look after each step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    looks: Vec<Look>,
}

#[derive(Clone, Debug)]
struct Look {
    at: Timestamp,
    away: BTreeSet<Outage>,
    /// Something went down in this step.
    is_interrupted: bool,
}

impl Timeline {
    pub(crate) fn note(&mut self, at: Timestamp, away: &BTreeSet<Outage>, is_interrupted: bool) {
        let away = away.clone();
        self.looks.push(Look {
            at,
            away,
            is_interrupted,
        });
    }

    /// Whether a running Attesto could call this store for this long at a stretch between two times.
    pub(crate) fn could_call(
        &self,
        store: Store,
        between: (Timestamp, Timestamp),
        at_least: Duration,
    ) -> bool {
        self.longest_stretch(store, between) >= at_least
    }

    fn between(&self, (from, until): (Timestamp, Timestamp)) -> impl Iterator<Item = &Look> {
        let looks = self.looks.iter();
        looks.filter(move |look| from <= look.at && look.at <= until)
    }

    fn longest_stretch(&self, store: Store, between: (Timestamp, Timestamp)) -> Duration {
        let mut longest = Duration::ZERO;
        let mut begin: Option<Timestamp> = None;
        for look in self.between(between) {
            if look.can_call(store) {
                let begin = *begin.get_or_insert(look.at);
                longest = longest.max(look.at.duration_since(begin));
            } else {
                begin = None;
            }
        }
        longest
    }

    /// The outages line by line: what was away from when on.
    pub(crate) fn tell(&self) -> Vec<(Timestamp, String)> {
        let mut lines = Vec::new();
        let mut before = BTreeSet::new();
        for look in &self.looks {
            for outage in look.away.difference(&before) {
                lines.push((look.at, format!("{outage:?} is away")));
            }
            for outage in before.difference(&look.away) {
                lines.push((look.at, format!("{outage:?} is back")));
            }
            before.clone_from(&look.away);
        }
        lines
    }
}

impl Look {
    fn can_call(&self, store: Store) -> bool {
        let api = match store {
            Store::Apple => Outage::AppleApi,
            Store::Google => Outage::GoogleApi,
        };
        let needed = [Outage::Service, Outage::Database, api];
        !self.is_interrupted && needed.iter().all(|outage| !self.away.contains(outage))
    }
}
