//! Proves that the judge can fail: each of these faults is made on purpose, in a copy of what was recorded, and must be found.

use serde_json::Value;

use super::judge::{Evidence, judge};
use super::ledger::Outcome;
use super::owed::AcknowledgementState;

/// A fault, and what it does to what was recorded. `None` where there is nothing that it could be done to.
type Fault = (&'static str, fn(&mut Evidence) -> Option<()>);

const FAULTS: [Fault; 9] = [
    ("an event is missing", lose_event),
    ("an event has a twin with another id", duplicate_event),
    ("an event is sent twice", send_twice),
    ("a fetched event is not marked", unmark_event),
    ("an event that arrived is marked", mark_event),
    ("an event cannot be read back", hide_event),
    ("an acknowledgement is late", delay_acknowledgement),
    ("an answer about a refund is missing", lose_answer),
    ("the newest state is wrong", falsify_state),
];

/// The faults that were made, and the names of those that were not found.
pub(crate) struct SelfCheck {
    pub(crate) made: usize,
    pub(crate) unnoticed: Vec<&'static str>,
}

impl SelfCheck {
    /// How many faults there are.
    pub(crate) const ALL: usize = FAULTS.len();

    /// Whether every fault was made and found.
    pub(crate) fn is_passed(&self) -> bool {
        self.made == Self::ALL && self.unnoticed.is_empty()
    }
}

/// Makes each fault in what a run without faults has recorded.
pub(crate) fn check_judge(evidence: &Evidence) -> SelfCheck {
    let mut check = SelfCheck {
        made: 0,
        unnoticed: Vec::new(),
    };
    let found_before = judge(evidence).wrong.len();
    for (name, make) in FAULTS {
        let mut changed = evidence.clone();
        if make(&mut changed).is_none() {
            continue;
        }
        check.made += 1;
        if judge(&changed).wrong.len() <= found_before {
            check.unnoticed.push(name);
        }
    }
    check
}

/// The id of the first event that a change has, by whether it was fetched.
fn find_event(evidence: &Evidence, is_recovered: bool) -> Option<String> {
    let is_sure = |external_id: &Value| {
        evidence.changes.iter().any(|change| {
            let mut outcomes = change.attempts.iter().map(|attempt| &attempt.outcome);
            *external_id == change.id.as_str()
                && !outcomes.any(|outcome| matches!(outcome, Outcome::Uncertain(_)))
        })
    };
    let mut events = evidence.events.iter();
    let (id, _) = events.find(|(_, event)| {
        event.is_recovered() == is_recovered && is_sure(&event.body["externalId"])
    })?;
    Some(id.clone())
}

fn lose_event(evidence: &mut Evidence) -> Option<()> {
    let id = find_event(evidence, false)?;
    evidence.feed.remove(&id);
    evidence.events.remove(&id).map(drop)
}

fn duplicate_event(evidence: &mut Evidence) -> Option<()> {
    let id = find_event(evidence, true)?;
    let twin = evidence.events[&id].clone();
    let other = format!("{id}2");
    evidence.feed.insert(other.clone());
    evidence.events.insert(other, twin);
    Some(())
}

fn send_twice(evidence: &mut Evidence) -> Option<()> {
    let mut events = evidence.events.values_mut();
    events.find(|event| !event.is_interrupted)?.deliveries += 1;
    Some(())
}

fn unmark_event(evidence: &mut Evidence) -> Option<()> {
    let id = find_event(evidence, true)?;
    let event = evidence.events.get_mut(&id)?;
    event.body["recovered"] = Value::Null;
    Some(())
}

fn mark_event(evidence: &mut Evidence) -> Option<()> {
    let id = find_event(evidence, false)?;
    let event = evidence.events.get_mut(&id)?;
    event.body["recovered"] = Value::Bool(true);
    Some(())
}

fn hide_event(evidence: &mut Evidence) -> Option<()> {
    evidence.feed.pop_first().map(drop)
}

fn delay_acknowledgement(evidence: &mut Evidence) -> Option<()> {
    let mut owed = evidence.owed.iter_mut();
    let one = owed.find(|one| matches!(one.state, AcknowledgementState::AcknowledgedAt(_)))?;
    one.state = AcknowledgementState::Missed;
    Some(())
}

fn lose_answer(evidence: &mut Evidence) -> Option<()> {
    // All of them: of a single one it may be that it could not be expected.
    evidence.consumption.clear();
    let given = evidence.reviews.iter().filter(|one| one.answer.is_some());
    let count = given.count();
    for review in &mut evidence.reviews {
        review.answer = None;
    }
    (count > 0).then_some(())
}

fn falsify_state(evidence: &mut Evidence) -> Option<()> {
    let subjects = evidence.purchases.iter_mut();
    let mut subjects = subjects.flat_map(|purchase| &mut purchase.subjects);
    let (_, has_access) = subjects.next()?;
    *has_access = !*has_access;
    Some(())
}
