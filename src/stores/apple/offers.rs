//! A use case: a tenant has an offer for a subscription signed, which StoreKit wants before it sells one.
//!
//! A promotional offer is signed in both of Apple's forms, because the newer one, a JWS, needs iOS 26 and the earlier one does not name
//! the customer's transaction. Whether a customer gets an introductory offer can be decided by a JWS too. Nothing is asked of Apple, and
//! nothing is stored: the app sends what is signed to the App Store, which refuses an offer that App Store Connect does not have.
//!
//! Source: Apple's "Generating JWS to sign App Store requests" and "Generating a signature for promotional offers".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::account::AppleCredentials;
use super::error::AppleVerifyError;
use super::verify::AppleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::crypto::token;
use crate::http::json::{FromJson, JsonFields};

/// What the parts of the earlier signature's text are joined with: INVISIBLE SEPARATOR.
const SEPARATOR: &str = "\u{2063}";
/// The names of both types of offers.
const PROMOTIONAL: &str = "promotional";
const INTRODUCTORY: &str = "introductory";

/// What is to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfferRequest {
    /// The subscription that is offered.
    pub(crate) product_id: String,
    /// A transaction of the customer, or the id of the app's own transaction.
    pub(crate) transaction_id: Option<String>,
    pub(crate) terms: OfferTerms,
}

/// What is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OfferTerms {
    Promotional {
        /// The offer's id in App Store Connect.
        offer_id: String,
        /// The customer's `appAccountToken`, in lower case. Only the earlier signature names it.
        app_account_token: Option<String>,
    },
    Introductory {
        is_allowed: bool,
    },
}

/// A signed offer, for your app. Valid for the offer that it names, and to be used at once: sign again for each purchase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = apple::SignedOffer)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SignedOffer {
    /// The release of this server.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    /// `promotional` or `introductory`, as in the request.
    #[schema(examples("promotional"))]
    r#type: &'static str,
    /// The product of the request.
    #[schema(examples("com.example.app.pro.monthly"))]
    product_id: String,
    /// The offer of the request; null for an introductory one.
    #[schema(required = true, examples("spring_half_price"))]
    offer_id: Option<String>,
    /// The JWS that StoreKit calls `compactJWS`.
    #[serde(rename = "compactJWS")]
    #[schema(examples(
        "eyJhbGciOiJFUzI1NiIsImtpZCI6Ik….eyJhdWQiOiJwcm9tb3Rpb25hbC1vZmZlciIs….MEUCIQDf…"
    ))]
    compact_jws: String,
    /// The signature for earlier systems; null for an introductory offer.
    #[schema(required = true)]
    earlier_signature: Option<EarlierSignature>,
}

/// The parameters of StoreKit's `promotionalOffer(offerID:keyID:nonce:signature:timestamp:)`.
/// The App Store accepts them for 24 hours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = apple::EarlierOfferSignature)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EarlierSignature {
    /// The id of the tenant's In-App Purchase key.
    #[schema(examples("ABCDE12345"))]
    key_id: String,
    /// A UUID that was made for this signature.
    #[schema(examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    nonce: String,
    /// When it was signed, in milliseconds of Unix time.
    #[schema(examples(1_775_830_930_000_i64))]
    timestamp: i64,
    /// The signature, in base64.
    #[schema(examples("MEUCIQDf…"))]
    signature: String,
    /// The `appAccountToken` that it names; null if none. The purchase must be made with the same.
    #[schema(required = true, examples("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"))]
    app_account_token: Option<String>,
}

impl FromJson for OfferRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        body.require_field("type");
        let kind = body.optional_one_of("type", &[PROMOTIONAL, INTRODUCTORY]);
        let product_id = body.required_string("productId", 1..=200);
        let transaction_id = body.optional_string("transactionId", 1..=128);
        let offer_id = body.optional_string("offerId", 1..=200);
        let app_account_token = body.optional_uuid("appAccountToken");
        let is_allowed = body.optional_boolean("allowIntroductoryOffer");
        let kind = kind?;
        let (needed, foreign): (&[&str], &[&str]) = match kind {
            PROMOTIONAL => (&["offerId"], &["allowIntroductoryOffer"]),
            _ => (
                &["transactionId", "allowIntroductoryOffer"],
                &["offerId", "appAccountToken"],
            ),
        };
        for name in needed {
            body.require_field(name);
        }
        for name in foreign {
            if body.has_field(name) {
                let message = format!("does not belong to an offer of type {kind}");
                body.add_issue(name, message);
            }
        }
        let terms = if kind == PROMOTIONAL {
            OfferTerms::Promotional {
                offer_id: offer_id?,
                app_account_token,
            }
        } else {
            OfferTerms::Introductory {
                is_allowed: is_allowed?,
            }
        };
        Some(Self {
            product_id: product_id?,
            transaction_id,
            terms,
        })
    }
}

impl AppleVerifier {
    /// Signs an offer with the tenant's key.
    pub(crate) async fn sign_offer(
        &self,
        tenant: &TenantId,
        request: &OfferRequest,
    ) -> Result<SignedOffer, AppleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        Ok(SignedOffer::new(
            &credentials,
            request,
            &token::generate_uuid(),
            self.clock.now(),
        ))
    }
}

impl SignedOffer {
    fn new(
        credentials: &AppleCredentials,
        request: &OfferRequest,
        nonce: &str,
        now: Timestamp,
    ) -> Self {
        let OfferRequest {
            product_id,
            transaction_id,
            terms,
        } = request;
        let mut claims = json!({ "nonce": nonce, "productId": product_id });
        if let Some(id) = transaction_id {
            claims["transactionId"] = json!(id);
        }
        let audience = match terms {
            OfferTerms::Promotional { offer_id, .. } => {
                claims["offerIdentifier"] = json!(offer_id);
                "promotional-offer"
            }
            OfferTerms::Introductory { is_allowed } => {
                claims["allowIntroductoryOffer"] = json!(is_allowed);
                "introductory-offer-eligibility"
            }
        };
        let compact_jws = credentials.sign_jwt(audience, claims, now);
        let (kind, offer_id, earlier_signature) = match terms {
            OfferTerms::Promotional {
                offer_id,
                app_account_token,
            } => {
                let user = app_account_token.as_deref();
                let signature =
                    EarlierSignature::new(credentials, product_id, offer_id, user, nonce, now);
                (PROMOTIONAL, Some(offer_id.clone()), Some(signature))
            }
            OfferTerms::Introductory { .. } => (INTRODUCTORY, None, None),
        };
        Self {
            version: crate::VERSION,
            r#type: kind,
            product_id: product_id.clone(),
            offer_id,
            compact_jws,
            earlier_signature,
        }
    }

    /// A signed promotional offer, as it is answered.
    pub(super) fn promotional_example() -> Value {
        json!({
            "version": crate::VERSION,
            "type": PROMOTIONAL,
            "productId": "com.example.app.pro.monthly",
            "offerId": "spring_half_price",
            "compactJWS": "eyJhbGciOiJFUzI1NiIsImtpZCI6Ik….eyJhdWQiOiJwcm9tb3Rpb25hbC1vZmZlciIs….MEUCIQDf…",
            "earlierSignature": {
                "keyId": "ABCDE12345",
                "nonce": "0b3f2f6e-6c0f-4a2e-9d0b-2f4f5d1c7a10",
                "timestamp": 1_775_830_930_000_i64,
                "signature": "MEUCIQDf…",
                "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            },
        })
    }

    /// A signed decision on an introductory offer, as it is answered.
    pub(super) fn introductory_example() -> Value {
        json!({
            "version": crate::VERSION,
            "type": INTRODUCTORY,
            "productId": "com.example.app.pro.monthly",
            "offerId": null,
            "compactJWS": "eyJhbGciOiJFUzI1NiIsImtpZCI6Ik….eyJhdWQiOiJpbnRyb2R1Y3Rvcnktb2ZmZXItZWxpZ2liaWxpdHki….MEUCIQDf…",
            "earlierSignature": null,
        })
    }
}

impl EarlierSignature {
    fn new(
        credentials: &AppleCredentials,
        product_id: &str,
        offer_id: &str,
        app_account_token: Option<&str>,
        nonce: &str,
        now: Timestamp,
    ) -> Self {
        let timestamp = now.as_millis();
        let text = [
            &credentials.bundle_id,
            &credentials.key_id,
            product_id,
            offer_id,
            app_account_token.unwrap_or_default(),
            nonce,
            &timestamp.to_string(),
        ]
        .join(SEPARATOR);
        Self {
            key_id: credentials.key_id.clone(),
            nonce: nonce.to_owned(),
            timestamp,
            signature: STANDARD.encode(credentials.key.sign_der(text.as_bytes())),
            app_account_token: app_account_token.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::read_json;

    fn read(body: &Value) -> Result<OfferRequest, Vec<(String, String)>> {
        read_json::<OfferRequest>(body.to_string().as_bytes()).map_err(|problem| {
            let issues = problem.details["issues"].as_array().cloned();
            let issues = issues.unwrap_or_default();
            let text =
                |issue: &Value, name: &str| issue[name].as_str().unwrap_or_default().to_owned();
            let issues = issues.iter();
            issues
                .map(|issue| (text(issue, "path"), text(issue, "message")))
                .collect()
        })
    }

    #[test]
    fn both_types_of_offers_are_read() {
        let read = |body: Value| read(&body).expect("good");
        let promotional = read(json!({
            "type": "promotional", "productId": "pro", "offerId": "spring",
            "appAccountToken": "7E3FB204-2B0D-4D70-A0C2-6D8A3F6C1E55",
        }));
        assert_eq!(
            promotional,
            OfferRequest {
                product_id: "pro".into(),
                transaction_id: None,
                terms: OfferTerms::Promotional {
                    offer_id: "spring".into(),
                    app_account_token: Some("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55".into()),
                },
            }
        );
        let introductory = read(json!({
            "type": "introductory", "productId": "pro", "transactionId": "7", "allowIntroductoryOffer": false,
        }));
        assert_eq!(introductory.transaction_id.as_deref(), Some("7"));
        assert_eq!(
            introductory.terms,
            OfferTerms::Introductory { is_allowed: false }
        );
    }

    #[test]
    fn all_issues_of_an_offer_are_listed() {
        for (body, paths) in [
            (json!({}), &["type", "productId"][..]),
            (
                json!({ "type": "winback", "productId": "" }),
                &["type", "productId"],
            ),
            (
                json!({ "type": "promotional", "productId": "pro", "allowIntroductoryOffer": true }),
                &["offerId", "allowIntroductoryOffer"],
            ),
            (
                json!({ "type": "introductory", "productId": "pro", "offerId": "spring", "appAccountToken": "me" }),
                &[
                    "appAccountToken",
                    "transactionId",
                    "allowIntroductoryOffer",
                    "offerId",
                    "appAccountToken",
                ],
            ),
        ] {
            let issues = read(&body).expect_err("it is malformed");
            let found: Vec<_> = issues.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(found, paths, "{body}");
        }
    }
}
