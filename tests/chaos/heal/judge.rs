//! Compares what the stores did with what receivers got.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::state::apple::SentConsumptionInfo;
use attesto::simulator::state::google_refund_reviews::SimulatedRefundReview;
use serde_json::Value;

use super::ledger::{Change, Outcome, Question, Store};
use super::owed::{AcknowledgementState, OwedAcknowledgement};
use super::stage::acknowledges_at_once;
use super::timeline::Timeline;

/// How long before its deadline a default answer is sent, at most.
const ANSWER_NOTICE: Duration = Duration::from_hours(2);
/// How long before its deadline a backend is told of an acknowledgement, at most.
const ACKNOWLEDGE_NOTICE: Duration = Duration::from_hours(24);
/// So long everything that is needed must work at a stretch, so that an answer can be expected.
const ANSWER_TIME: Duration = Duration::from_mins(30);
/// The same until what could not be delivered is read from Apple's history.
const HISTORY_TIME: Duration = Duration::from_hours(5);
/// The same where the backend must be told first, which then asks.
const ACKNOWLEDGE_TIME: Duration = Duration::from_mins(90);

/// What was recorded on all sides.
#[derive(Clone)]
pub(crate) struct Evidence {
    pub(crate) changes: Vec<Change>,
    /// By their ids.
    pub(crate) events: BTreeMap<String, ReceivedEvent>,
    /// The ids of events that are read back.
    pub(crate) feed: BTreeSet<String>,
    pub(crate) purchases: Vec<Purchase>,
    pub(crate) owed: Vec<OwedAcknowledgement>,
    pub(crate) consumption: Vec<SentConsumptionInfo>,
    pub(crate) reviews: Vec<SimulatedRefundReview>,
    pub(crate) timeline: Timeline,
    /// What was wrong while it happened.
    pub(crate) complaints: Vec<String>,
    pub(crate) ended_at: Timestamp,
}

/// An event that a callback was sent.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedEvent {
    pub(crate) body: Value,
    /// How often it was answered with 200.
    pub(crate) deliveries: usize,
    /// Whether the process ended or the database went away while it was delivered.
    pub(crate) is_interrupted: bool,
    pub(crate) stored_at: Option<Timestamp>,
}

/// The purchases of one customer, as the stores' records have them in the end.
#[derive(Clone, Debug)]
pub(crate) struct Purchase {
    /// Of each subject: the keys that name it, and whether the customer may use it.
    pub(crate) subjects: Vec<(Vec<String>, bool)>,
}

/// A purchase about which something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// `None`: it is about no single purchase.
    pub(crate) purchase: Option<String>,
    pub(crate) what: String,
}

/// What the judge found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) wrong: Vec<Wrong>,
    pub(crate) apple_changes: usize,
    pub(crate) google_changes: usize,
    /// Changes whose event was fetched from the store.
    pub(crate) recovered: usize,
    /// Of these or of others: something went down while the store told it, so that either would be right.
    pub(crate) uncertain: usize,
    /// Events that were sent twice, because their delivery was interrupted.
    pub(crate) repeated: usize,
    pub(crate) acknowledged: usize,
    pub(crate) answered: usize,
    /// Deadlines that passed while the store could not be called, or before Attesto could know.
    pub(crate) out_of_reach: usize,
}

/// Finds what is wrong, and counts the rest.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut judge = Judge {
        evidence,
        expected: BTreeSet::new(),
        verdict: Verdict::default(),
    };
    for complaint in &evidence.complaints {
        judge.complain(None, complaint.clone());
    }
    judge.compare_changes();
    judge.compare_refunds();
    judge.look_for_unexpected();
    judge.compare_feed();
    judge.check_attempts();
    judge.check_acknowledgements();
    judge.check_answers();
    judge.compare_states();
    judge.verdict
}

struct Judge<'a> {
    evidence: &'a Evidence,
    /// Events that tell a change.
    expected: BTreeSet<&'a str>,
    verdict: Verdict,
}

impl<'a> Judge<'a> {
    fn complain(&mut self, purchase: Option<&str>, what: String) {
        self.verdict.wrong.push(Wrong {
            purchase: purchase.map(str::to_owned),
            what,
        });
    }

    /// Every change but refunds in Google Play: one event has its id.
    fn compare_changes(&mut self) {
        let mut by_external_id: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (id, event) in &self.evidence.events {
            let external_id = event.body["externalId"].as_str().unwrap_or_default();
            by_external_id.entry(external_id).or_default().push(id);
        }
        for change in &self.evidence.changes {
            match change.store {
                Store::Apple => self.verdict.apple_changes += 1,
                Store::Google => self.verdict.google_changes += 1,
            }
            if change.refund.is_none() {
                let told_by = by_external_id.get(change.id.as_str());
                let told_by = told_by.cloned().unwrap_or_default();
                self.compare_change(&[change], &told_by);
            }
        }
    }

    /// A refund is one event, whether a message or Google's list has told it. Of a quantity, a part that the list has told takes the
    /// place of the messages about it and the parts before it.
    fn compare_refunds(&mut self) {
        let mut told: BTreeMap<(&str, &str, bool), Vec<&'a str>> = BTreeMap::new();
        for (id, event) in &self.evidence.events {
            let voided = &event.body["data"]["voidedPurchaseNotification"];
            if let Some(token) = voided["purchaseToken"].as_str() {
                let order = voided["orderId"].as_str().unwrap_or_default();
                let is_partial = voided["refundType"] == 2;
                let key = (token, order, is_partial);
                told.entry(key).or_default().push(id);
            }
        }
        let mut made: BTreeMap<(&str, &str, bool), Vec<&'a Change>> = BTreeMap::new();
        for change in &self.evidence.changes {
            if let Some(refund) = &change.refund {
                let key = (
                    change.purchase.as_str(),
                    refund.order.as_str(),
                    refund.is_partial,
                );
                made.entry(key).or_default().push(change);
            }
        }
        for (key, changes) in made {
            let told_by = told.get(&key).cloned().unwrap_or_default();
            if !key.2 {
                self.compare_change(&changes, &told_by);
                continue;
            }
            let (listed, pushed): (Vec<&str>, Vec<&str>) = told_by
                .into_iter()
                .partition(|id| self.evidence.events[*id].is_recovered());
            let listed_until = listed
                .iter()
                .map(|id| self.evidence.events[*id].happened_at());
            let listed_until = listed_until.max();
            let (in_list, others): (Vec<&Change>, Vec<&Change>) = changes
                .into_iter()
                .partition(|change| Some(change.made_at) <= listed_until);
            if !in_list.is_empty() {
                let mut told_by = listed;
                let ids: Vec<&str> = in_list.iter().map(|change| change.id.as_str()).collect();
                told_by.extend(
                    pushed
                        .iter()
                        .filter(|id| ids.contains(&self.external_id(id))),
                );
                self.compare_change(&in_list, &told_by);
            }
            for change in others {
                let told_by = pushed.iter().copied();
                let told_by: Vec<&str> = told_by
                    .filter(|id| self.external_id(id) == change.id)
                    .collect();
                self.compare_change(&[change], &told_by);
            }
        }
    }

    fn external_id(&self, event: &str) -> &'a str {
        let body = &self.evidence.events[event].body;
        body["externalId"].as_str().unwrap_or_default()
    }

    /// One event tells the changes, and says whether it was fetched.
    fn compare_change(&mut self, changes: &[&Change], told_by: &[&'a str]) {
        self.expected.extend(told_by);
        let first = changes[0];
        let name = format!("{} of {}", first.title, first.made_at);
        let purchase = Some(first.purchase.as_str());
        let [event] = told_by else {
            let what = format!("{name} was told by {} events: {told_by:?}", told_by.len());
            return self.complain(purchase, what);
        };
        let outcomes = || changes.iter().flat_map(|change| &change.attempts);
        let was_new = outcomes().any(|one| one.outcome == Outcome::New);
        let is_uncertain = outcomes().any(|one| matches!(one.outcome, Outcome::Uncertain(_)));
        let is_recovered = self.evidence.events[*event].is_recovered();
        self.verdict.recovered += usize::from(is_recovered);
        if was_new && is_recovered {
            self.complain(
                purchase,
                format!("{name} arrived, and {event} is marked as recovered"),
            );
        } else if !was_new && is_uncertain {
            self.verdict.uncertain += 1;
        } else if !was_new && !is_recovered {
            self.complain(
                purchase,
                format!("{name} did not arrive, and {event} is not marked as recovered"),
            );
        }
    }

    /// Every other event has a reason, and no event was sent twice without one.
    fn look_for_unexpected(&mut self) {
        let mut seen = BTreeSet::new();
        for (id, event) in &self.evidence.events {
            let key = event.body["subject"]["key"].as_str();
            let external_id = self.external_id(id);
            let of = external_id.strip_prefix("state:");
            let is_state =
                event.word() == "purchase.state" && of.is_some_and(|of| self.expected.contains(of));
            let is_due = event.word() == "purchase.acknowledge_due";
            // Read again after a time at which something must happen, and of which the simulated Play sends no message by itself.
            let is_read_again = event.word() == "purchase.state"
                && event.is_recovered()
                && event.body["data"]["expectedBy"].is_string();
            if !self.expected.contains(id.as_str()) {
                if !is_state && !is_due && !is_read_again {
                    self.complain(
                        key,
                        format!("{id} ({}) tells nothing that happened", event.word()),
                    );
                } else if !seen.insert((event.body["tenantId"].as_str(), external_id)) {
                    self.complain(key, format!("{id} ({}) is a second one", event.word()));
                }
            }
            if event.deliveries > 1 && event.is_interrupted {
                self.verdict.repeated += 1;
            } else if event.deliveries > 1 {
                let what = format!("{id} was sent {} times without a reason", event.deliveries);
                self.complain(key, what);
            }
        }
    }

    /// What is read back is what was sent.
    fn compare_feed(&mut self) {
        let sent: BTreeSet<String> = self.evidence.events.keys().cloned().collect();
        for id in sent.symmetric_difference(&self.evidence.feed) {
            let what = format!("{id} was only sent, or can only be read back");
            self.complain(None, what);
        }
    }

    /// What is genuine is refused only because something is away or too busy. A slow machine is busy too.
    fn check_attempts(&mut self) {
        for change in &self.evidence.changes {
            for attempt in &change.attempts {
                let (Outcome::Refused(status) | Outcome::Uncertain(status)) = attempt.outcome
                else {
                    continue;
                };
                if !matches!(status, 0 | 502 | 503) {
                    let what = format!(
                        "{} was answered with {status} at {}",
                        change.title, attempt.at
                    );
                    self.complain(Some(&change.purchase), what);
                }
            }
        }
    }

    fn check_acknowledgements(&mut self) {
        for one in &self.evidence.owed {
            match one.state {
                AcknowledgementState::AcknowledgedAt(_) => self.verdict.acknowledged += 1,
                AcknowledgementState::Ended | AcknowledgementState::Open => {}
                AcknowledgementState::Missed if self.could_acknowledge(one) => {
                    let what = format!("was not acknowledged until {}", one.due_at);
                    self.complain(Some(&one.token), what);
                }
                AcknowledgementState::Missed => self.verdict.out_of_reach += 1,
            }
        }
    }

    fn could_acknowledge(&self, one: &OwedAcknowledgement) -> bool {
        let from = if acknowledges_at_once(one.tenant) {
            Some(one.sold_at)
        } else {
            // A backend that waits until it is told.
            let of = |change: &&Change| change.purchase == one.token;
            let changes = self.evidence.changes.iter().filter(of);
            let known = changes
                .filter_map(|change| self.stored_at(&change.id))
                .min();
            known.map(|known| notice_begin(known, one.due_at, ACKNOWLEDGE_NOTICE))
        };
        from.is_some_and(|from| {
            let timeline = &self.evidence.timeline;
            timeline.could_call(Store::Google, (from, one.due_at), ACKNOWLEDGE_TIME)
        })
    }

    /// When the event with this external id was stored.
    fn stored_at(&self, external_id: &str) -> Option<Timestamp> {
        let mut events = self.evidence.events.values();
        let event = events.find(|event| event.body["externalId"] == external_id)?;
        event.stored_at
    }

    fn check_answers(&mut self) {
        for change in &self.evidence.changes {
            let Some(question) = &change.question else {
                continue;
            };
            if self.is_answered(change, question) {
                self.verdict.answered += 1;
            } else if self.could_answer(change, question) {
                let what = format!(
                    "{} had no answer until {}",
                    change.title, question.answer_by
                );
                self.complain(Some(&change.purchase), what);
            } else {
                self.verdict.out_of_reach += 1;
            }
        }
    }

    fn is_answered(&self, change: &Change, question: &Question) -> bool {
        match change.store {
            Store::Apple => self.evidence.consumption.iter().any(|sent| {
                sent.transaction_id == question.about
                    && (change.made_at..=question.answer_by).contains(&sent.sent_at)
            }),
            // Play takes none after the deadline.
            Store::Google => self.evidence.reviews.iter().any(|review| {
                review.pending_refund_token == question.about && review.answer.is_some()
            }),
        }
    }

    fn could_answer(&self, change: &Change, question: &Question) -> bool {
        let (timeline, by) = (&self.evidence.timeline, question.answer_by);
        let known = self.stored_at(&change.id).filter(|known| *known < by);
        if let Some(known) = known {
            let from = notice_begin(known, by, ANSWER_NOTICE);
            return timeline.could_call(change.store, (from, by), ANSWER_TIME);
        }
        // Apple's history could be read. Google has none of questions.
        let between = (change.made_at, by);
        change.store == Store::Apple && timeline.could_call(Store::Apple, between, HISTORY_TIME)
    }

    /// The newest state that was told of a subject is the stores' own in the end.
    fn compare_states(&mut self) {
        let mut newest: BTreeMap<&str, (&str, u64, &Value)> = BTreeMap::new();
        for event in self.evidence.events.values() {
            let state = &event.body["state"];
            let key = event.body["subject"]["key"].as_str();
            let (Some(key), Some(as_of)) = (key, state["asOf"].as_str()) else {
                continue;
            };
            let found = (as_of, event.body["sequence"].as_u64().unwrap_or(0), state);
            let known = newest.entry(key).or_insert(found);
            if (found.0, found.1) > (known.0, known.1) {
                *known = found;
            }
        }
        let subjects = self.evidence.purchases.iter();
        for (keys, has_access) in subjects.flat_map(|purchase| &purchase.subjects) {
            let states = keys.iter().filter_map(|key| newest.get(key.as_str()));
            let state = states.max_by_key(|(as_of, sequence, _)| (*as_of, *sequence));
            let lets_in = state.is_some_and(|(_, _, state)| {
                let until = state["entitledUntil"].as_str().and_then(Timestamp::parse);
                state["entitled"] == true
                    && until.is_none_or(|until| until > self.evidence.ended_at)
            });
            if lets_in != *has_access {
                let told = state.map_or_else(|| "nothing".to_owned(), |it| it.2.to_string());
                let what = format!("the store lets the customer in: {has_access}; told was {told}");
                self.complain(keys.first().map(String::as_str), what);
            }
        }
    }
}

/// From when on something is done about a deadline of which Attesto has known since `known`.
fn notice_begin(known: Timestamp, deadline: Timestamp, longest: Duration) -> Timestamp {
    let left = deadline.duration_since(known);
    deadline.minus(longest.min(left / 2))
}

impl ReceivedEvent {
    pub(crate) fn is_recovered(&self) -> bool {
        self.body["recovered"] == true
    }

    pub(crate) fn word(&self) -> &str {
        self.body["event"].as_str().unwrap_or_default()
    }

    pub(crate) fn happened_at(&self) -> Timestamp {
        let text = self.body["timestamp"].as_str().unwrap_or_default();
        Timestamp::parse(text).unwrap_or(Timestamp::from_millis(0))
    }
}
