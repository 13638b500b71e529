//! Sealed values and sealed files: a genuine one opens to the original content, any other is
//! refused.

#![no_main]

use std::io::{Read as _, Write as _};
use std::sync::LazyLock;

use attesto::crypto::ExposeSecret as _;
use attesto::crypto::keyring::{Keyring, MasterKey, SealContext};
use attesto::crypto::sealed_file::{
    OpeningSecret, RecipientIdentity, SealTarget, SealedFileReader, SealedFileWriter,
};
use libfuzzer_sys::fuzz_target;

const SECRET: &[u8] = b"the secret";
const CONTEXT: SealContext<'_> = SealContext {
    table: "apple_credentials",
    column: "private_key_enc",
    row: "tenant_1",
};

struct World {
    keyring: Keyring,
    value: Vec<u8>,
    with: OpeningSecret,
    file: Vec<u8>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let key = MasterKey::generate_key(1).expect("random bytes");
    let key = MasterKey::parse(key.expose_secret(), None).expect("its own key");
    let keyring = Keyring::new(key, Vec::new()).expect("one key");
    let (identity, recipient) = RecipientIdentity::generate_identity();
    let mut sealer =
        SealedFileWriter::new(Vec::new(), &SealTarget::Recipient(recipient)).expect("memory");
    sealer.write_all(SECRET).expect("memory");
    World {
        value: keyring.seal(CONTEXT, SECRET),
        keyring,
        with: OpeningSecret::Identity(
            RecipientIdentity::parse(identity.expose_secret()).expect("its own identity"),
        ),
        file: sealer.finish_file().expect("memory"),
    }
});

/// The genuine bytes with edits: each three bytes of the input replace one byte, and the input
/// decides where the text is cut.
fn edited(genuine: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]]));
        match at % (genuine.len() + 1) {
            // Past the end: one byte is appended.
            end if end >= bytes.len() => bytes.push(edit[2]),
            at if edit[2] == 0 => bytes.truncate(at),
            at => bytes[at] ^= edit[2],
        }
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let world = &*WORLD;
    let _ = world.keyring.open(CONTEXT, input);
    let value = edited(&world.value, input);
    if let Ok(secret) = world.keyring.open(CONTEXT, &value) {
        assert_eq!(
            (value, secret.expose_secret()),
            (world.value.clone(), SECRET)
        );
    }
    for file in [input.to_vec(), edited(&world.file, input)] {
        let mut content = Vec::new();
        let read = SealedFileReader::new(&file[..], &world.with)
            .map(|mut opener| opener.read_to_end(&mut content));
        if let Ok(Ok(_)) = read {
            assert_eq!((file, &content[..]), (world.file.clone(), SECRET));
        }
    }
});
