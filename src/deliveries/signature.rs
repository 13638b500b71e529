//! How a delivery is signed.
//!
//! Two headers. Each has one value for each valid secret, the newest secret first:
//!
//! - `X-Attesto-Signature: t=<ts>,v1=<hex>[,v1=<hex>…]`, hex of HMAC-SHA256 over `<ts>.<body>`
//! - `webhook-signature: v1,<base64>[ v1,<base64>…]`, base64 of HMAC-SHA256 over `<id>.<ts>.<body>`, as in Standard
//!   Webhooks 1.0.0, with `webhook-id` (the event's id) and `webhook-timestamp` beside it
//!
//! `ts` is the time of the attempt in whole seconds, so both are computed again at every attempt. `body` is the stored
//! bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::endpoint::SigningSecrets;
use crate::crypto::token::{encode_hex, hmac_sha256};

/// The values of the two signature headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureHeaders {
    /// The value of `X-Attesto-Signature`.
    pub attesto: String,
    /// The value of `webhook-signature`.
    pub standard: String,
}

/// Signs `body`. `id` is the event's id, `timestamp` is in seconds since the Unix epoch.
pub fn sign_delivery(
    secrets: &SigningSecrets,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> SignatureHeaders {
    let timestamp = timestamp.to_string();
    let mut attesto = format!("t={timestamp}");
    let mut standard = String::new();
    for secret in secrets.iter() {
        let parts = [timestamp.as_bytes(), b".", body];
        attesto.push_str(",v1=");
        attesto.push_str(&encode_hex(&hmac_sha256(secret.attesto_key(), &parts)));

        let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        if !standard.is_empty() {
            standard.push(' ');
        }
        standard.push_str("v1,");
        STANDARD.encode_string(hmac_sha256(&secret.standard_key(), &parts), &mut standard);
    }
    SignatureHeaders { attesto, standard }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliveries::endpoint::SigningSecret;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn secret(text: &str) -> SigningSecret {
        SigningSecret::parse(text).expect("a good secret")
    }

    /// The vector that the libraries of Standard Webhooks test themselves with.
    #[test]
    fn the_known_answer_of_standard_webhooks() {
        let secrets = SigningSecrets::from(secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        let signed = sign_delivery(&secrets, ID, TIMESTAMP, BODY);
        assert_eq!(
            signed.standard,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        let flipped = [
            sign_delivery(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJel", TIMESTAMP, BODY),
            sign_delivery(&secrets, ID, TIMESTAMP + 1, BODY),
            sign_delivery(&secrets, ID, TIMESTAMP, br#"{"test": 2432232315}"#),
        ];
        for other in flipped {
            assert_ne!(other.standard, signed.standard);
        }
    }

    /// Computed with `printf '1614265330.{"test": 2432232314}' | openssl dgst -sha256 -hmac …` for each secret.
    #[test]
    fn the_newest_secret_stands_first_and_the_previous_one_last() {
        let (new, old) = (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "an old secret of forty plain characters.",
        );
        let rotating = SigningSecrets {
            newest: secret(new),
            previous: vec![secret(old)],
        };
        let signed = sign_delivery(&rotating, ID, TIMESTAMP, BODY);
        let alone = |text| sign_delivery(&SigningSecrets::from(secret(text)), ID, TIMESTAMP, BODY);
        let value = |header: &str| header.split_once(",v1=").unwrap().1.to_owned();
        assert_eq!(
            signed.attesto,
            format!(
                "t=1614265330,v1={},v1={}",
                value(&alone(new).attesto),
                value(&alone(old).attesto)
            )
        );
        assert_eq!(
            signed.standard,
            format!("{} {}", alone(new).standard, alone(old).standard)
        );
        assert_eq!(
            alone(new).attesto,
            "t=1614265330,v1=2e37df5d4a028c51a7f3133d64ae1e300d2c2c900f1b1d49d4369ad2530f8964"
        );
        assert_eq!(
            alone(old).attesto,
            "t=1614265330,v1=248960a49423add1b0d529287a5349b599741c2b0d612a8dea15ad60212f5c26"
        );
        assert_eq!(
            alone(old).standard,
            "v1,yjB1K5I81c3vI1K6CVB/QFh24HAv2XApYQvM2AQnlzs="
        );
    }
}
