//! What is signed verifies, and what is forged does not: judged by a verifier written for this file alone.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::{Map, Value, json};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{IDENTITY, test_time};
use crate::simulator::JwsForgery;

/// `1.2.840.113635.100.6.11.1` and `1.2.840.113635.100.6.2.1`, as they stand in a certificate.
const LEAF_MARKER_DER: &[u8] = &[6, 10, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x63, 0x64, 6, 11, 1];
const INTERMEDIATE_MARKER_DER: &[u8] = &[6, 10, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x63, 0x64, 6, 2, 1];

fn sample_payload() -> Map<String, Value> {
    let value = json!({
        "transactionId": "2000000000000001",
        "bundleId": "com.example.app",
        "productId": "com.example.app.pro",
        "environment": "Sandbox",
        "signedDate": test_time().as_millis(),
    });
    value.as_object().unwrap().clone()
}

/// What Apple's own libraries check, in few words.
fn verify_like_apple(jws: &str) -> Option<Value> {
    let parts: Vec<&str> = jws.split('.').collect();
    let [header, body, signature] = parts.as_slice() else {
        return None;
    };
    let read = |text: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    };
    let header = read(header)?;
    let payload = read(body)?;
    let chain: Vec<Vec<u8>> = header["x5c"]
        .as_array()?
        .iter()
        .map(|text| STANDARD.decode(text.as_str()?).ok())
        .collect::<Option<_>>()?;
    let [leaf, intermediate, _] = chain.as_slice() else {
        return None;
    };
    let has = |certificate: &[u8], marker: &[u8]| {
        certificate.windows(marker.len()).any(|part| part == marker)
    };
    if header["alg"] != "ES256"
        || !has(leaf, LEAF_MARKER_DER)
        || !has(intermediate, INTERMEDIATE_MARKER_DER)
    {
        return None;
    }
    let root = CertificateDer::from(IDENTITY.certificate_authority().root_der().to_vec());
    let anchor = anchor_from_trusted_cert(&root).unwrap();
    let at = payload["signedDate"].as_u64()? / 1000;
    let leaf = CertificateDer::from(leaf.as_slice());
    let leaf = EndEntityCert::try_from(&leaf).ok()?;
    leaf.verify_for_usage(
        &[
            webpki::aws_lc_rs::ECDSA_P384_SHA384,
            webpki::aws_lc_rs::ECDSA_P256_SHA384,
        ],
        &[anchor],
        &[CertificateDer::from(intermediate.as_slice())],
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(at)),
        // Accepts a leaf without extended key usage, and would also accept one that names this use.
        KeyUsage::client_auth(),
        None,
        None,
    )
    .ok()?;
    let spki = leaf.subject_public_key_info();
    let point = &spki.as_ref()[spki.len() - 65..];
    let key = jsonwebtoken::DecodingKey::from_ec_der(point);
    let input = &jws[..jws.rfind('.')?];
    let algorithm = jsonwebtoken::Algorithm::ES256;
    jsonwebtoken::crypto::verify(signature, input.as_bytes(), &key, algorithm)
        .ok()?
        .then_some(payload)
}

#[test]
fn what_is_signed_verifies() {
    let jws = IDENTITY.certificate_authority().sign_jws(&sample_payload());
    assert_eq!(
        verify_like_apple(&jws),
        Some(Value::Object(sample_payload()))
    );
}

#[test]
fn no_forgery_passes_for_the_purchase() {
    for forgery in JwsForgery::ALL {
        let jws = IDENTITY
            .certificate_authority()
            .forge_jws(forgery, &sample_payload());
        let verified = verify_like_apple(&jws);
        match forgery {
            // Genuine, but of something else.
            JwsForgery::OtherBundle => {
                assert_eq!(verified.unwrap()["bundleId"], "com.example.stranger");
            }
            JwsForgery::OtherEnvironment => {
                assert_eq!(verified.unwrap()["environment"], "Production");
            }
            _ => assert_eq!(verified, None, "{forgery:?}"),
        }
    }
}

#[test]
fn the_root_is_given_in_both_spellings() {
    let authority = IDENTITY.certificate_authority();
    let pem = authority.root_pem();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(STANDARD.decode(body).unwrap(), authority.root_der());
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(pem.ends_with("\n-----END CERTIFICATE-----\n"));
}

#[test]
fn googles_keys_are_a_jwk_set() {
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(IDENTITY.google_jwk_set()).unwrap();
    assert_eq!(set.keys.len(), 1);
    assert!(jsonwebtoken::DecodingKey::from_jwk(&set.keys[0]).is_ok());
}
