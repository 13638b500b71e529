//! Two use cases: a tenant finishes a transaction, or names the user of a purchase.
//!
//! Nothing is asked first: Apple knows no transaction of another app by the tenant's key, and both calls may be repeated.
//!
//! Source: Apple's "Finish Transaction" and "Set App Account Token".

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::account::{AppleEnvironment, EnvironmentChoice};
use super::action_error::AppleActionError;
use super::consumption::always_taken;
use super::verify::{AppleVerifier, ask_environments};
use crate::base::id::TenantId;
use crate::http::json::{FromJson, JsonFields};

/// Which transaction is finished.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = apple::FinishRequest, rename_all = "camelCase")]
pub(crate) struct FinishRequest {
    /// The transaction whose content was delivered.
    #[schema(min_length = 1, max_length = 128, examples("2000000123456789"))]
    pub(crate) transaction_id: String,
    /// Where it is. Left out, the tenant's setting decides.
    pub(crate) environment: Option<EnvironmentChoice>,
}

/// Whose purchase it becomes.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = apple::AppAccountTokenRequest, rename_all = "camelCase")]
pub(crate) struct AppAccountTokenRequest {
    /// The first transaction of the purchase: `subject.key` of its events and answers.
    #[schema(min_length = 1, max_length = 128, examples("2000000100000001"))]
    pub(crate) original_transaction_id: String,
    /// The UUID of your user, in lower case or upper case.
    #[schema(
        pattern = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$",
        examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55")
    )]
    pub(crate) app_account_token: String,
    /// Where it is. Left out, the tenant's setting decides.
    pub(crate) environment: Option<EnvironmentChoice>,
}

/// The App Store does not offer the transaction to the app as unfinished any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = apple::FinishedTransaction)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FinishedTransaction {
    #[schema(schema_with = always_taken)]
    valid: bool,
    /// The release of this server.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    #[schema(schema_with = always_taken)]
    finished: bool,
    /// Where the transaction is.
    pub(crate) environment: AppleEnvironment,
    /// The transaction of the request.
    #[schema(examples("2000000123456789"))]
    transaction_id: String,
}

/// The purchase names this user from now on, in its transactions and notifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = apple::BoundPurchase)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BoundPurchase {
    #[schema(schema_with = always_taken)]
    valid: bool,
    /// The release of this server.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    /// Where the purchase is.
    pub(crate) environment: AppleEnvironment,
    /// The first transaction of the purchase.
    #[schema(examples("2000000100000001"))]
    original_transaction_id: String,
    /// Its user, in lower case.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    app_account_token: String,
}

impl FromJson for FinishRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let transaction_id = body.required_string("transactionId", 1..=128);
        let environment = EnvironmentChoice::from_json_field(body);
        Some(Self {
            transaction_id: transaction_id?,
            environment,
        })
    }
}

impl FromJson for AppAccountTokenRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let original_transaction_id = body.required_string("originalTransactionId", 1..=128);
        body.require_field("appAccountToken");
        let app_account_token = body.optional_uuid("appAccountToken");
        let environment = EnvironmentChoice::from_json_field(body);
        Some(Self {
            original_transaction_id: original_transaction_id?,
            app_account_token: app_account_token?,
            environment,
        })
    }
}

impl AppleVerifier {
    /// Finishes the transaction, which the app does otherwise.
    pub(crate) async fn finish_transaction(
        &self,
        tenant: &TenantId,
        request: &FinishRequest,
    ) -> Result<FinishedTransaction, AppleActionError> {
        let credentials = self.require_credentials(tenant).await?;
        let choice = request.environment.unwrap_or(credentials.environment);
        let id = &request.transaction_id;
        let (environment, ()) = ask_environments(choice, &credentials, |environment| {
            self.app_store
                .finish_transaction(tenant, &credentials, environment, id)
        })
        .await?;
        Ok(FinishedTransaction {
            valid: true,
            version: crate::VERSION,
            finished: true,
            environment,
            transaction_id: id.clone(),
        })
    }

    /// Names the user of a purchase, in place of the one that it names.
    pub(crate) async fn set_app_account_token(
        &self,
        tenant: &TenantId,
        request: &AppAccountTokenRequest,
    ) -> Result<BoundPurchase, AppleActionError> {
        let credentials = self.require_credentials(tenant).await?;
        let choice = request.environment.unwrap_or(credentials.environment);
        let id = &request.original_transaction_id;
        let token = &request.app_account_token;
        let (environment, ()) = ask_environments(choice, &credentials, |environment| {
            self.app_store
                .set_app_account_token(tenant, &credentials, environment, id, token)
        })
        .await?;
        Ok(BoundPurchase {
            valid: true,
            version: crate::VERSION,
            environment,
            original_transaction_id: id.clone(),
            app_account_token: token.clone(),
        })
    }
}

impl FinishedTransaction {
    /// An answer, for the API description.
    pub(super) fn example_json() -> Value {
        json!({
            "valid": true,
            "version": crate::VERSION,
            "finished": true,
            "environment": "production",
            "transactionId": "2000000123456789",
        })
    }
}

impl BoundPurchase {
    /// An answer, for the API description.
    pub(super) fn example_json() -> Value {
        json!({
            "valid": true,
            "version": crate::VERSION,
            "environment": "production",
            "originalTransactionId": "2000000100000001",
            "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        })
    }
}
