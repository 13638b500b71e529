//! The life of one purchase: what its customer, its store and its app do, and how late each notification arrives. Made of a
//! seed, without the stores: [`actor`](super::actor) plays it and skips what is not possible when its time has come.

use std::time::Duration;

use attesto::simulator::state::BillingPeriod;
use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::state::google::{
    CanceledBy, NewProduct, NewSubscription, ProductChange, SubscriptionAddOn, SubscriptionChange,
    SubscriptionReplacement,
};
use fastrand::Rng;
use serde_json::{Map, Value, json};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// The app's user, whose purchase it is.
pub(crate) const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

/// The life of one purchase, and of those that follow it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) seed: u64,
    /// Google does not know a purchase in the first 300 ms.
    pub(crate) is_known_late: bool,
    /// Notifications that arrive within seconds arrive at the same moment, over connections of their own.
    pub(crate) arrives_together: bool,
    pub(crate) steps: Vec<Step>,
}

/// Something that happens, and when its notifications arrive.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) when: When,
    pub(crate) action: Action,
    /// Of its first notification, and of the others.
    pub(crate) arrivals: [Arrival; 2],
}

/// How long after a step its notification arrives, and how long after that it is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) after: Duration,
    pub(crate) repeated_after: Option<Duration>,
}

/// The time of a step, at or after that of the step before it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    After(Duration),
    /// Before the end of what is paid for, or of the grace period.
    BeforeEnd(Duration),
    AfterEnd(Duration),
}

/// What happens. Counts go back from the newest: 0 is the newest transaction or token of the life.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    AppleBuy(Box<NewTransaction>),
    AppleChange {
        back: usize,
        change: TransactionChange,
    },
    /// A notification about no change. Without `status` and renewal info if it `is_bare`.
    AppleNotify {
        back: usize,
        kind: &'static str,
        subtype: Option<&'static str>,
        is_bare: bool,
    },
    AppleVerify {
        back: usize,
        by: VerifyBy,
    },
    PlayBuy(Box<NewSubscription>),
    PlayChange(SubscriptionChange),
    /// Another plan, or the same one again, under a new token.
    PlayReplace(Box<SubscriptionReplacement>),
    /// The pending purchase is paid or canceled.
    PlayDecide {
        is_paid: bool,
    },
    PlayResubscribe {
        in_app: bool,
    },
    /// A notification of this number about no change.
    PlayNotify(u8),
    /// The refund of a payment that does not end access.
    PlayVoidEarlier,
    PlayVerify {
        back: usize,
    },
    ProductBuy(Box<NewProduct>),
    ProductChange(ProductChange),
    /// Google asks about a refund of the newest payment.
    PlayAskRefund,
    /// The tokens that were replaced or have ended are refused by Google from now on.
    PlayForgetEnded,
    /// The stores answer no question about the app, or answer again.
    Silent(bool),
}

/// How a backend asks about an Apple transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum VerifyBy {
    Id,
    /// A JWS that Apple signs at the time of the request.
    Jws,
    /// Signed when the transaction was made.
    StoredJws,
    /// The same, and Apple is asked too.
    Refresh,
}

impl Action {
    /// What kind of thing happens.
    pub(crate) fn kind(&self) -> String {
        let name = format!("{self:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default();
        let change = match self {
            Self::AppleChange { change, .. } => json!(change),
            Self::PlayChange(change) => json!(change),
            Self::ProductChange(change) => json!(change),
            Self::AppleNotify { kind, .. } => json!({ "action": kind }),
            Self::PlayNotify(number) => json!({ "action": number.to_string() }),
            Self::PlayReplace(by) if by.deferred => json!({ "action": "deferred" }),
            Self::PlayReplace(by) if by.pending => json!({ "action": "pending" }),
            _ => Value::Null,
        };
        match change["action"].as_str() {
            Some(change) => format!("{name} {change}"),
            None => name.to_owned(),
        }
    }
}

impl Life {
    /// The life of this seed, the same every time.
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let is_known_late = rng.u8(..100) < 8;
        let mut script = Script {
            rng,
            is_prompt: is_known_late,
            steps: Vec::new(),
        };
        match script.rng.u8(..100) {
            0..42 => script.play_apple_subscription(),
            42..50 => script.play_apple_product(),
            50..92 => script.play_google_subscription(),
            _ => script.play_google_product(),
        }
        Self {
            seed,
            is_known_late,
            arrives_together: seed.is_multiple_of(4),
            steps: script.steps,
        }
    }
}

/// What a subscription is between two steps, as far as the author of a life must know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Paid,
    Canceled,
    InGrace,
    /// Not paid, and the store keeps trying; access has ended.
    Unpaid,
    Paused,
    Ended,
}

struct Script {
    rng: Rng,
    /// The notifications come so soon that Google may not know the purchase.
    is_prompt: bool,
    steps: Vec<Step>,
}

impl Script {
    fn add(&mut self, when: When, action: Action) {
        let arrivals = [self.arrival(0), self.arrival(1)];
        self.steps.push(Step {
            when,
            action,
            arrivals,
        });
    }

    /// Most notifications come within seconds, some after hours or days, and some twice.
    fn arrival(&mut self, number: u32) -> Arrival {
        // Google reports the end of a replaced purchase some seconds after the new one.
        let earliest = match number {
            0 => Duration::from_millis(30),
            _ => SECOND * 2,
        };
        let after = match self.rng.u8(..100) {
            _ if self.is_prompt && number == 0 => self.up_to(Duration::from_millis(500)),
            0..72 => self.up_to(SECOND * 4),
            72..84 => self.up_to(MINUTE * 20),
            84..97 => self.up_to(HOUR * 30),
            _ => self.up_to(DAY * 6),
        };
        let is_repeated = self.rng.u8(..100) < 12;
        Arrival {
            // Sometimes the second overtakes the first.
            after: if self.rng.u8(..100) < 10 {
                after / 16
            } else {
                earliest + after
            },
            repeated_after: is_repeated.then(|| self.up_to(HOUR * 3)),
        }
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_millis(
            self.rng
                .u64(1..=u64::try_from(longest.as_millis()).unwrap_or(1)),
        )
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    /// One of these, as often as the number beside it says.
    fn pick<T: Copy>(&mut self, choices: &[(u32, T)]) -> T {
        let all: u32 = choices.iter().map(|(weight, _)| weight).sum();
        let mut left = self.rng.u32(..all);
        for (weight, choice) in choices {
            if left < *weight {
                return *choice;
            }
            left -= weight;
        }
        choices[0].1
    }

    fn period(&mut self) -> BillingPeriod {
        let text = self.pick(&[(60, "P1M"), (15, "P7D"), (10, "P3M"), (15, "P1Y")]);
        BillingPeriod::try_from(text.to_owned()).expect("a period")
    }

    /// While it is paid for: some time before its end.
    fn during(&mut self) -> When {
        match self.rng.u8(..4) {
            0 => When::After(self.up_to(HOUR)),
            1 => When::After(self.up_to(DAY * 6)),
            _ => When::BeforeEnd(self.up_to(DAY * 6)),
        }
    }

    /// When a renewal is due: within the day before the end, seldom some minutes after it.
    fn due(&mut self) -> When {
        match self.rng.u8(..10) {
            0..7 => When::BeforeEnd(self.up_to(DAY)),
            _ => When::AfterEnd(self.up_to(MINUTE * 5)),
        }
    }

    /// When the store finds that a payment failed or nothing is to come.
    fn lapse(&mut self) -> When {
        When::AfterEnd(if self.chance(30) {
            Duration::ZERO
        } else {
            self.up_to(MINUTE * 10)
        })
    }

    // The App Store.

    fn apple_environment(&mut self) -> SimulatedEnvironment {
        if self.chance(15) {
            SimulatedEnvironment::Sandbox
        } else {
            SimulatedEnvironment::Production
        }
    }

    fn play_apple_subscription(&mut self) {
        let is_shared = self.chance(12);
        let (offer_type, discount) = self.pick(&[
            (70, (None, None)),
            (10, (Some(1), Some("FREE_TRIAL"))),
            (6, (Some(1), Some("PAY_AS_YOU_GO"))),
            (6, (Some(2), Some("PAY_UP_FRONT"))),
            (4, (Some(3), Some("FREE_TRIAL"))),
            (4, (Some(4), Some("PAY_AS_YOU_GO"))),
        ]);
        let has_user = !is_shared && self.chance(80);
        let mut fields = Map::new();
        if self.chance(6) {
            let commitment = json!({ "billingPeriodNumber": 3, "totalBillingPeriods": 12 });
            fields.insert("commitmentInfo".to_owned(), commitment);
        }
        let new = NewTransaction {
            environment: self.apple_environment(),
            period: Some(self.period()),
            family_shared: is_shared,
            app_account_token: has_user.then(|| USER.to_owned()),
            offer_type,
            offer_discount_type: discount.map(str::to_owned),
            fields,
            ..NewTransaction::default()
        };
        let begin = self.up_to(HOUR);
        self.add(When::After(begin), Action::AppleBuy(Box::new(new)));
        let mut phase = Phase::Paid;
        for _ in 0..self.rng.usize(2..14) {
            phase = self.continue_apple_subscription(phase, is_shared);
        }
    }

    fn change_apple(&mut self, when: When, change: TransactionChange) {
        self.add(when, Action::AppleChange { back: 0, change });
    }

    fn continue_apple_subscription(&mut self, phase: Phase, is_shared: bool) -> Phase {
        if self.chance(22) {
            self.disturb_apple();
            return phase;
        }
        match phase {
            Phase::Paid => self.continue_paid_apple(is_shared),
            Phase::Canceled => self.continue_canceled_apple(),
            Phase::InGrace | Phase::Unpaid | Phase::Paused => self.continue_unpaid_apple(phase),
            Phase::Ended => {
                let after = self.up_to(DAY * 40);
                self.change_apple(When::After(after), TransactionChange::Renew {});
                Phase::Paid
            }
        }
    }

    fn continue_paid_apple(&mut self, is_shared: bool) -> Phase {
        let (during, due, lapse) = (self.during(), self.due(), self.lapse());
        match self.pick(&[
            (34, "renew"),
            (10, "cancel"),
            (8, "grace"),
            (6, "retry"),
            (8, "upgrade"),
            (7, "downgrade"),
            (4, "extend"),
            (6, "refund"),
            (if is_shared { 12 } else { 0 }, "revoke"),
        ]) {
            "renew" => self.change_apple(due, TransactionChange::Renew {}),
            "cancel" => {
                self.change_apple(during, TransactionChange::Cancel {});
                return Phase::Canceled;
            }
            "grace" => {
                let days = Some(self.pick(&[(1, 3), (1, 16), (1, 28)]));
                self.change_apple(lapse, TransactionChange::Grace { days });
                return Phase::InGrace;
            }
            "retry" => {
                self.change_apple(lapse, TransactionChange::BillingRetry {});
                return Phase::Unpaid;
            }
            "upgrade" => {
                let change = TransactionChange::Upgrade {
                    product_id: self.product("pro"),
                    period: self.chance(50).then(|| self.period()),
                    price: None,
                };
                self.change_apple(during, change);
            }
            "downgrade" => {
                let product_id = self.product("lite");
                self.change_apple(during, TransactionChange::Downgrade { product_id });
            }
            "extend" => {
                let days = self.rng.u32(1..=90);
                self.change_apple(during, TransactionChange::Extend { days });
            }
            "refund" => {
                let percentage = self.chance(30).then_some(40_000);
                let reason = self.rng.u8(..2);
                self.change_apple(during, TransactionChange::Refund { reason, percentage });
                if self.chance(30) {
                    let after = self.up_to(DAY);
                    self.change_apple(When::After(after), TransactionChange::ReverseRefund {});
                    return Phase::Paid;
                }
                return Phase::Ended;
            }
            _ => {
                self.change_apple(during, TransactionChange::Revoke {});
                return Phase::Ended;
            }
        }
        Phase::Paid
    }

    fn continue_canceled_apple(&mut self) -> Phase {
        match self.pick(&[(8, "resume"), (14, "expire"), (4, "upgrade")]) {
            "resume" => {
                let during = self.during();
                self.change_apple(during, TransactionChange::Resume {});
                Phase::Paid
            }
            "upgrade" => {
                let change = TransactionChange::Upgrade {
                    product_id: self.product("pro"),
                    period: None,
                    price: None,
                };
                let during = self.during();
                self.change_apple(during, change);
                Phase::Paid
            }
            _ => {
                let lapse = self.lapse();
                self.change_apple(lapse, TransactionChange::Expire { intent: Some(1) });
                Phase::Ended
            }
        }
    }

    fn continue_unpaid_apple(&mut self, phase: Phase) -> Phase {
        let (after, lapse) = (self.up_to(DAY * 3), self.lapse());
        match self.pick(&[
            (12, "renew"),
            (if phase == Phase::InGrace { 9 } else { 0 }, "retry"),
            (6, "expire"),
        ]) {
            "renew" => {
                self.change_apple(When::After(after), TransactionChange::Renew {});
                Phase::Paid
            }
            "retry" => {
                self.change_apple(lapse, TransactionChange::BillingRetry {});
                Phase::Unpaid
            }
            _ => {
                let change = TransactionChange::Expire { intent: Some(2) };
                self.change_apple(When::After(after * 10), change);
                Phase::Ended
            }
        }
    }

    fn product(&mut self, name: &str) -> String {
        format!("{name}.{}", self.rng.u8(1..4))
    }

    /// Something that changes nothing about access, or is about an earlier period.
    fn disturb_apple(&mut self) {
        let (when, back) = (self.during(), self.rng.usize(..4));
        let notify = |kind, subtype, is_bare| Action::AppleNotify {
            back,
            kind,
            subtype,
            is_bare,
        };
        let action = match self.rng.u8(..100) {
            0..40 => Action::AppleVerify {
                back,
                by: self.pick(&[
                    (3, VerifyBy::Id),
                    (4, VerifyBy::Jws),
                    (3, VerifyBy::StoredJws),
                    (3, VerifyBy::Refresh),
                ]),
            },
            40..60 => Action::AppleChange {
                back: back.max(1),
                change: TransactionChange::Refund {
                    reason: 0,
                    percentage: self.chance(20).then_some(25_000),
                },
            },
            60..68 => Action::AppleChange {
                back: back.max(1),
                change: TransactionChange::ReverseRefund {},
            },
            68..76 => notify("CONSUMPTION_REQUEST", None, false),
            76..82 => notify("REFUND_DECLINED", None, false),
            82..88 => notify("PRICE_INCREASE", Some("PENDING"), false),
            88..93 => notify("PRICE_INCREASE", Some("ACCEPTED"), false),
            93..97 => notify("METADATA_UPDATE", None, true),
            _ => {
                self.add(when, Action::Silent(true));
                let soon = self.up_to(HOUR);
                self.add(When::After(soon), notify("METADATA_UPDATE", None, true));
                let after = self.up_to(DAY);
                self.add(When::After(after), Action::Silent(false));
                return;
            }
        };
        self.add(when, action);
    }

    fn play_apple_product(&mut self) {
        let kind = self.pick(&[
            (4, ProductType::NonConsumable),
            (3, ProductType::Consumable),
            (3, ProductType::NonRenewing),
        ]);
        let is_shared = kind == ProductType::NonConsumable && self.chance(25);
        let new = NewTransaction {
            kind,
            environment: self.apple_environment(),
            quantity: (kind == ProductType::Consumable).then(|| self.rng.u32(1..5)),
            family_shared: is_shared,
            app_account_token: (!is_shared).then(|| USER.to_owned()),
            ..NewTransaction::default()
        };
        let begin = self.up_to(HOUR);
        self.add(When::After(begin), Action::AppleBuy(Box::new(new)));
        for _ in 0..self.rng.usize(1..5) {
            let when = When::After(self.up_to(DAY * 9));
            let change = match self.rng.u8(..6) {
                0 | 1 => TransactionChange::Refund {
                    reason: 1,
                    percentage: None,
                },
                2 => TransactionChange::ReverseRefund {},
                3 if is_shared => TransactionChange::Revoke {},
                _ => {
                    let by = self.pick(&[
                        (1, VerifyBy::Id),
                        (1, VerifyBy::Jws),
                        (1, VerifyBy::StoredJws),
                        (1, VerifyBy::Refresh),
                    ]);
                    self.add(when, Action::AppleVerify { back: 0, by });
                    continue;
                }
            };
            self.change_apple(when, change);
        }
    }

    // Google Play.

    fn play_google_subscription(&mut self) {
        let is_prepaid = self.chance(18);
        let is_pending = !is_prepaid && self.chance(10);
        let (offer, phase) = self.pick(&[
            (70, (None, None)),
            (15, (Some("welcome"), Some("freeTrial"))),
            (15, (Some("welcome"), None)),
        ]);
        let mut item_fields = Map::new();
        if !is_prepaid && self.chance(5) {
            let plan = json!({
                "autoRenewEnabled": true, "recurringPrice": { "currencyCode": "USD", "units": "5" },
                "installmentDetails": { "initialCommittedPaymentsCount": 12, "remainingCommittedPaymentsCount": 8 },
            });
            item_fields.insert("autoRenewingPlan".to_owned(), plan);
        }
        let add_ons = if self.chance(10) {
            vec![SubscriptionAddOn {
                product_id: "storage".to_owned(),
                period: Some(self.period()),
                prepaid: is_prepaid,
                expiry_time: None,
            }]
        } else {
            Vec::new()
        };
        let new = NewSubscription {
            period: Some(self.period()),
            obfuscated_external_account_id: self.chance(85).then(|| USER.to_owned()),
            test_purchase: self.chance(10),
            offer_id: offer.map(str::to_owned),
            offer_phase: phase.map(str::to_owned),
            prepaid: is_prepaid,
            pending: is_pending,
            item_fields,
            add_ons,
            ..NewSubscription::default()
        };
        let begin = self.up_to(HOUR);
        self.add(When::After(begin), Action::PlayBuy(Box::new(new)));
        if is_pending {
            let after = self.up_to(DAY * 2);
            let is_paid = self.chance(75);
            self.add(When::After(after), Action::PlayDecide { is_paid });
        }
        let mut phase = Phase::Paid;
        for _ in 0..self.rng.usize(2..14) {
            phase = if self.chance(26) {
                self.disturb_google();
                phase
            } else if is_prepaid {
                self.continue_prepaid(phase)
            } else {
                self.continue_google_subscription(phase)
            };
        }
    }

    fn change_google(&mut self, when: When, change: SubscriptionChange) {
        self.add(when, Action::PlayChange(change));
    }

    fn continue_google_subscription(&mut self, phase: Phase) -> Phase {
        let after = self.up_to(DAY * 3);
        match phase {
            Phase::Paid => return self.continue_paid_google(),
            Phase::Canceled => match self.pick(&[(8, "restore"), (14, "expire"), (7, "again")]) {
                "restore" => {
                    let during = self.during();
                    self.change_google(during, SubscriptionChange::Restore {});
                    return Phase::Paid;
                }
                "again" => {
                    let when = self.during();
                    self.replace(when, SubscriptionReplacement::default());
                    return Phase::Paid;
                }
                _ => {
                    let lapse = self.lapse();
                    self.change_google(lapse, SubscriptionChange::Expire {});
                }
            },
            Phase::InGrace => match self.pick(&[(12, "renew"), (10, "hold"), (3, "replace")]) {
                "renew" => {
                    self.change_google(When::After(after), SubscriptionChange::Renew {});
                    return Phase::Paid;
                }
                "hold" => {
                    let end = When::BeforeEnd(Duration::from_millis(2));
                    self.change_google(end, SubscriptionChange::Hold {});
                    return Phase::Unpaid;
                }
                _ => {
                    let other = self.other_plan();
                    self.replace(When::After(after), other);
                    return Phase::Paid;
                }
            },
            Phase::Unpaid => match self.pick(&[(12, "renew"), (3, "replace"), (8, "expire")]) {
                "renew" => {
                    self.change_google(When::After(after), SubscriptionChange::Renew {});
                    return Phase::Paid;
                }
                "replace" => {
                    let other = self.other_plan();
                    self.replace(When::After(after), other);
                    return Phase::Paid;
                }
                _ => self.change_google(When::After(after * 8), SubscriptionChange::Expire {}),
            },
            Phase::Paused => {
                if self.chance(80) {
                    self.change_google(When::After(after * 6), SubscriptionChange::Resume {});
                    return Phase::Paid;
                }
                self.change_google(When::After(after), SubscriptionChange::Expire {});
            }
            Phase::Ended => {
                let in_app = self.chance(40);
                let after = self.up_to(DAY * 50);
                self.add(When::After(after), Action::PlayResubscribe { in_app });
                return Phase::Paid;
            }
        }
        Phase::Ended
    }

    fn continue_paid_google(&mut self) -> Phase {
        let (during, due) = (self.during(), self.due());
        match self.pick(&[
            (34, "renew"),
            (9, "cancel"),
            (7, "grace"),
            (4, "hold"),
            (5, "pause"),
            (10, "replace"),
            (5, "defer plan"),
            (5, "replace pending"),
            (2, "again"),
            (3, "defer"),
            (4, "revoke"),
        ]) {
            "renew" => self.change_google(due, SubscriptionChange::Renew {}),
            "cancel" => {
                let by = self.pick(&[
                    (8, CanceledBy::User),
                    (1, CanceledBy::System),
                    (1, CanceledBy::Developer),
                ]);
                self.change_google(during, SubscriptionChange::Cancel { by });
                return Phase::Canceled;
            }
            "grace" => {
                let days = Some(self.pick(&[(1, 3), (1, 7), (1, 30)]));
                let end = When::BeforeEnd(Duration::from_millis(2));
                self.change_google(end, SubscriptionChange::Grace { days });
                return Phase::InGrace;
            }
            "hold" => {
                let end = When::BeforeEnd(Duration::from_millis(2));
                self.change_google(end, SubscriptionChange::Hold {});
                return Phase::Unpaid;
            }
            "pause" => {
                if self.chance(50) {
                    self.add(during, Action::PlayNotify(11));
                }
                let end = When::BeforeEnd(Duration::from_millis(2));
                let days = Some(self.rng.u32(7..90));
                self.change_google(end, SubscriptionChange::Pause { days });
                return Phase::Paused;
            }
            "replace" => {
                let other = self.other_plan();
                self.replace(during, other);
            }
            "defer plan" => {
                let other = self.other_plan();
                let deferred = SubscriptionReplacement {
                    deferred: true,
                    ..other
                };
                self.replace(during, deferred);
            }
            "replace pending" => {
                let other = self.other_plan();
                let pending = SubscriptionReplacement {
                    pending: true,
                    ..other
                };
                self.replace(during, pending);
                let after = self.up_to(DAY * 2);
                let is_paid = self.chance(60);
                self.add(When::After(after), Action::PlayDecide { is_paid });
            }
            "again" => self.replace(during, SubscriptionReplacement::default()),
            "defer" => {
                let days = self.rng.u32(1..60);
                self.change_google(during, SubscriptionChange::Defer { days });
            }
            _ => {
                self.change_google(during, SubscriptionChange::Revoke {});
                return Phase::Ended;
            }
        }
        Phase::Paid
    }

    fn continue_prepaid(&mut self, phase: Phase) -> Phase {
        if phase == Phase::Ended {
            let after = self.up_to(DAY * 50);
            let in_app = self.chance(50);
            self.add(When::After(after), Action::PlayResubscribe { in_app });
            return Phase::Paid;
        }
        let (during, lapse) = (self.during(), self.lapse());
        match self.pick(&[
            (30, "top up"),
            (10, "expire"),
            (4, "replace"),
            (3, "revoke"),
        ]) {
            "top up" => {
                let period = Some(self.period());
                let top_up = SubscriptionReplacement {
                    period,
                    ..SubscriptionReplacement::default()
                };
                self.replace(during, top_up);
                Phase::Paid
            }
            "replace" => {
                let other = self.other_plan();
                let renewing = SubscriptionReplacement {
                    prepaid: Some(false),
                    ..other
                };
                self.replace(during, renewing);
                Phase::Paid
            }
            "expire" => {
                self.change_google(lapse, SubscriptionChange::Expire {});
                Phase::Ended
            }
            _ => {
                self.change_google(during, SubscriptionChange::Revoke {});
                Phase::Ended
            }
        }
    }

    fn other_plan(&mut self) -> SubscriptionReplacement {
        SubscriptionReplacement {
            product_id: Some(self.product("plan")),
            period: Some(self.period()),
            ..SubscriptionReplacement::default()
        }
    }

    fn replace(&mut self, when: When, by: SubscriptionReplacement) {
        self.add(when, Action::PlayReplace(Box::new(by)));
    }

    /// Something that changes nothing about access.
    fn disturb_google(&mut self) {
        let when = self.during();
        let action = match self.rng.u8(..100) {
            0..40 => Action::PlayVerify {
                back: self.rng.usize(..4),
            },
            40..56 => Action::PlayChange(SubscriptionChange::Acknowledge {}),
            56..66 => Action::PlayVoidEarlier,
            66..84 => Action::PlayNotify(self.pick(&[
                (2, 19),
                (1, 8),
                (1, 17),
                (1, 18),
                (1, 11),
                (1, 22),
                (1, 99),
            ])),
            84..88 => Action::PlayForgetEnded,
            88..92 => Action::PlayChange(SubscriptionChange::Set {
                fields: object(json!({ "regionCode": "DE" })),
                item_fields: Map::new(),
            }),
            _ => {
                self.add(when, Action::Silent(true));
                let after = self.up_to(DAY);
                self.add(When::After(after), Action::Silent(false));
                return;
            }
        };
        self.add(when, action);
    }

    fn play_google_product(&mut self) {
        let is_pending = self.chance(25);
        let quantity = self.chance(30).then(|| self.rng.u32(2..6));
        let new = NewProduct {
            quantity,
            pending: is_pending,
            obfuscated_external_account_id: self.chance(85).then(|| USER.to_owned()),
            test_purchase: self.chance(10),
            terse: self.chance(10),
            ..NewProduct::default()
        };
        let begin = self.up_to(HOUR);
        self.add(When::After(begin), Action::ProductBuy(Box::new(new)));
        if is_pending {
            let after = When::After(self.up_to(DAY * 2));
            let change = if self.chance(75) {
                ProductChange::Complete {}
            } else {
                ProductChange::Refund {}
            };
            self.add(after, Action::ProductChange(change));
        }
        for _ in 0..self.rng.usize(1..5) {
            let when = When::After(self.up_to(DAY * 4));
            let action = match self.rng.u8(..10) {
                0 => Action::ProductChange(ProductChange::Acknowledge {}),
                1 => Action::ProductChange(ProductChange::Consume {}),
                2 | 3 => Action::ProductChange(ProductChange::Refund {}),
                4 | 5 => Action::ProductChange(ProductChange::RefundQuantity { quantity: 1 }),
                6 => {
                    self.add(when, Action::Silent(true));
                    let after = self.up_to(DAY);
                    self.add(When::After(after), Action::Silent(false));
                    continue;
                }
                _ => Action::PlayVerify { back: 0 },
            };
            self.add(when, action);
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
