//! Answers of Play that name no product in their path: `productsv2` and orders.

use serde_json::{Map, Value, json};

use super::google::{
    GoogleState, SimulatedProductPurchase, SimulatedSubscription, money_json, rfc3339_json,
};
use super::json::{object, override_fields};
use crate::base::clock::Timestamp;

/// Of a one-time product, in millionths of a dollar.
const PRODUCT_PRICE_MICROS: i64 = 990_000;

impl SimulatedProductPurchase {
    /// The answer of Play's `purchases.productsv2.getproductpurchasev2`.
    pub fn to_api_response_v2(&self) -> Value {
        let sold = &self.sold;
        let details = object(json!({
            "purchaseOptionId": sold.purchase_option_id,
            "offerId": sold.offer_id,
            "quantity": self.quantity(),
            "refundableQuantity": self.refundable_quantity(),
            "consumptionState": if self.consumed {
                "CONSUMPTION_STATE_CONSUMED"
            } else {
                "CONSUMPTION_STATE_YET_TO_BE_CONSUMED"
            },
        }));
        let state = match self.purchase_state {
            0 => "PURCHASED",
            1 => "CANCELLED",
            _ => "PENDING",
        };
        let mut response = object(json!({
            "kind": "androidpublisher#productPurchaseV2",
            "productLineItem": [{ "productId": self.product_id, "productOfferDetails": details }],
            "purchaseStateContext": { "purchaseState": state },
            "testPurchaseContext": sold.test_purchase.then(|| json!({ "fopType": "TEST" })),
            "orderId": self.order_id,
            "obfuscatedExternalAccountId": sold.obfuscated_external_account_id,
            "obfuscatedExternalProfileId": sold.obfuscated_external_profile_id,
            "regionCode": sold.region_code.as_deref().unwrap_or("US"),
            "purchaseCompletionTime": (self.purchase_state != 2).then(|| rfc3339_json(self.purchase_time)),
            "acknowledgementState": if self.acknowledged {
                "ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED"
            } else {
                "ACKNOWLEDGEMENT_STATE_PENDING"
            },
        }));
        override_fields(&mut response, &sold.fields_v2);
        Value::Object(response)
    }

    fn order(&self) -> Value {
        let line = json!({
            "productId": self.product_id,
            "productTitle": self.product_id,
            "listingPrice": money_json(PRODUCT_PRICE_MICROS, "USD"),
            "total": money_json(PRODUCT_PRICE_MICROS * i64::from(self.quantity()), "USD"),
            "oneTimePurchaseDetails": object(json!({
                "quantity": self.quantity(),
                "offerId": self.sold.offer_id,
                "purchaseOptionId": self.sold.purchase_option_id,
            })),
        });
        let (state, event) = match (self.purchase_state, self.refunded_at) {
            (2, _) => ("PENDING", None),
            (1, None) => ("CANCELED", None),
            (1, Some(at)) => ("REFUNDED", Some(refund_event("refundEvent", at))),
            (_, None) => ("PROCESSED", None),
            (_, Some(at)) => (
                "PARTIALLY_REFUNDED",
                Some(refund_event("partialRefundEvents", at)),
            ),
        };
        let parts = OrderParts {
            order_id: self.order_id.clone(),
            purchase_token: &self.purchase_token,
            state,
            created_at: self.purchase_time,
            changed_at: self.refunded_at,
            country: self.sold.region_code.as_deref().unwrap_or("US"),
            line_items: vec![line],
            refund: event,
        };
        parts.into_json()
    }
}

impl SimulatedSubscription {
    /// The order of this id: of the first period, or of a renewal, whose id has a suffix such as `..0`.
    fn find_order(&self, id: &str, now: Timestamp) -> Option<Value> {
        let number = match id.strip_prefix(&self.order_id)? {
            "" => 0,
            suffix => suffix.strip_prefix("..")?.parse::<u32>().ok()? + 1,
        };
        if number > self.renewals {
            return None;
        }
        let (micros, currency) = self.price();
        let base_plan = self.sold.base_plan_id.as_deref().unwrap_or("monthly");
        let line = |product_id: &str, end: Timestamp| {
            json!({
                "productId": product_id,
                "productTitle": product_id,
                "listingPrice": money_json(micros, currency),
                "total": money_json(micros, currency),
                "subscriptionDetails": object(json!({
                    "basePlanId": base_plan,
                    "offerId": self.sold.offer_id,
                    "servicePeriodStartTime": rfc3339_json(self.start_time),
                    "servicePeriodEndTime": rfc3339_json(end),
                })),
            })
        };
        let refunded = self.refunded_at().filter(|_| number == self.renewals);
        let parts = OrderParts {
            order_id: id.to_owned(),
            purchase_token: &self.purchase_token,
            state: match self.state_name(now) {
                "PENDING" => "PENDING",
                "PENDING_PURCHASE_CANCELED" => "CANCELED",
                _ if refunded.is_some() => "REFUNDED",
                _ => "PROCESSED",
            },
            created_at: self.start_time,
            changed_at: refunded,
            country: self.sold.region_code.as_deref().unwrap_or("US"),
            line_items: self
                .items
                .iter()
                .map(|item| line(&item.product_id, item.expiry_time))
                .collect(),
            refund: refunded.map(|at| refund_event("refundEvent", at)),
        };
        Some(parts.into_json())
    }
}

impl GoogleState {
    /// The answer of Play's `orders.get`.
    pub(crate) fn find_order(&self, package: &str, id: &str, now: Timestamp) -> Option<Value> {
        let product = self
            .list_products()
            .into_iter()
            .find(|one| one.package_name == package && one.order_id == id)
            .map(SimulatedProductPurchase::order);
        product.or_else(|| {
            self.list_subscriptions()
                .into_iter()
                .filter(|one| one.package_name == package)
                .find_map(|one| one.find_order(id, now))
        })
    }
}

/// Which refunds `voidedpurchases.list` is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VoidedQuery {
    pub(crate) start: Option<i64>,
    pub(crate) end: Option<i64>,
    pub(crate) with_subscriptions: bool,
    pub(crate) with_partial_refunds: bool,
    /// Refunds on a page.
    pub(crate) max_results: usize,
    /// Refunds on the pages before.
    pub(crate) skip: usize,
}

impl GoogleState {
    /// The answer of Play's `purchases.voidedpurchases.list`, the oldest refund first.
    pub(crate) fn list_voided(&self, package: &str, query: VoidedQuery) -> Value {
        let products = self
            .list_products()
            .into_iter()
            .filter(|one| one.package_name == package)
            .flat_map(|one| voided_rows(one, query.with_partial_refunds));
        let subscriptions = self.list_subscriptions().into_iter().filter_map(|one| {
            let at = one.refunded_at().filter(|_| one.package_name == package)?;
            let id = one.latest_order_id();
            let mut voided = voided_json(&one.purchase_token, &id, one.start_time, at);
            if one.refunded_unacknowledged {
                set_unacknowledged(&mut voided);
            }
            query.with_subscriptions.then_some((at, voided))
        });
        let is_wanted = |at: Timestamp| {
            let at = at.as_millis();
            query.start.is_none_or(|start| at >= start) && query.end.is_none_or(|end| at <= end)
        };
        let mut voided: Vec<(Timestamp, Value)> = products
            .chain(subscriptions)
            .filter(|(at, _)| is_wanted(*at))
            .collect();
        voided.sort_by_key(|(at, _)| *at);
        let end = query.skip.saturating_add(query.max_results);
        let is_more = voided.len() > end;
        let page = voided.into_iter().skip(query.skip).take(query.max_results);
        let page: Vec<Value> = page.map(|(_, voided)| voided).collect();
        let mut list = json!({ "voidedPurchases": page });
        if is_more {
            list["tokenPagination"] = json!({ "nextPageToken": format!("voided-{end}") });
        }
        list
    }
}

/// The refunds of a product: one of all of it, or one for each part of the quantity.
fn voided_rows(
    one: &SimulatedProductPurchase,
    with_partial_refunds: bool,
) -> Vec<(Timestamp, Value)> {
    let row = |at| voided_json(&one.purchase_token, &one.order_id, one.purchase_time, at);
    if one.purchase_state == 0 {
        let parts = one.refunded_parts.iter().filter(|_| with_partial_refunds);
        let rows = parts.map(|part| {
            let mut voided = row(part.at);
            voided["voidedQuantity"] = json!(part.quantity);
            (part.at, voided)
        });
        return rows.collect();
    }
    let Some(at) = one.refunded_at else {
        return Vec::new();
    };
    let mut voided = row(at);
    if one.refunded_unacknowledged {
        set_unacknowledged(&mut voided);
    }
    vec![(at, voided)]
}

fn voided_json(token: &str, order_id: &str, bought: Timestamp, voided: Timestamp) -> Value {
    json!({
        "kind": "androidpublisher#voidedPurchase",
        "purchaseToken": token,
        "orderId": order_id,
        "purchaseTimeMillis": bought.as_millis().to_string(),
        "voidedTimeMillis": voided.as_millis().to_string(),
        "voidedSource": 1,
        "voidedReason": 0,
    })
}

/// Refunded by Google, because it was not acknowledged.
fn set_unacknowledged(voided: &mut Value) {
    voided["voidedSource"] = json!(2);
    voided["voidedReason"] = json!(8);
}

/// What the orders of both kinds of product have.
struct OrderParts<'a> {
    order_id: String,
    purchase_token: &'a str,
    state: &'static str,
    created_at: Timestamp,
    /// The time of the last event, where it is not the creation.
    changed_at: Option<Timestamp>,
    country: &'a str,
    line_items: Vec<Value>,
    /// The name of the event in `orderHistory`, and the event.
    refund: Option<(&'static str, Value)>,
}

impl OrderParts<'_> {
    fn into_json(self) -> Value {
        let created = rfc3339_json(self.created_at);
        let total = self.line_items.first().map(|line| line["total"].clone());
        let mut history = Map::new();
        if self.state != "PENDING" {
            history.insert(
                "processedEvent".to_owned(),
                json!({ "eventTime": created.clone() }),
            );
        }
        if let Some((name, event)) = self.refund {
            history.insert(name.to_owned(), event);
        }
        json!({
            "orderId": self.order_id,
            "purchaseToken": self.purchase_token,
            "state": self.state,
            "createTime": created,
            "lastEventTime": rfc3339_json(self.changed_at.unwrap_or(self.created_at)),
            "buyerAddress": { "buyerCountry": self.country },
            "total": total,
            "orderDetails": { "taxInclusive": false },
            "orderHistory": history,
            "lineItems": self.line_items,
        })
    }
}

/// Google lists the refunds by quantity, and names a full one alone.
fn refund_event(name: &'static str, at: Timestamp) -> (&'static str, Value) {
    let time = rfc3339_json(at);
    let event = match name {
        "refundEvent" => json!({ "eventTime": time, "refundReason": "OTHER" }),
        _ => {
            json!([{ "createTime": time.clone(), "processTime": time, "state": "PROCESSED_SUCCESSFULLY" }])
        }
    };
    (name, event)
}
