//! Refunds that are known. A refund that both a push and Google's list tell becomes one event.
//!
//! A refund of all of an order is noted in the table `voided_purchases` by what both tell: the purchase and the order. An order may have
//! several refunds of parts of a quantity, and Google names none of them. There is the time: in the list to the millisecond, and in the
//! push about the same. So a part of the list is known by its time, and a push tells the part of the list whose time is nearest.

use std::time::Duration;

use super::super::payload::{DeveloperNotification, Int64};
use super::store;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::crypto::token;
use crate::db::{Database, Error};
use crate::events::{EventSource, find_event};

/// Google's `refundType` of a refund of all of an order.
const FULL_REFUND: i64 = 1;
/// Google's `refundType` of a refund of a part of a quantity.
const PARTIAL_REFUND: i64 = 2;

/// What the external id of an event begins with that no push has told.
const RECOVERED_PREFIX: &str = "voided:";
/// How far a part's time in the list may be from that in its notification.
const MAX_TIME_DIFFERENCE: Duration = Duration::from_mins(5);

/// A refund of all of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct KnownRefund {
    hash: [u8; 32],
}

impl KnownRefund {
    pub(super) fn new(purchase_token: &str, order_id: &str) -> Self {
        let refund = format!("{purchase_token}\n{order_id}\n{FULL_REFUND}");
        Self {
            hash: token::sha256(refund.as_bytes()),
        }
    }

    /// The refund of all of an order that a notification tells.
    pub(in super::super) fn of_notification(notification: &DeveloperNotification) -> Option<Self> {
        let details = notification.voided_purchase_notification.as_ref()?;
        if details.refund_type != Some(Int64(FULL_REFUND)) {
            return None;
        }
        let purchase_token = details.purchase_token.as_deref()?;
        let order_id = details.order_id.as_deref().unwrap_or_default();
        Some(Self::new(purchase_token, order_id))
    }

    /// The external id of its event, where no push tells it.
    pub(super) fn external_id(&self) -> String {
        format!("{RECOVERED_PREFIX}{}", token::encode_hex(&self.hash))
    }

    /// Whether an event tells it.
    pub(super) async fn is_known(
        &self,
        database: &Database,
        tenant: &TenantId,
    ) -> Result<bool, Error> {
        store::is_refund_told(database, tenant, &self.hash).await
    }

    /// Notes that an event with `external_id` tells the refund. Returns the external id of the event that tells it: another one where
    /// one was noted before.
    pub(in super::super) async fn note(
        &self,
        database: &Database,
        tenant: &TenantId,
        external_id: &str,
    ) -> Result<String, Error> {
        let noted = store::note_refund(database, tenant, &self.hash, external_id).await?;
        Ok(noted.unwrap_or_else(|| external_id.to_owned()))
    }
}

/// An event that tells the refund of a part of a quantity.
#[derive(Clone, Debug)]
pub(super) struct ToldPart {
    pub(super) external_id: String,
    pub(super) occurred_at: Timestamp,
}

impl ToldPart {
    /// Whether Google's list told it, and not a push.
    fn is_listed(&self) -> bool {
        self.external_id.starts_with(RECOVERED_PREFIX)
    }
}

/// A push that says that a part of a quantity was refunded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct PushedPart {
    purchase_token: String,
    occurred_at: Timestamp,
}

impl PushedPart {
    /// `occurred_at`: when it happened, according to the notification.
    pub(in super::super) fn of_notification(
        notification: &DeveloperNotification,
        occurred_at: Option<Timestamp>,
    ) -> Option<Self> {
        let details = notification.voided_purchase_notification.as_ref()?;
        if details.refund_type != Some(Int64(PARTIAL_REFUND)) {
            return None;
        }
        Some(Self {
            purchase_token: details.purchase_token.clone()?,
            occurred_at: occurred_at?,
        })
    }

    /// The external id of the event that tells the part: that of an event that Google's list has told, if its time is about that of the push
    /// and no other push tells it; else `external_id`, the push's own. Every repeat of the push gets the same.
    pub(in super::super) async fn find_event_id(
        &self,
        database: &Database,
        tenant: &TenantId,
        external_id: &str,
    ) -> Result<String, Error> {
        let own = find_event(database, tenant, EventSource::Google, external_id).await?;
        if own.is_some() {
            return Ok(external_id.to_owned());
        }
        let mut listed = store::list_told_parts(database, tenant, &self.purchase_token).await?;
        let distance = |part: &ToldPart| distance(part.occurred_at, self.occurred_at);
        listed.retain(|part| part.is_listed() && distance(part) <= MAX_TIME_DIFFERENCE);
        listed.sort_by_key(distance);
        for part in listed {
            // Each part of the list is told by one push.
            let taken = token::sha256(format!("push of\n{}", part.external_id).as_bytes());
            let by = store::note_refund(database, tenant, &taken, external_id).await?;
            if by.as_deref() == Some(external_id) {
                return Ok(part.external_id);
            }
        }
        Ok(external_id.to_owned())
    }
}

/// The external id of the event of a part that no push tells. `nth` counts parts of the same order and time, from 0.
pub(super) fn part_external_id(
    purchase_token: &str,
    order_id: &str,
    voided_at: Option<Timestamp>,
    nth: usize,
) -> String {
    let millis = voided_at.map(|time| time.as_millis().to_string());
    let part = format!(
        "{purchase_token}\n{order_id}\n{PARTIAL_REFUND}\n{}\n{nth}",
        millis.unwrap_or_default()
    );
    let hash = token::sha256(part.as_bytes());
    format!("{RECOVERED_PREFIX}{}", token::encode_hex(&hash))
}

/// Which parts of a purchase are told by events. `listed`: the times of all parts of Google's list. An event of the list tells the part
/// of exactly its time; each push tells one of the others: first those two that are nearest to each other.
pub(super) fn find_told_parts(listed: &[Option<Timestamp>], told: &[ToldPart]) -> Vec<bool> {
    let mut is_told = vec![false; listed.len()];
    for part in told.iter().filter(|part| part.is_listed()) {
        let mut places = listed.iter().zip(&mut is_told);
        let place = places.find(|(time, is_told)| !**is_told && **time == Some(part.occurred_at));
        if let Some((_, is_told)) = place {
            *is_told = true;
        }
    }
    let pushes: Vec<_> = told.iter().filter(|part| !part.is_listed()).collect();
    let mut pairs: Vec<(Duration, usize, usize)> = Vec::new();
    for (place, time) in listed.iter().enumerate() {
        let Some(time) = time else { continue };
        for (number, push) in pushes.iter().enumerate() {
            let distance = distance(*time, push.occurred_at);
            if distance <= MAX_TIME_DIFFERENCE {
                pairs.push((distance, place, number));
            }
        }
    }
    pairs.sort_unstable();
    let mut is_used = vec![false; pushes.len()];
    for (_, place, number) in pairs {
        if !is_told[place] && !is_used[number] {
            (is_told[place], is_used[number]) = (true, true);
        }
    }
    is_told
}

fn distance(one: Timestamp, other: Timestamp) -> Duration {
    one.duration_since(other).max(other.duration_since(one))
}

/// How long before a period its parts are looked at too, so that each push finds its own part.
pub(super) const PARTS_OVERLAP: Duration = MAX_TIME_DIFFERENCE;

#[cfg(test)]
mod tests {
    use super::*;

    /// Minutes, as times. Pushes are numbers, and parts that the list told have an `l` before it.
    fn find(listed: &[i64], told: &str) -> Vec<bool> {
        let at = |minute: i64| Timestamp::from_millis(minute * 60_000);
        let listed: Vec<_> = listed.iter().map(|minute| Some(at(*minute))).collect();
        let told = told.split_whitespace().map(|text| {
            let (prefix, minute) = match text.strip_prefix('l') {
                Some(minute) => (RECOVERED_PREFIX, minute),
                None => ("", text),
            };
            ToldPart {
                external_id: format!("{prefix}{text}"),
                occurred_at: at(minute.parse().expect("a number")),
            }
        });
        find_told_parts(&listed, &told.collect::<Vec<_>>())
    }

    #[test]
    fn each_event_tells_one_part() {
        for (listed, told, expected) in [
            (&[][..], "", &[][..]),
            (&[0], "", &[false]),
            (&[0], "0", &[true]),
            (&[0], "5", &[true]),
            (&[0], "6", &[false]),
            (&[0], "l0", &[true]),
            (&[0], "l1", &[false]),
            // The time of a part does not say how many there were before.
            (&[0, 44_640], "l0", &[true, false]),
            (&[44_640], "l0", &[false]),
            // The nearest two belong to each other, in whatever order they are.
            (&[0, 3], "3", &[false, true]),
            (&[0, 3], "1", &[true, false]),
            (&[0, 3], "3 0", &[true, true]),
            (&[0, 3, 4], "4 3", &[false, true, true]),
            // A part that the list has told needs no push, and takes none from another part.
            (&[0, 4], "l0 4", &[true, true]),
            (&[0, 4], "l0 2", &[true, true]),
            // Two at the same time.
            (&[7, 7], "l7", &[true, false]),
            (&[7, 7], "l7 7", &[true, true]),
            (&[7, 7], "7 7", &[true, true]),
        ] {
            assert_eq!(find(listed, told), expected, "{listed:?} and {told:?}");
        }
    }

    #[test]
    fn a_part_has_an_id_of_its_own() {
        let at = |millis| Some(Timestamp::from_millis(millis));
        let one = part_external_id("t", "o", at(1), 0);
        assert_eq!(part_external_id("t", "o", at(1), 0), one);
        for other in [
            part_external_id("t", "o", at(2), 0),
            part_external_id("t", "o", at(1), 1),
            part_external_id("t", "p", at(1), 0),
            KnownRefund::new("t", "o").external_id(),
        ] {
            assert_ne!(other, one);
        }
    }
}
