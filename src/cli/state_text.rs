//! What a purchase is worth, as lines of text: `attesto verify` and `attesto inspect` show the same.

use crate::events::purchase_state::{
    Ownership, PricePeriod, PurchaseState, StateBasis, StateError, StateStatus,
};

/// The width of the labels, which are followed by a blank.
pub(super) const LABEL_WIDTH: usize = 12;

/// The lines of a state: label and text.
pub(super) fn state_rows(state: &PurchaseState) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "state",
            format!("{}: {}", state.status.as_str(), explain_status(state)),
        ),
        ("entitled", entitlement_text(state)),
    ];
    let mut push = |label, text: Option<String>| rows.extend(text.map(|text| (label, text)));
    push("product", product_text(state));
    push(
        "price",
        state.period.map(|period| price_text(period).to_owned()),
    );
    push("renewal", Some(renewal_text(state)));
    push(
        "ownership",
        state.ownership.map(|ownership| {
            match ownership {
                Ownership::Purchased => "bought by this customer",
                Ownership::FamilyShared => "shared by a family member",
            }
            .to_owned()
        }),
    );
    push("quantity", quantity_text(state));
    push(
        "acknowledge",
        state
            .acknowledge_by
            .map(|deadline| format!("by {deadline}, or Google refunds it")),
    );
    let basis = match state.basis {
        StateBasis::Store => "what the store says of the whole purchase",
        StateBasis::Transaction => {
            "one signed transaction alone, which says nothing of later periods"
        }
    };
    push("based on", Some(basis.to_owned()));
    push("as of", Some(state.as_of.to_string()));
    rows
}

/// Why there is no state.
pub(super) fn explain_state_error(error: StateError) -> &'static str {
    match error {
        StateError::StoreUnavailable => "the store did not answer in time",
        StateError::ReplacedByUnknown => {
            "another purchase replaced this one, and it has not been seen yet"
        }
    }
}

/// What the status means, as a clause.
pub(super) fn explain_status(state: &PurchaseState) -> &'static str {
    match state.status {
        StateStatus::Active => "it is paid for",
        StateStatus::Canceled if state.entitled => "it will not renew",
        StateStatus::Canceled => "it was canceled",
        StateStatus::InGracePeriod => "a payment failed; access goes on while the store retries",
        StateStatus::InBillingRetry | StateStatus::OnHold => {
            "a payment failed, and the store retries"
        }
        StateStatus::Paused => "the subscriber paused it",
        StateStatus::Pending => "it is not paid for yet",
        StateStatus::Scheduled => "it has not begun yet",
        StateStatus::Expired => "it has ended",
        StateStatus::Refunded => "the money was given back",
        StateStatus::Revoked => "it was taken back",
        StateStatus::Upgraded => "another product took its place",
        StateStatus::Replaced => "another purchase took its place, whose state follows",
        StateStatus::Consumed => "it was used up",
        StateStatus::Unknown => "the store uses a word that this release does not know",
    }
}

fn entitlement_text(state: &PurchaseState) -> String {
    match (state.entitled, state.entitled_until) {
        (false, _) => "no".to_owned(),
        (true, Some(end)) => format!("yes, until {end}"),
        (true, None) => "yes, without an end".to_owned(),
    }
}

fn product_text(state: &PurchaseState) -> Option<String> {
    let parts = [
        ("", &state.product_id),
        ("base plan ", &state.base_plan_id),
        ("offer ", &state.offer_id),
    ];
    let parts: Vec<_> = parts
        .into_iter()
        .filter_map(|(what, id)| Some(format!("{what}{}", id.as_ref()?)))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn price_text(period: PricePeriod) -> &'static str {
    match period {
        PricePeriod::Trial => "none: a trial",
        PricePeriod::Introductory => "introductory",
        PricePeriod::Promotional => "promotional",
        PricePeriod::Regular => "regular",
        PricePeriod::Prepaid => "paid in advance",
    }
}

fn renewal_text(state: &PurchaseState) -> String {
    match state.will_renew {
        Some(false) => "none".to_owned(),
        None => "not known".to_owned(),
        Some(true) => {
            let product = state.renews_as.as_ref().map(|id| format!("as {id}"));
            let due = state.renews_at.map(|due| format!("at {due}"));
            let parts: Vec<_> = product.into_iter().chain(due).collect();
            if parts.is_empty() {
                "yes".to_owned()
            } else {
                parts.join(", ")
            }
        }
    }
}

fn quantity_text(state: &PurchaseState) -> Option<String> {
    let quantity = state.quantity?;
    Some(match state.refundable_quantity {
        Some(refundable) => format!("{quantity}; {refundable} can still be refunded"),
        None => quantity.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    fn active_state() -> PurchaseState {
        PurchaseState {
            status: StateStatus::Active,
            entitled: true,
            entitled_until: Some(Timestamp::from_millis(86_400_000)),
            product_id: Some("pro.monthly".into()),
            base_plan_id: Some("p1m".into()),
            offer_id: Some("spring".into()),
            period: Some(PricePeriod::Trial),
            will_renew: Some(true),
            renews_as: Some("pro.yearly".into()),
            renews_at: Some(Timestamp::from_millis(86_400_000)),
            ownership: Some(Ownership::FamilyShared),
            quantity: Some(5),
            refundable_quantity: Some(3),
            acknowledge_by: Some(Timestamp::from_millis(0)),
            basis: StateBasis::Store,
            as_of: Timestamp::from_millis(0),
        }
    }

    fn rows_as_text(state: &PurchaseState) -> String {
        let rows = state_rows(state).into_iter();
        let rows: Vec<_> = rows
            .map(|(label, text)| format!("{label}|{text}"))
            .collect();
        rows.join("\n")
    }

    #[test]
    fn every_field_that_is_known_has_a_line() {
        let end = "1970-01-02T00:00:00.000Z";
        assert_eq!(
            rows_as_text(&active_state()),
            format!(
                "state|active: it is paid for\nentitled|yes, until {end}\n\
                 product|pro.monthly, base plan p1m, offer spring\nprice|none: a trial\n\
                 renewal|as pro.yearly, at {end}\nownership|shared by a family member\n\
                 quantity|5; 3 can still be refunded\n\
                 acknowledge|by 1970-01-01T00:00:00.000Z, or Google refunds it\n\
                 based on|what the store says of the whole purchase\nas of|1970-01-01T00:00:00.000Z"
            )
        );
        assert!(
            state_rows(&active_state())
                .iter()
                .all(|(label, _)| label.len() < LABEL_WIDTH)
        );
    }

    #[test]
    fn what_is_not_known_has_no_line_or_says_so() {
        let bare = PurchaseState {
            status: StateStatus::Expired,
            entitled: false,
            entitled_until: None,
            product_id: None,
            base_plan_id: None,
            offer_id: None,
            period: None,
            will_renew: None,
            renews_as: None,
            renews_at: None,
            ownership: None,
            quantity: None,
            refundable_quantity: None,
            acknowledge_by: None,
            basis: StateBasis::Transaction,
            ..active_state()
        };
        assert_eq!(
            rows_as_text(&bare),
            "state|expired: it has ended\nentitled|no\nrenewal|not known\n\
             based on|one signed transaction alone, which says nothing of later periods\n\
             as of|1970-01-01T00:00:00.000Z"
        );
    }
}
