//! Measures the verification of a signed transaction, next to the signature checks that cannot be
//! avoided.
//!
//! `cargo bench --bench jws`. Prints the median of interleaved rounds, so that a slow phase of the
//! machine affects all candidates equally; the ratios are what matters. The targets: a chain seen
//! before at most 1.2 × a bare P-256 verification of the same bytes, a new chain at most 1.2 × the
//! sum of its signature checks.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use attesto::base::clock::{Clock, Timestamp};
use attesto::simulator::pki::CertificateAuthority;
use attesto::stores::apple::trust::JwsVerifier;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey, UnparsedPublicKey,
};
use serde_json::{Map, Value, json};

/// Rounds, and repetitions of each candidate in a round.
const ROUNDS: usize = 200;
const REPETITIONS: u32 = 50;
/// About the size of Apple's leaf and intermediate without their signatures.
const CERTIFICATE_BYTES: usize = 900;

/// A measured operation: it prepares itself untimed, then returns how long one repetition took.
struct Candidate<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> Duration + 'a>,
    rounds: Vec<Duration>,
}

impl<'a> Candidate<'a> {
    fn new(name: &'static str, mut work: impl FnMut() + 'a) -> Self {
        let run = move || {
            let start = Instant::now();
            for _ in 0..REPETITIONS {
                work();
            }
            start.elapsed() / REPETITIONS
        };
        Self {
            name,
            run: Box::new(run),
            rounds: Vec::with_capacity(ROUNDS),
        }
    }

    fn median(&mut self) -> f64 {
        self.rounds.sort();
        self.rounds[self.rounds.len() / 2].as_secs_f64() * 1e6
    }
}

fn main() {
    // `cargo test --all-targets` passes no `--bench`: one round is enough to see that it still runs.
    let rounds = if std::env::args().any(|argument| argument == "--bench") {
        ROUNDS
    } else {
        1
    };
    let now = Clock::system().now();
    let authority = CertificateAuthority::new(now);
    let jws = authority.sign_jws(&transaction(now));
    let signed = jws
        .rsplit_once('.')
        .map_or("", |(signed, _)| signed)
        .as_bytes();
    let random = SystemRandom::new();

    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let signature = key.sign(&random, signed).expect("a signature");
    let point = key.public_key().as_ref();
    let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).expect("a public key");

    let authority_key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).expect("a key");
    let certificate = vec![0x30; CERTIFICATE_BYTES];
    let certificate_signature = authority_key
        .sign(&random, &certificate)
        .expect("a signature");
    let issuer = UnparsedPublicKey::new(
        &ECDSA_P384_SHA384_ASN1,
        authority_key.public_key().as_ref().to_vec(),
    );

    let warm = JwsVerifier::with_root(authority.root_der()).expect("a root");
    warm.verify_payload(&jws, now).expect("genuine");
    let root = authority.root_der();

    let mut candidates = [
        Candidate::new("bare P-256 verification", || {
            parsed
                .verify_sig(black_box(signed), signature.as_ref())
                .expect("genuine");
        }),
        Candidate::new("verify, chain seen before", || {
            black_box(warm.verify_payload(black_box(&jws), now)).expect("genuine");
        }),
        Candidate::new("two P-384 and one P-256 verification", || {
            for _ in 0..2 {
                issuer
                    .verify(black_box(&certificate), certificate_signature.as_ref())
                    .expect("genuine");
            }
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(black_box(signed), signature.as_ref())
                .expect("genuine");
        }),
        Candidate::new("verify, chain never seen", || {
            let verifier = JwsVerifier::with_root(root).expect("a root");
            black_box(verifier.verify_payload(black_box(&jws), now)).expect("genuine");
        }),
    ];
    for _ in 0..rounds {
        for candidate in &mut candidates {
            let took = (candidate.run)();
            candidate.rounds.push(took);
        }
    }

    println!(
        "JWS of {} bytes; median of {rounds} rounds of {REPETITIONS}",
        jws.len()
    );
    let [bare, warm, sum, cold] = candidates.each_mut().map(|candidate| {
        let median = candidate.median();
        println!("{:<40}{median:>10.1} µs", candidate.name);
        median
    });
    println!(
        "{:<40}{:>10.2} (at most 1.2)",
        "seen before / bare",
        warm / bare
    );
    println!(
        "{:<40}{:>10.2} (at most 1.2)",
        "never seen / its signature checks",
        cold / sum
    );
}

/// A renewal with every field that Apple usually sends.
fn transaction(now: Timestamp) -> Map<String, Value> {
    let millis = now.as_millis();
    let fields = json!({
        "transactionId": "2000000123456789",
        "originalTransactionId": "2000000100000000",
        "webOrderLineItemId": "2000000012345678",
        "bundleId": "com.example.app",
        "productId": "com.example.app.monthly",
        "subscriptionGroupIdentifier": "20900001",
        "purchaseDate": millis,
        "originalPurchaseDate": millis - 86_400_000,
        "expiresDate": millis + 2_592_000_000,
        "quantity": 1,
        "type": "Auto-Renewable Subscription",
        "appAccountToken": "11111111-2222-3333-4444-555555555555",
        "inAppOwnershipType": "PURCHASED",
        "signedDate": millis,
        "environment": "Production",
        "transactionReason": "RENEWAL",
        "storefront": "USA",
        "storefrontId": "143441",
        "price": 9990,
        "currency": "USD",
        "appTransactionId": "704000000000000000",
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
