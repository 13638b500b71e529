//! Verifies a transaction for a tenant: is it genuine, and what is its status now.
//!
//! Checked in this order: the tenant has credentials; Apple knows the id, when only an id is given; the signature is
//! Apple's; the app is the tenant's; the environment is the requested one; the user is the expected one. The first check
//! that fails is the answer. The signature of what Apple's API returns is checked too.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use url::Url;
use utoipa::ToSchema;

use super::account::{AppleCredentials, AppleEnvironment, EnvironmentChoice};
use super::api::{AppStoreClient, AppleApiError, AppleNotFound, TransactionLookupError};
use super::error::AppleVerifyError;
use super::inspection::{SignedDataKind, detect_kind};
use super::ocsp::RevocationChecker;
use super::payload::{self, Millis, TransactionPayload};
use super::state::{PurchaseFacts, purchase_state};
use super::store;
use super::translate::{self, TransactionStatus};
use super::trust::{self, JwsVerifier, SignatureError, VerifiedJws};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::TenantCache;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::events::{
    AppUserIdSource, EventSource, EventSubject, PurchaseState, StateError, SubjectType,
};
use crate::http::Problem;
use crate::http::api_docs::always_true;
use crate::outbound::Upstream;
use crate::stores::shared::credentials::LoadCredentialsError;
use crate::stores::shared::first_seen::{FirstSeen, FirstSeenCheck, FirstSeenError};
use crate::stores::shared::fresh_ids::{FreshIds, UnknownId};
use crate::tenants::Caller;

/// Verifies transactions of all tenants. Clones share the caches.
#[derive(Clone)]
pub struct AppleVerifier {
    pub(super) database: Database,
    keyring: Arc<Keyring>,
    credential_cache: TenantCache<AppleCredentials, LoadCredentialsError>,
    pub(super) app_store: AppStoreClient,
    jws_verifier: JwsVerifier,
    revocation_checker: Option<RevocationChecker>,
    fresh_ids: FreshIds,
    first_seen: FirstSeenCheck,
    pub(super) clock: Clock,
}

/// Apple's addresses, and how certificates and credentials are checked and cached.
#[derive(Clone, Debug)]
pub struct AppleSettings {
    /// The App Store Server API for what was paid with money.
    pub production_url: Url,
    /// The App Store Server API for sandbox, `TestFlight` and App Review.
    pub sandbox_url: Url,
    /// How long unsealed credentials are cached, unless they change.
    pub credential_ttl: Duration,
    /// Asks Apple's OCSP responders. `None`: revocation is not checked, and certificates must have been valid on the
    /// day of signing instead of today.
    pub revocation_checker: Option<RevocationChecker>,
}

/// The body of a verify request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppleVerifyRequest {
    /// A transaction's id, or a transaction that Apple signed.
    pub purchase: PurchaseRef,
    /// The environment it must be of. `None`: the tenant's setting.
    pub environment: Option<EnvironmentChoice>,
    /// The `appAccountToken` it must have, compared without regard to case.
    pub expected_app_user_id: Option<String>,
    /// The user for whom it is verified: see [`FirstSeen`]. `None`: the one that the transaction names.
    pub for_app_user_id: Option<String>,
    /// Whether Apple is asked for the whole subscription although the transaction's own facts decide.
    pub refresh: bool,
}

/// How a request names the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurchaseRef {
    /// Apple's API is asked for it.
    TransactionId(String),
    /// StoreKit 2's JWS. Apple is not asked.
    SignedTransaction(String),
}

impl AppleVerifyRequest {
    /// What is hashed into the validation log: the transaction's id. For a JWS the id in its payload, which is not
    /// verified here; the JWS itself when there is none.
    pub(crate) fn audit_identifier(&self) -> Cow<'_, str> {
        match &self.purchase {
            PurchaseRef::TransactionId(id) => id.into(),
            PurchaseRef::SignedTransaction(jws) => trust::decode_unverified_payload(jws)
                .and_then(|claimed| serde_json::from_slice::<TransactionPayload>(&claimed).ok())
                .and_then(|claimed| claimed.transaction_id)
                .map_or_else(|| jws.into(), Cow::Owned),
        }
    }
}

/// A yes: this transaction is genuine and of this tenant's app. What it is worth now is in `status`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = apple::Verified)]
pub struct VerifiedTransaction {
    /// Always true. Whether it is paid for now is in `status`.
    #[schema(schema_with = always_true)]
    pub valid: bool,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    pub version: &'static str,
    /// Where the transaction is.
    pub environment: AppleEnvironment,
    /// What the transaction is now.
    pub status: TransactionStatus,
    /// Whose it is: the UUID that your app gave StoreKit for its user, as in `transaction.appAccountToken`. Null when it gave
    /// none, or an empty one.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub app_user_id: Option<String>,
    /// Which purchase names that user: `purchase`. Null exactly when there is no `appUserId`.
    pub app_user_id_source: Option<AppUserIdSource>,
    /// The subscription or purchase, as in events.
    pub subject: EventSubject,
    /// What the purchase is worth now. With `basis` `transaction` it says no more than the one signed transaction.
    pub state: Option<PurchaseState>,
    /// Why `state` is null, or why it has the basis `transaction` although Apple was asked for the whole subscription.
    pub state_error: Option<StateError>,
    /// Present where the same purchase was verified before for another user of this tenant, if the tenant has asked for it: when
    /// that was. See `forAppUserId`.
    #[schema(required = false, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<FirstSeen>,
    /// Present where `firstSeen` would say it and is not known.
    #[schema(required = false, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen_error: Option<FirstSeenError>,
    /// What Apple says of the transaction.
    pub transaction: TransactionDetails,
}

/// The facts of a transaction, as Apple signed them. What Apple did not say is null.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = apple::Transaction)]
pub struct TransactionDetails {
    /// This transaction's id. Each renewal of a subscription has its own.
    #[schema(examples("2000000123456789"))]
    pub transaction_id: Option<String>,
    /// The id of the subscription's first transaction; stays the same over all renewals. Of a one-time purchase, its own.
    #[schema(examples("2000000100000001"))]
    pub original_transaction_id: Option<String>,
    /// The app's bundle id.
    #[schema(examples("com.example.app"))]
    pub bundle_id: Option<String>,
    /// The product's id in App Store Connect.
    #[schema(examples("com.example.app.pro.monthly"))]
    pub product_id: Option<String>,
    /// When this transaction was paid.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub purchase_date: Option<Timestamp>,
    /// When the subscription's first transaction was paid.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub original_purchase_date: Option<Timestamp>,
    /// Until when it is paid for. Null for what does not end.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_date: Option<Timestamp>,
    /// What kind of product: `Auto-Renewable Subscription`, `Non-Consumable`, `Consumable` or `Non-Renewing Subscription`.
    #[schema(examples("Auto-Renewable Subscription"))]
    pub r#type: Option<String>,
    /// `PURCHASED` by this user, or `FAMILY_SHARED` by another member of the family.
    #[schema(examples("PURCHASED"))]
    pub in_app_ownership_type: Option<String>,
    /// How many were bought; more than 1 only of consumables.
    #[schema(value_type = Option<i64>, examples(1))]
    pub quantity: Option<Value>,
    /// Apple's id of this purchase or renewal, the same on all devices. Subscriptions only.
    #[schema(examples("2000000044444444"))]
    pub web_order_line_item_id: Option<String>,
    /// When it was refunded, or taken from the family. Null when it was not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revocation_date: Option<Timestamp>,
    /// Why it was refunded: 1 for an issue with the app, 0 for anything else. Null when it was not.
    #[schema(value_type = Option<i64>, examples(0))]
    pub revocation_reason: Option<Value>,
    /// What kind of offer was used: 1 introductory, 2 promotional, 3 offer code, 4 win-back. Null without one.
    #[schema(value_type = Option<i64>, examples(1))]
    pub offer_type: Option<Value>,
    /// The offer's id or code. Null without one, and for an introductory offer.
    #[schema(examples("spring-2026"))]
    pub offer_identifier: Option<String>,
    /// The UUID that your app gave StoreKit for its user. Null when it gave none.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub app_account_token: Option<String>,
    /// The country of the App Store it was bought in: three letters of ISO 3166-1.
    #[schema(examples("USA"))]
    pub storefront: Option<String>,
    /// Apple's number for that App Store.
    #[schema(examples("143441"))]
    pub storefront_id: Option<String>,
    /// `PURCHASE` by the user, or `RENEWAL` by Apple.
    #[schema(examples("RENEWAL"))]
    pub transaction_reason: Option<String>,
    /// The currency of `price`: three letters of ISO 4217.
    #[schema(examples("USD"))]
    pub currency: Option<String>,
    /// What was paid, in thousandths of the currency's unit, as Apple sends it: 9990 is 9.99.
    #[schema(value_type = Option<i64>, examples(9990))]
    pub price: Option<Value>,
    /// The transaction as Apple signed it: a JWS. Keep it, and you can prove the purchase later.
    #[schema(examples("eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJ0cmFuc2FjdGlvbklkIj….MEUCIQDf…"))]
    #[serde(serialize_with = "without_escaping")]
    pub signed_transaction_info: String,
    /// What Apple signed, decoded and otherwise untouched: what this release does not know is in it too.
    #[schema(value_type = Object)]
    pub raw_decoded_payload: Box<RawValue>,
}

impl AppleVerifier {
    /// `changes` reports changed credentials, which are then loaded again.
    pub fn new(
        database: &Database,
        keyring: &Arc<Keyring>,
        changes: &ChangeListener,
        upstream: Upstream,
        verifier: JwsVerifier,
        clock: &Clock,
        settings: AppleSettings,
    ) -> Self {
        let AppleSettings {
            production_url,
            sandbox_url,
            credential_ttl,
            revocation_checker,
        } = settings;
        let jws_verifier = match revocation_checker {
            Some(_) => verifier.check_validity_at_now(),
            None => verifier,
        };
        Self {
            database: database.clone(),
            keyring: keyring.clone(),
            credential_cache: TenantCache::new(
                "apple_credentials",
                credential_ttl,
                clock.clone(),
                changes,
            ),
            app_store: AppStoreClient::new(upstream, production_url, sandbox_url, clock.clone()),
            jws_verifier,
            revocation_checker,
            fresh_ids: FreshIds::new(clock),
            first_seen: FirstSeenCheck::new(database, keyring),
            clock: clock.clone(),
        }
    }

    /// The payload of a JWS that Apple signed.
    pub(super) async fn verify_jws(&self, jws: &str) -> Result<Vec<u8>, SignatureError> {
        let verified = self.jws_verifier.verify_jws(jws, self.clock.now())?;
        self.check_revocation(&verified).await?;
        Ok(verified.payload)
    }

    /// The same without a limit of its length: a notification contains other JWSs. The caller limits the body.
    pub(super) async fn verify_jws_any_length(
        &self,
        jws: &str,
    ) -> Result<VerifiedJws, SignatureError> {
        let verified = self
            .jws_verifier
            .verify_jws_any_length(jws, self.clock.now())?;
        self.check_revocation(&verified).await?;
        Ok(verified)
    }

    /// Asks the responders named in the certificates. This comes after the chain was verified: only then are their
    /// addresses Apple's.
    async fn check_revocation(&self, verified: &VerifiedJws) -> Result<(), SignatureError> {
        if let Some(checker) = &self.revocation_checker {
            checker
                .check_certificates(&verified.chain.certificates)
                .await?;
        }
        Ok(())
    }

    /// As [`Self::verify_purchase`], and compares the user with the one for whom the purchase was first verified.
    pub(super) async fn verify_for_caller(
        &self,
        caller: &Caller,
        request: &AppleVerifyRequest,
    ) -> Result<VerifiedTransaction, AppleVerifyError> {
        let mut verified = self.verify_purchase(&caller.tenant, request).await?;
        let user = request.for_app_user_id.as_deref();
        let user = user.or(verified.app_user_id.as_deref());
        match self
            .first_seen
            .check(caller, EventSource::Apple, &verified.subject.key, user)
            .await
        {
            Ok(found) => verified.first_seen = found,
            Err(error) => verified.first_seen_error = Some(error),
        }
        Ok(verified)
    }

    /// Verifies the transaction that `request` names.
    pub async fn verify_purchase(
        &self,
        tenant: &TenantId,
        request: &AppleVerifyRequest,
    ) -> Result<VerifiedTransaction, AppleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        let choice = request.environment.unwrap_or(credentials.environment);
        let found = match &request.purchase {
            PurchaseRef::TransactionId(id) => {
                self.verify_by_id(tenant, &credentials, choice, id).await?
            }
            PurchaseRef::SignedTransaction(jws) => {
                self.verify_by_jws(&credentials, choice, jws).await?
            }
        };
        let expected = request.expected_app_user_id.as_deref();
        check_owner(found.app_user(), expected, false)?;
        let known = self.find_state(tenant, &credentials, request, &found).await;
        let owner = found.app_user().map(str::to_owned).or(known.app_user);
        check_owner(owner.as_deref(), expected, true)?;
        let subject = found.subject(known.is_current);
        Ok(VerifiedTransaction {
            valid: true,
            version: crate::VERSION,
            environment: found.environment,
            status: translate::transaction_status(&found.transaction, self.clock.now()),
            app_user_id_source: owner.as_ref().map(|_| AppUserIdSource::Purchase),
            app_user_id: owner,
            subject,
            state: known.state,
            state_error: known.state_error,
            first_seen: None,
            first_seen_error: None,
            transaction: transaction_details(found.transaction, found.raw, found.jws),
        })
    }

    /// As [`Self::look_up_id`]. Apple does not know a purchase yet that it has just sold: an id that is asked for the first
    /// time is tried three times within 750 ms.
    async fn verify_by_id(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        choice: EnvironmentChoice,
        id: &str,
    ) -> Result<CheckedTransaction, AppleVerifyError> {
        let mut tries = self.fresh_ids.start_tries(tenant, id);
        loop {
            let found = self.look_up_id(tenant, credentials, choice, id).await;
            let Err(AppleVerifyError::NotFound {
                reason: reason @ AppleNotFound::Unknown,
                ..
            }) = found
            else {
                return found;
            };
            if let UnknownId::GiveUp { may_be_early } = tries.wait_for_retry().await {
                return Err(AppleVerifyError::NotFound {
                    reason,
                    may_be_early,
                });
            }
        }
    }

    /// Asks Apple's API for a transaction, and checks the answer.
    async fn look_up_id(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        choice: EnvironmentChoice,
        id: &str,
    ) -> Result<CheckedTransaction, AppleVerifyError> {
        let (environment, jws) = ask_environments(choice, credentials, |environment| {
            self.app_store
                .get_transaction_info(tenant, credentials, environment, id)
        })
        .await?;
        self.check_api_response(credentials, environment, id, jws)
            .await
    }

    async fn check_api_response(
        &self,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        id: &str,
        jws: String,
    ) -> Result<CheckedTransaction, AppleVerifyError> {
        let (transaction, raw) = self
            .read_transaction(&jws)
            .await
            .map_err(AppleVerifyError::UntrustedResponse)?;
        let known_as = [
            &transaction.transaction_id,
            &transaction.original_transaction_id,
        ];
        if !known_as.iter().any(|known| known.as_deref() == Some(id)) {
            return Err(AppleVerifyError::ResponseMismatch);
        }
        let environment = check_transaction(credentials, Some(environment), &transaction)?;
        Ok(CheckedTransaction {
            environment,
            transaction,
            raw,
            jws,
            is_from_store: true,
        })
    }

    async fn verify_by_jws(
        &self,
        credentials: &AppleCredentials,
        choice: EnvironmentChoice,
        jws: &str,
    ) -> Result<CheckedTransaction, AppleVerifyError> {
        let has_id = credentials.app_apple_id.is_some();
        if choice == EnvironmentChoice::Production && !has_id {
            return Err(AppleVerifyError::NoAppAppleId);
        }
        let read = self.read_transaction(jws).await;
        let (transaction, raw) = read.map_err(|error| match error {
            // By now the payload is known to be Apple's.
            SignatureError::NotATransaction => AppleVerifyError::NotATransaction(signed_kind(jws)),
            error => AppleVerifyError::InvalidSignature(error),
        })?;
        let expected = match choice {
            EnvironmentChoice::Auto => None,
            EnvironmentChoice::Production => Some(AppleEnvironment::Production),
            EnvironmentChoice::Sandbox => Some(AppleEnvironment::Sandbox),
        };
        let environment = check_transaction(credentials, expected, &transaction)?;
        if environment == AppleEnvironment::Production && !has_id {
            return Err(AppleVerifyError::NoAppAppleId);
        }
        Ok(CheckedTransaction {
            environment,
            transaction,
            raw,
            jws: jws.to_owned(),
            is_from_store: false,
        })
    }

    pub(super) async fn read_transaction(
        &self,
        jws: &str,
    ) -> Result<(TransactionPayload, Box<RawValue>), SignatureError> {
        let payload = self.verify_jws(jws).await?;
        let transaction: TransactionPayload =
            serde_json::from_slice(&payload).map_err(|_| SignatureError::BadPayload)?;
        // The same keys sign renewal infos, notifications and app transactions, which are no proof of a purchase.
        if transaction.transaction_id.is_none() {
            return Err(SignatureError::NotATransaction);
        }
        let raw = payload::to_raw_json(payload).ok_or(SignatureError::BadPayload)?;
        Ok((transaction, raw))
    }

    /// What the purchase is worth. Apple is asked for the whole subscription where the transaction that it returned does not
    /// decide, and where the request wants it fresh. Without an answer the state is that of the transaction alone.
    async fn find_state(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        request: &AppleVerifyRequest,
        found: &CheckedTransaction,
    ) -> VerifiedState {
        let now = self.clock.now();
        let facts = found.facts(now);
        let is_fresh = found.is_from_store && !facts.is_auto_renewable();
        let is_undecided = found.is_from_store && !facts.transaction_decides(now);
        let mut known = VerifiedState {
            state: purchase_state(&facts, now),
            state_error: None,
            is_current: found.transaction.is_upgraded != Some(true),
            app_user: None,
        };
        if is_fresh || !(is_undecided || request.refresh) {
            return known;
        }
        match self.ask_for_state(tenant, credentials, found).await {
            Ok(told) => told,
            Err(error) => {
                let problem = Problem::from(error);
                tracing::warn!(
                    tenantId = tenant.as_str(),
                    error = problem.message,
                    hint = "the answer's state comes from the transaction alone, and stateError says so",
                    "apple_state_not_known"
                );
                known.state_error = Some(StateError::StoreUnavailable);
                known
            }
        }
    }

    async fn ask_for_state(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        found: &CheckedTransaction,
    ) -> Result<VerifiedState, AppleVerifyError> {
        let now = self.clock.now();
        let own = found.transaction.transaction_id.as_deref();
        let first = found.transaction.original_transaction_id.as_deref();
        let id = first.or(own).ok_or(AppleVerifyError::ResponseMismatch)?;
        let environment = found.environment;
        if !found.facts(now).is_auto_renewable() {
            let id = own.unwrap_or(id);
            let jws = self
                .app_store
                .get_transaction_info(tenant, credentials, environment, id)
                .await?;
            let fresh = self
                .check_api_response(credentials, environment, id, jws)
                .await?;
            return Ok(VerifiedState {
                state: purchase_state(&fresh.facts(now), now),
                state_error: None,
                is_current: true,
                app_user: fresh.app_user().map(str::to_owned),
            });
        }
        let whole = self
            .fetch_subscription(tenant, credentials, environment, id)
            .await?;
        Ok(VerifiedState {
            state: purchase_state(&whole.facts(now), now),
            state_error: None,
            is_current: whole.transaction.transaction_id.as_deref() == own,
            app_user: whole.app_user().map(str::to_owned),
        })
    }

    /// The tenant's credentials, cached; an error when it has none.
    pub(super) async fn require_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Arc<AppleCredentials>, AppleVerifyError> {
        self.get_credentials(tenant)
            .await
            .map_err(AppleVerifyError::Credentials)?
            .ok_or(AppleVerifyError::NoCredentials)
    }

    pub(super) async fn get_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<AppleCredentials>>, Arc<LoadCredentialsError>> {
        let (database, keyring, whose) =
            (self.database.clone(), self.keyring.clone(), tenant.clone());
        self.credential_cache
            .get_or_load(tenant, async move {
                store::load_credentials(&database, &keyring, &whose).await
            })
            .await
    }
}

/// The environments that are asked, in order. Production needs an app Apple id: without one it is an error when it was
/// requested, and skipped under `auto`.
pub(super) fn environments_to_query(
    choice: EnvironmentChoice,
    has_app_apple_id: bool,
) -> Result<&'static [AppleEnvironment], AppleVerifyError> {
    match (choice, has_app_apple_id) {
        (EnvironmentChoice::Production, false) => Err(AppleVerifyError::NoAppAppleId),
        (EnvironmentChoice::Production, true) => Ok(&[AppleEnvironment::Production]),
        (EnvironmentChoice::Sandbox, _) | (EnvironmentChoice::Auto, false) => {
            Ok(&[AppleEnvironment::Sandbox])
        }
        (EnvironmentChoice::Auto, true) => {
            Ok(&[AppleEnvironment::Production, AppleEnvironment::Sandbox])
        }
    }
}

/// Asks in the chosen environment, or in production and then in the sandbox. Returns where the answer is from.
///
/// The sandbox is asked when production knows no such transaction, and also when it answers 401: for an app that was
/// never released it does so whatever the key. The key is wrong only when every asked environment answers 401.
pub(super) async fn ask_environments<T, F>(
    choice: EnvironmentChoice,
    credentials: &AppleCredentials,
    ask: impl Fn(AppleEnvironment) -> F,
) -> Result<(AppleEnvironment, T), AppleVerifyError>
where
    F: Future<Output = Result<T, TransactionLookupError>>,
{
    let (mut not_found, mut unauthorized) = (None, None);
    for environment in environments_to_query(choice, credentials.app_apple_id.is_some())? {
        match ask(*environment).await {
            Ok(answer) => return Ok((*environment, answer)),
            Err(TransactionLookupError::NotFound(AppleNotFound::Unknown)) => {
                not_found = Some(AppleNotFound::Unknown);
            }
            Err(TransactionLookupError::Api(failure @ AppleApiError::Unauthorized { .. })) => {
                unauthorized = Some(failure);
            }
            // A malformed id is malformed in the other environment too.
            Err(failure) => return Err(failure.into()),
        }
    }
    Err(match (not_found, unauthorized) {
        (Some(reason), _) => reason.into(),
        (None, Some(failure)) => failure.into(),
        (None, None) => AppleVerifyError::NoAppAppleId,
    })
}

/// Checks the bundle id and the environment, in the order of Apple's own server libraries.
pub(super) fn check_transaction(
    credentials: &AppleCredentials,
    expected: Option<AppleEnvironment>,
    transaction: &TransactionPayload,
) -> Result<AppleEnvironment, AppleVerifyError> {
    if transaction.bundle_id.as_deref() != Some(&*credentials.bundle_id) {
        return Err(AppleVerifyError::BundleIdMismatch {
            expected: credentials.bundle_id.clone(),
            found: transaction.bundle_id.clone(),
        });
    }
    let found = transaction
        .environment
        .as_deref()
        .and_then(AppleEnvironment::from_apple_str);
    match (found, expected) {
        (Some(found), None) => Ok(found),
        (Some(found), Some(expected)) if found == expected => Ok(found),
        _ => Err(AppleVerifyError::EnvironmentMismatch {
            expected,
            found: transaction.environment.clone(),
        }),
    }
}

/// Refuses a purchase of another user than the expected one, and if `must_have_one`, one that names none.
fn check_owner(
    owner: Option<&str>,
    expected: Option<&str>,
    must_have_one: bool,
) -> Result<(), AppleVerifyError> {
    match (owner, expected) {
        (Some(owner), Some(expected)) if !owner.eq_ignore_ascii_case(expected) => {
            Err(AppleVerifyError::AppUserMismatch {
                is_of_another: true,
            })
        }
        (None, Some(_)) if must_have_one => Err(AppleVerifyError::AppUserMismatch {
            is_of_another: false,
        }),
        _ => Ok(()),
    }
}

/// What a JWS is that is not what was asked for.
pub(super) fn signed_kind(jws: &str) -> SignedDataKind {
    let payload = trust::decode_unverified_payload(jws);
    let object: Option<Map<String, Value>> =
        payload.and_then(|json| serde_json::from_slice(&json).ok());
    object.map_or(SignedDataKind::Unknown, |object| detect_kind(&object))
}

/// A transaction that is genuine and of the tenant's app.
struct CheckedTransaction {
    environment: AppleEnvironment,
    transaction: TransactionPayload,
    raw: Box<RawValue>,
    jws: String,
    /// Whether Apple's API has just returned it. False: it came with the request, and can be old.
    is_from_store: bool,
}

impl CheckedTransaction {
    fn app_user(&self) -> Option<&str> {
        translate::app_user(self.transaction.app_account_token.as_deref())
    }

    fn facts(&self, now: Timestamp) -> PurchaseFacts<'_> {
        let mut facts = PurchaseFacts {
            transaction: &self.transaction,
            renewal: None,
            status: None,
            is_newest: false,
            stated_at: now,
        };
        // Of anything but a subscription that renews there is one transaction.
        facts.is_newest = self.is_from_store && !facts.is_auto_renewable();
        facts
    }

    fn subject(&self, current: bool) -> EventSubject {
        let transaction = &self.transaction;
        let first = transaction.original_transaction_id.as_ref();
        let key = first.or(transaction.transaction_id.as_ref());
        EventSubject {
            key: key.cloned().unwrap_or_default(),
            product_id: transaction.product_id.clone(),
            r#type: if translate::is_subscription(transaction.r#type.as_deref()) {
                SubjectType::Subscription
            } else {
                SubjectType::Product
            },
            current,
            superseded_by: None,
        }
    }
}

/// What is known of the purchase that a transaction belongs to.
struct VerifiedState {
    state: Option<PurchaseState>,
    state_error: Option<StateError>,
    /// Whether the transaction is the newest of its subscription, as far as is known.
    is_current: bool,
    /// Whose it is by the newest transaction or the renewal info.
    app_user: Option<String>,
}

/// Writes a JWS without looking for characters to escape: it has none, and it is most of an answer's bytes.
pub(super) fn without_escaping<S: Serializer>(jws: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match RawValue::from_string(format!("\"{jws}\"")) {
        Ok(quoted) => quoted.serialize(serializer),
        // Only a text that was not verified as a JWS can come here.
        Err(_) => serializer.serialize_str(jws),
    }
}

pub(super) fn transaction_details(
    transaction: TransactionPayload,
    raw: Box<RawValue>,
    jws: String,
) -> TransactionDetails {
    let date = |date: Option<Millis>| date.map(|Millis(date)| date);
    TransactionDetails {
        transaction_id: transaction.transaction_id,
        original_transaction_id: transaction.original_transaction_id,
        bundle_id: transaction.bundle_id,
        product_id: transaction.product_id,
        purchase_date: date(transaction.purchase_date),
        original_purchase_date: date(transaction.original_purchase_date),
        expires_date: date(transaction.expires_date),
        r#type: transaction.r#type,
        in_app_ownership_type: transaction.in_app_ownership_type,
        quantity: payload::number_to_value(transaction.quantity),
        web_order_line_item_id: transaction.web_order_line_item_id,
        revocation_date: date(transaction.revocation_date),
        revocation_reason: payload::number_to_value(transaction.revocation_reason),
        offer_type: payload::number_to_value(transaction.offer_type),
        offer_identifier: transaction.offer_identifier,
        app_account_token: transaction.app_account_token,
        storefront: transaction.storefront,
        storefront_id: transaction.storefront_id,
        transaction_reason: transaction.transaction_reason,
        currency: transaction.currency,
        price: payload::number_to_value(transaction.price),
        signed_transaction_info: jws,
        raw_decoded_payload: raw,
    }
}
