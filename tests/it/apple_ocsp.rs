//! OCSP checks of Apple's certificates, with a responder whose answers the test chooses.
//!
//! The forger here writes certificates with rcgen and OCSP responses byte by byte: it shares no
//! code with the parser.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::stores::apple::ocsp::response::{self, OcspResponseError, RevocationStatus};
use attesto::stores::apple::ocsp::{ChainCertificate, ResponderPolicy};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, SerialNumber,
    SignatureAlgorithm,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::world::attesto::{APP, APP_APPLE_ID, Answer, Tenant, World, start};
use crate::world::folder::Folder;
use crate::world::wait::finished;

const LEAF: &[u64] = &[1, 2, 840, 113_635, 100, 6, 11, 1];
const INTERMEDIATE: &[u64] = &[1, 2, 840, 113_635, 100, 6, 2, 1];
const AUTHORITY_INFO_ACCESS: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 1];
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
/// How long an answer is still used after its validity has ended.
const DAY: Duration = Duration::from_hours(24);
/// How long no request is sent after a failed one.
const PAUSE: Duration = Duration::from_secs(10);

// DER, written by hand.

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        short @ 0..=127 => der.push(u8::try_from(short).unwrap()),
        long => {
            let bytes = long.to_be_bytes();
            let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            der.push(0x80 | u8::try_from(bytes.len()).unwrap());
            der.extend(bytes);
        }
    }
    der.extend_from_slice(content);
    der
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

fn octets(content: &[u8]) -> Vec<u8> {
    tlv(0x04, content)
}

fn explicit(number: u8, content: &[u8]) -> Vec<u8> {
    tlv(0xa0 | number, content)
}

fn time_of(moment: Timestamp) -> Vec<u8> {
    let text: String = moment.to_string()[..19]
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    tlv(0x18, format!("{text}Z").as_bytes())
}

const SHA_256_OID: &[u8] = &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const SHA_1_OID: &[u8] = &[6, 5, 0x2b, 0x0e, 3, 2, 0x1a];
const NULL: &[u8] = &[5, 0];
const BASIC_OID: &[u8] = &[6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
const OCSP_OID: &[u8] = &[6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
const ECDSA_SHA_256_OID: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA_384_OID: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const RSA_SHA_256_OID: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b];

/// The elements of a constructed DER value.
fn parts_of(der: &[u8]) -> Vec<&[u8]> {
    let (_, mut inside) = open(der);
    let mut parts = Vec::new();
    while !inside.is_empty() {
        let (whole, _) = open(inside);
        parts.push(&inside[..whole]);
        inside = &inside[whole..];
    }
    parts
}

/// The length of the first DER value, and its content.
fn open(der: &[u8]) -> (usize, &[u8]) {
    let (head, length) = match der[1] {
        short @ 0..=127 => (2, usize::from(short)),
        long => {
            let count = usize::from(long & 0x7f);
            let length = der[2..2 + count]
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            (2 + count, length)
        }
    };
    (head + length, &der[head..head + length])
}

/// The DER of a certificate's subject name.
fn name_of(certificate: &[u8]) -> Vec<u8> {
    // version, serial number, algorithm, issuer, validity, subject
    parts_of(parts_of(certificate)[0])[5].to_vec()
}

fn serial_of(certificate: &[u8]) -> Vec<u8> {
    parts_of(parts_of(certificate)[0])[1].to_vec()
}

/// The public key of a certificate without its algorithm and without the count of unused bits.
fn key_of(certificate: &[u8]) -> Vec<u8> {
    let key = parts_of(parts_of(certificate)[0])[6];
    open(parts_of(key)[1]).1[1..].to_vec()
}

/// A certificate authority like Apple's.
struct Authority {
    root: Vec<u8>,
    root_issuer: Issuer<'static, KeyPair>,
    intermediate: Vec<u8>,
    intermediate_issuer: Issuer<'static, KeyPair>,
    leaf: Vec<u8>,
    key: KeyPair,
}

fn days((from, to): (i64, i64)) -> (OffsetDateTime, OffsetDateTime) {
    let day = |days: i64| Timestamp::from_millis(start().as_millis() + days * 86_400_000).into();
    (day(from), day(to))
}

fn parameters(name: &str, window: (i64, i64), serial: u8) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    (parameters.not_before, parameters.not_after) = days(window);
    parameters.serial_number = Some(SerialNumber::from_slice(&[0x4f, 0x11, serial]));
    parameters
}

fn marked(marker: &[u64], responder: Option<String>) -> Vec<CustomExtension> {
    let access = responder.map(|url| {
        let place = sequence(&[OCSP_OID, &tlv(0x86, url.as_bytes())]);
        CustomExtension::from_oid_content(AUTHORITY_INFO_ACCESS, sequence(&[&place]))
    });
    let marker = CustomExtension::from_oid_content(marker, NULL.to_vec());
    access.into_iter().chain([marker]).collect()
}

fn key_for(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key")
}

impl Authority {
    /// Its certificates name the responder at `address`, if any: paths `/leaf` and `/intermediate`.
    fn new(address: Option<SocketAddr>, leaf_window: (i64, i64)) -> Self {
        let at = |path: &str| address.map(|address| format!("http://{address}/{path}"));
        let ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut root = parameters("Root", (-4000, 4000), 1);
        root.is_ca = ca;
        let root_key = key_for(&PKCS_ECDSA_P384_SHA384);
        let root_der = root.self_signed(&root_key).expect("a root").der().to_vec();
        let root_issuer = Issuer::new(root, root_key);

        let mut intermediate = parameters("Intermediate", (-2000, 2000), 2);
        intermediate.is_ca = ca;
        intermediate.custom_extensions = marked(INTERMEDIATE, at("intermediate"));
        let intermediate_key = key_for(&PKCS_ECDSA_P384_SHA384);
        let intermediate_der = intermediate
            .signed_by(&intermediate_key, &root_issuer)
            .expect("an intermediate");
        let intermediate_issuer = Issuer::new(intermediate, intermediate_key);

        let mut authority = Self {
            root: root_der,
            root_issuer,
            intermediate: intermediate_der.der().to_vec(),
            intermediate_issuer,
            leaf: Vec::new(),
            key: key_for(&PKCS_ECDSA_P256_SHA256),
        };
        (authority.leaf, authority.key) = authority.issue(3, at("leaf"), leaf_window);
        authority
    }

    /// Issues a leaf and its key.
    fn issue(
        &self,
        serial: u8,
        responder: Option<String>,
        window: (i64, i64),
    ) -> (Vec<u8>, KeyPair) {
        let mut leaf = parameters("Leaf", window, serial);
        leaf.custom_extensions = marked(LEAF, responder);
        let key = key_for(&PKCS_ECDSA_P256_SHA256);
        let certificate = leaf
            .signed_by(&key, &self.intermediate_issuer)
            .expect("a leaf");
        (certificate.der().to_vec(), key)
    }

    fn sign(&self, payload: &Value) -> String {
        self.sign_as(&self.leaf, &self.key, payload)
    }

    fn sign_as(&self, leaf: &[u8], key: &KeyPair, payload: &Value) -> String {
        let x5c = [leaf, &self.intermediate, &self.root].map(|der| STANDARD.encode(der));
        let header = json!({ "alg": "ES256", "x5c": x5c });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(&header), part(payload));
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der())
            .expect("a key");
        let signature = pair
            .sign(&SystemRandom::new(), input.as_bytes())
            .expect("a signature");
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn transaction(&self, now: Timestamp) -> String {
        self.sign(&transaction(now))
    }

    fn notification(&self, now: Timestamp, uuid: &str, inner: &str) -> Value {
        let payload = json!({
            "notificationType": "DID_RENEW", "notificationUUID": uuid, "version": "2.0",
            "signedDate": now.as_millis(),
            "data": {
                "bundleId": APP, "appAppleId": APP_APPLE_ID, "environment": "Production",
                "signedTransactionInfo": inner,
            },
        });
        json!({ "signedPayload": self.sign(&payload) })
    }

    /// The certificate that is queried at a path, and its issuer's.
    fn asked_at(&self, path: &str) -> (&[u8], &[u8], &Issuer<'static, KeyPair>) {
        match path {
            "/intermediate" => (&self.intermediate, &self.root, &self.root_issuer),
            _ => (&self.leaf, &self.intermediate, &self.intermediate_issuer),
        }
    }
}

fn transaction(now: Timestamp) -> Value {
    json!({
        "transactionId": "2000000000000001", "originalTransactionId": "2000000000000001",
        "bundleId": APP, "environment": "Production", "productId": "com.example.app.pro",
        "type": "Non-Consumable", "purchaseDate": now.as_millis(), "signedDate": now.as_millis(),
    })
}

/// What the responder does with a request.
#[derive(Clone)]
enum Manner {
    Says(Saying),
    /// Sends this status and body.
    Sends(u16, Vec<u8>),
    /// Sends the head and the beginning of a body, then stalls.
    Dawdles,
    /// Closes the connection.
    HangsUp,
}

/// A response; the default is a good one.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each may be wrong alone")]
struct Saying {
    /// The DER of the whole `CertStatus`.
    word: Vec<u8>,
    sha_1: bool,
    other_name: bool,
    other_key: bool,
    other_serial: bool,
    /// Seconds from now.
    this_update: i64,
    next_update: Option<i64>,
    by: By,
    /// Whether it is altered after signing.
    altered: bool,
    critical: bool,
    version: Option<u8>,
}

/// The signer of a response.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Issuer,
    /// Identified by its key hash.
    IssuersKey,
    /// A delegated responder with its own certificate.
    Delegate(Delegate),
}

#[derive(Clone, Copy, PartialEq)]
struct Delegate {
    usage: Option<bool>,
    days: (i64, i64),
    issued_by: IssuedBy,
    rsa: bool,
    enclosed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum IssuedBy {
    TheIssuer,
    /// The root, for the leaf: an issuer, but not the leaf's issuer.
    TheRoot,
    Stranger,
}

const DELEGATE: Delegate = Delegate {
    usage: Some(true),
    days: (-10, 10),
    issued_by: IssuedBy::TheIssuer,
    rsa: false,
    enclosed: true,
};

const GOOD: &[u8] = &[0x80, 0];
const UNKNOWN: &[u8] = &[0x82, 0];

fn revoked() -> Vec<u8> {
    let reason = explicit(0, &[0x0a, 1, 1]);
    tlv(0xa1, &[time_of(start().minus(DAY)), reason].concat())
}

impl Default for Saying {
    fn default() -> Self {
        Self {
            word: GOOD.to_vec(),
            sha_1: false,
            other_name: false,
            other_key: false,
            other_serial: false,
            this_update: -60,
            next_update: Some(3600),
            by: By::Issuer,
            altered: false,
            critical: false,
            version: None,
        }
    }
}

fn cert_id(sha_1: bool, name: &[u8], key: &[u8], serial: &[u8]) -> Vec<u8> {
    let (oid, algorithm) = if sha_1 {
        (SHA_1_OID, &SHA1_FOR_LEGACY_USE_ONLY)
    } else {
        (SHA_256_OID, &SHA256)
    };
    let hash = |bytes: &[u8]| octets(digest(algorithm, bytes).as_ref());
    sequence(&[&sequence(&[oid, NULL]), &hash(name), &hash(key), serial])
}

fn ecdsa_p384(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &key.serialize_der());
    let signature = pair.expect("a key").sign(&SystemRandom::new(), message);
    signature.expect("a signature").as_ref().to_vec()
}

fn ecdsa_p256(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der());
    let signature = pair.expect("a key").sign(&SystemRandom::new(), message);
    signature.expect("a signature").as_ref().to_vec()
}

fn rsa(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let pair = RsaKeyPair::from_pkcs8(&key.serialize_der()).expect("a key");
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message,
        &mut signature,
    )
    .expect("a signature");
    signature
}

impl Delegate {
    fn certificate(self, authority: &Authority, path: &str) -> (Vec<u8>, KeyPair) {
        let mut own = parameters("Responder", self.days, 9);
        own.extended_key_usages = match self.usage {
            Some(true) => vec![ExtendedKeyUsagePurpose::OcspSigning],
            Some(false) => vec![ExtendedKeyUsagePurpose::ServerAuth],
            None => vec![],
        };
        let key = key_for(if self.rsa {
            &PKCS_RSA_SHA256
        } else {
            &PKCS_ECDSA_P256_SHA256
        });
        let stranger;
        let (_, _, issuer) = authority.asked_at(path);
        let issuer = match self.issued_by {
            IssuedBy::TheIssuer => issuer,
            IssuedBy::TheRoot => &authority.root_issuer,
            IssuedBy::Stranger => {
                stranger = Authority::new(None, (-1, 1));
                stranger.asked_at(path).2
            }
        };
        let certificate = own.signed_by(&key, issuer).expect("a certificate");
        (certificate.der().to_vec(), key)
    }
}

impl Saying {
    fn der(&self, authority: &Authority, path: &str, now: Timestamp) -> Vec<u8> {
        let (certificate, issuer, issuing) = authority.asked_at(path);
        let at = |seconds: i64| Timestamp::from_millis(now.as_millis() + seconds * 1000);
        let other = b"somebody else";
        let name = if self.other_name {
            other.to_vec()
        } else {
            name_of(issuer)
        };
        let key = if self.other_key {
            other.to_vec()
        } else {
            key_of(issuer)
        };
        let serial = if self.other_serial {
            vec![2, 1, 7]
        } else {
            serial_of(certificate)
        };
        let id = cert_id(self.sha_1, &name, &key, &serial);
        let next = self.next_update.map(|next| explicit(0, &time_of(at(next))));
        let demand = sequence(&[&[6, 3, 0x2a, 3, 4], &[1, 1, 0xff], &octets(NULL)]);
        let demand = explicit(1, &sequence(&[&demand]));
        let single = sequence(&[
            &id,
            &self.word,
            &time_of(at(self.this_update)),
            &next.unwrap_or_default(),
            if self.critical { &demand } else { &[] },
        ]);

        let delegate = match self.by {
            By::Delegate(delegate) => Some((delegate, delegate.certificate(authority, path))),
            By::Issuer | By::IssuersKey => None,
        };
        let responder = match (&self.by, &delegate) {
            (By::IssuersKey, _) => {
                let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &key_of(issuer));
                explicit(2, &octets(hash.as_ref()))
            }
            (_, Some((_, (certificate, _)))) => explicit(1, &name_of(certificate)),
            (_, None) => explicit(1, &name_of(issuer)),
        };
        let version = self.version.map(|version| explicit(0, &[2, 1, version]));
        let mut data = sequence(&[
            &version.unwrap_or_default(),
            &responder,
            &time_of(at(self.this_update)),
            &sequence(&[&single]),
        ]);
        let (algorithm, signature) = match &delegate {
            None => (
                sequence(&[ECDSA_SHA_384_OID]),
                ecdsa_p384(issuing.key(), &data),
            ),
            Some((Delegate { rsa: true, .. }, (_, key))) => {
                (sequence(&[RSA_SHA_256_OID, NULL]), rsa(key, &data))
            }
            Some((_, (_, key))) => (sequence(&[ECDSA_SHA_256_OID]), ecdsa_p256(key, &data)),
        };
        if self.altered {
            // The last digit of the seconds.
            let at = data.len() - 2;
            data[at] ^= 1;
        }
        let enclosed = delegate.filter(|(delegate, _)| delegate.enclosed);
        let enclosed =
            enclosed.map(|(_, (certificate, _))| explicit(0, &sequence(&[&certificate])));
        let basic = sequence(&[
            &data,
            &algorithm,
            &tlv(0x03, &[&[0], signature.as_slice()].concat()),
            &enclosed.unwrap_or_default(),
        ]);
        let bytes = sequence(&[BASIC_OID, &octets(&basic)]);
        sequence(&[&[0x0a, 1, 0], &explicit(0, &bytes)])
    }
}

/// An OCSP response with an error status and no answer.
fn declining(status: u8) -> Vec<u8> {
    sequence(&[&[0x0a, 1, status]])
}

/// The responder of an authority; it stops when dropped.
struct Responder {
    address: SocketAddr,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    authority: Mutex<Option<Arc<Authority>>>,
    clock: Mutex<Option<Clock>>,
    manners: Mutex<BTreeMap<String, Manner>>,
    /// Head and body of each request.
    requests: Mutex<Vec<(String, Vec<u8>)>>,
    arrived: Notify,
}

impl Responder {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::<State>::default();
        let serving = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().answer(stream));
            }
        });
        Self {
            address,
            state,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// From now on it answers this at `path`.
    fn set(&self, path: &str, manner: Manner) {
        self.state
            .manners
            .lock()
            .unwrap()
            .insert(path.to_owned(), manner);
    }

    fn says(&self, path: &str, saying: Saying) {
        self.set(path, Manner::Says(saying));
    }

    /// Sets the same answer for all paths.
    fn all(&self, manner: &Manner) {
        self.set("/leaf", manner.clone());
        self.set("/intermediate", manner.clone());
    }

    fn requests(&self) -> Vec<(String, Vec<u8>)> {
        self.state.requests.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.requests().len()
    }

    async fn until(&self, count: usize) {
        let arrived = async {
            while self.count() < count {
                self.state.arrived.notified().await;
            }
        };
        finished("the responder is asked", arrived).await;
    }
}

impl State {
    async fn answer(self: Arc<Self>, mut stream: TcpStream) -> Option<()> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec())
            .ok()?
            .to_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))?
            .parse()
            .ok()?;
        while bytes.len() < end + length {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        let path = head.split(' ').nth(1)?.to_owned();
        let manner = self.manners.lock().unwrap().get(&path).cloned();
        self.requests
            .lock()
            .unwrap()
            .push((head, bytes.split_off(end)));
        self.arrived.notify_one();
        let (status, body) = match manner.unwrap_or(Manner::Says(Saying::default())) {
            Manner::Says(saying) => {
                let authority = self.authority.lock().unwrap().clone()?;
                let now = self.clock.lock().unwrap().as_ref()?.now();
                (200, saying.der(&authority, &path, now))
            }
            Manner::Sends(status, body) => (status, body),
            Manner::Dawdles => {
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n0";
                stream.write_all(head.as_bytes()).await.ok()?;
                // Until the other side closes the connection.
                stream.read_buf(&mut Vec::new()).await.ok()?;
                return None;
            }
            Manner::HangsUp => return None,
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream
            .write_all(&[head.as_bytes(), &body].concat())
            .await
            .ok()
    }
}

/// A server with OCSP on, a tenant, and the responder it queries.
struct Stage {
    world: World,
    tenant: Tenant,
    responder: Responder,
    authority: Arc<Authority>,
    _folder: Folder,
}

fn pem(path: &Path, der: &[u8]) {
    let text = STANDARD.encode(der);
    let pem = format!(
        "-----BEGIN {0}-----\n{text}\n-----END {0}-----\n",
        "CERTIFICATE"
    );
    std::fs::write(path, pem).expect("the root is written");
}

impl Stage {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let responder = Responder::new().await;
        let authority = Authority::new(Some(responder.address), (-300, 300));
        Self::of(authority, responder, settings).await
    }

    async fn of(authority: Authority, responder: Responder, settings: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let root = folder.join("root.pem");
        pem(&root, &authority.root);
        let root = root.display().to_string();
        let own = [
            ("APPLE_ROOT_CERTIFICATES", root.as_str()),
            ("APPLE_OCSP", "on"),
        ];
        let settings: Vec<_> = own.iter().chain(settings).copied().collect();
        let world = World::with(&settings).await;
        let tenant = world.tenant().await;
        let authority = Arc::new(authority);
        *responder.state.authority.lock().unwrap() = Some(authority.clone());
        *responder.state.clock.lock().unwrap() = Some(world.clock.clone());
        Self {
            world,
            tenant,
            responder,
            authority,
            _folder: folder,
        }
    }

    async fn ask(&self) -> Answer {
        let jws = self.authority.transaction(self.world.clock.now());
        self.ask_about(&jws).await
    }

    async fn ask_about(&self, jws: &str) -> Answer {
        let question = json!({ "signedTransaction": jws });
        self.world.verify("apple", &self.tenant, &question).await
    }

    async fn push(&self, body: &Value) -> Answer {
        let path = format!("/v1/webhooks/apple/{}", self.tenant.id);
        self.world.ask("POST", &path, None, Some(body)).await
    }

    fn advance(&self, by: Duration) {
        self.world.clock.advance(by);
    }
}

#[track_caller]
fn assert_yes(answer: &Answer) {
    assert_eq!(
        (answer.status, &answer.body["valid"]),
        (200, &json!(true)),
        "{}",
        answer.body
    );
}

#[track_caller]
fn assert_no(answer: &Answer, class: &str) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let said = [&answer.body["error"], &answer.body["details"]["class"]];
    assert_eq!(said, ["SIGNATURE_INVALID", class], "{}", answer.body);
}

#[track_caller]
fn assert_again(answer: &Answer) {
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert_eq!(answer.body["error"], "APPLE_API_ERROR");
    assert_eq!(answer.body["details"]["status"], Value::Null);
    let wait: u64 = answer.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=PAUSE.as_secs()).contains(&wait), "{wait}");
}

#[tokio::test]
async fn ocsp_is_queried_once_for_a_good_chain() {
    let stage = Stage::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let answers = join_all((0..16).map(|_| stage.ask())).await;
    answers.iter().for_each(assert_yes);
    for _ in 0..3 {
        stage.advance(4 * MINUTE);
        assert_yes(&stage.ask().await);
    }

    let mut requests = stage.responder.requests();
    assert_eq!(
        requests.len(),
        2,
        "one for the leaf, one for the intermediate"
    );
    requests.sort();
    for ((head, body), path) in requests.iter().zip(["/intermediate", "/leaf"]) {
        assert!(
            head.starts_with(&format!("post {path} http/1.1\r\n")),
            "{head}"
        );
        assert!(
            head.contains("\r\ncontent-type: application/ocsp-request\r\n"),
            "{head}"
        );
        let (certificate, issuer, _) = stage.authority.asked_at(path);
        let serial = serial_of(certificate);
        let id = cert_id(false, &name_of(issuer), &key_of(issuer), &serial);
        let question = sequence(&[&sequence(&[&sequence(&[&sequence(&[&id])])])]);
        assert_eq!(*body, question);
    }
    let page = stage.world.metrics().await;
    let counted = r#"attesto_apple_ocsp_questions_total{outcome="good"} 2"#;
    assert!(page.lines().any(|line| line == counted), "{page}");
    stage.world.end().await;
}

#[tokio::test]
async fn every_kind_of_ocsp_signer_is_accepted() {
    let rsa = Delegate {
        rsa: true,
        ..DELEGATE
    };
    for by in [
        By::Issuer,
        By::IssuersKey,
        By::Delegate(DELEGATE),
        By::Delegate(rsa),
    ] {
        for (sha_1, version) in [(false, None), (true, Some(0))] {
            let saying = Saying {
                sha_1,
                by,
                ..Saying::default()
            };
            let authority = Authority::new(None, (-300, 300));
            let subject = ChainCertificate::new(&authority.leaf, &authority.intermediate).unwrap();
            let der = Saying { version, ..saying }.der(&authority, "/leaf", start());
            // DER omits default values; a response that includes them is accepted all the same.
            let answer =
                response::verify_response(&der, &subject, start()).map(|answer| answer.status);
            assert_eq!(answer, Ok(RevocationStatus::Good));
        }
    }
}

#[tokio::test]
async fn revoked_and_unknown_certificates_are_refused_with_their_own_class() {
    for path in ["/leaf", "/intermediate"] {
        for (word, class) in [
            (revoked(), "revoked"),
            (UNKNOWN.to_vec(), "unknown_to_responder"),
        ] {
            let stage = Stage::new().await;
            stage.responder.says(
                path,
                Saying {
                    word,
                    ..Saying::default()
                },
            );
            assert_no(&stage.ask().await, class);
            assert_no(&stage.ask().await, class);
            assert_eq!(stage.responder.count(), 2, "a no is remembered too");
            let now = stage.world.clock.now();
            let push = stage
                .authority
                .notification(now, "n-1", &stage.authority.transaction(now));
            let answer = stage.push(&push).await;
            assert_eq!(
                (answer.status, &answer.body["details"]["class"]),
                (401, &json!(class))
            );
            // An old cached answer does not undo a revocation.
            let before = Saying {
                this_update: -600,
                ..Saying::default()
            };
            stage.responder.says(path, before);
            stage.advance(MINUTE);
            assert_no(&stage.ask().await, class);
            // Not forever: the revocation may have been a mistake.
            stage.responder.says(path, Saying::default());
            stage.advance(MINUTE);
            assert_yes(&stage.ask().await);
            stage.world.end().await;
        }
    }
}

#[tokio::test]
async fn a_definite_refusal_takes_precedence_over_an_unknown_status() {
    let stage = Stage::new().await;
    stage.responder.set("/intermediate", Manner::HangsUp);
    stage.responder.says(
        "/leaf",
        Saying {
            word: revoked(),
            ..Saying::default()
        },
    );
    assert_no(&stage.ask().await, "revoked");
    stage.world.end().await;
}

/// Every unusable answer, and its reason.
#[expect(clippy::too_many_lines, reason = "a table")]
fn unusable() -> Vec<(&'static str, Saying, OcspResponseError)> {
    let by = |delegate| Saying {
        by: By::Delegate(delegate),
        ..Saying::default()
    };
    let good = Saying::default;
    vec![
        (
            "another issuer's name",
            Saying {
                other_name: true,
                ..good()
            },
            OcspResponseError::CertificateMismatch,
        ),
        (
            "another issuer's key",
            Saying {
                other_key: true,
                ..good()
            },
            OcspResponseError::CertificateMismatch,
        ),
        (
            "another number",
            Saying {
                other_serial: true,
                ..good()
            },
            OcspResponseError::CertificateMismatch,
        ),
        (
            "stale",
            Saying {
                next_update: Some(-61),
                this_update: -900,
                ..good()
            },
            OcspResponseError::Expired,
        ),
        (
            "no end",
            Saying {
                next_update: None,
                ..good()
            },
            OcspResponseError::Expired,
        ),
        (
            "future",
            Saying {
                this_update: 61,
                ..good()
            },
            OcspResponseError::NotYetValid,
        ),
        (
            "altered",
            Saying {
                altered: true,
                ..good()
            },
            OcspResponseError::BadSignature,
        ),
        (
            "demanding",
            Saying {
                critical: true,
                ..good()
            },
            OcspResponseError::CriticalExtension,
        ),
        (
            "version 2",
            Saying {
                version: Some(1),
                ..good()
            },
            OcspResponseError::NotAResponse,
        ),
        (
            "another usage",
            by(Delegate {
                usage: Some(false),
                ..DELEGATE
            }),
            OcspResponseError::SignerNotAuthorized,
        ),
        (
            "no usage",
            by(Delegate {
                usage: None,
                ..DELEGATE
            }),
            OcspResponseError::SignerNotAuthorized,
        ),
        (
            "expired",
            by(Delegate {
                days: (-10, -1),
                ..DELEGATE
            }),
            OcspResponseError::SignerNotAuthorized,
        ),
        (
            "of tomorrow",
            by(Delegate {
                days: (1, 10),
                ..DELEGATE
            }),
            OcspResponseError::SignerNotAuthorized,
        ),
        (
            "issued by the root",
            by(Delegate {
                issued_by: IssuedBy::TheRoot,
                ..DELEGATE
            }),
            OcspResponseError::SignerNotAuthorized,
        ),
        (
            "issued by a stranger of the same name",
            by(Delegate {
                issued_by: IssuedBy::Stranger,
                ..DELEGATE
            }),
            OcspResponseError::SignerNotAuthorized,
        ),
        (
            "not enclosed",
            by(Delegate {
                enclosed: false,
                ..DELEGATE
            }),
            OcspResponseError::UnknownSigner,
        ),
    ]
}

#[test]
fn every_unusable_ocsp_response_has_its_own_reason() {
    let authority = Authority::new(None, (-300, 300));
    let subject = ChainCertificate::new(&authority.leaf, &authority.intermediate).unwrap();
    let read =
        |der: &[u8]| response::verify_response(der, &subject, start()).map(|answer| answer.status);
    for (what, saying, why) in unusable() {
        // A "revoked" that cannot be verified is not accepted either.
        for word in [GOOD.to_vec(), revoked()] {
            let der = Saying {
                word,
                ..saying.clone()
            }
            .der(&authority, "/leaf", start());
            assert_eq!(read(&der), Err(why), "{what}");
        }
    }
    for (status, word) in [
        (1, "malformedRequest"),
        (2, "internalError"),
        (3, "tryLater"),
        (5, "sigRequired"),
        (6, "unauthorized"),
    ] {
        assert_eq!(
            read(&declining(status)),
            Err(OcspResponseError::ErrorStatus(word))
        );
    }
    for nonsense in [
        vec![],
        declining(0),
        declining(4),
        b"<html>Sign in</html>".to_vec(),
    ] {
        assert_eq!(read(&nonsense), Err(OcspResponseError::NotAResponse));
    }
    // A clock difference of one minute is tolerated.
    for (this_update, next_update) in [(60, 3600), (-900, -60)] {
        let saying = Saying {
            this_update,
            next_update: Some(next_update),
            ..Saying::default()
        };
        assert_eq!(
            read(&saying.der(&authority, "/leaf", start())),
            Ok(RevocationStatus::Good)
        );
    }
    // Nor does an answer about the intermediate apply to the leaf.
    let other = Saying::default().der(&authority, "/intermediate", start());
    assert_eq!(read(&other), Err(OcspResponseError::UnknownSigner));
}

#[tokio::test]
async fn an_unusable_ocsp_response_means_try_again() {
    let stage = Stage::new().await;
    let sayings = unusable().into_iter();
    let sayings = sayings.map(|(what, saying, _)| (what, Manner::Says(saying)));
    let others = [
        ("try later", Manner::Sends(200, declining(3))),
        (
            "a sign-in page",
            Manner::Sends(200, b"<html>Sign in</html>".to_vec()),
        ),
        ("not found", Manner::Sends(404, vec![])),
        ("a redirect", Manner::Sends(302, vec![])),
        ("an error", Manner::Sends(500, vec![])),
        ("too much", Manner::Sends(200, vec![0; 64 * 1024 + 1])),
        ("nothing", Manner::HangsUp),
    ];
    for (what, manner) in sayings.chain(others) {
        stage.responder.set("/leaf", manner);
        let before = stage.responder.count();
        let answer = stage.ask().await;
        assert_eq!(answer.status, 502, "{what}: {}", answer.body);
        assert_again(&answer);
        let asked = stage.responder.count();
        assert!(asked > before, "{what}");
        // Many identical requests send only one OCSP query.
        assert_again(&stage.ask().await);
        assert_eq!(stage.responder.count(), asked, "{what}");
        stage.advance(PAUSE);
    }
    stage.responder.says("/leaf", Saying::default());
    assert_yes(&stage.ask().await);
    stage.world.end().await;
}

#[tokio::test]
async fn a_slow_ocsp_response_times_out() {
    let stage = Stage::with(&[("UPSTREAM_TIMEOUT_SECONDS", "1")]).await;
    stage.responder.set("/leaf", Manner::Dawdles);
    assert_again(&stage.ask().await);
    stage.world.end().await;
}

#[tokio::test]
async fn during_an_ocsp_outage_known_chains_pass_and_new_ones_must_retry() {
    let stage = Stage::new().await;
    stage.responder.all(&Manner::HangsUp);
    assert_again(&stage.ask().await);
    // The responder is back: its answer is good for an hour.
    stage.responder.all(&Manner::Says(Saying::default()));
    stage.advance(PAUSE);
    assert_yes(&stage.ask().await);

    // The responder is down and the answer is no longer fresh: requests do not wait, the query runs
    // in the background.
    stage.responder.all(&Manner::HangsUp);
    stage.advance(16 * MINUTE);
    let before = stage.responder.count();
    assert_yes(&stage.ask().await);
    stage.responder.until(before + 2).await;

    // The cached answer has expired: the responder is queried first; without an answer the old one
    // is used for a day.
    stage.advance(HOUR);
    let before = stage.responder.count();
    assert_yes(&stage.ask().await);
    assert!(stage.responder.count() >= before + 2, "it was asked before");
    stage.advance(23 * HOUR + 43 * MINUTE);
    assert_yes(&stage.ask().await);
    stage.advance(2 * MINUTE);
    assert_again(&stage.ask().await);

    // The responder is back.
    stage.responder.all(&Manner::Says(Saying::default()));
    stage.advance(PAUSE);
    assert_yes(&stage.ask().await);
    stage.world.end().await;
}

#[tokio::test]
async fn a_revocation_is_noticed_while_the_cached_response_is_valid() {
    let stage = Stage::new().await;
    assert_yes(&stage.ask().await);
    stage.responder.says(
        "/leaf",
        Saying {
            word: revoked(),
            ..Saying::default()
        },
    );
    stage.advance(14 * MINUTE);
    assert_yes(&stage.ask().await);
    assert_eq!(stage.responder.count(), 2);
    stage.advance(MINUTE);
    let heard = async {
        // The first of these starts a query in the background.
        while stage.ask().await.body["valid"] == true {
            tokio::task::yield_now().await;
        }
    };
    finished("the revocation is known", heard).await;
    assert_no(&stage.ask().await, "revoked");
    assert_eq!(stage.responder.count(), 4, "each once more");

    // An outage does not undo a revocation.
    stage.responder.all(&Manner::HangsUp);
    stage.advance(2 * HOUR);
    assert_no(&stage.ask().await, "revoked");
    stage.world.end().await;
}

#[tokio::test]
async fn a_notification_with_unknown_ocsp_status_is_accepted_when_apple_retries() {
    let stage = Stage::new().await;
    let now = stage.world.clock.now();
    let authority = &stage.authority;
    let push = authority.notification(now, "n-1", &authority.transaction(now));
    stage.responder.all(&Manner::HangsUp);
    let answer = stage.push(&push).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (503, &json!("UNAVAILABLE"))
    );
    assert!(answer.headers.contains_key("retry-after"));
    stage.responder.all(&Manner::Says(Saying::default()));
    stage.advance(PAUSE);
    assert_eq!(stage.push(&push).await.status, 200);

    // The certificate of the inner JWS is queried too: here it has another leaf.
    let url = format!("http://{}/other", stage.responder.address);
    let (leaf, key) = authority.issue(4, Some(url), (-300, 300));
    let inner = authority.sign_as(&leaf, &key, &transaction(now));
    let push = authority.notification(now, "n-2", &inner);
    stage.responder.set("/other", Manner::HangsUp);
    assert_eq!(stage.push(&push).await.status, 503);
    stage.advance(PAUSE);
    let other = Authority::new(None, (-1, 1));
    let about_another = Saying::default().der(&other, "/leaf", now);
    stage
        .responder
        .set("/other", Manner::Sends(200, about_another));
    assert_eq!(
        stage.push(&push).await.status,
        503,
        "another authority's word"
    );
    stage.world.end().await;
}

#[tokio::test]
async fn with_ocsp_the_current_time_counts_and_a_responder_is_required() {
    let responder = Responder::new().await;
    let expired = Authority::new(Some(responder.address), (-800, -400));
    let stage = Stage::of(expired, responder, &[]).await;
    let then = stage.world.clock.now().minus(600 * DAY);
    let old = stage.authority.transaction(then);
    assert_no(&stage.ask_about(&old).await, "certificate_expired");
    assert_eq!(
        stage.responder.count(),
        0,
        "nobody is asked about what is refused anyway"
    );
    let (leaf, key) = stage.authority.issue(5, None, (-300, 300));
    let mute = stage.authority.sign_as(&leaf, &key, &transaction(start()));
    assert_no(&stage.ask_about(&mute).await, "no_responder");
    stage.world.end().await;

    // With OCSP off, the default, neither matters, and no request is sent.
    let responder = Responder::new().await;
    let expired = Authority::new(Some(responder.address), (-800, -400));
    let stage = Stage::of(expired, responder, &[("APPLE_OCSP", "off")]).await;
    assert_yes(&stage.ask_about(&stage.authority.transaction(then)).await);
    let (leaf, key) = stage.authority.issue(5, None, (-300, 300));
    let mute = stage.authority.sign_as(&leaf, &key, &transaction(start()));
    assert_yes(&stage.ask_about(&mute).await);
    assert_eq!(stage.responder.count(), 0);
    stage.world.end().await;
}

#[test]
fn with_apples_roots_only_apples_responder_is_queried() {
    for (address, is_apples) in [
        ("http://ocsp.apple.com/ocsp03-wwdrg602", true),
        ("https://apple.com/", true),
        ("http://ocsp.apple.com:8080/", false),
        ("http://ocsp.apple.com.example/", false),
        ("http://pineapple.com/", false),
        ("http://127.0.0.1/", false),
        ("http://[::1]/", false),
        ("http://169.254.169.254/latest", false),
        ("http://localhost/", false),
    ] {
        let url = address.parse().unwrap();
        assert_eq!(
            ResponderPolicy::for_roots(false).allows_url(&url),
            is_apples,
            "{address}"
        );
        assert!(
            ResponderPolicy::for_roots(true).allows_url(&url),
            "{address}"
        );
    }
}

proptest! {
    #[test]
    fn malformed_ocsp_responses_are_refused(bytes: Vec<u8>) {
        let (subject, _) = &*PROBE;
        prop_assert!(response::verify_response(&bytes, subject, start()).is_err());
    }

    #[test]
    fn an_ocsp_response_with_any_byte_changed_is_refused(at: prop::sample::Index, by in 1..=255_u8) {
        let (subject, good) = &*PROBE;
        let mut changed = good.clone();
        let at = at.index(changed.len());
        changed[at] ^= by;
        prop_assert!(response::verify_response(good, subject, start()).is_ok());
        prop_assert!(response::verify_response(&changed, subject, start()).is_err());
    }
}

static PROBE: std::sync::LazyLock<(ChainCertificate, Vec<u8>)> = std::sync::LazyLock::new(|| {
    let authority = Authority::new(None, (-300, 300));
    let subject = ChainCertificate::new(&authority.leaf, &authority.intermediate).unwrap();
    let good = Saying::default().der(&authority, "/leaf", start());
    (subject, good)
});
