//! The use cases: a tenant acknowledges a purchase, or consumes a one-time product.
//!
//! The purchase is verified first: so only a purchase that was paid is acknowledged, what Google tells only until then (the
//! purchase before one that was made outside the app, and its user) is stored, and a request that is repeated is answered
//! without a second call. When Google refuses the call itself, the purchase is verified once more: another request, or a
//! refund, may have come between the two.

use std::time::Duration;

use tokio::time::timeout;

use super::api_error::{GoogleApiError, PurchaseLookupError};
use super::error_response::{GoogleActionError, GoogleVerifyError};
use super::owed::NewOwedAcknowledgement;
use super::payload::ExternalAccountIds;
use super::request_body::{AcknowledgeRequest, GoogleVerifyRequest};
use super::response_body::{
    AcknowledgedPurchase, AcknowledgementOutcome, ConsumedPurchase, PurchaseDetails,
    VerifiedPurchase,
};
use super::state::TEST_ACKNOWLEDGEMENT_PERIOD;
use super::store::{AcknowledgePolicy, GoogleCredentials};
use super::translate::PurchaseStatus;
use super::verify::GoogleVerifier;
use crate::base::id::TenantId;
use crate::events::AppUserIdSource;

/// What Google is told about a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PurchaseAction {
    Acknowledge,
    Consume,
}

/// What is left to do about a verified purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RemainingWork {
    Nothing,
    Call,
}

/// How long the answer to a verification waits for the acknowledgement.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);
/// When an acknowledgement is tried again that failed.
const RETRY_DELAY: Duration = Duration::from_secs(15);

impl GoogleVerifier {
    /// Verifies the purchase, and acknowledges it where the tenant has chosen that.
    /// The verdict is the same whether or not that works.
    pub(crate) async fn verify_and_acknowledge(
        &self,
        tenant: &TenantId,
        request: &GoogleVerifyRequest,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let mut verified = self.verify_purchase(tenant, request).await?;
        let credentials = self
            .get_credentials(tenant)
            .await
            .map_err(GoogleVerifyError::Credentials)?;
        let policy = credentials.map(|credentials| credentials.acknowledge);
        let is_owed = matches!(
            decide_work(PurchaseAction::Acknowledge, &verified),
            Ok(RemainingWork::Call)
        );
        if policy != Some(AcknowledgePolicy::Verify) || !is_owed {
            return Ok(verified);
        }
        verified.acknowledgement =
            Some(self.acknowledge_verified(tenant, request, &verified).await);
        if verified.acknowledgement == Some(AcknowledgementOutcome::Done) {
            verified.set_acknowledged();
        }
        Ok(verified)
    }

    /// Acknowledges a verified purchase, or lists it to be acknowledged later.
    async fn acknowledge_verified(
        &self,
        tenant: &TenantId,
        request: &GoogleVerifyRequest,
        verified: &VerifiedPurchase,
    ) -> AcknowledgementOutcome {
        let action = PurchaseAction::Acknowledge;
        let ids = select_account_ids(verified, None).ok().flatten();
        let call = self.perform_action(tenant, action, request, verified, ids.as_ref());
        let cause = match timeout(ACKNOWLEDGE_TIMEOUT, call).await {
            Ok(Ok(_)) => return AcknowledgementOutcome::Done,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ACKNOWLEDGE_TIMEOUT:?}"),
        };
        tracing::warn!(
            tenantId = %tenant,
            cause,
            causeClass = "google acknowledgement",
            hint = "it is tried again; the verdict is not affected",
            "google_acknowledgement_failed"
        );
        let now = self.clock.now();
        let owed = NewOwedAcknowledgement {
            purchase_token: request.purchase_token.clone(),
            kind: verified.subject.r#type,
            // A purchase without a known deadline has at least some minutes.
            acknowledge_by: verified
                .acknowledge_by()
                .unwrap_or_else(|| now.plus(TEST_ACKNOWLEDGEMENT_PERIOD)),
        };
        let listed = owed
            .list_wanted(&self.database, tenant, now, RETRY_DELAY)
            .await;
        if let Err(error) = listed {
            tracing::warn!(
                tenantId = %tenant,
                cause = crate::db::describe_cause(&error),
                causeClass = crate::db::error_class(&error),
                hint = "it is not tried again before the purchase is verified again",
                "google_acknowledgement_not_listed"
            );
        }
        AcknowledgementOutcome::Retried
    }

    /// Acknowledges the purchase, and binds it to its user where it was made outside the app.
    pub(crate) async fn acknowledge_purchase(
        &self,
        tenant: &TenantId,
        request: &AcknowledgeRequest,
    ) -> Result<AcknowledgedPurchase, GoogleActionError> {
        let action = PurchaseAction::Acknowledge;
        let verified = self.verify_purchase(tenant, &request.purchase).await?;
        let work = decide_work(action, &verified)?;
        let requested_ids = request.external_account_ids.as_ref();
        let bound_ids = select_account_ids(&verified, requested_ids)?;
        let is_already_done = match work {
            RemainingWork::Nothing => true,
            RemainingWork::Call => {
                let ids = bound_ids.as_ref();
                self.perform_action(tenant, action, &request.purchase, &verified, ids)
                    .await?
            }
        };
        let bound_ids = bound_ids.filter(|_| !is_already_done);
        let is_bound = bound_ids.is_some();
        let bound_user = bound_ids.and_then(|ids| ids.obfuscated_account_id);
        Ok(AcknowledgedPurchase {
            valid: true,
            version: crate::VERSION,
            acknowledged: true,
            already_done: is_already_done,
            app_user_id: bound_user.or(verified.app_user_id),
            app_user_bound: is_bound,
            subject: verified.subject,
        })
    }

    /// Consumes the product, so that it can be bought again. That acknowledges it too.
    pub(crate) async fn consume_purchase(
        &self,
        tenant: &TenantId,
        request: &GoogleVerifyRequest,
    ) -> Result<ConsumedPurchase, GoogleActionError> {
        let action = PurchaseAction::Consume;
        let verified = self.verify_purchase(tenant, request).await?;
        let is_already_done = match decide_work(action, &verified)? {
            RemainingWork::Nothing => true,
            RemainingWork::Call => {
                self.perform_action(tenant, action, request, &verified, None)
                    .await?
            }
        };
        Ok(ConsumedPurchase {
            valid: true,
            version: crate::VERSION,
            consumed: true,
            already_done: is_already_done,
            app_user_id: verified.app_user_id,
            subject: verified.subject,
        })
    }

    /// Makes the call. True when Google refused it because it was done in the meantime.
    async fn perform_action(
        &self,
        tenant: &TenantId,
        action: PurchaseAction,
        request: &GoogleVerifyRequest,
        verified: &VerifiedPurchase,
        ids: Option<&ExternalAccountIds>,
    ) -> Result<bool, GoogleActionError> {
        let credentials = self.require_credentials(tenant).await?;
        let called = self
            .call_action(tenant, &credentials, action, request, verified, ids)
            .await;
        let refusal = match called {
            Ok(()) => return Ok(false),
            Err(refusal) => refusal,
        };
        if is_refusal(&refusal) {
            let verified = self.verify_purchase(tenant, request).await?;
            if decide_work(action, &verified)? == RemainingWork::Nothing {
                return Ok(true);
            }
            // Google knows the purchase, and it is still owed: what it says of the call is no verdict on the purchase.
            if !matches!(refusal, PurchaseLookupError::Api(_)) {
                let refused =
                    "it refuses the call as if it did not know the purchase, which it knows";
                let refusal = GoogleApiError::Unreadable(refused.to_owned());
                return Err(GoogleVerifyError::Api(refusal).into());
            }
        }
        Err(GoogleVerifyError::from_lookup(refusal, &credentials.package_name).into())
    }

    async fn call_action(
        &self,
        tenant: &TenantId,
        credentials: &GoogleCredentials,
        action: PurchaseAction,
        request: &GoogleVerifyRequest,
        verified: &VerifiedPurchase,
        ids: Option<&ExternalAccountIds>,
    ) -> Result<(), PurchaseLookupError> {
        let GoogleCredentials {
            account,
            package_name: app,
            ..
        } = credentials;
        let (play, token) = (&self.play, request.purchase_token.as_str());
        match (&verified.purchase, action) {
            (PurchaseDetails::Subscription(details), _) => {
                let product_id = details.product_id.as_deref();
                let product_id = product_id.or(request.product_id.as_deref());
                let missing = || GoogleApiError::Unreadable("it names no product".to_owned());
                let product_id = product_id.ok_or_else(missing)?;
                play.acknowledge_subscription(tenant, account, app, product_id, token, ids)
                    .await
            }
            (PurchaseDetails::Product(details), PurchaseAction::Acknowledge) => {
                play.acknowledge_product(tenant, account, app, &details.product_id, token)
                    .await
            }
            (PurchaseDetails::Product(details), PurchaseAction::Consume) => {
                play.consume_product(tenant, account, app, &details.product_id, token)
                    .await
            }
        }
    }
}

/// What is left to do, or why it cannot be done.
fn decide_work(
    action: PurchaseAction,
    verified: &VerifiedPurchase,
) -> Result<RemainingWork, GoogleActionError> {
    let status = verified.status;
    let (is_acknowledged, is_subscription) = match &verified.purchase {
        PurchaseDetails::Subscription(details) => (details.acknowledgement_state == 1, true),
        PurchaseDetails::Product(details) => (details.acknowledgement_state == 1, false),
    };
    if is_subscription && action == PurchaseAction::Consume {
        return Err(GoogleActionError::NotConsumable);
    }
    // The status is that of one product of the purchase. The others may be paid for.
    let is_running =
        verified.subject.current && verified.state.as_ref().is_some_and(|state| state.entitled);
    match status {
        PurchaseStatus::Pending => Err(GoogleActionError::Pending),
        PurchaseStatus::Consumed => Ok(RemainingWork::Nothing),
        PurchaseStatus::Canceled if !is_subscription => Err(GoogleActionError::Ended { status }),
        _ if action == PurchaseAction::Acknowledge && is_acknowledged => Ok(RemainingWork::Nothing),
        PurchaseStatus::Expired if !is_running => Err(GoogleActionError::Ended { status }),
        _ => Ok(RemainingWork::Call),
    }
}

/// The user to bind the purchase to: the requested one, else that of the purchase before one that was made outside the app.
/// `None` for a purchase that names its user.
fn select_account_ids(
    verified: &VerifiedPurchase,
    requested: Option<&ExternalAccountIds>,
) -> Result<Option<ExternalAccountIds>, GoogleVerifyError> {
    let PurchaseDetails::Subscription(details) = &verified.purchase else {
        return Ok(None);
    };
    let requested_user = requested.and_then(|ids| ids.obfuscated_account_id.as_ref());
    if let Some(own) = &details.obfuscated_external_account_id {
        return match requested_user {
            Some(user) if user != own => {
                Err(GoogleVerifyError::AppUserMismatch { is_anothers: true })
            }
            _ => Ok(None),
        };
    }
    let earlier = verified.app_user_id.clone();
    let is_earlier = verified.app_user_id_source == Some(AppUserIdSource::EarlierPurchase);
    Ok(requested.cloned().or_else(|| {
        is_earlier.then_some(ExternalAccountIds {
            obfuscated_account_id: earlier,
            obfuscated_profile_id: None,
        })
    }))
}

/// Whether Google refused the call because of the purchase. Otherwise verifying it again would tell nothing.
fn is_refusal(error: &PurchaseLookupError) -> bool {
    match error {
        PurchaseLookupError::NotFound(_)
        | PurchaseLookupError::OtherApp
        | PurchaseLookupError::OtherProduct => true,
        PurchaseLookupError::Api(GoogleApiError::Unexpected { status, .. }) => {
            (400..500).contains(status)
        }
        PurchaseLookupError::Api(_) => false,
    }
}
