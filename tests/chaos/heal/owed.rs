//! The acknowledgements that Google waits for, and what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::control::GoogleScenario;

/// How long Google waits for the acknowledgement of a purchase.
const ACKNOWLEDGEMENT_PERIOD: Duration = Duration::from_hours(3 * 24);

/// The acknowledgement that one purchase owes.
#[derive(Clone, Debug)]
pub(crate) struct OwedAcknowledgement {
    pub(crate) token: String,
    /// The number of the tenant.
    pub(crate) tenant: usize,
    pub(crate) sold_at: Timestamp,
    pub(crate) due_at: Timestamp,
    pub(crate) state: AcknowledgementState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcknowledgementState {
    Open,
    AcknowledgedAt(Timestamp),
    /// It ended or was refunded before its deadline, and owes nothing any more.
    Ended,
    /// The deadline has passed.
    Missed,
}

/// The acknowledgements of all purchases.
#[derive(Default)]
pub(crate) struct OwedAcknowledgements(BTreeMap<String, OwedAcknowledgement>);

/// What Google's record says of a purchase now.
struct Record {
    sold_at: Timestamp,
    is_acknowledged: bool,
    is_lasting: bool,
}

impl OwedAcknowledgements {
    /// Notes a purchase, once it is paid. Returns whether it is new.
    pub(crate) fn note(
        &mut self,
        play: &GoogleScenario,
        token: &str,
        tenant: usize,
        now: Timestamp,
    ) -> bool {
        if self.0.contains_key(token) {
            return false;
        }
        let Some(record) = read(play, token, now).filter(|record| record.is_lasting) else {
            return false;
        };
        let one = OwedAcknowledgement {
            token: token.to_owned(),
            tenant,
            sold_at: record.sold_at,
            due_at: record.sold_at.plus(ACKNOWLEDGEMENT_PERIOD),
            state: AcknowledgementState::Open,
        };
        self.0.insert(token.to_owned(), one);
        true
    }

    /// Looks what has become of those that are open.
    pub(crate) fn look(&mut self, play: &GoogleScenario, now: Timestamp) {
        let open = self
            .0
            .values_mut()
            .filter(|one| one.state == AcknowledgementState::Open);
        for one in open {
            let Some(record) = read(play, &one.token, now) else {
                continue;
            };
            one.state = if now > one.due_at {
                AcknowledgementState::Missed
            } else if record.is_acknowledged {
                AcknowledgementState::AcknowledgedAt(now)
            } else if record.is_lasting {
                AcknowledgementState::Open
            } else {
                AcknowledgementState::Ended
            };
        }
    }

    pub(crate) fn into_list(self) -> Vec<OwedAcknowledgement> {
        self.0.into_values().collect()
    }
}

fn read(play: &GoogleScenario, token: &str, now: Timestamp) -> Option<Record> {
    if let Some(product) = play.find_product(token) {
        return Some(Record {
            sold_at: product.purchase_time,
            is_acknowledged: product.acknowledged,
            is_lasting: product.purchase_state == 0,
        });
    }
    let subscription = play.find_subscription(token)?;
    let is_paid = !matches!(
        subscription.state_name(now),
        "PENDING" | "PENDING_PURCHASE_CANCELED"
    );
    Some(Record {
        sold_at: subscription.start_time,
        is_acknowledged: subscription.acknowledged,
        is_lasting: is_paid && subscription.latest_expiry_time() > now,
    })
}
