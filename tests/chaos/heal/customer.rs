//! Customers whose purchases go on while things are away: each does something possible to its purchase every few hours.

use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::simulator::Simulator;
use attesto::simulator::state::BillingPeriod;
use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::state::google::{
    CanceledBy, NewProduct, NewSubscription, ProductChange, SubscriptionChange,
    SubscriptionReplacement,
};
use fastrand::Rng;

use super::ledger::Store;
use crate::histories::actor::{Actor, Question};
use crate::histories::life::{Action, USER, VerifyBy};

/// Between two things that a customer does.
const LONGEST_PAUSE: Duration = Duration::from_hours(30);
const LAST_DAY: Duration = Duration::from_hours(24);
/// What is tried to find something that is possible now.
const TRIES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AppleSubscription,
    AppleProduct,
    PlaySubscription,
    PlayProduct,
}

/// A customer of one app.
pub(crate) struct Customer {
    pub(crate) actor: Actor,
    /// The number of the app, whose tenant has the same number.
    pub(crate) app: usize,
    kind: Kind,
    has_bought: bool,
    next: Timestamp,
    /// When it did something last: the stores' times tell what came first.
    acted_at: Option<Timestamp>,
}

impl Customer {
    /// Its first purchase is within `period`.
    pub(crate) fn new(
        (number, app): (usize, &str),
        simulator: &Simulator,
        clock: &Clock,
        period: Duration,
        rng: &mut Rng,
    ) -> Self {
        let kind = match rng.u8(..100) {
            0..40 => Kind::AppleSubscription,
            40..48 => Kind::AppleProduct,
            48..85 => Kind::PlaySubscription,
            _ => Kind::PlayProduct,
        };
        Self {
            actor: Actor::new(app, simulator, clock),
            app: number,
            kind,
            has_bought: false,
            acted_at: None,
            next: clock.now().plus(period.mul_f64(rng.f64())),
        }
    }

    pub(crate) fn store(&self) -> Store {
        match self.kind {
            Kind::AppleSubscription | Kind::AppleProduct => Store::Apple,
            Kind::PlaySubscription | Kind::PlayProduct => Store::Google,
        }
    }

    /// What its app's backend asks about its newest transaction. Each token of a Google purchase is asked about by the code that watches
    /// its acknowledgement.
    pub(crate) fn question(&self) -> Option<Question> {
        let by = VerifyBy::Id;
        self.actor.question(&Action::AppleVerify { back: 0, by })
    }

    /// Does what is due by now, if anything is.
    pub(crate) fn act(&mut self, now: Timestamp, rng: &mut Rng) {
        if self.next > now || self.acted_at == Some(now) {
            return;
        }
        self.next = now.plus(LONGEST_PAUSE.mul_f64(rng.f64() * rng.f64()));
        for _ in 0..TRIES {
            let action = self.choose(rng);
            if self.is_too_early(&action, now) {
                continue;
            }
            if self.actor.perform(&action).is_some() {
                self.has_bought = true;
                self.acted_at = Some(now);
                return;
            }
        }
    }

    /// Does what would be due next at once.
    pub(crate) fn act_early(&mut self, now: Timestamp, rng: &mut Rng) {
        if self.has_bought || self.next <= now.plus(LONGEST_PAUSE) {
            self.next = now;
            self.act(now, rng);
        }
    }

    /// In Google Play a payment fails, and a pause begins, when a period ends. That is after the purchase must be acknowledged.
    fn is_too_early(&self, action: &Action, now: Timestamp) -> bool {
        let is_at_end = matches!(
            action,
            Action::PlayChange(
                SubscriptionChange::Grace { .. }
                    | SubscriptionChange::Hold {}
                    | SubscriptionChange::Pause { .. }
            )
        );
        let left = self.actor.current_end().map(|end| end.duration_since(now));
        is_at_end && left.is_some_and(|left| left > LAST_DAY)
    }

    fn choose(&self, rng: &mut Rng) -> Action {
        match (self.kind, self.has_bought) {
            (Kind::AppleSubscription, false) => buy_from_apple(ProductType::Subscription, rng),
            (Kind::AppleProduct, false) => buy_from_apple(ProductType::Consumable, rng),
            (Kind::PlaySubscription, false) => subscribe_in_play(rng),
            (Kind::PlayProduct, false) => buy_in_play(rng),
            (Kind::AppleSubscription, true) => change_apple_subscription(rng),
            (Kind::AppleProduct, true) => change_apple_product(rng),
            (Kind::PlaySubscription, true) => change_play_subscription(rng),
            (Kind::PlayProduct, true) => change_play_product(rng),
        }
    }
}

/// So short that purchases renew during the run.
fn short_period(choices: [&str; 3], rng: &mut Rng) -> BillingPeriod {
    let text = choices[rng.usize(..3)];
    BillingPeriod::try_from(text.to_owned()).expect("a period")
}

fn product(rng: &mut Rng) -> String {
    format!("plan.{}", rng.u8(..4))
}

fn buy_from_apple(kind: ProductType, rng: &mut Rng) -> Action {
    Action::AppleBuy(Box::new(NewTransaction {
        kind,
        environment: if rng.u8(..4) == 0 {
            SimulatedEnvironment::Sandbox
        } else {
            SimulatedEnvironment::Production
        },
        period: Some(short_period(["P1D", "P2D", "P5D"], rng)),
        app_account_token: Some(USER.to_owned()),
        ..NewTransaction::default()
    }))
}

fn subscribe_in_play(rng: &mut Rng) -> Action {
    Action::PlayBuy(Box::new(NewSubscription {
        period: Some(short_period(["P5D", "P6D", "P7D"], rng)),
        obfuscated_external_account_id: Some(USER.to_owned()),
        pending: rng.u8(..10) == 0,
        ..NewSubscription::default()
    }))
}

fn buy_in_play(rng: &mut Rng) -> Action {
    Action::ProductBuy(Box::new(NewProduct {
        quantity: Some(rng.u32(1..5)),
        obfuscated_external_account_id: Some(USER.to_owned()),
        pending: rng.u8(..6) == 0,
        ..NewProduct::default()
    }))
}

fn ask_as_apple(back: usize) -> Action {
    notify_apple(back, "CONSUMPTION_REQUEST", None)
}

fn notify_apple(back: usize, kind: &'static str, subtype: Option<&'static str>) -> Action {
    Action::AppleNotify {
        back,
        kind,
        subtype,
        is_bare: false,
    }
}

fn change_apple_subscription(rng: &mut Rng) -> Action {
    let back = rng.usize(..3);
    let newest = |change| Action::AppleChange { back: 0, change };
    match rng.u8(..100) {
        0..26 => newest(TransactionChange::Renew {}),
        26..34 => newest(TransactionChange::Cancel {}),
        34..42 => newest(TransactionChange::Resume {}),
        42..48 => newest(TransactionChange::Expire { intent: None }),
        48..54 => newest(TransactionChange::Grace { days: Some(2) }),
        54..59 => newest(TransactionChange::BillingRetry {}),
        59..64 => newest(TransactionChange::Upgrade {
            product_id: product(rng),
            period: None,
            price: None,
        }),
        64..68 => newest(TransactionChange::Downgrade {
            product_id: product(rng),
        }),
        68..71 => newest(TransactionChange::Extend { days: 1 }),
        71..77 => Action::AppleChange {
            back,
            change: TransactionChange::Refund {
                reason: 0,
                percentage: None,
            },
        },
        77..81 => Action::AppleChange {
            back,
            change: TransactionChange::ReverseRefund {},
        },
        81..92 => ask_as_apple(back),
        92..96 => notify_apple(0, "PRICE_INCREASE", Some("PENDING")),
        _ => notify_apple(back, "REFUND_DECLINED", None),
    }
}

fn change_apple_product(rng: &mut Rng) -> Action {
    match rng.u8(..10) {
        0..5 => ask_as_apple(0),
        5..8 => Action::AppleChange {
            back: 0,
            change: TransactionChange::Refund {
                reason: 1,
                percentage: None,
            },
        },
        _ => Action::AppleChange {
            back: 0,
            change: TransactionChange::ReverseRefund {},
        },
    }
}

fn change_play_subscription(rng: &mut Rng) -> Action {
    let change = match rng.u8(..100) {
        0..24 => SubscriptionChange::Renew {},
        24..32 => SubscriptionChange::Cancel {
            by: CanceledBy::User,
        },
        32..38 => SubscriptionChange::Restore {},
        38..44 => SubscriptionChange::Expire {},
        44..49 => SubscriptionChange::Grace { days: Some(2) },
        49..54 => SubscriptionChange::Hold {},
        54..58 => SubscriptionChange::Pause { days: Some(5) },
        58..62 => SubscriptionChange::Resume {},
        62..67 => SubscriptionChange::Revoke {},
        67..70 => SubscriptionChange::Defer { days: 1 },
        70..80 => {
            return Action::PlayReplace(Box::new(SubscriptionReplacement {
                product_id: Some(product(rng)),
                pending: rng.u8(..4) == 0,
                ..SubscriptionReplacement::default()
            }));
        }
        80..86 => {
            return Action::PlayDecide {
                is_paid: rng.u8(..4) > 0,
            };
        }
        86..92 => return Action::PlayResubscribe { in_app: true },
        92..98 => return Action::PlayAskRefund,
        _ => return Action::PlayNotify(19),
    };
    Action::PlayChange(change)
}

fn change_play_product(rng: &mut Rng) -> Action {
    match rng.u8(..10) {
        0..3 => Action::ProductChange(ProductChange::Complete {}),
        3..6 => Action::PlayAskRefund,
        6..8 => Action::ProductChange(ProductChange::RefundQuantity { quantity: 1 }),
        _ => Action::ProductChange(ProductChange::Refund {}),
    }
}
