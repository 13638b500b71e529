//! The use case: a tenant asks whether a transaction is real, and what it is now.
//!
//! In this order: has the tenant credentials; is the signature Apple's (asking Apple first when only an id is given);
//! is it the tenant's app; is it the environment asked about; is it the user's. The first "no" is the answer, and what
//! comes after it is not looked at. What Apple's server answers is not believed either until its signature is checked.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use url::Url;
use utoipa::ToSchema;

use super::account::{AppleCredentials, AppleEnvironment, EnvironmentChoice};
use super::api::{AppStoreClient, AppleApiError, AppleNotFound, TransactionLookupError};
use super::ocsp::{RevocationChecker, RevocationError};
use super::payload::{self, Millis, TransactionPayload};
use super::store;
use super::translate::{self, TransactionStatus};
use super::trust::{self, JwsVerifier, SignatureError, VerifiedJws};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::credentials::TenantCache;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::http::api_docs::always_true;
use crate::outbound::Upstream;
use crate::stores::shared::credentials::LoadCredentialsError;

/// The App Store, as one process asks it for all tenants. Clones share what is remembered.
#[derive(Clone)]
pub struct AppleVerifier {
    pub(super) database: Database,
    keyring: Arc<Keyring>,
    credential_cache: TenantCache<AppleCredentials, LoadCredentialsError>,
    app_store: AppStoreClient,
    jws_verifier: JwsVerifier,
    revocation_checker: Option<RevocationChecker>,
    pub(super) clock: Clock,
}

/// Where Apple is, and how long a tenant's credentials are remembered.
#[derive(Clone, Debug)]
pub struct AppleSettings {
    /// The App Store Server API for what was paid with money.
    pub production_url: Url,
    /// The App Store Server API for sandbox, `TestFlight` and App Review.
    pub sandbox_url: Url,
    /// How long opened credentials are remembered, if nothing changes them.
    pub credential_ttl: Duration,
    /// Who is asked whether certificates were revoked. `None`: nobody, and they must have been valid on the day of
    /// signing instead of today.
    pub revocation_checker: Option<RevocationChecker>,
}

/// What a tenant asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppleVerifyRequest {
    /// Which transaction.
    pub purchase: PurchaseRef,
    /// Where it must be; the tenant's own setting when absent.
    pub environment: Option<EnvironmentChoice>,
    /// Whose it must be: the UUID the app gave StoreKit, in any case.
    pub expected_app_user_id: Option<String>,
}

/// Which transaction is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurchaseRef {
    /// One that Apple is asked for.
    TransactionId(String),
    /// StoreKit 2's JWS, checked here.
    SignedTransaction(String),
}

impl AppleVerifyRequest {
    /// What the question is about, as it stands in the validation log: the transaction's id. Of a JWS the id it claims,
    /// which an impostor may claim too; the JWS itself when it claims none.
    pub(super) fn audit_identifier(&self) -> Cow<'_, str> {
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
    #[schema(examples("1.0.0"))]
    pub version: &'static str,
    /// Where the transaction is.
    pub environment: AppleEnvironment,
    /// What the transaction is now.
    pub status: TransactionStatus,
    /// Whose it is: the UUID that your app gave StoreKit for its user, as in `transaction.appAccountToken`. Null when it gave
    /// none.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    pub app_user_id: Option<String>,
    /// The facts.
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

/// Why there is no [`Verified`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppleVerifyError {
    /// An answer: no.
    #[error("{0}")]
    Rejected(#[from] AppleRejection),
    /// The tenant has no Apple credentials.
    #[error("the tenant has no Apple credentials")]
    NoCredentials,
    /// Production was asked about, and without the app's Apple id nothing of production can be verified.
    #[error("the tenant has no app Apple id, which production needs")]
    NoAppAppleId,
    /// The tenant's credentials cannot be read.
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// Apple gave no answer that says yes or no.
    #[error("{0}")]
    Api(#[from] AppleApiError),
    /// Whether a certificate was revoked cannot be found out right now.
    #[error("Apple's responder does not say whether the certificates were revoked")]
    OcspUnavailable {
        /// When to ask again.
        retry_after: Duration,
    },
    /// Apple's server answered with something that Apple did not sign, or that is about something else.
    #[error("what Apple's server sent is not to be believed: {0}")]
    UntrustedResponse(UntrustedResponseError),
}

/// Why something signed is not believed, or not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VerifyJwsError {
    /// It never will be.
    InvalidSignature(SignatureError),
    /// Its signature is Apple's, and whether a certificate was revoked cannot be found out right now.
    OcspUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

impl From<SignatureError> for VerifyJwsError {
    fn from(distrust: SignatureError) -> Self {
        Self::InvalidSignature(distrust)
    }
}

impl From<RevocationError> for VerifyJwsError {
    fn from(why: RevocationError) -> Self {
        match why {
            RevocationError::Revoked => SignatureError::CertificateRevoked.into(),
            RevocationError::Unknown => SignatureError::CertificateUnknown.into(),
            RevocationError::NoResponder => SignatureError::NoOcspResponder.into(),
            RevocationError::OcspUnavailable { retry_after } => {
                Self::OcspUnavailable { retry_after }
            }
        }
    }
}

impl VerifyJwsError {
    /// As the outcome of a question; `distrusted` says what it is when it is final.
    fn into_verify_error(
        self,
        distrusted: impl FnOnce(SignatureError) -> AppleVerifyError,
    ) -> AppleVerifyError {
        match self {
            Self::InvalidSignature(why) => distrusted(why),
            Self::OcspUnavailable { retry_after } => {
                AppleVerifyError::OcspUnavailable { retry_after }
            }
        }
    }
}

/// What is wrong with what Apple's server sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UntrustedResponseError {
    /// It does not verify.
    #[error("{0}")]
    InvalidSignature(SignatureError),
    /// It is about another transaction.
    #[error("it is about another transaction")]
    TransactionMismatch,
}

/// A "no", which is an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppleRejection {
    /// Apple knows no such transaction.
    #[error("{0}")]
    NotFound(AppleNotFound),
    /// The signature is not Apple's.
    #[error("{0}")]
    InvalidSignature(SignatureError),
    /// The transaction is not of the tenant's app.
    #[error("the transaction is of another app")]
    BundleIdMismatch {
        /// The tenant's app.
        expected: String,
    },
    /// The transaction is of another environment than the one asked about.
    #[error("the transaction is of another environment")]
    EnvironmentMismatch {
        /// The one asked about.
        expected: Option<AppleEnvironment>,
        /// The one it is of, in Apple's word.
        found: Option<String>,
    },
    /// The transaction is not the expected user's.
    #[error("the transaction is another user's, or nobody's")]
    AppUserMismatch,
}

impl AppleVerifier {
    /// Asks through `upstream`, believes what `verifier` believes, and forgets a tenant's credentials as soon as
    /// `changes` hears of a change.
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
            clock: clock.clone(),
        }
    }

    /// The payload of something that Apple signed.
    pub(super) async fn verify_jws(&self, jws: &str) -> Result<Vec<u8>, VerifyJwsError> {
        let believed = self.jws_verifier.verify_jws(jws, self.clock.now())?;
        self.check_revocation(believed).await
    }

    /// The same for what holds others of its kind, by a caller who bounds it.
    pub(super) async fn verify_jws_any_length(&self, jws: &str) -> Result<Vec<u8>, VerifyJwsError> {
        let believed = self
            .jws_verifier
            .verify_jws_any_length(jws, self.clock.now())?;
        self.check_revocation(believed).await
    }

    /// The payload of something that convinced so far. Somebody is asked about its certificates only now, when their
    /// addresses are known to be by whoever may issue such certificates.
    async fn check_revocation(&self, believed: VerifiedJws) -> Result<Vec<u8>, VerifyJwsError> {
        if let Some(revocations) = &self.revocation_checker {
            revocations
                .check_certificates(&believed.chain.certificates)
                .await?;
        }
        Ok(believed.payload)
    }

    /// Answers a question of `tenant`'s.
    pub async fn verify_purchase(
        &self,
        tenant: &TenantId,
        question: &AppleVerifyRequest,
    ) -> Result<VerifiedTransaction, AppleVerifyError> {
        let credentials = self
            .get_credentials(tenant)
            .await
            .map_err(AppleVerifyError::Credentials)?
            .ok_or(AppleVerifyError::NoCredentials)?;
        let choice = question.environment.unwrap_or(credentials.environment);
        let verified = match &question.purchase {
            PurchaseRef::TransactionId(id) => {
                self.verify_by_id(tenant, &credentials, choice, id).await?
            }
            PurchaseRef::SignedTransaction(jws) => {
                self.verify_by_jws(&credentials, choice, jws).await?
            }
        };
        match &question.expected_app_user_id {
            Some(expected) if !is_owned_by(&verified, expected) => {
                Err(AppleRejection::AppUserMismatch.into())
            }
            _ => Ok(verified),
        }
    }

    /// Asks Apple: the one environment chosen, or production and then sandbox.
    ///
    /// Sandbox is asked when production knows no such transaction, and when it refuses the key: for an app that was
    /// never released it does, though the key is good. A refusal is the key's fault only when nobody accepts it.
    async fn verify_by_id(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        choice: EnvironmentChoice,
        id: &str,
    ) -> Result<VerifiedTransaction, AppleVerifyError> {
        let mut absent = None;
        let mut unauthorized = None;
        for environment in environments_to_query(choice, credentials.app_apple_id.is_some())? {
            match self
                .app_store
                .get_transaction_info(tenant, credentials, *environment, id)
                .await
            {
                Ok(jws) => {
                    return self
                        .check_api_response(credentials, *environment, id, jws)
                        .await;
                }
                Err(TransactionLookupError::NotFound(AppleNotFound::Unknown)) => {
                    absent = Some(AppleNotFound::Unknown)
                }
                // Not an id in one environment is not an id in the other.
                Err(TransactionLookupError::NotFound(no)) => {
                    return Err(AppleRejection::NotFound(no).into());
                }
                Err(TransactionLookupError::Api(failure @ AppleApiError::Unauthorized { .. })) => {
                    unauthorized = Some(failure);
                }
                Err(TransactionLookupError::Api(failure)) => return Err(failure.into()),
            }
        }
        Err(match (absent, unauthorized) {
            (Some(absent), _) => AppleRejection::NotFound(absent).into(),
            (None, Some(failure)) => failure.into(),
            (None, None) => AppleVerifyError::NoAppAppleId,
        })
    }

    async fn check_api_response(
        &self,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        id: &str,
        jws: String,
    ) -> Result<VerifiedTransaction, AppleVerifyError> {
        let unbelievable = |what| AppleVerifyError::UntrustedResponse(what);
        let (transaction, raw) = self.read_transaction(&jws).await.map_err(|doubt| {
            doubt.into_verify_error(|distrust| {
                unbelievable(UntrustedResponseError::InvalidSignature(distrust))
            })
        })?;
        let known_as = [
            &transaction.transaction_id,
            &transaction.original_transaction_id,
        ];
        if !known_as.iter().any(|known| known.as_deref() == Some(id)) {
            return Err(unbelievable(UntrustedResponseError::TransactionMismatch));
        }
        Ok(self.check_transaction(credentials, Some(environment), transaction, raw, jws)?)
    }

    async fn verify_by_jws(
        &self,
        credentials: &AppleCredentials,
        choice: EnvironmentChoice,
        jws: &str,
    ) -> Result<VerifiedTransaction, AppleVerifyError> {
        let has_id = credentials.app_apple_id.is_some();
        if choice == EnvironmentChoice::Production && !has_id {
            return Err(AppleVerifyError::NoAppAppleId);
        }
        let (transaction, raw) = self.read_transaction(jws).await.map_err(|doubt| {
            doubt.into_verify_error(|distrust| AppleRejection::InvalidSignature(distrust).into())
        })?;
        let expected = match choice {
            EnvironmentChoice::Auto => None,
            EnvironmentChoice::Production => Some(AppleEnvironment::Production),
            EnvironmentChoice::Sandbox => Some(AppleEnvironment::Sandbox),
        };
        let verified =
            self.check_transaction(credentials, expected, transaction, raw, jws.to_owned())?;
        if verified.environment == AppleEnvironment::Production && !has_id {
            return Err(AppleVerifyError::NoAppAppleId);
        }
        Ok(verified)
    }

    async fn read_transaction(
        &self,
        jws: &str,
    ) -> Result<(TransactionPayload, Box<RawValue>), VerifyJwsError> {
        let payload = self.verify_jws(jws).await?;
        let transaction: TransactionPayload =
            serde_json::from_slice(&payload).map_err(|_| SignatureError::BadPayload)?;
        // The same keys sign renewal infos, notifications and app transactions, which say nothing of a payment.
        if transaction.transaction_id.is_none() {
            return Err(SignatureError::NotATransaction.into());
        }
        let raw = payload::to_raw_json(payload).ok_or(SignatureError::BadPayload)?;
        Ok((transaction, raw))
    }

    /// Whose app, and which environment: in the order in which Apple's own libraries look.
    fn check_transaction(
        &self,
        credentials: &AppleCredentials,
        expected: Option<AppleEnvironment>,
        transaction: TransactionPayload,
        raw: Box<RawValue>,
        jws: String,
    ) -> Result<VerifiedTransaction, AppleRejection> {
        if transaction.bundle_id.as_deref() != Some(&*credentials.bundle_id) {
            return Err(AppleRejection::BundleIdMismatch {
                expected: credentials.bundle_id.clone(),
            });
        }
        let found = transaction
            .environment
            .as_deref()
            .and_then(AppleEnvironment::from_apple_str);
        let environment = match (found, expected) {
            (Some(found), None) => found,
            (Some(found), Some(expected)) if found == expected => found,
            _ => {
                return Err(AppleRejection::EnvironmentMismatch {
                    expected,
                    found: transaction.environment,
                });
            }
        };
        let status = translate::transaction_status(&transaction, self.clock.now());
        Ok(VerifiedTransaction {
            valid: true,
            version: crate::VERSION,
            environment,
            status,
            app_user_id: transaction.app_account_token.clone(),
            transaction: transaction_details(transaction, raw, jws),
        })
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

/// Which environments are asked, in order. Production without the app's Apple id is an error when it is demanded, and
/// passed over when it is one of two.
fn environments_to_query(
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

fn is_owned_by(verified: &VerifiedTransaction, expected: &str) -> bool {
    verified
        .app_user_id
        .as_deref()
        .is_some_and(|found| found.eq_ignore_ascii_case(expected))
}

/// A JWS is base64url and dots: nothing of it is escaped in JSON, and it is most of an answer.
fn without_escaping<S: Serializer>(jws: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match RawValue::from_string(format!("\"{jws}\"")) {
        Ok(quoted) => quoted.serialize(serializer),
        // It was never verified, then.
        Err(_) => serializer.serialize_str(jws),
    }
}

fn transaction_details(
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
