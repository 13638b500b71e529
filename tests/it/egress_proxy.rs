//! `ATTESTO_EGRESS_PROXY`: everything goes through it, judged as without it, and its password is shown nowhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use attesto::deliveries::sender::TlsTrust;
use attesto::deliveries::{AttemptOutcome, OutcomeClass, Sender, SenderSettings};
use attesto::egress::{AllowList, EgressPolicy, EgressProxy, LookupError, Resolver};
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::NewSubscription;
use futures_util::FutureExt as _;
use rustls::RootCertStore;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::webhook_egress::{attempt, now};
use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::{APP, World};
use crate::world::connect_proxy::{ConnectProxy, Manner};
use crate::world::folder::Folder;
use crate::world::log::Warnings;
use crate::world::receiver::{Place, Receiver, certificate, say};
use crate::world::shell::Shell;
use crate::world::wait::HANG_LIMIT;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PASSWORD: &str = "planted-proxy-password";
/// The base64 of `operator:planted-proxy-password`.
const BASIC: &str = "b3BlcmF0b3I6cGxhbnRlZC1wcm94eS1wYXNzd29yZA==";
const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34));

/// A sender through the proxy that finds every name at these addresses.
pub(crate) fn sender_through(
    proxy: &str,
    found: Vec<IpAddr>,
    roots: RootCertStore,
    private: bool,
) -> Sender {
    let resolver = Resolver::from_fn(move |_| {
        let found = found.clone();
        async move { Ok(found) }.boxed()
    });
    sender_with(proxy, resolver, roots, private, HANG_LIMIT)
}

fn sender_with(
    proxy: &str,
    resolver: Resolver,
    roots: RootCertStore,
    private: bool,
    timeout: Duration,
) -> Sender {
    let settings = SenderSettings {
        resolver,
        tls_trust: TlsTrust::OnlyRoots(roots),
        ..SenderSettings::new(timeout, EgressPolicy::new(private))
    };
    let proxy = EgressProxy::parse(proxy).unwrap();
    let clock = attesto::base::clock::Clock::fixed(now());
    Sender::new(settings.with_proxy(Some(proxy)), &clock).unwrap()
}

fn with_password(proxy: &ConnectProxy) -> String {
    proxy.url_with(&format!("operator:{PASSWORD}"))
}

#[tokio::test]
async fn a_delivery_goes_to_the_judged_address_by_tls_inside_the_tunnel() {
    let (tls, roots) = certificate(&["hooks.example.com"]);
    let receiver = Receiver::new(Place::loopback().with_tls(tls), Arc::new(say(OK))).await;
    let proxy = ConnectProxy::new(Manner::TunnelTo(receiver.address)).await;
    let sender = sender_through(&with_password(&proxy), vec![PUBLIC], roots.clone(), false);
    let delivery = attempt("https://hooks.example.com/hook?key=1");
    for _ in 0..2 {
        let outcome = delivery.send(&sender).await;
        assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
    }
    assert_eq!(receiver.requests().len(), 2);
    assert_eq!(receiver.requests()[0].headers["host"], "hooks.example.com");
    let [head] = &proxy.heads()[..] else {
        panic!("the tunnel is used again: {:?}", proxy.heads());
    };
    let head = head.to_ascii_lowercase();
    for line in [
        "connect 93.184.216.34:443 http/1.1\r\n",
        "host: 93.184.216.34:443\r\n",
        &format!("proxy-authorization: basic {}\r\n", BASIC.to_lowercase()),
    ] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    assert!(proxy.heads()[0].contains(BASIC));
    let seen = &receiver.requests()[0].headers;
    assert!(!seen.contains_key("proxy-authorization"), "{seen:?}");

    // The certificate must be one for the name, as without a proxy.
    let delivery = attempt("https://elsewhere.example.com/");
    let outcome = delivery.send(&sender).await;
    assert_eq!(outcome.class(), OutcomeClass::Tls, "{outcome:?}");
}

#[tokio::test]
async fn a_refused_address_is_not_asked_for_and_an_allowed_one_in_plain_http_is() {
    let receiver = Receiver::answering(OK).await;
    let proxy = ConnectProxy::new(Manner::Tunnel).await;
    for found in [
        vec![receiver.address.ip()],
        vec![PUBLIC, receiver.address.ip()],
        vec!["169.254.169.254".parse().unwrap()],
    ] {
        let sender = sender_through(&proxy.url(), found, RootCertStore::empty(), false);
        let url = format!("https://hooks.example.com:{}/", receiver.address.port());
        let outcome = attempt(&url).send(&sender).await;
        assert_eq!(outcome.class(), OutcomeClass::Blocked, "{outcome:?}");
    }
    assert!(proxy.heads().is_empty());

    let allowed = vec![receiver.address.ip()];
    let sender = sender_through(&proxy.url(), allowed, RootCertStore::empty(), false);
    let mut delivery = attempt(&format!(
        "http://hooks.internal:{}/hook",
        receiver.address.port()
    ));
    let network: attesto::egress::AllowedNetwork = receiver.address.to_string().parse().unwrap();
    delivery.endpoint.allow_list = AllowList::new(vec![network.with_http(true)]);
    let outcome = delivery.send(&sender).await;
    assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
    assert_eq!(proxy.targets(), [receiver.address.to_string()]);
    assert!(!proxy.heads()[0].contains("uthorization"));
}

#[tokio::test]
async fn a_name_that_resolves_only_at_the_proxy_is_not_called() {
    let proxy = ConnectProxy::new(Manner::Tunnel).await;
    for (error, class) in [
        (LookupError::NoAddress, "Refused"),
        (LookupError::ResolverUnavailable, "NotAttempted"),
    ] {
        let resolver = Resolver::from_fn(move |_| {
            let error = error.clone();
            async move { Err(error) }.boxed()
        });
        let roots = RootCertStore::empty();
        let sender = sender_with(&proxy.url(), resolver, roots, false, HANG_LIMIT);
        let outcome = attempt("https://hooks.example.com/").send(&sender).await;
        assert_eq!(outcome.class(), OutcomeClass::Dns, "{outcome:?}");
        let text = format!("{outcome:?}");
        assert!(text.starts_with(class), "{text}");
        assert!(text.contains("not by the egress proxy"), "{text}");
    }
    assert!(proxy.heads().is_empty());
}

#[tokio::test]
async fn another_address_is_tried_when_the_proxy_does_not_reach_the_first() {
    let receiver = Receiver::answering(OK).await;
    let manner = Manner::RefuseOne("127.0.0.2:8000", receiver.address);
    let proxy = ConnectProxy::new(manner).await;
    let found = vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
    let sender = sender_through(&proxy.url(), found, RootCertStore::empty(), true);
    let outcome = attempt("http://hooks.test:8000/").send(&sender).await;
    assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
    assert_eq!(proxy.targets(), ["127.0.0.2:8000", "127.0.0.3:8000"]);
}

/// An address of this machine at which nothing listens.
async fn unused_address() -> SocketAddr {
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    unused.local_addr().unwrap()
}

#[tokio::test]
async fn what_the_proxy_does_wrong_is_said_and_counts_only_against_a_target() {
    let unused = unused_address().await;
    for (manner, is_attempt, words) in [
        (
            Manner::Answer("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"),
            false,
            "refuses the user name and the password in ATTESTO_EGRESS_PROXY (407)",
        ),
        (
            Manner::Answer("HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nno!"),
            true,
            "does not allow connections to 93.184.216.34:443 (403)",
        ),
        (
            Manner::Answer("HTTP/1.1 502 No\r\n\r\n"),
            true,
            "cannot connect to 93.184.216.34:443 (502)",
        ),
        (
            Manner::Answer("HTTP/1.1 500 Unable to connect\r\n\r\n"),
            true,
            "cannot connect to 93.184.216.34:443 (500)",
        ),
        (
            Manner::Answer("HTTP/1.1 405 No\r\n\r\n"),
            false,
            "answered 405 to CONNECT",
        ),
        (
            Manner::Answer("SSH-2.0-x\r\n\r\n"),
            false,
            "does not answer as an HTTP proxy does",
        ),
        (
            Manner::Answer("HTTP/1.1 200 OK\r\n\r\n220 hello"),
            false,
            "sends more than the head of its answer",
        ),
        (
            Manner::Close,
            false,
            "does not answer as an HTTP proxy does",
        ),
    ] {
        let proxy = ConnectProxy::new(manner).await;
        let url = with_password(&proxy);
        let sender = sender_through(&url, vec![PUBLIC], RootCertStore::empty(), false);
        let outcome = attempt("https://hooks.example.com/").send(&sender).await;
        check_failure(&outcome, is_attempt, words);
        assert!(format!("{outcome:?}").contains(&format!("http://…@{}", proxy.address)));
    }
    let url = format!("http://operator:{PASSWORD}@{unused}");
    let sender = sender_through(&url, vec![PUBLIC], RootCertStore::empty(), false);
    let outcome = attempt("https://hooks.example.com/").send(&sender).await;
    check_failure(&outcome, false, "cannot be reached");

    let proxy = ConnectProxy::new(Manner::Answer("HTTP/1.1 407 No\r\n\r\n")).await;
    let sender = sender_through(&proxy.url(), vec![PUBLIC], RootCertStore::empty(), false);
    let outcome = attempt("https://hooks.example.com/").send(&sender).await;
    check_failure(&outcome, false, "requires a user name and a password (407)");

    // The limit is not what is tested: the proxy never answers.
    let proxy = ConnectProxy::new(Manner::Silence).await;
    let resolver = Resolver::from_fn(|_| async { Ok(vec![PUBLIC]) }.boxed());
    let (roots, timeout) = (RootCertStore::empty(), Duration::from_secs(1));
    let sender = sender_with(&with_password(&proxy), resolver, roots, false, timeout);
    let outcome = attempt("https://hooks.example.com/").send(&sender).await;
    check_failure(&outcome, true, "made no connection to 93.184.216.34:443");
}

fn check_failure(outcome: &AttemptOutcome, is_attempt: bool, words: &str) {
    assert_eq!(outcome.class(), OutcomeClass::Proxy, "{outcome:?}");
    let is_counted = matches!(outcome, AttemptOutcome::Refused { .. });
    assert_eq!(is_counted, is_attempt, "{outcome:?}");
    let detail = outcome.detail().unwrap();
    assert!(detail.contains(words), "{detail}");
    assert!(
        !detail.contains(PASSWORD) && !detail.contains(BASIC),
        "{detail}"
    );
}

#[tokio::test]
async fn both_stores_are_called_through_the_proxy() {
    let proxy = ConnectProxy::new(Manner::Tunnel).await;
    let world = World::with(&[("ATTESTO_EGRESS_PROXY", &with_password(&proxy))]).await;
    let tenant = world.tenant().await;
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default())
        .unwrap();
    let question = json!({ "transactionId": bought.transaction_id });
    let answer = world.verify("apple", &tenant, &question).await;
    assert_eq!(answer.body["valid"], true, "{answer:?}");
    let simulator = world.simulator.address().to_string();
    assert!(!proxy.targets().is_empty());
    assert!(proxy.targets().iter().all(|target| *target == simulator));
    let heads = proxy.heads();
    assert!(heads.iter().all(|head| head.contains(BASIC)), "{heads:?}");

    let bought = world
        .simulator
        .google()
        .buy_subscription(NewSubscription::default())
        .unwrap();
    let question = json!({ "packageName": APP, "type": "subscription", "purchaseToken": bought.purchase_token });
    let answer = world.verify("google", &tenant, &question).await;
    assert_eq!(answer.body["valid"], true, "{answer:?}");
    world.end().await;
}

#[tokio::test]
async fn a_store_that_the_proxy_does_not_reach_is_an_error_of_the_store() {
    let proxy = ConnectProxy::new(Manner::Answer("HTTP/1.1 403 No\r\n\r\n")).await;
    let world = World::with(&[("ATTESTO_EGRESS_PROXY", &with_password(&proxy))]).await;
    let warnings = Warnings::listen();
    let tenant = world.tenant().await;
    let answer = world
        .verify("apple", &tenant, &json!({ "transactionId": "1" }))
        .await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(answer.body["error"], "APPLE_API_ERROR");
    assert!(!answer.body.to_string().contains("proxy"), "{answer:?}");
    let lines = json!(warnings.of("http_request")).to_string();
    assert!(lines.contains("apple egress proxy"), "{lines}");
    assert_eq!(proxy.heads().len(), 1, "it is not asked again");
    assert!(
        !lines.contains(PASSWORD) && !lines.contains(BASIC),
        "{lines}"
    );
    world.end().await;
}

/// The checks of the group `stores`, each as `name: status: message`.
fn store_checks(shell: &Shell) -> Vec<String> {
    let tree = shell.run(&["doctor", "--output", "json"]).json();
    let groups = tree["checks"].as_array().unwrap();
    let stores = groups.iter().find(|group| group["name"] == "stores");
    let checks = stores.unwrap()["checks"].as_array().unwrap().clone();
    let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
    let show = |check| {
        let (name, status) = (text(check, "name"), text(check, "status"));
        format!("{name}: {status}: {}", text(check, "message"))
    };
    checks.iter().map(show).collect()
}

/// A server, its tenant with a callback, and a shell without a proxy.
struct Stage {
    world: World,
    tenant: String,
    receiver: Receiver,
    shell: Shell,
    folder: Folder,
}

impl Stage {
    async fn new() -> Self {
        let world = World::today().await;
        let tenant = world.tenant().await;
        let receiver = Receiver::answering(OK).await;
        let (database, keyring) = (world.database(), world.keyring());
        set_callback(database, keyring, &tenant.id, &receiver.url(), &secret("s")).await;
        let folder = Folder::new();
        let root = folder.join("root.pem");
        std::fs::write(&root, world.simulator.apple_root_pem()).unwrap();
        let shell = world
            .shell()
            .set_all(world.simulator.environment_variables())
            .set("APPLE_ROOT_CERTIFICATES", root.to_str().unwrap())
            // Variables that other programs obey change nothing.
            .set("HTTPS_PROXY", "http://127.0.0.1:9")
            .set("HTTP_PROXY", "http://127.0.0.1:9")
            .set("NO_PROXY", "*")
            .set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true");
        Self {
            tenant: tenant.id.to_string(),
            world,
            receiver,
            shell,
            folder,
        }
    }
}

#[tokio::test]
async fn commands_use_the_proxy_and_show_it_without_its_password() {
    let stage = Box::pin(Stage::new()).await;
    let (world, id) = (&stage.world, &stage.tenant);
    let proxy = ConnectProxy::new(Manner::Tunnel).await;
    let file = stage.folder.join("proxy");
    std::fs::write(&file, format!("{}\n", with_password(&proxy))).unwrap();
    let shell = stage.shell.clone();
    let shell = shell.set("ATTESTO_EGRESS_PROXY_FILE", file.to_str().unwrap());

    let sent = shell.run_async(&["webhook", "ping", id], "").await.json();
    assert_eq!(sent["outcome"], "success", "{sent}");
    assert_eq!(proxy.targets(), [stage.receiver.address.to_string()]);

    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default())
        .unwrap();
    let verify = [
        "verify",
        "apple",
        id,
        "--transaction-id",
        &bought.transaction_id,
    ];
    let verified = shell.run_async(&verify, "").await;
    assert_eq!(verified.exit, 0, "{verified:?}");
    let simulator = world.simulator.address().to_string();
    assert!(
        proxy.targets().contains(&simulator),
        "{:?}",
        proxy.targets()
    );

    let shown = format!("http://…@{}", proxy.address);
    let settings = shell.run_async(&["config", "check"], "").await;
    assert!(settings.said.contains(&shown), "{settings:?}");
    settings.assert_hides(PASSWORD);

    let doctor = shell.clone();
    let checks = tokio::task::spawn_blocking(move || store_checks(&doctor))
        .await
        .unwrap();
    let expected = format!(
        "stores.egress_proxy: ok: Calls to the stores and callbacks go through the proxy {shown}"
    );
    assert!(
        checks.iter().any(|check| check.starts_with(&expected)),
        "{checks:?}"
    );
    assert!(
        checks.iter().all(|check| check.contains(": ok: ")),
        "{checks:?}"
    );
    assert!(!checks.concat().contains(PASSWORD));

    stage.world.end().await;
}

#[tokio::test]
async fn a_proxy_that_is_away_or_misspelt_is_said_without_its_password() {
    let stage = Box::pin(Stage::new()).await;
    let id = stage.tenant.as_str();
    let unused = unused_address().await;
    let away = format!("http://operator:{PASSWORD}@{unused}");
    let broken = stage.shell.clone().set("ATTESTO_EGRESS_PROXY", &away);
    let checks = store_checks(&broken);
    let last = checks.last().unwrap();
    assert!(last.starts_with("stores.egress_proxy: fail: "), "{last}");
    assert!(last.contains("cannot be reached"), "{last}");
    assert!(!checks.concat().contains(PASSWORD), "{checks:?}");
    let failed = broken.run_async(&["webhook", "ping", id], "").await;
    assert_eq!(failed.json()["outcome"], "proxy", "{failed:?}");
    failed.assert_hides(PASSWORD);
    assert!(stage.receiver.requests().is_empty());

    for (malformed, words) in [
        (
            format!("https://operator:{PASSWORD}@proxy:3128"),
            "must begin with http://",
        ),
        (
            format!("operator:{PASSWORD}@proxy:3128"),
            "must be http://host:port",
        ),
    ] {
        let shell = stage.shell.clone().set("ATTESTO_EGRESS_PROXY", &malformed);
        for command in [
            &["serve", "--port=0"] as &[_],
            &["config", "check"],
            &["webhook", "ping", id],
            &["verify", "apple", id, "--transaction-id", "1"],
        ] {
            let ran = shell.run(command);
            assert_eq!(ran.exit, 2, "{command:?}: {ran:?}");
            let all = format!("{}{}", ran.said, ran.complained);
            assert!(all.contains("ATTESTO_EGRESS_PROXY"), "{all}");
            assert!(all.contains(words), "{all}");
            ran.assert_hides(PASSWORD);
        }
    }
    stage.world.end().await;
}
