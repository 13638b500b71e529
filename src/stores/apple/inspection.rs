//! Decodes data that Apple signed, for an operator: its kind, its content, its certificates, and whether it would be
//! accepted. Needs no database, network or tenant.
//!
//! The verdict comes from the verifier that the service uses. The other fields are decoded without verification, to
//! explain the verdict.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::account::AppleEnvironment;
use super::payload::{RenewalInfoPayload, TransactionPayload};
use super::state::{PurchaseFacts, notification_state, purchase_state};
use super::translate::{self, TransactionStatus};
use super::trust::{self, JwsVerifier};
use crate::base::clock::Timestamp;
use crate::events::PurchaseState;

/// The fields that contain a JWS, and the kind of each.
const SIGNED_FIELDS: [(&str, SignedDataKind); 5] = [
    ("signedPayload", SignedDataKind::Notification),
    ("signedTransaction", SignedDataKind::Transaction),
    ("signedTransactionInfo", SignedDataKind::Transaction),
    ("signedRenewalInfo", SignedDataKind::Renewal),
    ("signedAppTransactionInfo", SignedDataKind::AppTransaction),
];

/// The expected app and environment. Fields that are `None` are not compared.
#[derive(Clone, Debug, Default)]
pub struct ExpectedAppIdentity {
    /// The bundle id of the app.
    pub bundle_id: Option<String>,
    /// The app's Apple id. A production payload without one is refused.
    pub app_apple_id: Option<i64>,
    /// The expected environment.
    pub environment: Option<AppleEnvironment>,
}

/// The kind of the signed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SignedDataKind {
    /// A transaction, from `StoreKit` 2 or the App Store Server API.
    Transaction,
    /// Renewal info of a subscription.
    Renewal,
    /// A notification of the App Store.
    Notification,
    /// An app transaction: the purchase of the app itself.
    AppTransaction,
    /// A kind that this release does not know.
    Unknown,
}

impl fmt::Display for SignedDataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transaction => "a transaction",
            Self::Renewal => "a renewal info",
            Self::Notification => "a notification",
            Self::AppTransaction => "an app transaction",
            Self::Unknown => "something that this release does not know",
        })
    }
}

/// The result of an inspection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The field that contained the JWS; null if the JWS was given by itself.
    pub field: Option<&'static str>,
    /// The kind, detected by the payload's fields.
    pub kind: SignedDataKind,
    /// Whether Apple signed it, and it is of the expected app and environment.
    pub believed: bool,
    /// The class of the verifier's error: see [`SignatureError::class`](super::trust::SignatureError::class).
    pub class: Option<&'static str>,
    /// Every reason to refuse it, the verifier's first; full sentences.
    pub refusals: Vec<String>,
    /// Hints that may explain the refusal; full sentences.
    pub remarks: Vec<String>,
    /// The algorithm in the header.
    pub algorithm: Option<String>,
    /// The date of signing in the payload. The certificates must have been valid then.
    pub signed_on: Option<Timestamp>,
    /// The environment in the payload, such as `Production` or `Sandbox`.
    pub environment: Option<String>,
    /// The status of a transaction, computed now.
    pub status: Option<TransactionStatus>,
    /// What the purchase of an accepted transaction or notification is worth now, as the service would answer it without asking
    /// Apple. Null in `parts`.
    pub state: Option<PurchaseState>,
    /// The certificates in the header, leaf first.
    pub certificates: Vec<CertificateDetails>,
    /// The payload as JSON, not verified.
    pub payload: Option<Value>,
    /// The JWS inside the payload.
    pub parts: Vec<Inspection>,
}

/// A certificate of the chain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDetails {
    /// `leaf`, `intermediate`, `root (ignored)`, or `superfluous`.
    pub role: &'static str,
    /// The subject's distinguished name; null if the certificate cannot be parsed.
    pub subject: Option<String>,
    /// The issuer's distinguished name.
    pub issuer: Option<String>,
    /// The serial number, in hexadecimal.
    pub serial_number: Option<String>,
    /// The beginning of its validity.
    pub not_before: Option<Timestamp>,
    /// The end of its validity.
    pub not_after: Option<Timestamp>,
    /// Whether it was valid on the date of signing, or now if the payload has no such date.
    pub valid_when_signed: Option<bool>,
    /// The marker extension of Apple that it must have; null for the root.
    pub marker: Option<String>,
    /// Whether it has that extension.
    pub carries_marker: Option<bool>,
}

/// Inspects `text`: a JWS, or JSON that contains one in a field that Apple or Attesto's API uses. `None` if there is
/// none.
pub fn inspect_signed_data(
    text: &str,
    verifier: &JwsVerifier,
    expected: &ExpectedAppIdentity,
    now: Timestamp,
) -> Option<Inspection> {
    let text = text.trim().trim_matches('"');
    let mut found = if text.starts_with('{') {
        let body: Value = serde_json::from_str(text).ok()?;
        let (field, jws) = find_signed_field(&body)?;
        inspect_jws(Some(field), jws, verifier, expected, now)
    } else {
        // A text that does not have three parts of base64url is not reported as a bad signature, because it is not a JWS.
        let parts: Vec<_> = text.split('.').collect();
        let is_jws = parts.len() == 3 && URL_SAFE_NO_PAD.decode(parts[0]).is_ok();
        if !is_jws {
            return None;
        }
        inspect_jws(None, text, verifier, expected, now)
    };
    if found.believed {
        found.add_state(now);
    }
    Some(found)
}

/// Whether `text` is a notification of version 1, in which nothing is signed.
pub fn is_version_1_notification(text: &str) -> bool {
    let body: Option<Value> = serde_json::from_str(text).ok();
    body.is_some_and(|body| {
        ["notification_type", "unified_receipt"]
            .iter()
            .any(|name| body.get(name).is_some())
            && body.get("signedPayload").is_none()
    })
}

/// The first field with a JWS, at the top level or inside `raw` or `transaction`.
fn find_signed_field(body: &Value) -> Option<(&'static str, &str)> {
    let here = SIGNED_FIELDS
        .iter()
        .find_map(|(name, _)| Some((*name, body.get(*name)?.as_str()?)));
    // The field `raw` of an event has what the store sent; an answer of Attesto has `transaction`.
    here.or_else(|| find_signed_field(body.get("raw").or_else(|| body.get("transaction"))?))
}

fn inspect_jws(
    field: Option<&'static str>,
    jws: &str,
    verifier: &JwsVerifier,
    expected: &ExpectedAppIdentity,
    now: Timestamp,
) -> Inspection {
    let mut segments = jws.split('.');
    let mut decoded = || {
        let bytes = URL_SAFE_NO_PAD.decode(segments.next()?).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    };
    let (header, payload) = (decoded(), decoded());
    let object = payload.as_ref().and_then(Value::as_object);
    let kind = object.map_or(SignedDataKind::Unknown, detect_kind);
    let signed_on = ["signedDate", "receiptCreationDate"]
        .iter()
        .find_map(|name| object?.get(*name)?.as_f64())
        .map(timestamp_from_millis);
    let chain = header
        .as_ref()
        .and_then(|header| header.get("x5c")?.as_array());
    let texts: Vec<&str> = chain
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut found = Inspection {
        field,
        kind,
        believed: false,
        class: None,
        refusals: Vec::new(),
        remarks: Vec::new(),
        algorithm: header
            .as_ref()
            .and_then(|header| Some(header.get("alg")?.as_str()?.to_owned())),
        signed_on,
        environment: object.and_then(find_environment),
        status: None,
        state: None,
        certificates: describe_certificates(&texts, signed_on.unwrap_or(now)),
        payload: payload.clone(),
        parts: Vec::new(),
    };
    // A notification contains other JWS, so it may be longer than the limit for one of them.
    let verdict = verifier.verify_jws_any_length(jws, now);
    if let Err(why) = verdict {
        found.class = Some(why.class());
        found.refusals.push(to_sentence(&why.to_string()));
    }
    if let Some(object) = object {
        found.check_expected(object, expected);
        if kind == SignedDataKind::Transaction {
            found.status = decode_payload::<TransactionPayload>(&found)
                .map(|transaction| translate::transaction_status(&transaction, now));
        }
        for block in ["data", "appData"] {
            let block = object.get(block).and_then(Value::as_object);
            for (name, jws) in block.into_iter().flat_map(find_signed_parts) {
                let part = inspect_jws(Some(name), jws, verifier, expected, now);
                if !part.believed {
                    let refusal = format!("Its {name} would be refused, and with it the whole.");
                    found.refusals.push(refusal);
                }
                found.parts.push(part);
            }
        }
    }
    found.add_remarks(header.as_ref(), now);
    found.believed = found.refusals.is_empty();
    found
}

fn decode_payload<T: DeserializeOwned>(found: &Inspection) -> Option<T> {
    T::deserialize(found.payload.as_ref()?).ok()
}

fn find_signed_parts(block: &Map<String, Value>) -> Vec<(&'static str, &str)> {
    SIGNED_FIELDS
        .iter()
        .filter_map(|(name, _)| Some((*name, block.get(*name)?.as_str()?)))
        .collect()
}

/// Detects the kind by fields that only one kind has.
pub(super) fn detect_kind(object: &Map<String, Value>) -> SignedDataKind {
    let has = |name: &str| object.get(name).is_some_and(|value| !value.is_null());
    if has("notificationType") || has("notificationUUID") {
        SignedDataKind::Notification
    } else if has("transactionId") {
        SignedDataKind::Transaction
    } else if has("receiptType") {
        SignedDataKind::AppTransaction
    } else if has("originalTransactionId") {
        SignedDataKind::Renewal
    } else {
        SignedDataKind::Unknown
    }
}

/// The block of a notification that names the app, or the whole payload of other kinds.
fn app_identity_block(object: &Map<String, Value>) -> &Map<String, Value> {
    ["data", "summary", "externalPurchaseToken", "appData"]
        .iter()
        .find_map(|block| object.get(*block)?.as_object())
        .unwrap_or(object)
}

fn find_environment(object: &Map<String, Value>) -> Option<String> {
    let identity = app_identity_block(object);
    let word = identity
        .get("environment")
        .or_else(|| identity.get("receiptType"))?;
    Some(word.as_str()?.to_owned())
}

impl Inspection {
    /// Compares the payload with the expected app and environment, and adds the differences to `refusals`.
    fn check_expected(&mut self, object: &Map<String, Value>, expected: &ExpectedAppIdentity) {
        let identity = app_identity_block(object);
        let text = |name: &str| identity.get(name).and_then(Value::as_str);
        let number = identity.get("appAppleId").and_then(Value::as_i64);
        let place = self.environment.as_deref();
        let mut refuse = |why: String| self.refusals.push(why);
        // Renewal info does not name the app.
        if let Some(bundle_id) = &expected.bundle_id
            && self.kind != SignedDataKind::Renewal
            && text("bundleId") != Some(bundle_id)
        {
            refuse(match text("bundleId") {
                Some(found) => format!("It is of the app {found}, and {bundle_id} was expected."),
                None => format!("It names no app, and {bundle_id} was expected."),
            });
        }
        let names_number = matches!(
            self.kind,
            SignedDataKind::Notification | SignedDataKind::AppTransaction
        );
        if let Some(app_apple_id) = expected.app_apple_id
            && names_number
            && number != Some(app_apple_id)
            && (number.is_some() || place == Some(AppleEnvironment::Production.as_apple_str()))
        {
            refuse(match number {
                Some(found) => format!(
                    "It gives the app the Apple id {found}, and {app_apple_id} was expected."
                ),
                None => format!("It gives the app no Apple id, and {app_apple_id} was expected."),
            });
        }
        match (place, expected.environment) {
            (Some(place), Some(environment)) if place != environment.as_apple_str() => {
                refuse(format!(
                    "It is of the environment {place}, and {} was expected.",
                    environment.as_apple_str()
                ));
            }
            (Some(place), None) if AppleEnvironment::from_apple_str(place).is_none() => {
                refuse(format!(
                    "It is of the environment {place}, which is never believed: only Production and Sandbox are."
                ));
            }
            _ => {}
        }
        if self.kind == SignedDataKind::Notification && is_bundle_id_missing(object) {
            refuse("It names no app in any block, so it is no notification of a purchase.".into());
        }
        let uuid = object.get("notificationUUID").and_then(Value::as_str);
        if self.kind == SignedDataKind::Notification && uuid.is_none_or(str::is_empty) {
            refuse("It has no notificationUUID, by which it would be known again.".into());
        }
    }

    /// Sets `state`, and adds a remark if Apple would have to be asked for the whole subscription.
    fn add_state(&mut self, now: Timestamp) {
        let find_part = |kind| self.parts.iter().find(|part| part.kind == kind);
        let is_decided = match self.kind {
            SignedDataKind::Transaction => {
                let Some(transaction) = decode_payload::<TransactionPayload>(self) else {
                    return;
                };
                let facts = PurchaseFacts {
                    transaction: &transaction,
                    renewal: None,
                    status: None,
                    is_newest: false,
                    stated_at: now,
                };
                self.state = purchase_state(&facts, now);
                facts.transaction_decides(now)
            }
            SignedDataKind::Notification => {
                let Some(transaction) = find_part(SignedDataKind::Transaction)
                    .and_then(decode_payload::<TransactionPayload>)
                else {
                    return;
                };
                let renewal = find_part(SignedDataKind::Renewal)
                    .and_then(decode_payload::<RenewalInfoPayload>);
                let block = self
                    .payload
                    .as_ref()
                    .and_then(|payload| payload.get("data"));
                let status = block.and_then(|block| block.get("status")?.as_i64());
                self.state = notification_state(&transaction, renewal.as_ref(), status, now);
                self.state.is_some()
            }
            _ => return,
        };
        if !is_decided {
            self.remarks.push("It does not say what the whole subscription is worth now: a later period may be running. `attesto verify apple --transaction-id` asks Apple.".into());
        }
    }

    /// Adds hints for common mistakes.
    fn add_remarks(&mut self, header: Option<&Value>, now: Timestamp) {
        let mut remark = |text: String| self.remarks.push(text);
        let key_id = header.and_then(|header| header.get("kid")?.as_str());
        if key_id == Some("Apple_Xcode_Key") || self.environment.as_deref() == Some("Xcode") {
            remark("Xcode's local StoreKit signed it, with a certificate of its own. Use the sandbox or TestFlight to test with a server.".into());
        }
        if key_id.is_some_and(|key_id| key_id != "Apple_Xcode_Key") && self.certificates.is_empty()
        {
            remark("It has a key id and no certificates: it looks like a token made for Apple's API, not one made by Apple.".into());
        }
        for link in &self.certificates {
            let name = link.subject.as_deref().unwrap_or("a certificate");
            if link.valid_when_signed == Some(false) {
                remark(format!(
                    "The {} was not valid when it says it was signed: {name}.",
                    link.role
                ));
            }
            if link.carries_marker == Some(false) {
                let marker = link.marker.as_deref().unwrap_or_default();
                remark(format!("The {} lacks {marker}: {name}.", link.role));
            }
        }
        if self.class == Some("untrusted_chain") {
            remark("The chain leads to a root that is not trusted here. For what a simulated App Store signed, name its root with --roots.".into());
        }
        if self.signed_on.is_some_and(|signed_on| signed_on > now) {
            remark("It says it was signed later than now: is this machine's clock right?".into());
        }
        if self.kind == SignedDataKind::Transaction && self.class.is_none() {
            remark("A genuine signature is not an entitlement: compare appAccountToken with the user who brings it.".into());
        }
    }
}

fn is_bundle_id_missing(object: &Map<String, Value>) -> bool {
    !app_identity_block(object).contains_key("bundleId")
}

fn describe_certificates(texts: &[&str], signed_on: Timestamp) -> Vec<CertificateDetails> {
    let roles = [
        ("leaf", Some(trust::LEAF_MARKER)),
        ("intermediate", Some(trust::INTERMEDIATE_MARKER)),
        ("root (ignored)", None),
    ];
    texts
        .iter()
        .enumerate()
        .map(|(at, text)| {
            let (role, marker) = roles.get(at).copied().unwrap_or(("superfluous", None));
            let der = STANDARD.decode(text).ok();
            let certificate = der.and_then(|der| Certificate::from_der(&der).ok());
            let certificate = certificate.as_ref();
            let window = certificate.map(trust::validity_period);
            let facts = certificate.map(Certificate::tbs_certificate);
            CertificateDetails {
                role,
                subject: facts.map(|facts| facts.subject().to_string()),
                issuer: facts.map(|facts| facts.issuer().to_string()),
                serial_number: facts.map(|facts| facts.serial_number().to_string()),
                not_before: window.map(|window| window.0),
                not_after: window.map(|window| window.1),
                valid_when_signed: window.map(|(from, to)| (from..=to).contains(&signed_on)),
                marker: marker.map(|marker| marker.to_string()),
                carries_marker: marker
                    .and_then(|marker| Some(trust::has_extension(certificate?, marker))),
            }
        })
        .collect()
}

/// Converts a date as Apple writes it: milliseconds, sometimes with a fraction.
fn timestamp_from_millis(millis: f64) -> Timestamp {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the fraction is cut off, as it should be; a cast saturates"
    )]
    Timestamp::from_millis(millis as i64)
}

/// Makes a sentence of a clause: capital first letter, full stop.
fn to_sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}
