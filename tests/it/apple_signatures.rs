//! Verification of Apple's signatures: genuine ones are accepted, and more than forty forgeries are
//! refused, each with its own class.
//!
//! The forger here shares no code with the simulated App Store, so that a mistake in one does not
//! hide in the other.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::stores::apple::trust::{JwsVerifier, SignatureError};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PublicKeyData as _, SignatureAlgorithm,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

const LEAF: &[u64] = &[1, 2, 840, 113_635, 100, 6, 11, 1];
const INTERMEDIATE: &[u64] = &[1, 2, 840, 113_635, 100, 6, 2, 1];
const DAY: Duration = Duration::from_hours(24);

fn now() -> Timestamp {
    Timestamp::parse("2026-04-10T14:22:10.000Z").expect("a time")
}

/// How a chain is made; [`Plan::default`] makes a valid one.
struct Plan {
    leaf_algorithm: &'static SignatureAlgorithm,
    leaf_marker: Option<&'static [u64]>,
    intermediate_marker: Option<&'static [u64]>,
    intermediate_is_ca: IsCa,
    /// The key usage of the intermediate; empty omits the extension.
    intermediate_usage: Vec<KeyUsagePurpose>,
    usage: Vec<ExtendedKeyUsagePurpose>,
    /// Validity of the leaf, the intermediate and the root, in days from now.
    leaf: (i64, i64),
    intermediate: (i64, i64),
    root: (i64, i64),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            leaf_algorithm: &PKCS_ECDSA_P256_SHA256,
            leaf_marker: Some(LEAF),
            intermediate_marker: Some(INTERMEDIATE),
            intermediate_is_ca: IsCa::Ca(BasicConstraints::Constrained(0)),
            intermediate_usage: vec![],
            usage: vec![],
            leaf: (-300, 300),
            intermediate: (-2000, 2000),
            root: (-4000, 4000),
        }
    }
}

/// A chain, leaf first, and the key that signs.
struct Chain {
    der: [Vec<u8>; 3],
    key: KeyPair,
}

fn parameters(
    name: &str,
    (from, to): (i64, i64),
    marker: Option<&[u64]>,
    is_ca: IsCa,
) -> CertificateParams {
    let day = |days: i64| {
        let millis = now().as_millis() + days * 86_400_000;
        OffsetDateTime::from(Timestamp::from_millis(millis))
    };
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    (parameters.not_before, parameters.not_after) = (day(from), day(to));
    parameters.is_ca = is_ca;
    let null = || vec![5, 0];
    parameters.custom_extensions = marker
        .map(|oid| CustomExtension::from_oid_content(oid, null()))
        .into_iter()
        .collect();
    parameters
}

impl Plan {
    fn make(&self) -> Chain {
        let ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
        let root_parameters = parameters("Root", self.root, None, ca);
        let root = root_parameters.self_signed(&root_key).expect("a root");
        let root_issuer = Issuer::new(root_parameters, root_key);

        let intermediate_key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
        let mut intermediate_parameters = parameters(
            "Intermediate",
            self.intermediate,
            self.intermediate_marker,
            self.intermediate_is_ca,
        );
        intermediate_parameters
            .key_usages
            .clone_from(&self.intermediate_usage);
        let intermediate = intermediate_parameters
            .signed_by(&intermediate_key, &root_issuer)
            .expect("an intermediate");
        let intermediate_issuer = Issuer::new(intermediate_parameters, intermediate_key);

        let key = KeyPair::generate_for(self.leaf_algorithm).expect("a key");
        let mut leaf_parameters = parameters("Leaf", self.leaf, self.leaf_marker, IsCa::NoCa);
        leaf_parameters.extended_key_usages.clone_from(&self.usage);
        let leaf = leaf_parameters
            .signed_by(&key, &intermediate_issuer)
            .expect("a leaf");
        Chain {
            der: [
                leaf.der().to_vec(),
                intermediate.der().to_vec(),
                root.der().to_vec(),
            ],
            key,
        }
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn payload() -> Value {
    json!({
        "transactionId": "1", "bundleId": "com.example.app", "environment": "Production",
        "signedDate": now().as_millis(),
    })
}

impl Chain {
    fn x5c(&self) -> Vec<String> {
        self.der.iter().map(|der| STANDARD.encode(der)).collect()
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "x5c": self.x5c() })
    }

    fn signature(&self, input: &str) -> Vec<u8> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.key.serialize_der())
                .expect("a key");
        pair.sign(&SystemRandom::new(), input.as_bytes())
            .expect("a signature")
            .as_ref()
            .to_vec()
    }

    /// Both segments are used as given.
    fn seal(&self, header: &str, payload: &str) -> String {
        let input = format!("{header}.{payload}");
        let signature = URL_SAFE_NO_PAD.encode(self.signature(&input));
        format!("{input}.{signature}")
    }

    fn sign(&self, header: &Value, payload: &Value) -> String {
        self.seal(&encode(header), &encode(payload))
    }

    fn good(&self) -> String {
        self.sign(&self.header(), &payload())
    }

    fn verifier(&self) -> JwsVerifier {
        JwsVerifier::with_root(&self.der[2]).expect("a root")
    }
}

fn parts(jws: &str) -> [String; 3] {
    let parts: Vec<String> = jws.split('.').map(str::to_owned).collect();
    parts.try_into().expect("three parts")
}

/// Flips the lowest bit of the last base64 character, which encodes no byte: another text for the
/// same bytes.
fn uncanonical(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = text.split_at(text.len() - 1);
    let at = ALPHABET
        .iter()
        .position(|letter| [*letter] == *last.as_bytes())
        .expect("base64url");
    format!("{rest}{}", char::from(ALPHABET[at ^ 1]))
}

#[test]
fn a_genuine_signature_is_accepted() {
    let chain = Plan::default().make();
    let verifier = chain.verifier();
    for _ in 0..2 {
        let read = verifier
            .verify_payload(&chain.good(), now())
            .expect("believed");
        assert_eq!(
            serde_json::from_slice::<Value>(&read).expect("JSON"),
            payload()
        );
    }
    // The third certificate is ignored, whatever it contains.
    for third in ["", "not base64", "AAAA"] {
        let mut header = chain.header();
        header["x5c"][2] = json!(third);
        assert!(
            verifier
                .verify_payload(&chain.sign(&header, &payload()), now())
                .is_ok(),
            "third: {third}"
        );
    }
    // Other header fields are ignored.
    let mut header = chain.header();
    header["kid"] = json!("x");
    header["typ"] = json!("JWT");
    assert!(
        verifier
            .verify_payload(&chain.sign(&header, &payload()), now())
            .is_ok()
    );
    // An additional Apple marker is harmless.
    let server = Plan {
        usage: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..Plan::default()
    }
    .make();
    assert!(
        server
            .verifier()
            .verify_payload(&server.good(), now())
            .is_ok()
    );
}

#[test]
fn certificates_are_checked_at_the_signing_date() {
    let old = Plan {
        leaf: (-800, -400),
        ..Plan::default()
    }
    .make();
    let verifier = old.verifier();
    let at = |days: f64| {
        let mut payload = payload();
        #[expect(clippy::cast_precision_loss, reason = "a test's dates are small")]
        let millis = now().as_millis() as f64 + days * 86_400_000.0;
        payload["signedDate"] = json!(millis);
        verifier
            .verify_payload(&old.sign(&old.header(), &payload), now())
            .map(|_| ())
    };
    assert_eq!(
        at(-600.25),
        Ok(()),
        "signed while the certificate was valid, and with a fraction"
    );
    assert_eq!(at(-399.0), Err(SignatureError::CertificateExpired));
    assert_eq!(at(-801.0), Err(SignatureError::CertificateExpired));
    assert_eq!(at(-600.0), Ok(()), "a refusal does not stick to the chain");
    assert_eq!(at(0.0), Err(SignatureError::CertificateExpired));
    // Without a signing date, the current time counts.
    let undated = json!({ "bundleId": "com.example.app" });
    assert_eq!(
        verifier.verify_payload(&old.sign(&old.header(), &undated), now()),
        Err(SignatureError::CertificateExpired)
    );
    // An app transaction has another name for its date.
    let app = json!({ "receiptCreationDate": now().minus(600 * DAY).as_millis() });
    assert!(
        verifier
            .verify_payload(&old.sign(&old.header(), &app), now())
            .is_ok()
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_forgery_is_refused_with_its_own_class() {
    let chain = Plan::default().make();
    let other = Plan::default().make();
    let verifier = chain.verifier();
    let good = chain.good();
    let [header, body, signature] = parts(&good);
    // The chain is cached, as in a process that has been running for a while: no forgery may profit
    // from it.
    verifier.verify_payload(&good, now()).expect("believed");

    let with_header = |change: &dyn Fn(&mut Value)| {
        let mut header = chain.header();
        change(&mut header);
        chain.sign(&header, &payload())
    };
    let with_x5c = |x5c: Value| with_header(&|header| header["x5c"] = x5c.clone());
    let with_payload = |change: &dyn Fn(&mut Value)| {
        let mut payload = payload();
        change(&mut payload);
        chain.sign(&chain.header(), &payload)
    };
    let x5c = chain.x5c();
    let raw_header = |text: &str| chain.seal(&URL_SAFE_NO_PAD.encode(text), &body);
    let raw_payload = |text: &[u8]| chain.seal(&header, &URL_SAFE_NO_PAD.encode(text));
    let altered = encode(
        &json!({"transactionId": "2", "bundleId": "com.example.app", "signedDate": now().as_millis()}),
    );
    let signature_bytes = URL_SAFE_NO_PAD.decode(&signature).expect("base64url");
    let flipped = |at: usize| {
        let mut bytes = signature_bytes.clone();
        bytes[at] ^= 1;
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let der_signature = {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &chain.key.serialize_der())
                .expect("a key");
        let signed = pair
            .sign(&SystemRandom::new(), format!("{header}.{body}").as_bytes())
            .expect("a signature");
        URL_SAFE_NO_PAD.encode(signed)
    };
    let hs256 = {
        let mut confused = chain.header();
        confused["alg"] = json!("HS256");
        let input = format!("{}.{body}", encode(&confused));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &chain.key.subject_public_key_info());
        format!(
            "{input}.{}",
            URL_SAFE_NO_PAD.encode(hmac::sign(&key, input.as_bytes()))
        )
    };
    let spaced = format!(" {}", chain.header());
    let twice = format!("{{\"alg\":\"none\",{}", &chain.header().to_string()[1..]);
    let xcode = {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let own = parameters("Xcode", (-1, 1), None, IsCa::NoCa)
            .self_signed(&key)
            .expect("a certificate");
        let der = own.der().to_vec();
        let chain = Chain {
            der: [der.clone(), der.clone(), der],
            key,
        };
        let one = json!({"alg": "ES256", "kid": "Apple_Xcode_Key", "x5c": [chain.x5c()[0]]});
        [
            chain.sign(&one, &json!({"environment": "Xcode"})),
            chain.sign(&chain.header(), &payload()),
        ]
    };

    let forgeries: Vec<(&str, String, SignatureError)> = vec![
        // The form of the JWS.
        ("empty", String::new(), SignatureError::NotAJws),
        ("one part", "abc".into(), SignatureError::NotAJws),
        (
            "two parts",
            format!("{header}.{body}"),
            SignatureError::NotAJws,
        ),
        (
            "four parts",
            format!("{good}.{signature}"),
            SignatureError::NotAJws,
        ),
        (
            "an empty header",
            format!(".{body}.{signature}"),
            SignatureError::BadHeader,
        ),
        (
            "an empty payload",
            chain.seal(&header, ""),
            SignatureError::BadPayload,
        ),
        (
            "an empty signature",
            format!("{header}.{body}."),
            SignatureError::BadSignature,
        ),
        (
            "a line end behind it",
            format!("{good}\n"),
            SignatureError::NotAJws,
        ),
        (
            "a blank before it",
            format!(" {good}"),
            SignatureError::NotAJws,
        ),
        (
            "padding",
            format!("{header}.{body}.{signature}=="),
            SignatureError::NotAJws,
        ),
        (
            "a signature of other letters",
            format!("{header}.{body}.{}", uncanonical(&signature)),
            SignatureError::NotAJws,
        ),
        (
            "standard base64",
            format!("{header}.{body}+/.{signature}"),
            SignatureError::NotAJws,
        ),
        (
            "letters that are no base64",
            format!("{header}.{body}.§§§§"),
            SignatureError::NotAJws,
        ),
        (
            "five megabytes",
            format!("{}.{body}.{signature}", "A".repeat(5_000_000)),
            SignatureError::NotAJws,
        ),
        // The header.
        (
            "a header that is no JSON",
            raw_header("hello"),
            SignatureError::BadHeader,
        ),
        (
            "a header that is a list",
            raw_header("[1]"),
            SignatureError::BadHeader,
        ),
        (
            "a header with an algorithm twice",
            raw_header(&twice),
            SignatureError::BadHeader,
        ),
        (
            "a header a hundred deep",
            raw_header(&"[".repeat(20_000)),
            SignatureError::BadHeader,
        ),
        (
            "something critical",
            with_header(&|header| header["crit"] = json!(["exp"])),
            SignatureError::BadHeader,
        ),
        (
            "no algorithm",
            with_header(&|header| _ = header.as_object_mut().map(|all| all.remove("alg"))),
            SignatureError::BadHeader,
        ),
        (
            "algorithm none",
            with_header(&|header| header["alg"] = json!("none")),
            SignatureError::WrongAlgorithm,
        ),
        (
            "algorithm none, unsigned",
            format!("{}.{body}.", encode(&json!({"alg": "none", "x5c": x5c}))),
            SignatureError::WrongAlgorithm,
        ),
        (
            "algorithm HS256, keyed with the public key",
            hs256,
            SignatureError::WrongAlgorithm,
        ),
        (
            "algorithm RS256",
            with_header(&|header| header["alg"] = json!("RS256")),
            SignatureError::WrongAlgorithm,
        ),
        (
            "algorithm ES384",
            with_header(&|header| header["alg"] = json!("ES384")),
            SignatureError::WrongAlgorithm,
        ),
        (
            "algorithm es256",
            with_header(&|header| header["alg"] = json!("es256")),
            SignatureError::WrongAlgorithm,
        ),
        // The chain's length.
        (
            "no chain",
            with_header(&|header| _ = header.as_object_mut().map(|all| all.remove("x5c"))),
            SignatureError::WrongChainLength,
        ),
        (
            "an empty chain",
            with_x5c(json!([])),
            SignatureError::WrongChainLength,
        ),
        (
            "one certificate",
            with_x5c(json!([x5c[0]])),
            SignatureError::WrongChainLength,
        ),
        (
            "two certificates",
            with_x5c(json!([x5c[0], x5c[1]])),
            SignatureError::WrongChainLength,
        ),
        (
            "four certificates",
            with_x5c(json!([x5c[0], x5c[1], x5c[2], x5c[2]])),
            SignatureError::WrongChainLength,
        ),
        (
            "Xcode's one certificate",
            xcode[0].clone(),
            SignatureError::SignedByXcode,
        ),
        (
            "a chain that is a text",
            with_x5c(json!(x5c[0])),
            SignatureError::BadHeader,
        ),
        (
            "a chain of numbers",
            with_x5c(json!([1, 2, 3])),
            SignatureError::BadHeader,
        ),
        // The certificates.
        (
            "a leaf that is no base64",
            with_x5c(json!(["%%%", x5c[1], x5c[2]])),
            SignatureError::BadCertificate,
        ),
        (
            "a leaf in base64url",
            with_x5c(json!([URL_SAFE.encode(&chain.der[0]), x5c[1], x5c[2]])),
            SignatureError::BadCertificate,
        ),
        (
            "a leaf with line ends",
            with_x5c(json!([format!("{}\n", x5c[0]), x5c[1], x5c[2]])),
            SignatureError::BadCertificate,
        ),
        (
            "a leaf that is no certificate",
            with_x5c(json!(["AAAA", x5c[1], x5c[2]])),
            SignatureError::BadCertificate,
        ),
        (
            "a leaf cut short",
            with_x5c(json!([
                STANDARD.encode(&chain.der[0][..200]),
                x5c[1],
                x5c[2]
            ])),
            SignatureError::BadCertificate,
        ),
        (
            "an intermediate that is no certificate",
            with_x5c(json!([x5c[0], "AAAA", x5c[2]])),
            SignatureError::BadCertificate,
        ),
        // The chain's trust.
        ("another root", other.good(), SignatureError::UntrustedChain),
        (
            "another root of the same name, the genuine one named third",
            {
                let mut header = other.header();
                header["x5c"][2] = json!(x5c[2]);
                other.sign(&header, &payload())
            },
            SignatureError::UntrustedChain,
        ),
        (
            "a stranger's leaf under the genuine intermediate",
            {
                let mut header = other.header();
                header["x5c"][1] = json!(x5c[1]);
                other.sign(&header, &payload())
            },
            SignatureError::UntrustedChain,
        ),
        (
            "a genuine leaf under a stranger's intermediate",
            with_x5c(json!([x5c[0], other.x5c()[1], x5c[2]])),
            SignatureError::UntrustedChain,
        ),
        (
            "leaf and intermediate exchanged",
            with_x5c(json!([x5c[1], x5c[0], x5c[2]])),
            SignatureError::UntrustedChain,
        ),
        (
            "the leaf as its own intermediate",
            with_x5c(json!([x5c[0], x5c[0], x5c[2]])),
            SignatureError::UntrustedChain,
        ),
        (
            "the root as intermediate",
            with_x5c(json!([x5c[0], x5c[2], x5c[2]])),
            SignatureError::UntrustedChain,
        ),
        (
            "the root as leaf",
            with_x5c(json!([x5c[2], x5c[1], x5c[2]])),
            SignatureError::UntrustedChain,
        ),
        (
            "Xcode's certificate three times",
            xcode[1].clone(),
            SignatureError::UntrustedChain,
        ),
        // The payload.
        (
            "a payload that is no JSON",
            raw_payload(b"hello"),
            SignatureError::BadPayload,
        ),
        (
            "a payload that is a list",
            raw_payload(b"[]"),
            SignatureError::BadPayload,
        ),
        (
            "a payload that is no text",
            raw_payload(&[0xff, 0xfe]),
            SignatureError::BadPayload,
        ),
        (
            "a payload with a field twice",
            raw_payload(b"{\"bundleId\":\"a\",\"bundleId\":\"b\"}"),
            SignatureError::BadPayload,
        ),
        (
            "a field twice by a stranger, who is not worth the look",
            format!(
                "{header}.{}.{signature}",
                URL_SAFE_NO_PAD.encode("{\"a\":1,\"a\":2}")
            ),
            SignatureError::BadSignature,
        ),
        (
            "a payload with something behind it",
            raw_payload(b"{}{}"),
            SignatureError::BadPayload,
        ),
        (
            "a day of signing in words",
            with_payload(&|payload| payload["signedDate"] = json!("today")),
            SignatureError::BadPayload,
        ),
        (
            "a day of signing in the future",
            with_payload(&|payload| payload["signedDate"] = json!(now().as_millis() + 301_000)),
            SignatureError::SignedInTheFuture,
        ),
        (
            "a day of signing before the certificates",
            with_payload(&|payload| payload["signedDate"] = json!(0)),
            SignatureError::CertificateExpired,
        ),
        // The signature.
        (
            "another payload",
            format!("{header}.{altered}.{signature}"),
            SignatureError::BadSignature,
        ),
        (
            "a header written otherwise",
            format!("{}.{body}.{signature}", URL_SAFE_NO_PAD.encode(spaced)),
            SignatureError::BadSignature,
        ),
        (
            "a bit of the signature",
            format!("{header}.{body}.{}", flipped(0)),
            SignatureError::BadSignature,
        ),
        (
            "the last bit of the signature",
            format!("{header}.{body}.{}", flipped(63)),
            SignatureError::BadSignature,
        ),
        (
            "a signature of zeros",
            format!("{header}.{body}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
            SignatureError::BadSignature,
        ),
        (
            "a signature cut short",
            format!(
                "{header}.{body}.{}",
                URL_SAFE_NO_PAD.encode(&signature_bytes[..63])
            ),
            SignatureError::BadSignature,
        ),
        (
            "a signature in DER",
            format!("{header}.{body}.{der_signature}"),
            SignatureError::BadSignature,
        ),
        (
            "a stranger's signature under the genuine chain",
            other.sign(&chain.header(), &payload()),
            SignatureError::BadSignature,
        ),
    ];
    assert!(forgeries.len() >= 40);
    let cold = chain.verifier();
    for (what, jws, reason) in forgeries {
        assert_eq!(verifier.verify_payload(&jws, now()), Err(reason), "{what}");
        assert_eq!(
            cold.verify_payload(&jws, now()),
            Err(reason),
            "{what}, by a verifier that has seen nothing"
        );
    }
    assert!(
        verifier.verify_payload(&good, now()).is_ok(),
        "and nothing of it sticks"
    );
}

#[test]
fn every_certificate_of_the_chain_must_be_apples() {
    let plan = Plan::default;
    for (what, plan, reason) in [
        (
            "no mark on the leaf",
            Plan {
                leaf_marker: None,
                ..plan()
            },
            SignatureError::MissingLeafMarker,
        ),
        (
            "another mark on the leaf",
            Plan {
                leaf_marker: Some(&[1, 2, 840, 113_635, 100, 6, 11, 2]),
                ..plan()
            },
            SignatureError::MissingLeafMarker,
        ),
        (
            "the intermediate's mark on the leaf",
            Plan {
                leaf_marker: Some(INTERMEDIATE),
                ..plan()
            },
            SignatureError::MissingLeafMarker,
        ),
        (
            "no mark on the intermediate",
            Plan {
                intermediate_marker: None,
                ..plan()
            },
            SignatureError::MissingIntermediateMarker,
        ),
        (
            "another mark on the intermediate",
            Plan {
                intermediate_marker: Some(&[1, 2, 840, 113_635, 100, 6, 2, 2]),
                ..plan()
            },
            SignatureError::MissingIntermediateMarker,
        ),
        (
            "an intermediate that is no authority",
            Plan {
                intermediate_is_ca: IsCa::ExplicitNoCa,
                ..plan()
            },
            SignatureError::UntrustedChain,
        ),
        (
            "an intermediate that does not say",
            Plan {
                intermediate_is_ca: IsCa::NoCa,
                ..plan()
            },
            SignatureError::UntrustedChain,
        ),
        (
            "an expired leaf",
            Plan {
                leaf: (-300, -1),
                ..plan()
            },
            SignatureError::CertificateExpired,
        ),
        (
            "a leaf of tomorrow",
            Plan {
                leaf: (1, 300),
                ..plan()
            },
            SignatureError::CertificateExpired,
        ),
        (
            "an expired intermediate",
            Plan {
                intermediate: (-300, -1),
                ..plan()
            },
            SignatureError::CertificateExpired,
        ),
        (
            "an expired root",
            Plan {
                root: (-300, -1),
                ..plan()
            },
            SignatureError::CertificateExpired,
        ),
    ] {
        let chain = plan.make();
        assert_eq!(
            chain.verifier().verify_payload(&chain.good(), now()),
            Err(reason),
            "{what}"
        );
    }
}

#[test]
fn key_usage_of_the_intermediate_is_enforced_when_present() {
    let (sign, issue) = (
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    );
    for (usage, is_good) in [
        (vec![], true),
        (vec![sign], false),
        (vec![issue], true),
        (vec![sign, issue], true),
    ] {
        let chain = Plan {
            intermediate_usage: usage.clone(),
            ..Plan::default()
        }
        .make();
        let found = chain
            .verifier()
            .verify_payload(&chain.good(), now())
            .map(drop);
        let expected = if is_good {
            Ok(())
        } else {
            Err(SignatureError::UntrustedChain)
        };
        assert_eq!(found, expected, "{usage:?}");
    }
}

#[test]
fn a_leaf_on_another_curve_is_refused() {
    let chain = Plan {
        leaf_algorithm: &PKCS_ECDSA_P384_SHA384,
        ..Plan::default()
    }
    .make();
    let input = format!("{}.{}", encode(&chain.header()), encode(&payload()));
    let jws = format!("{input}.{}", URL_SAFE_NO_PAD.encode([1; 64]));
    assert_eq!(
        chain.verifier().verify_payload(&jws, now()),
        Err(SignatureError::BadCertificate)
    );
}

#[test]
fn apples_own_root_is_pinned_and_nothing_else_is() {
    let root = include_bytes!("../../src/stores/apple/roots/AppleRootCA-G3.cer");
    let digest = attesto::crypto::token::encode_hex(&attesto::crypto::token::sha256(root));
    assert_eq!(
        digest,
        "63343abfb89a6a03ebb57e9b3f5fa7be7c4f5c756f3017b3a8c488c3653e9179"
    );
    assert!(JwsVerifier::with_root(root).is_some());
    let stranger = Plan::default().make();
    assert_eq!(
        JwsVerifier::with_apple_roots().verify_payload(&stranger.good(), now()),
        Err(SignatureError::UntrustedChain)
    );
}

#[test]
fn roots_are_read_from_files_and_folders() {
    let (one, two) = (Plan::default().make(), Plan::default().make());
    let folder = crate::world::folder::Folder::new();
    let pem = |der: &[u8]| {
        format!(
            "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n",
            "CERTIFICATE",
            STANDARD.encode(der)
        )
    };
    std::fs::write(folder.join("one.der"), &one.der[2]).unwrap();
    std::fs::write(
        folder.join("two.pem"),
        format!("a note\n{}", pem(&two.der[2])),
    )
    .unwrap();
    let both = JwsVerifier::with_roots_from(&folder).expect("two roots");
    let only = JwsVerifier::with_roots_from(&folder.join("one.der")).expect("one root");
    for (verifier, chain, believed) in [
        (&both, &one, true),
        (&both, &two, true),
        (&only, &one, true),
        (&only, &two, false),
    ] {
        assert_eq!(
            verifier.verify_payload(&chain.good(), now()).is_ok(),
            believed
        );
    }
    assert!(JwsVerifier::with_roots_from(&folder.join("missing")).is_err());
    std::fs::write(folder.join("notes.txt"), "not a certificate").unwrap();
    let error = JwsVerifier::with_roots_from(&folder)
        .expect_err("one file is none")
        .to_string();
    assert!(error.contains("notes.txt holds no certificate"), "{error}");
}

proptest! {
    #[test]
    fn malformed_input_is_refused_without_a_panic(text in "\\PC{0,200}", dots in "[A-Za-z0-9_-]{0,40}(\\.[A-Za-z0-9_-]{0,40}){0,4}") {
        let verifier = JwsVerifier::with_apple_roots();
        prop_assert!(verifier.verify_payload(&text, now()).is_err());
        prop_assert!(verifier.verify_payload(&dots, now()).is_err());
    }

    #[test]
    fn a_genuine_jws_with_any_character_changed_is_refused(at: prop::sample::Index, letter in "[A-Za-z0-9._-]") {
        static CHAIN: std::sync::LazyLock<(Chain, String)> = std::sync::LazyLock::new(|| {
            let chain = Plan::default().make();
            let good = chain.good();
            (chain, good)
        });
        let (chain, good) = &*CHAIN;
        let at = at.index(good.len());
        let mut changed = good.clone();
        changed.replace_range(at..=at, &letter);
        let believed = chain.verifier().verify_payload(&changed, now()).is_ok();
        prop_assert_eq!(believed, changed == *good);
    }
}
