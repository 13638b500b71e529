//! `POST /v1/apple/offers/sign` and `attesto apple sign-offer`: both forms of Apple's signatures are checked with the public key.

use attesto::base::clock::Timestamp;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::world::attesto::{APP, Answer, Tenant, World};

const PRODUCT: &str = "com.example.app.pro.monthly";
const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

async fn sign(world: &World, tenant: &Tenant, body: &Value) -> Answer {
    let key = Some(tenant.key.expose());
    world
        .ask("POST", "/v1/apple/offers/sign", key, Some(body))
        .await
}

/// The public key of the simulated In-App Purchase key, as a point.
fn public_key(world: &World) -> Vec<u8> {
    let file = world.simulator.apple().api_key().private_key;
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(file.as_bytes()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der());
    pair.unwrap().public_key().as_ref().to_vec()
}

/// Checks the signature of a JWS; its header and its claims.
fn read_jws(world: &World, jws: &Value) -> (Value, Value) {
    let jws = jws.as_str().expect("a JWS");
    let (signed, signature) = jws.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key(world));
    key.verify(signed.as_bytes(), &signature)
        .expect("it is signed with the tenant's key");
    let mut parts = signed
        .split('.')
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

/// Checks the earlier signature, which is one of this text.
fn check_earlier(world: &World, answer: &Value, user: &str, now: Timestamp) {
    let earlier = &answer["earlierSignature"];
    assert_eq!(earlier["timestamp"], now.as_millis());
    let key_id = world.simulator.apple().api_key().key_id;
    assert_eq!(earlier["keyId"], key_id);
    let nonce = earlier["nonce"].as_str().unwrap();
    let now = now.as_millis().to_string();
    let signed = [APP, &key_id, PRODUCT, "spring", user, nonce, &now].join("\u{2063}");
    let signature = STANDARD
        .decode(earlier["signature"].as_str().unwrap())
        .unwrap();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key(world));
    key.verify(signed.as_bytes(), &signature)
        .expect("it is signed with the tenant's key");
}

#[tokio::test]
async fn a_promotional_offer_is_signed_in_both_forms() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let body = json!({
        "type": "promotional", "productId": PRODUCT, "offerId": "spring", "transactionId": "2000000123456789",
        "appAccountToken": USER.to_ascii_uppercase(),
    });
    let answer = sign(&world, &tenant, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let key = world.simulator.apple().api_key();
    let (header, claims) = read_jws(&world, &answer.body["compactJWS"]);
    assert_eq!(
        header,
        json!({ "alg": "ES256", "typ": "JWT", "kid": key.key_id })
    );
    let nonce = &answer.body["earlierSignature"]["nonce"];
    assert_eq!(
        claims,
        json!({
            "iss": key.issuer_id, "bid": APP, "aud": "promotional-offer", "nonce": nonce,
            "iat": world.clock.now().as_secs() - 60,
            "productId": PRODUCT, "offerIdentifier": "spring", "transactionId": "2000000123456789",
        })
    );
    check_earlier(&world, &answer.body, USER, world.clock.now());
    assert_eq!(answer.body["earlierSignature"]["appAccountToken"], USER);
    assert_eq!(
        (
            &answer.body["type"],
            &answer.body["productId"],
            &answer.body["offerId"]
        ),
        (&json!("promotional"), &json!(PRODUCT), &json!("spring"))
    );

    // Without a user, with another nonce.
    let body = json!({ "type": "promotional", "productId": PRODUCT, "offerId": "spring" });
    let again = sign(&world, &tenant, &body).await.body;
    check_earlier(&world, &again, "", world.clock.now());
    assert_ne!(&again["earlierSignature"]["nonce"], nonce);
    assert_eq!(again["earlierSignature"]["appAccountToken"], Value::Null);
    assert_eq!(
        read_jws(&world, &again["compactJWS"])
            .1
            .get("transactionId"),
        None
    );
    assert_eq!(
        world.simulator.recorded_requests().len(),
        0,
        "Apple is not asked"
    );
}

#[tokio::test]
async fn a_decision_on_an_introductory_offer_is_signed() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    for is_allowed in [true, false] {
        let body = json!({
            "type": "introductory", "productId": PRODUCT, "transactionId": "7", "allowIntroductoryOffer": is_allowed,
        });
        let answer = sign(&world, &tenant, &body).await.body;
        let (_, mut claims) = read_jws(&world, &answer["compactJWS"]);
        let nonce = claims["nonce"].take();
        assert_eq!(nonce.as_str().map(str::len), Some(36));
        let key = world.simulator.apple().api_key();
        assert_eq!(
            claims,
            json!({
                "iss": key.issuer_id, "bid": APP, "aud": "introductory-offer-eligibility", "nonce": null,
                "iat": world.clock.now().as_secs() - 60,
                "productId": PRODUCT, "allowIntroductoryOffer": is_allowed, "transactionId": "7",
            })
        );
        assert_eq!(
            (&answer["offerId"], &answer["earlierSignature"]),
            (&Value::Null, &Value::Null)
        );
    }
}

#[tokio::test]
async fn what_does_not_belong_together_is_refused() {
    let world = World::new().await;
    let (tenant, stranger) = (world.tenant().await, world.stranger().await);
    let body = json!({ "type": "introductory", "productId": PRODUCT, "offerId": "spring" });
    let answer = sign(&world, &tenant, &body).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("INVALID_REQUEST"))
    );
    let issues = answer.body["details"]["issues"].as_array().unwrap();
    let paths: Vec<_> = issues
        .iter()
        .map(|issue| issue["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["transactionId", "allowIntroductoryOffer", "offerId"]
    );
    // Another tenant's key signs nothing with this tenant's.
    let body = json!({ "type": "promotional", "productId": PRODUCT, "offerId": "spring" });
    let answer = sign(&world, &stranger, &body).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );
}

#[tokio::test]
async fn the_command_signs_what_the_route_signs() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let (shell, id) = (world.shell(), tenant.id.as_str());
    let offer = ["apple", "sign-offer", id, "--product-id", PRODUCT];
    let with = |more: &[&'static str]| [&offer[..], more].concat();
    let signed = shell
        .run(&with(&[
            "--offer-id",
            "spring",
            "--app-account-token",
            USER,
        ]))
        .json();
    let (_, claims) = read_jws(&world, &signed["compactJWS"]);
    assert_eq!(claims["offerIdentifier"], "spring");
    let timestamp = signed["earlierSignature"]["timestamp"].as_i64().unwrap();
    check_earlier(&world, &signed, USER, Timestamp::from_millis(timestamp));

    let signed = shell
        .run(&with(&["--introductory", "deny", "--transaction-id", "7"]))
        .json();
    let (_, claims) = read_jws(&world, &signed["compactJWS"]);
    assert_eq!(
        (&claims["allowIntroductoryOffer"], &claims["transactionId"]),
        (&json!(false), &json!("7"))
    );
    for (more, complaint) in [
        (&[][..], "--offer-id"),
        (&["--introductory", "allow"], "--transaction-id"),
        (
            &[
                "--offer-id",
                "spring",
                "--introductory",
                "allow",
                "--transaction-id",
                "7",
            ],
            "cannot be used with",
        ),
        (
            &["--offer-id", "spring", "--app-account-token", "me"],
            "must be a UUID",
        ),
    ] {
        let refused = shell.run(&with(more));
        assert_eq!(refused.exit, 2, "{refused:?}");
        assert!(refused.complained.contains(complaint), "{refused:?}");
    }
}
