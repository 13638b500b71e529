//! A signed thing of Apple's, taken apart for a person: what it is, what it says, who signed it, and whether it is
//! believed. No database, no network, no tenant.
//!
//! The verdict is the verifier's own, so that it is the service's. What stands beside it, read without believing it, is
//! there to explain the verdict.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::account::AppleEnvironment;
use super::payload::TransactionPayload;
use super::translate::{self, TransactionStatus};
use super::trust::{self, JwsVerifier};
use crate::base::clock::Timestamp;

/// The fields that hold something signed, and what each holds.
const SIGNED_FIELDS: [(&str, SignedDataKind); 5] = [
    ("signedPayload", SignedDataKind::Notification),
    ("signedTransaction", SignedDataKind::Transaction),
    ("signedTransactionInfo", SignedDataKind::Transaction),
    ("signedRenewalInfo", SignedDataKind::Renewal),
    ("signedAppTransactionInfo", SignedDataKind::AppTransaction),
];

/// The app and environment it is expected to be of. What is left out is not compared.
#[derive(Clone, Debug, Default)]
pub struct ExpectedAppIdentity {
    /// The app.
    pub bundle_id: Option<String>,
    /// Its number, compared in production.
    pub app_apple_id: Option<i64>,
    /// Where it must be.
    pub environment: Option<AppleEnvironment>,
}

/// What a signed thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SignedDataKind {
    /// `StoreKit` 2's transaction, and the server API's.
    Transaction,
    /// How a subscription goes on.
    Renewal,
    /// A notification of the App Store's.
    Notification,
    /// That the app itself was bought.
    AppTransaction,
    /// None of the types that Apple signs today.
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

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Which field it stood in; null when it was given by itself.
    pub field: Option<&'static str>,
    /// What it is, by what it says.
    pub kind: SignedDataKind,
    /// Whether Apple signed it, and nothing in it is other than expected.
    pub believed: bool,
    /// The verifier's word for why not.
    pub class: Option<&'static str>,
    /// Everything for which it would be refused, the verifier's reason first; full sentences.
    pub refusals: Vec<String>,
    /// What may explain it; full sentences.
    pub remarks: Vec<String>,
    /// The header's algorithm.
    pub algorithm: Option<String>,
    /// When it says it was signed. The certificates must be valid then.
    pub signed_on: Option<Timestamp>,
    /// `Production`, `Sandbox`, or what else it says.
    pub environment: Option<String>,
    /// Of a transaction: what it is at this moment.
    pub status: Option<TransactionStatus>,
    /// The chain as it stands in the header, leaf first.
    pub certificates: Vec<CertificateDetails>,
    /// What it says.
    pub payload: Option<Value>,
    /// What is signed inside of it.
    pub parts: Vec<Inspection>,
}

/// A certificate of a chain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDetails {
    /// `leaf`, `intermediate`, `root (ignored)`.
    pub role: &'static str,
    /// Whose it is; null when it cannot be read.
    pub subject: Option<String>,
    /// Who signed it.
    pub issuer: Option<String>,
    /// Its number, in hexadecimal.
    pub serial_number: Option<String>,
    /// From when it is valid.
    pub not_before: Option<Timestamp>,
    /// The end of its validity.
    pub not_after: Option<Timestamp>,
    /// Whether it was valid when the thing says it was signed.
    pub valid_when_signed: Option<bool>,
    /// Apple's marker extension that it must carry; null for the root.
    pub marker: Option<String>,
    /// Whether it carries it.
    pub carries_marker: Option<bool>,
}

/// Takes `text` apart: a JWS, or JSON that holds one where Apple, or a question to Attesto, puts it. `None` when there is
/// none in it.
pub fn inspect_signed_data(
    text: &str,
    verifier: &JwsVerifier,
    expected: &ExpectedAppIdentity,
    now: Timestamp,
) -> Option<Inspection> {
    let text = text.trim().trim_matches('"');
    if text.starts_with('{') {
        let body: Value = serde_json::from_str(text).ok()?;
        let (field, jws) = find_signed_field(&body)?;
        return Some(inspect_jws(Some(field), jws, verifier, expected, now));
    }
    // Three parts of base64url: anything else is told apart from a forgery.
    let parts: Vec<_> = text.split('.').collect();
    let is_jws = parts.len() == 3 && URL_SAFE_NO_PAD.decode(parts[0]).is_ok();
    is_jws.then(|| inspect_jws(None, text, verifier, expected, now))
}

/// The first signed field, at the top or in what is wrapped around it.
fn find_signed_field(body: &Value) -> Option<(&'static str, &str)> {
    let here = SIGNED_FIELDS
        .iter()
        .find_map(|(name, _)| Some((*name, body.get(*name)?.as_str()?)));
    // An event's `raw` is what the store sent; an answer of Attesto's has `transaction`.
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
        certificates: describe_certificates(&texts, signed_on.unwrap_or(now)),
        payload: payload.clone(),
        parts: Vec::new(),
    };
    // A notification holds others of its kind and may be larger than any of them.
    let verdict = verifier.verify_jws_any_length(jws, now);
    if let Err(why) = verdict {
        found.class = Some(why.class());
        found.refusals.push(to_sentence(&why.to_string()));
    }
    if let Some(object) = object {
        found.check_expected(object, expected);
        if kind == SignedDataKind::Transaction {
            let transaction =
                TransactionPayload::deserialize(payload.as_ref().unwrap_or(&Value::Null)).ok();
            found.status =
                transaction.map(|transaction| translate::transaction_status(&transaction, now));
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

fn find_signed_parts(block: &Map<String, Value>) -> Vec<(&'static str, &str)> {
    SIGNED_FIELDS
        .iter()
        .filter_map(|(name, _)| Some((*name, block.get(*name)?.as_str()?)))
        .collect()
}

/// What it is, by the fields that only it has.
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

/// The part of a notification that says whose it is, or the whole of anything else.
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
    /// Compares what it says with what is expected of it.
    fn check_expected(&mut self, object: &Map<String, Value>, expected: &ExpectedAppIdentity) {
        let identity = app_identity_block(object);
        let text = |name: &str| identity.get(name).and_then(Value::as_str);
        let number = identity.get("appAppleId").and_then(Value::as_i64);
        let place = self.environment.as_deref();
        let mut refuse = |why: String| self.refusals.push(why);
        // Renewal info names no app.
        if let Some(bundle_id) = &expected.bundle_id
            && self.kind != SignedDataKind::Renewal
            && text("bundleId") != Some(bundle_id)
        {
            let found = text("bundleId").unwrap_or("none");
            refuse(format!(
                "It is of the app {found}, and {bundle_id} was expected."
            ));
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
            let found = number.map_or_else(|| "none".to_owned(), |number| number.to_string());
            refuse(format!(
                "It gives the app the Apple id {found}, and {app_apple_id} was expected."
            ));
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

    /// What an experienced reader would see.
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

/// A date as Apple writes it: milliseconds, sometimes with a fraction.
fn timestamp_from_millis(millis: f64) -> Timestamp {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the fraction is cut off, as it should be; a cast saturates"
    )]
    Timestamp::from_millis(millis as i64)
}

/// A clause as a sentence.
fn to_sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}
