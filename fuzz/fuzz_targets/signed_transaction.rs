//! A genuine signed transaction with edits: only the unchanged one is accepted.
//!
//! The input is a list of edits instead of the text itself, so that it gets past the signature's
//! encoding and means the same in every run, although the keys are generated at the start.

#![no_main]

use std::sync::LazyLock;

use attesto::base::clock::Timestamp;
use attesto::simulator::pki::{CertificateAuthority, JwsForgery};
use attesto::stores::apple::trust::JwsVerifier;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

struct World {
    verifier: JwsVerifier,
    now: Timestamp,
    genuine: String,
    /// Sources for replaced parts: forged transactions, and a genuine one of another purchase.
    others: Vec<String>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let now = Timestamp::from_millis(1_790_000_000_000);
    let authority = CertificateAuthority::new(now);
    let payload = |id: &str| -> Map<String, Value> {
        let Value::Object(payload) = json!({
            "transactionId": id, "bundleId": "com.example.app", "environment": "Production", "signedDate": now.as_millis(),
        }) else {
            unreachable!("it is an object")
        };
        payload
    };
    let forgeries = [
        JwsForgery::WrongRoot,
        JwsForgery::LookAlikeRoot,
        JwsForgery::ForeignLeaf,
        JwsForgery::ExpiredLeaf,
        JwsForgery::OtherKey,
        JwsForgery::AlgorithmNone,
        JwsForgery::AlgorithmHs256,
        JwsForgery::NoCertificates,
    ];
    let forged = forgeries.map(|forgery| authority.forge_jws(forgery, &payload("1")));
    let mut others = Vec::from(forged);
    others.push(authority.sign_jws(&payload("2")));
    World {
        verifier: JwsVerifier::with_root(authority.root_der()).expect("its own root is one"),
        now,
        genuine: authority.sign_jws(&payload("1")),
        others,
    }
});

/// The three parts of a compact JWS.
fn parts(jws: &str) -> Vec<&str> {
    jws.split('.').collect()
}

fuzz_target!(|edits: &[u8]| {
    let world = &*WORLD;
    let mut text = world.genuine.clone().into_bytes();
    for edit in edits.chunks_exact(4) {
        let [what, high, low, byte] = *edit else {
            unreachable!("four")
        };
        let at = usize::from(u16::from_be_bytes([high, low]));
        let place = at % (text.len() + 1);
        match what % 5 {
            0 if place < text.len() => text[place] = byte,
            1 => text.insert(place, byte),
            2 if place < text.len() => {
                text.remove(place);
            }
            3 => text.truncate(place),
            4 => {
                let other = &world.others[usize::from(byte) % world.others.len()];
                let Ok(now) = String::from_utf8(text.clone()) else {
                    return;
                };
                let (mut ours, theirs) = (parts(&now), parts(other));
                let part = at % 3;
                if let (Some(ours), Some(theirs)) = (ours.get_mut(part), theirs.get(part)) {
                    *ours = theirs;
                }
                text = ours.join(".").into_bytes();
            }
            _ => {}
        }
    }
    let Ok(text) = String::from_utf8(text) else {
        return;
    };
    if world.verifier.verify_payload(&text, world.now).is_ok() {
        let signed = text == world.genuine || world.others.last() == Some(&text);
        assert!(signed, "accepted, but not signed: {text}");
    }
});
