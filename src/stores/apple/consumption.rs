//! A use case: a tenant tells Apple how a purchase was used, after the customer asked for a refund.
//!
//! Apple asks with a notification `CONSUMPTION_REQUEST` and takes the answer for 12 hours. Nothing is asked first: Apple knows no
//! transaction of another app by the tenant's key, and the newest answer counts, so that a request can be repeated.
//!
//! Source: Apple's "Send Consumption Information", version 2.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;

use super::account::{AppleEnvironment, EnvironmentChoice};
use super::action_error::AppleActionError;
use super::verify::{AppleVerifier, ask_environments};
use crate::base::id::TenantId;
use crate::http::json::{FromJson, JsonFields};
use crate::http::problem::constant_bool_schema;

/// How long Apple takes an answer, after it has asked.
pub(super) const ANSWER_PERIOD: Duration = Duration::from_hours(12);
/// All of a purchase, in thousandths of a percent.
pub(crate) const MAX_CONSUMPTION_PERCENTAGE: u32 = 100_000;

/// What Apple is told about a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConsumptionRequest {
    pub(crate) transaction_id: String,
    /// `None`: the tenant's setting.
    pub(crate) environment: Option<EnvironmentChoice>,
    pub(crate) information: ConsumptionInformation,
}

/// How a purchase was used. The customer has consented to Apple being told, without which Apple takes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConsumptionInformation {
    /// Whether the customer could try the content before the purchase.
    pub(crate) sample_content_provided: bool,
    pub(crate) delivery_status: DeliveryStatus,
    /// In thousandths of a percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) consumption_percentage: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refund_preference: Option<AppleRefundPreference>,
}

/// Whether the customer got what was bought.
///
/// - `DELIVERED`: it was delivered and works.
/// - `UNDELIVERED_QUALITY_ISSUE`: it does not work as it should.
/// - `UNDELIVERED_WRONG_ITEM`: something else was delivered.
/// - `UNDELIVERED_SERVER_OUTAGE`: an outage of your server kept it back.
/// - `UNDELIVERED_OTHER`: it was not delivered for another reason.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::EnumString,
    strum::VariantNames,
    clap::ValueEnum,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = apple::DeliveryStatus)]
pub(crate) enum DeliveryStatus {
    /// It was delivered and works
    Delivered,
    /// It does not work as it should
    UndeliveredQualityIssue,
    /// Something else was delivered
    UndeliveredWrongItem,
    /// An outage of the server kept it back
    UndeliveredServerOutage,
    /// It was not delivered for another reason
    UndeliveredOther,
}

/// What you want Apple to decide. Apple weighs it, and may decide otherwise.
///
/// - `DECLINE`: no refund.
/// - `GRANT_FULL`: a refund of all.
/// - `GRANT_PRORATED`: a refund of the part that was not used.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::EnumString,
    strum::VariantNames,
    clap::ValueEnum,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = apple::RefundPreference)]
pub(crate) enum AppleRefundPreference {
    /// The customer should get nothing back
    Decline,
    /// A refund of all
    GrantFull,
    /// A refund of the part that was not used
    GrantProrated,
}

/// Apple has taken the answer. Apple decides later, and tells it with an event: `…refunded` or `…refund_declined`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = apple::SentConsumption)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SentConsumption {
    #[schema(schema_with = always_taken)]
    valid: bool,
    /// The release of this server.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    #[schema(schema_with = always_taken)]
    sent: bool,
    /// Where the transaction is.
    pub(crate) environment: AppleEnvironment,
    /// The transaction of the request.
    #[schema(examples("2000000123456789"))]
    transaction_id: String,
}

impl FromJson for ConsumptionRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let transaction_id = body.required_string("transactionId", 1..=128);
        let environment = EnvironmentChoice::from_json_field(body);
        body.require_field("customerConsented");
        if body.optional_boolean("customerConsented") == Some(false) {
            body.add_issue(
                "customerConsented",
                "must be true: Apple takes nothing without the customer's consent, so send nothing then",
            );
        }
        let information = ConsumptionInformation::from_json(body);
        Some(Self {
            transaction_id: transaction_id?,
            environment,
            information: information?,
        })
    }
}

impl FromJson for ConsumptionInformation {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        body.require_field("sampleContentProvided");
        let sample_content_provided = body.optional_boolean("sampleContentProvided");
        body.require_field("deliveryStatus");
        let delivery_status = body.optional_enum("deliveryStatus");
        let consumption_percentage =
            body.optional_integer("consumptionPercentage", 0..=MAX_CONSUMPTION_PERCENTAGE);
        let refund_preference = body.optional_enum("refundPreference");
        Some(Self {
            sample_content_provided: sample_content_provided?,
            delivery_status: delivery_status?,
            consumption_percentage,
            refund_preference,
        })
    }
}

impl ConsumptionInformation {
    /// The body of Apple's endpoint.
    pub(super) fn to_body(&self) -> Value {
        let mut body = json!(self);
        body["customerConsented"] = json!(true);
        body
    }
}

impl AppleVerifier {
    /// Sends the information to the environment that knows the transaction.
    pub(crate) async fn send_consumption(
        &self,
        tenant: &TenantId,
        request: &ConsumptionRequest,
    ) -> Result<SentConsumption, AppleActionError> {
        let credentials = self.require_credentials(tenant).await?;
        let choice = request.environment.unwrap_or(credentials.environment);
        let body = request.information.to_body();
        let (environment, ()) = ask_environments(choice, &credentials, |environment| {
            self.app_store.send_consumption(
                tenant,
                &credentials,
                environment,
                &request.transaction_id,
                &body,
            )
        })
        .await?;
        Ok(SentConsumption {
            valid: true,
            version: crate::VERSION,
            sent: true,
            environment,
            transaction_id: request.transaction_id.clone(),
        })
    }
}

/// A field of an answer that says that Apple was told.
pub(super) fn always_taken() -> Schema {
    constant_bool_schema(true, "Always true: Apple has taken it.")
}

impl SentConsumption {
    /// An answer, for the API description.
    pub(super) fn example_json() -> Value {
        json!({
            "valid": true,
            "version": crate::VERSION,
            "sent": true,
            "environment": "production",
            "transactionId": "2000000123456789",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::read_json;

    fn issues(body: &Value) -> Vec<String> {
        let problem = read_json::<ConsumptionRequest>(body.to_string().as_bytes())
            .expect_err("it is malformed");
        let issues = problem.details["issues"].as_array().expect("a list");
        let line = |issue: &Value| {
            let text = |name: &str| issue[name].as_str().expect("text").to_owned();
            format!("{}: {}", text("path"), text("message"))
        };
        issues.iter().map(line).collect()
    }

    #[test]
    fn a_request_is_read_and_becomes_apples_body() {
        let body = json!({
            "transactionId": "7", "environment": "sandbox", "customerConsented": true,
            "sampleContentProvided": false, "deliveryStatus": "UNDELIVERED_SERVER_OUTAGE",
            "consumptionPercentage": 100_000, "refundPreference": "GRANT_PRORATED", "more": 1,
        });
        let request =
            read_json::<ConsumptionRequest>(body.to_string().as_bytes()).expect("it is good");
        assert_eq!(request.environment, Some(EnvironmentChoice::Sandbox));
        assert_eq!(
            request.information.to_body(),
            json!({
                "customerConsented": true, "sampleContentProvided": false,
                "deliveryStatus": "UNDELIVERED_SERVER_OUTAGE", "consumptionPercentage": 100_000,
                "refundPreference": "GRANT_PRORATED",
            })
        );
        let least = json!({
            "transactionId": "7", "customerConsented": true, "sampleContentProvided": true, "deliveryStatus": "DELIVERED",
        });
        let least = read_json::<ConsumptionRequest>(least.to_string().as_bytes()).expect("good");
        assert_eq!(
            least.information.to_body(),
            json!({
                "customerConsented": true, "sampleContentProvided": true, "deliveryStatus": "DELIVERED",
            })
        );
    }

    #[test]
    fn all_issues_of_a_request_are_listed() {
        assert_eq!(
            issues(&json!({})),
            [
                "transactionId: is missing",
                "customerConsented: is missing",
                "sampleContentProvided: is missing",
                "deliveryStatus: is missing",
            ]
        );
        let found = issues(&json!({
            "transactionId": "", "environment": "xcode", "customerConsented": false, "sampleContentProvided": "no",
            "deliveryStatus": "delivered", "consumptionPercentage": 100_001, "refundPreference": 1,
        }));
        let paths: Vec<_> = found
            .iter()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(
            paths,
            [
                "transactionId",
                "environment",
                "customerConsented",
                "sampleContentProvided",
                "deliveryStatus",
                "consumptionPercentage",
                "refundPreference",
            ]
        );
        assert_eq!(
            found[5],
            "consumptionPercentage: must be a whole number from 0 to 100000"
        );
    }
}
