//! Client certificates: each callback is shown its own, and no other callback uses its connections.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use attesto::deliveries::endpoint::store;
use attesto::deliveries::endpoint::{
    ClientCertificate, ClientCertificateChange, ClientCertificateError, EndpointChange,
};
use attesto::deliveries::sender::{ProbeOutcome, TlsTrust};
use attesto::deliveries::{
    AttemptOutcome, DeliveryJob, JobSender as _, OutcomeClass, Sender, SenderSettings,
    SigningSender,
};
use attesto::egress::{AllowList, EgressPolicy};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use serde_json::Value;

use crate::delivery_errors::{Authorities, leaf, pinging, receiver_with_client_certificates};
use crate::egress_proxy::sender_through;
use crate::metrics::count;
use crate::webhook_egress::attempt;
use crate::webhook_end_to_end::secret;
use crate::world::attesto::World;
use crate::world::connect_proxy::{ConnectProxy, Manner};
use crate::world::log::Warnings;
use crate::world::wait::HANG_LIMIT;

const SERIES: &str = "attesto_client_certificate_expiry_timestamp_seconds";
const DAY: Duration = Duration::from_hours(24);

fn client(name: &str) -> CertificateParams {
    let mut params = leaf(&[]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// PEM files of a certificate and of its key.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn issued_by(authorities: &Authorities, params: &CertificateParams) -> Self {
        let (chain, key) = authorities.issue(params);
        let certificate = STANDARD.encode(&chain[0]);
        Self {
            certificate: format!(
                "-----BEGIN CERTIFICATE-----\n{certificate}\n-----END CERTIFICATE-----\n"
            ),
            key: key.serialize_pem(),
        }
    }

    fn read(&self, now: Timestamp) -> ClientCertificate {
        ClientCertificate::from_pem(self.certificate.as_bytes(), self.key.as_bytes(), now).unwrap()
    }

    /// The paths of the certificate and of the key.
    fn write(&self, folder: &Path) -> [String; 2] {
        let texts = [("client.pem", &self.certificate), ("client.key", &self.key)];
        texts.map(|(name, text)| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        })
    }
}

async fn show(world: &World, tenant: &TenantId, url: &str, certificate: &ClientCertificate) {
    let change = EndpointChange {
        callback_url: Some(url),
        secret: Some(&secret("s")),
        client_certificate: Some(ClientCertificateChange::Set(certificate)),
        ..EndpointChange::default()
    };
    store::change_endpoint(world.database(), world.keyring(), tenant, &change)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_callback_that_asks_for_a_client_certificate_gets_the_one_that_was_set() {
    let (world, tenant, authorities, shell) = pinging().await;
    // Without TLS 1.3 the receiver refuses in the handshake, so that a probe sees it too.
    let versions = [&rustls::version::TLS12];
    let receiver = receiver_with_client_certificates(&authorities, &["localhost"], &versions).await;
    let url = format!("https://localhost:{}/", receiver.address.port());
    let pair = Pair::issued_by(&authorities, &client("attesto of acme"));
    let [certificate, key] = pair.write(&authorities.folder);
    let set = async |more: &[&str]| {
        let words = [&["webhook", "set-config", &tenant], more].concat();
        let ran = shell.run_async(&words, "").await;
        assert_eq!(ran.exit, 0, "{}", ran.complained);
        ran.assert_hides(pair.key.lines().nth(1).unwrap());
        ran.json()["clientCertificate"].clone()
    };
    let get = async || {
        let ran = shell.run_async(&["webhook", "get", &tenant], "").await;
        ran.assert_hides(pair.key.lines().nth(1).unwrap());
        ran.json()
    };
    let ping = async || {
        shell
            .run_async(&["webhook", "ping", &tenant], "")
            .await
            .json()
    };
    let probe = async || {
        let ran = shell.run_async(&["jobs", "run", "probe"], "").await;
        assert_eq!(ran.exit, 0, "{}", ran.complained);
        get().await["probe"]["result"].clone()
    };

    assert_eq!(set(&["--callback-url", &url]).await, Value::Null);
    assert_eq!(ping().await["outcome"], "tls");
    assert_eq!(probe().await, "tls");

    let files = [
        "--client-certificate-path",
        &certificate,
        "--client-key-path",
        &key,
    ];
    let shown = set(&files).await;
    assert!(
        shown["subject"]
            .as_str()
            .unwrap()
            .contains("CN=attesto of acme"),
        "{shown}"
    );
    assert!(
        shown["issuer"]
            .as_str()
            .unwrap()
            .contains("CN=A trusted root"),
        "{shown}"
    );
    assert_eq!(shown["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(shown["notAfter"], "4096-01-01T00:00:00.000Z");
    assert_eq!(get().await["clientCertificate"], shown);
    assert_eq!(ping().await["outcome"], "success");
    assert_eq!(probe().await, "reachable");
    assert_eq!(receiver.requests().len(), 1);

    // Another change keeps it; the other spelling of the flags sets it again.
    assert_eq!(set(&["--is-active", "true"]).await, shown);
    let files = [
        "--client-certificate-file",
        &certificate,
        "--client-key-file",
        &key,
    ];
    assert_eq!(set(&files).await, shown);
    assert_eq!(ping().await["outcome"], "success");

    assert_eq!(set(&["--no-client-certificate"]).await, Value::Null);
    assert_eq!(ping().await["outcome"], "tls");
    let left: i64 = sqlx::query_scalar("select count(*) from webhook_client_certificates")
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    assert_eq!(left, 0, "the key is deleted");
    world.end().await;
}

#[tokio::test]
async fn a_connection_is_used_again_only_for_the_certificate_that_it_was_opened_with() {
    let world = World::new().await;
    let now = world.clock.now();
    let (authorities, others) = (Authorities::new(), Authorities::new());
    let address = ["127.0.0.1"];
    let receiver =
        receiver_with_client_certificates(&authorities, &address, rustls::ALL_VERSIONS).await;
    let url = format!("https://{}/hook", receiver.address);
    let [a, b, refused, without] = [
        world.stranger().await.id,
        world.stranger().await.id,
        world.stranger().await.id,
        world.stranger().await.id,
    ];
    for (tenant, issuer) in [(&a, &authorities), (&b, &authorities), (&refused, &others)] {
        let pair = Pair::issued_by(issuer, &client(tenant.as_str()));
        show(&world, tenant, &url, &pair.read(now)).await;
    }
    let change = EndpointChange {
        callback_url: Some(&url),
        ..EndpointChange::default()
    };
    store::change_endpoint(world.database(), world.keyring(), &without, &change)
        .await
        .unwrap();

    let settings = SenderSettings {
        tls_trust: TlsTrust::OnlyRoots(authorities.roots()),
        idle_timeout: HANG_LIMIT,
        ..SenderSettings::new(HANG_LIMIT, EgressPolicy::new(true))
    };
    let sender = Sender::new(settings, &Clock::fixed(now)).unwrap();
    let signing = SigningSender::new(sender.clone(), world.database(), world.keyring());
    let send = async |tenant: &TenantId| -> AttemptOutcome {
        let job = DeliveryJob {
            id: DeliveryId::mint(now),
            event_id: EventId::mint(now),
            tenant_id: tenant.clone(),
            callback: CallbackNumber::FIRST,
            event_type: "subscription.renewed".into(),
            attempt_number: 1,
            callback_url: url.clone(),
            body: "{}".into(),
        };
        signing.send_batch(vec![Arc::new(job)]).remove(0).await
    };
    for (tenant, class, connections, words) in [
        (&a, OutcomeClass::Success, 1, ""),
        (&a, OutcomeClass::Success, 1, ""),
        (&b, OutcomeClass::Success, 2, ""),
        (
            &refused,
            OutcomeClass::Tls,
            3,
            "refuses the client certificate",
        ),
        (
            &without,
            OutcomeClass::Tls,
            4,
            "asks for a client certificate",
        ),
        (&a, OutcomeClass::Success, 4, ""),
        (&b, OutcomeClass::Success, 4, ""),
    ] {
        let outcome = send(tenant).await;
        assert_eq!(outcome.class(), class, "{outcome:?}");
        assert!(
            outcome.detail().unwrap_or_default().contains(words),
            "{outcome:?}"
        );
        assert_eq!(receiver.connections(), connections, "{tenant}");
    }
    // A probe opens a connection of its own.
    let tenants = std::slice::from_ref(&a);
    let mut endpoints = store::load_endpoints(world.database(), world.keyring(), tenants)
        .await
        .unwrap();
    let shown = endpoints
        .remove(&(a.clone(), CallbackNumber::FIRST))
        .unwrap()
        .unwrap()
        .client_certificate;
    let none = AllowList::default();
    let probe = sender.probe_callback(&url, &none, shown.as_ref()).await;
    assert!(matches!(probe, ProbeOutcome::Reachable { .. }), "{probe:?}");
    assert_eq!(receiver.connections(), 5);
    world.end().await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_through_the_egress_proxy_to_the_callback_alone() {
    let authorities = Authorities::new();
    let names = ["hooks.example.com"];
    let receiver =
        receiver_with_client_certificates(&authorities, &names, rustls::ALL_VERSIONS).await;
    let proxy = ConnectProxy::new(Manner::TunnelTo(receiver.address)).await;
    let public = IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34));
    let sender = sender_through(&proxy.url(), vec![public], authorities.roots(), false);
    let mut delivery = attempt("https://hooks.example.com/hook");
    let outcome = delivery.send(&sender).await;
    assert_eq!(outcome.class(), OutcomeClass::Tls, "{outcome:?}");

    let pair = Pair::issued_by(&authorities, &client("attesto"));
    delivery.endpoint.client_certificate = Some(pair.read(crate::webhook_egress::now()));
    for _ in 0..2 {
        let outcome = delivery.send(&sender).await;
        assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
    }
    assert_eq!(receiver.requests().len(), 2);
    assert_eq!(proxy.targets(), ["93.184.216.34:443", "93.184.216.34:443"]);
}

#[test]
fn what_a_receiver_would_refuse_is_refused_with_a_sentence() {
    let now = Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap();
    let authorities = Authorities::new();
    let good = Pair::issued_by(&authorities, &client("attesto"));
    let mut expired = client("attesto");
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut early = client("attesto");
    early.not_before = rcgen::date_time_ymd(4000, 1, 1);
    let other = KeyPair::generate().unwrap().serialize_pem();
    let pem = |label: &str, body: &str| {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    };
    let encrypted = &*pem("ENCRYPTED PRIVATE KEY", "MIH=");
    let older = &*pem(
        "EC PRIVATE KEY",
        "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0\n\nMIH=",
    );
    let expired = Pair::issued_by(&authorities, &expired);
    let early = Pair::issued_by(&authorities, &early);
    let cut = &good.certificate[..good.certificate.len() / 2];
    for (certificate, key, words) in [
        (
            &*good.certificate,
            &*other,
            "the key does not belong to the client certificate",
        ),
        (
            &expired.certificate,
            &expired.key,
            "expired at 2020-01-01T00:00:00.000Z",
        ),
        (
            &early.certificate,
            &early.key,
            "not valid before 4000-01-01",
        ),
        (
            &good.certificate,
            encrypted,
            "without a passphrase with `openssl pkey",
        ),
        (
            &good.certificate,
            older,
            "without a passphrase with `openssl pkey",
        ),
        (
            &good.certificate,
            &good.certificate,
            "with a whole private key",
        ),
        (
            &good.key,
            &good.key,
            "must be PEM, with the certificate first",
        ),
        (cut, &good.key, "must be PEM, with the certificate first"),
        ("", &good.key, "must be PEM, with the certificate first"),
    ] {
        let read = ClientCertificate::from_pem(certificate.as_bytes(), key.as_bytes(), now);
        let error: ClientCertificateError = read.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
    // One file may hold both, in either order.
    let both = format!("{}{}", good.key, good.certificate);
    let read = ClientCertificate::from_pem(both.as_bytes(), both.as_bytes(), now).unwrap();
    let debug = format!("{read:?}");
    assert!(debug.len() < 100 && !debug.contains("BEGIN"), "{debug}");
}

#[tokio::test]
async fn the_command_says_what_is_wrong_with_a_pair_and_changes_nothing() {
    let (world, tenant, authorities, shell) = pinging().await;
    let good = Pair::issued_by(&authorities, &client("attesto"));
    let [certificate, key] = good.write(&authorities.folder);
    let other = authorities.folder.join("other.key");
    let text = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(&other, &text).unwrap();
    let other = other.to_str().unwrap();
    for (more, words) in [
        (
            &[
                "--client-certificate-path",
                &*certificate,
                "--client-key-path",
                other,
            ][..],
            "the key does not belong to the client certificate",
        ),
        (
            &["--client-certificate-path", &certificate],
            "--client-key-path",
        ),
        (&["--client-key-path", &key], "--client-certificate-path"),
        (
            &[
                "--no-client-certificate",
                "--client-certificate-path",
                &certificate,
                "--client-key-path",
                &key,
            ],
            "cannot be used with",
        ),
        (
            &[
                "--client-certificate-path",
                "/nowhere/client.pem",
                "--client-key-path",
                &key,
            ],
            "cannot read /nowhere/client.pem",
        ),
    ] {
        let url = [
            "webhook",
            "set-config",
            &tenant,
            "--callback-url",
            "https://127.0.0.1/",
        ];
        let ran = shell.run_async(&[&url, more].concat(), "").await;
        assert_ne!(ran.exit, 0);
        assert!(ran.complained.contains(words), "{}", ran.complained);
        ran.assert_hides(text.lines().nth(1).unwrap());
    }
    let ran = shell.run_async(&["webhook", "get", &tenant], "").await;
    assert_eq!(ran.exit, 1, "no callback was made: {}", ran.said);
    world.end().await;
}

#[tokio::test]
async fn a_client_certificate_that_expires_soon_is_told_by_metric_job_and_doctor() {
    let world = World::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let tenant = world.stranger().await.id;
    assert_eq!(count(&world.metrics().await, SERIES), 0);

    let mut params = client("attesto");
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 5, 1);
    let authorities = Authorities::new();
    let certificate = Pair::issued_by(&authorities, &params).read(world.clock.now());
    show(&world, &tenant, "https://127.0.0.1/", &certificate).await;
    let end = Timestamp::parse("2026-05-01T00:00:00.000Z").unwrap();

    let warnings = Warnings::listen();
    assert_eq!(world.run_job("expiry").await["clientCertificates"], 0);
    assert_eq!(
        count(&world.metrics().await, SERIES),
        u64::try_from(end.as_secs()).unwrap()
    );
    world.pass(DAY * 7).await;
    assert_eq!(world.run_job("expiry").await["clientCertificates"], 1);
    let told = warnings.of("certificate_expires_soon");
    let [line] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(line["certificate"], "client_certificate");
    assert_eq!(line["tenantId"], tenant.as_str());
    assert_eq!(line["endsAt"], end.to_string());
    assert!(
        line["advice"]
            .as_str()
            .unwrap()
            .contains("--client-certificate-path")
    );

    // A callback that is switched off needs none.
    let change = EndpointChange {
        is_active: Some(false),
        ..EndpointChange::default()
    };
    store::change_endpoint(world.database(), world.keyring(), &tenant, &change)
        .await
        .unwrap();
    assert_eq!(world.run_job("expiry").await["clientCertificates"], 0);
    assert_eq!(count(&world.metrics().await, SERIES), 0);
    world.end().await;
}
