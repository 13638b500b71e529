//! What the simulated stores made, and when they tried to tell it.
//!
//! Apple posts a notification of production again 1, 12, 24, 48 and 72 hours after the attempt before, and one of the sandbox never.
//! Pub/Sub pushes a message until it is acknowledged, at most for a week.

use std::collections::BTreeSet;
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::Simulator;
use attesto::simulator::control::AppleScenario;
use attesto::simulator::pubsub::PushResponse;
use attesto::simulator::state::apple::SimulatedEnvironment;
use attesto::simulator::state::apple_notifications::{NotificationUrls, SimulatedNotification};
use attesto::simulator::state::google_notifications::{PublishedMessage, PushSubscription};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use serde_json::Value;

use super::plan::Outage;
use crate::histories::actor::decode_message;

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:1";
/// The pauses between the attempts of the App Store.
const APPLE_PAUSES: [Duration; 5] = [
    Duration::from_hours(1),
    Duration::from_hours(12),
    Duration::from_hours(24),
    Duration::from_hours(48),
    Duration::from_hours(72),
];
/// The longest pause between the pushes of a message.
const PUBSUB_PAUSE: Duration = Duration::from_mins(10);
/// How long a message is pushed.
const PUBSUB_RETENTION: Duration = Duration::from_hours(7 * 24);
const APPLE_ANSWER_PERIOD: Duration = Duration::from_hours(12);
const GOOGLE_ANSWER_PERIOD: Duration = Duration::from_hours(24);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Apple,
    Google,
}

/// Something that a store did, and tells by one notification.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) store: Store,
    /// `notificationUUID`, or Pub/Sub's message id.
    pub(crate) id: String,
    /// The first transaction's id, or the purchase token.
    pub(crate) purchase: String,
    pub(crate) title: String,
    pub(crate) made_at: Timestamp,
    pub(crate) refund: Option<Refund>,
    pub(crate) question: Option<Question>,
    /// Whether no attempt arrives.
    pub(crate) is_lost: bool,
    is_tried_once: bool,
    pub(crate) attempts: Vec<Attempt>,
}

/// A refund of which Google has a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refund {
    pub(crate) order: String,
    /// Of some of a quantity.
    pub(crate) is_partial: bool,
}

/// A question about a refund.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The transaction's id, or the token of the question.
    pub(crate) about: String,
    pub(crate) answer_by: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) at: Timestamp,
    pub(crate) outcome: Outcome,
}

/// What became of an attempt, as the store sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No connection was made, so that nothing is stored.
    Unreached,
    /// 200 with `isNew`.
    New,
    /// 200 for what is stored already.
    Repeat,
    /// Another status, 0 without an answer. Nothing is stored.
    Refused(u16),
    /// Something went down meanwhile: it may be stored or not.
    Uncertain(u16),
}

impl Change {
    fn of_apple(one: SimulatedNotification, is_lost: bool) -> Self {
        let is_question = one.notification_type == "CONSUMPTION_REQUEST";
        let about = is_question.then(|| transaction_id(&one)).flatten();
        let title = match &one.subtype {
            Some(subtype) => format!("{} {subtype}", one.notification_type),
            None => one.notification_type.clone(),
        };
        Self {
            store: Store::Apple,
            id: one.notification_uuid,
            purchase: one.original_transaction_id.unwrap_or_default(),
            title,
            made_at: one.signed_date,
            refund: None,
            question: about.map(|about| Question {
                about,
                answer_by: one.signed_date.plus(APPLE_ANSWER_PERIOD),
            }),
            is_lost,
            is_tried_once: one.environment == SimulatedEnvironment::Sandbox,
            attempts: Vec::new(),
        }
    }

    fn of_google(one: PublishedMessage, loses_refunds: bool) -> Self {
        let content = decode_message(&one.data);
        let block = content.iter().find(|(_, value)| value.is_object());
        let (kind, block) = block.expect("it is about something");
        let text = |name: &str| block[name].as_str().unwrap_or_default().to_owned();
        let number = block["notificationType"].as_u64();
        let is_question = kind == "pendingRefundReviewNotification";
        let refund = (kind == "voidedPurchaseNotification").then(|| Refund {
            order: text("orderId"),
            is_partial: block["refundType"] == 2,
        });
        Self {
            store: Store::Google,
            id: one.message_id,
            // A question about a refund names the order alone.
            purchase: text(if is_question {
                "orderId"
            } else {
                "purchaseToken"
            }),
            title: number.map_or_else(|| kind.clone(), |number| format!("{kind} {number}")),
            made_at: one.publish_time,
            question: is_question.then(|| Question {
                about: text("pendingRefundToken"),
                answer_by: one.publish_time.plus(GOOGLE_ANSWER_PERIOD),
            }),
            // Of a quantity, a part that is lost is told with the next one only.
            is_lost: loses_refunds && refund.as_ref().is_some_and(|refund| !refund.is_partial),
            refund,
            is_tried_once: false,
            attempts: Vec::new(),
        }
    }

    pub(crate) fn is_told(&self) -> bool {
        let is_success = |one: &Attempt| matches!(one.outcome, Outcome::New | Outcome::Repeat);
        self.attempts.iter().any(is_success)
    }

    /// When the store tries to tell it next.
    fn next_attempt(&self) -> Option<Timestamp> {
        if self.is_told() {
            return None;
        }
        let Some(last) = self.attempts.last() else {
            return Some(self.made_at);
        };
        let pause = match self.store {
            Store::Apple if self.is_tried_once => None,
            Store::Apple => APPLE_PAUSES.get(self.attempts.len() - 1).copied(),
            Store::Google => Some(PUBSUB_PAUSE),
        };
        let next = last.at.plus(pause?);
        let is_kept =
            self.store == Store::Apple || next.duration_since(self.made_at) < PUBSUB_RETENTION;
        is_kept.then_some(next)
    }
}

/// The transaction that a notification is about.
fn transaction_id(notification: &SimulatedNotification) -> Option<String> {
    let signed = notification.payload["data"]["signedTransactionInfo"].as_str()?;
    let payload = URL_SAFE_NO_PAD.decode(signed.split('.').nth(1)?).ok()?;
    let payload: Value = serde_json::from_slice(&payload).ok()?;
    payload["transactionId"].as_str().map(str::to_owned)
}

/// An app, and the tenant that is told of it.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) tenant: String,
}

/// Everything that the stores did.
#[derive(Default)]
pub(crate) struct StoreLedger {
    pub(crate) changes: Vec<Change>,
    newest_notification: Option<String>,
    newest_message: Option<String>,
}

impl StoreLedger {
    /// Takes over what the stores have made since the last time.
    pub(crate) fn collect(&mut self, simulator: &Simulator, away: &BTreeSet<Outage>) {
        let newest = self.newest_notification.as_deref();
        for one in simulator.apple().list_notifications_after(newest) {
            self.newest_notification = Some(one.notification_uuid.clone());
            let is_lost = away.contains(&Outage::AppleLoss);
            self.changes.push(Change::of_apple(one, is_lost));
        }
        let newest = self.newest_message.as_deref();
        for one in simulator.google().list_messages_after(newest) {
            self.newest_message = Some(one.message_id.clone());
            let is_lost = away.contains(&Outage::GoogleLoss);
            self.changes.push(Change::of_google(one, is_lost));
        }
    }

    /// Every attempt that is due. `service` is the address of the process, if it runs; with `is_interrupted` something goes down while they
    /// are under way.
    pub(crate) async fn push_due(
        &mut self,
        simulator: &Simulator,
        apps: &[App],
        service: Option<&str>,
        away: &BTreeSet<Outage>,
        is_interrupted: bool,
        now: Timestamp,
    ) {
        let is_due = |one: &Change| one.next_attempt().is_some_and(|next| next <= now);
        let can_arrive = |one: &Change| {
            let outage = match one.store {
                Store::Apple => Outage::ApplePushes,
                Store::Google => Outage::GooglePushes,
            };
            service.is_some() && !one.is_lost && !away.contains(&outage)
        };
        let due: Vec<usize> = (0..self.changes.len())
            .filter(|number| is_due(&self.changes[*number]))
            .collect();
        let (reached, unreached): (Vec<usize>, Vec<usize>) = due
            .into_iter()
            .partition(|number| can_arrive(&self.changes[*number]));
        // Apple's history has what was tried only.
        let of_apple = unreached.iter().map(|number| &self.changes[*number]);
        let of_apple = of_apple.filter(|one| one.store == Store::Apple);
        let tried: Vec<&str> = of_apple.map(|one| one.id.as_str()).collect();
        if !tried.is_empty() {
            set_addresses(simulator, apps, NOWHERE);
            let apple = simulator.apple();
            join_all(tried.iter().map(async |id| post(&apple, id).await)).await;
        }
        for number in unreached {
            let outcome = Outcome::Unreached;
            self.changes[number]
                .attempts
                .push(Attempt { at: now, outcome });
        }
        let Some(service) = service.filter(|_| !reached.is_empty()) else {
            return;
        };
        set_addresses(simulator, apps, service);
        let pushes = reached.iter().map(async |number| {
            let one = &self.changes[*number];
            match one.store {
                Store::Apple => post(&simulator.apple(), &one.id).await,
                Store::Google => {
                    let pushed = simulator.google().push_message(&one.id).await;
                    pushed.expect("the message is known")
                }
            }
        });
        let answers = join_all(pushes).await;
        for (number, answer) in reached.into_iter().zip(answers) {
            let outcome = judge_answer(&answer, is_interrupted);
            self.changes[number]
                .attempts
                .push(Attempt { at: now, outcome });
        }
    }
}

async fn post(apple: &AppleScenario, id: &str) -> PushResponse {
    let pushed = apple.push_notification(id).await;
    pushed.expect("the notification is known")
}

fn judge_answer(answer: &PushResponse, is_interrupted: bool) -> Outcome {
    match (answer.status, answer.body["isNew"].as_bool()) {
        (200, Some(true)) => Outcome::New,
        (200, Some(false)) => Outcome::Repeat,
        (status, _) if is_interrupted => Outcome::Uncertain(status),
        (status, _) => Outcome::Refused(status),
    }
}

/// From now on the stores post to this service.
pub(crate) fn set_addresses(simulator: &Simulator, apps: &[App], service: &str) {
    for App { name, tenant } in apps {
        let url = format!("{service}/v1/webhooks/apple/{tenant}");
        let to = NotificationUrls {
            manual: true,
            ..NotificationUrls::for_both_environments(&url)
        };
        let set = simulator.apple().set_notification_urls(name, to);
        set.expect("it is a URL");
        let url = format!("{service}/v1/webhooks/google/{tenant}");
        let to = PushSubscription {
            manual: true,
            ..PushSubscription::for_endpoint(&url)
        };
        let set = simulator.google().set_push_subscription(name, to);
        set.expect("it is a URL");
    }
}
