//! What is remembered of the state that an event has told: until when its store must tell something new, and a hash that tells
//! whether a later state is another one.

use std::time::Duration;

use serde_json::json;

use super::purchase_state::{PurchaseState, StateStatus};
use crate::base::clock::Timestamp;
use crate::crypto::token;

/// The longest that Google lets a payment fail or be pending, with a day more.
const MAX_UNPAID_TIME: Duration = Duration::from_hours(61 * 24);

/// Until when something must happen to the purchase, according to this state: a renewal, the end of a grace period or of what was
/// paid, the end of a pause, the deadline of an acknowledgement. `None`: nothing need happen to it any more.
pub(crate) fn changes_by(state: &PurchaseState) -> Option<Timestamp> {
    let is_unpaid = matches!(state.status, StateStatus::OnHold | StateStatus::Pending);
    let undated = is_unpaid.then(|| state.as_of.plus(MAX_UNPAID_TIME));
    named_times(state).min().or(undated)
}

/// The first of the times that the state names and that lie ahead at `now`.
pub(crate) fn changes_next(state: &PurchaseState, now: Timestamp) -> Option<Timestamp> {
    named_times(state).filter(|time| *time > now).min()
}

fn named_times(state: &PurchaseState) -> impl Iterator<Item = Timestamp> {
    let by_status = match state.status {
        StateStatus::Active
        | StateStatus::Canceled
        | StateStatus::InGracePeriod
        | StateStatus::Scheduled => state.renews_at.or(state.entitled_until),
        StateStatus::Paused => state.renews_at,
        _ => None,
    };
    [by_status, state.acknowledge_by].into_iter().flatten()
}

/// Equal for states that say the same to a receiver, whenever they were read. Whether an acknowledgement is owed is no part of it: the
/// backend, which acknowledges, knows that. The fields are listed, so that a later release computes the same.
pub(crate) fn hash(state: &PurchaseState) -> [u8; 32] {
    let said = json!([
        state.status,
        state.entitled,
        state.entitled_until,
        state.product_id,
        state.base_plan_id,
        state.offer_id,
        state.period,
        state.will_renew,
        state.renews_as,
        state.renews_at,
        state.quantity,
    ]);
    token::sha256(said.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(changes: &serde_json::Value) -> PurchaseState {
        let mut state = PurchaseState::example_json();
        for (name, value) in changes.as_object().expect("an object") {
            state[name] = value.clone();
        }
        serde_json::from_value(state).expect("a state")
    }

    #[test]
    fn a_state_says_until_when_something_must_happen() {
        let end = "2026-05-10T14:22:10.000Z";
        let early = "2026-04-13T14:22:10.000Z";
        let hold = "2026-06-10T14:22:10.020Z";
        for (changes, expected) in [
            (json!({}), Some(end)),
            (json!({ "acknowledgeBy": early }), Some(early)),
            (
                json!({ "status": "canceled", "willRenew": false, "renewsAt": null }),
                Some(end),
            ),
            (
                json!({ "status": "in_grace_period", "renewsAt": null }),
                Some(end),
            ),
            (
                json!({ "status": "paused", "renewsAt": early }),
                Some(early),
            ),
            (json!({ "status": "paused", "renewsAt": null }), None),
            (
                json!({ "status": "on_hold", "renewsAt": null, "entitledUntil": null }),
                Some(hold),
            ),
            (json!({ "status": "expired" }), None),
            (json!({ "status": "revoked" }), None),
        ] {
            let found = changes_by(&state(&changes));
            assert_eq!(found, expected.and_then(Timestamp::parse), "{changes}");
        }
        // An acknowledgement that was not made says nothing of the next renewal.
        let owed = state(&json!({ "acknowledgeBy": early }));
        let at = |text| Timestamp::parse(text).expect("a time");
        assert_eq!(changes_next(&owed, at(early)), Some(at(end)));
        assert_eq!(changes_next(&owed, at(end)), None);
        let unpaid = state(&json!({ "status": "on_hold", "renewsAt": null }));
        assert_eq!(changes_next(&unpaid, at(early)), None);
    }

    #[test]
    fn states_are_equal_whenever_they_were_read() {
        let told = hash(&state(&json!({})));
        for same in [
            json!({ "asOf": "2026-05-01T00:00:00.000Z" }),
            json!({ "acknowledgeBy": "2026-05-01T00:00:00.000Z" }),
        ] {
            assert_eq!(hash(&state(&same)), told, "{same}");
        }
        for other in [
            json!({ "status": "canceled" }),
            json!({ "entitledUntil": "2026-06-10T14:22:10.000Z" }),
            json!({ "productId": "pro_yearly" }),
            json!({ "willRenew": false }),
            json!({ "renewsAs": "pro_yearly" }),
        ] {
            assert_ne!(hash(&state(&other)), told, "{other}");
        }
    }

    /// Hashes are stored: a release that computes another one would tell states again.
    #[test]
    fn the_hash_of_a_state_stays_as_it_is() {
        let found = token::encode_hex(&hash(&state(&json!({}))));
        assert_eq!(
            found,
            "47a65d287922b46ea7259622ce0abd1a49b78f19b52cb3a3c3f39dc9ff12bad2"
        );
    }
}
