//! A tenant's callback on the command line: `attesto webhook …`, and its signing secrets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::base::id::{CallbackNumber, TenantId};
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::deliveries::endpoint::store::{EndpointChange, EndpointChangeError, SecretChange};
use attesto::deliveries::endpoint::{SigningSecret, SigningSecrets, WebhookEndpoint, store};
use attesto::deliveries::signature;
use attesto::tenants;
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::world::postgres::{Fresh, fresh_database, set_time_ahead};
use crate::world::receiver::Receiver;
use crate::world::shell::Ran;

/// 32 bytes of zero, in base64.
const ENCRYPTION_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
/// No DNS query is needed for this address: it is a literal, and public.
const CALLBACK: &str = "https://93.184.216.34/hook?key=1";
const HOUR: Duration = Duration::from_hours(1);
/// How often a secret is changed, and the time between changes: two older ones still sign at the
/// next change.
const ROTATIONS: usize = 60;
const STEP: Duration = Duration::from_hours(13);

struct Desk {
    fresh: Fresh,
    tenant: TenantId,
    keyring: Keyring,
}

impl Desk {
    async fn open() -> Self {
        let fresh = fresh_database().await;
        let tenant = fresh.create_tenant().await;
        let key = MasterKey::parse(ENCRYPTION_KEY, Some(1)).unwrap();
        Self {
            fresh,
            tenant,
            keyring: Keyring::new(key, Vec::new()).unwrap(),
        }
    }

    /// Runs `attesto webhook <verb> <tenant> …`, with `input` on its standard input and an environment that holds
    /// nothing else.
    fn run(&self, words: &[&str], input: &str, environment: &[(&str, &str)]) -> Ran {
        let (verb, rest) = words.split_first().unwrap();
        let words = [&["webhook", verb, self.tenant.as_str()], rest].concat();
        let shell = self.fresh.shell();
        let shell = shell.set("ATTESTO_ENCRYPTION_KEY", ENCRYPTION_KEY);
        let shell = shell.set_all(environment.iter().copied());
        shell.run_with(&words, input)
    }

    fn webhook(&self, words: &[&str]) -> Ran {
        self.run(words, "", &[])
    }

    /// The output of a successful command, which is one JSON object.
    fn answer(&self, words: &[&str]) -> Value {
        let ran = self.webhook(words);
        assert_eq!((ran.exit, ran.complained.as_str()), (0, ""), "{words:?}");
        ran.json()
    }

    /// With the settings of a development machine, where callbacks may be local.
    async fn develop(self: &Arc<Self>, words: &[&str], environment: &[(&str, &str)]) -> Ran {
        let desk = self.clone();
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let mut all = vec![(
            "WEBHOOK_ALLOW_PRIVATE_CALLBACKS".to_owned(),
            "true".to_owned(),
        )];
        all.extend(
            environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let run = move || {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let all: Vec<_> = all.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            desk.run(&words, "", &all)
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// The endpoint as it will be after this time.
    async fn endpoint_after(&self, time: Duration) -> WebhookEndpoint {
        set_time_ahead(&self.fresh.database, time).await;
        let endpoint = self.endpoint().await;
        set_time_ahead(&self.fresh.database, Duration::ZERO).await;
        endpoint
    }

    async fn endpoint(&self) -> WebhookEndpoint {
        let tenants = [self.tenant.clone()];
        let database = &self.fresh.database;
        let mut found = store::load_endpoints(database, &self.keyring, &tenants)
            .await
            .unwrap();
        let first = (self.tenant.clone(), CallbackNumber::FIRST);
        found.remove(&first).unwrap().unwrap()
    }

    async fn set_secret(
        &self,
        secret: &SigningSecret,
        overlap: Duration,
    ) -> Result<SecretChange, EndpointChangeError> {
        let change = EndpointChange {
            callback_url: Some(CALLBACK),
            secret: Some(secret),
            overlap,
            ..EndpointChange::default()
        };
        let database = &self.fresh.database;
        store::change_endpoint(database, &self.keyring, &self.tenant, &change).await
    }

    /// Three events, a second apart, with deliveries in different states.
    async fn receive_three(&self) {
        for (number, status) in [(1, "delivered"), (2, "pending"), (3, "failed")] {
            let statement = format!(
                "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, \
                                             decoded_payload, stored_body, received_at) \
                 values (tenant_lane('{tenant}'), 'evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3{number}', '{tenant}', 'apple', '{number}', 'subscription.renewed', \
                         'apple.did_renew', '{{}}', '\\x00', now() - interval '1 min' + interval '{number} s'); \
                 insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status, created_at) \
                 values (tenant_lane('{tenant}'), 'del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3{number}', 'evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3{number}', '{tenant}', \
                         '{CALLBACK}', '{status}', now() - interval '1 min' + interval '{number} s')",
                tenant = self.tenant,
            );
            let pool = self.fresh.database.pool();
            pool.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
        }
    }

    async fn count(&self, table: &str) -> i64 {
        let statement = format!("select count(*) from {table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
            .fetch_one(self.fresh.database.pool())
            .await
            .unwrap()
    }
}

fn secret(name: impl std::fmt::Display) -> SigningSecret {
    SigningSecret::parse(&format!("{name:-<40}")).unwrap()
}

/// The secrets that sign, newest first.
fn texts(secrets: &SigningSecrets) -> Vec<String> {
    secrets
        .iter()
        .map(|secret| secret.expose().trim_end_matches('-').to_owned())
        .collect()
}

#[tokio::test]
async fn a_generated_secret_is_printed_once() {
    let desk = Desk::open().await;
    let first = desk.answer(&["set-config", "--callback-url", CALLBACK]);
    let made = first["secret"].as_str().unwrap().to_owned();
    assert!(
        made.starts_with("whsec_"),
        "in the form of Standard Webhooks"
    );
    assert!(
        first["warning"]
            .as_str()
            .unwrap()
            .contains("shown only this once")
    );
    assert_eq!(first["callbackUrl"], CALLBACK);
    assert_eq!(
        (&first["isActive"], &first["hasSecret"]),
        (&json!(true), &json!(true))
    );
    let endpoint = desk.endpoint().await;
    assert_eq!(endpoint.secrets.newest.expose(), made);

    // A second call keeps the secret, and does not print it.
    let again = desk.answer(&[
        "set-config",
        "--callback-url",
        "https://93.184.216.34/other",
        "--is-active",
        "false",
    ]);
    assert_eq!(again.get("secret"), None);
    assert_eq!(again["callbackUrl"], "https://93.184.216.34/other");
    assert_eq!(again["isActive"], false);
    let only_active = desk.answer(&["set-config", "--is-active", "true"]);
    assert_eq!(only_active["callbackUrl"], "https://93.184.216.34/other");
    let shown = desk.webhook(&["get"]);
    assert!(!shown.said.contains(&made[6..]), "{}", shown.said);
    let shown: Value = serde_json::from_str(&shown.said).unwrap();
    assert_eq!(shown["secrets"].as_array().unwrap().len(), 1);
    assert_eq!(shown["secrets"][0]["number"], 1);
    assert_eq!(shown["secrets"][0]["expiresAt"], Value::Null);
    let endpoint = desk.endpoint().await;
    assert_eq!(endpoint.secrets.newest.expose(), made);
    // In the database it is sealed.
    let stored: Vec<u8> = sqlx::query_scalar("select secret_enc from webhook_configs")
        .fetch_one(desk.fresh.database.pool())
        .await
        .unwrap();
    assert!(
        !stored
            .windows(10)
            .any(|window| made.as_bytes().windows(10).any(|part| part == window))
    );
}

#[tokio::test]
async fn a_new_secret_signs_in_addition_to_the_previous_one() {
    let desk = Desk::open().await;
    let (one, two, three, four) = (
        secret("one"),
        secret("two"),
        secret("three"),
        secret("four"),
    );
    desk.answer(&[
        "set-config",
        "--callback-url",
        CALLBACK,
        "--secret",
        one.expose(),
    ]);
    let rotated = desk.answer(&[
        "set-config",
        "--callback-url",
        CALLBACK,
        "--secret",
        two.expose(),
    ]);
    let expires = Timestamp::parse(rotated["secrets"][1]["expiresAt"].as_str().unwrap()).unwrap();
    let created = Timestamp::parse(rotated["secrets"][0]["createdAt"].as_str().unwrap()).unwrap();
    assert_eq!(
        expires.duration_since(created),
        24 * HOUR,
        "unless said otherwise"
    );
    assert_eq!(texts(&desk.endpoint().await.secrets), ["two", "one"]);
    assert_eq!(
        texts(&desk.endpoint_after(23 * HOUR).await.secrets),
        ["two", "one"]
    );
    assert_eq!(
        texts(&desk.endpoint_after(25 * HOUR).await.secrets),
        ["two"]
    );

    // Setting the same secret again changes nothing.
    let same = desk.answer(&[
        "set-config",
        "--callback-url",
        CALLBACK,
        "--secret",
        two.expose(),
    ]);
    assert_eq!(same["secrets"], rotated["secrets"]);

    // From a file, so that it is not in the process list; an editor adds a newline.
    let input = format!("{}\n", three.expose());
    let words = ["set-config", "--secret-path", "-", "--overlap", "2h"];
    let ran = desk.run(&words, &input, &[]);
    assert_eq!(ran.exit, 0, "{}", ran.complained);
    assert_eq!(
        texts(&desk.endpoint().await.secrets),
        ["three", "two", "one"]
    );
    assert_eq!(
        texts(&desk.endpoint_after(3 * HOUR).await.secrets),
        ["three", "one"]
    );

    // Three secrets sign, and each has time left.
    let refused = desk.webhook(&["set-config", "--secret", four.expose()]);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("webhook retire-secret"),
        "{refused:?}"
    );
    assert!(!refused.complained.contains("four"), "{refused:?}");
    // Setting one that still signs moves it to the front.
    desk.answer(&["set-config", "--secret", one.expose()]);
    assert_eq!(
        texts(&desk.endpoint().await.secrets),
        ["one", "three", "two"]
    );

    // After a leak the secret is retired.
    let retired = desk.answer(&["retire-secret", "--number", "2"]);
    assert_eq!(retired["retired"], json!([2]));
    assert_eq!(texts(&desk.endpoint().await.secrets), ["one", "three"]);
    assert_eq!(
        desk.webhook(&["retire-secret", "--number", "2"]).exit,
        1,
        "already"
    );
    assert_eq!(
        desk.webhook(&["retire-secret", "--number", "4"]).exit,
        2,
        "the newest"
    );
    assert_eq!(desk.answer(&["retire-secret"])["retired"], json!([3]));
    assert_eq!(desk.webhook(&["retire-secret"]).exit, 1);
    desk.answer(&["set-config", "--secret", four.expose(), "--overlap", "0s"]);
    assert_eq!(texts(&desk.endpoint().await.secrets), ["four"]);
    assert_eq!(desk.count("webhook_previous_secrets").await, 0);
}

/// However often secrets change, receivers with the newest or the previous one can verify.
#[tokio::test]
async fn receivers_with_the_newest_or_previous_secret_can_always_verify() {
    let desk = Arc::new(Desk::open().await);
    let time_of = |number: usize| STEP * u32::try_from(number).unwrap();
    desk.set_secret(&secret(0), 24 * HOUR).await.unwrap();
    // The committed state: a delivery that starts later reads it.
    let committed = Arc::new(AtomicUsize::new(0));
    let checked = Arc::new(AtomicUsize::new(0));
    let signing: Vec<_> = (0..4)
        .map(|_| {
            let (desk, committed, checked) = (desk.clone(), committed.clone(), checked.clone());
            tokio::spawn(async move {
                loop {
                    let newest = committed.load(Ordering::SeqCst);
                    let endpoint = desk.endpoint().await;
                    if committed.load(Ordering::SeqCst) != newest {
                        // Days have passed, in which a secret may have expired.
                        continue;
                    }
                    let live = texts(&endpoint.secrets);
                    assert!(live.len() <= 3, "{live:?}");
                    // As receivers verify that hold only one secret: the newest or the previous
                    // one.
                    let signed = signature::sign_delivery(&endpoint.secrets, "evt", 1, b"{}");
                    for held in newest.saturating_sub(1)..=newest {
                        let alone = signature::sign_delivery(&secret(held).into(), "evt", 1, b"{}");
                        let mine = alone.attesto.strip_prefix("t=1,").unwrap();
                        assert!(signed.attesto.contains(mine), "{held} of {live:?}");
                        let mine = |one: &str| one == alone.standard;
                        assert!(signed.standard.split(' ').any(mine), "{held} of {live:?}");
                    }
                    checked.fetch_add(1, Ordering::SeqCst);
                    if newest == ROTATIONS {
                        return;
                    }
                }
            })
        })
        .collect();
    for number in 1..=ROTATIONS {
        while checked.load(Ordering::SeqCst) < number {
            tokio::task::yield_now().await;
            assert!(!signing.iter().any(tokio::task::JoinHandle::is_finished));
        }
        set_time_ahead(&desk.fresh.database, time_of(number)).await;
        desk.set_secret(&secret(number), 24 * HOUR).await.unwrap();
        committed.store(number, Ordering::SeqCst);
    }
    for task in signing {
        task.await.unwrap();
    }
    let later = time_of(ROTATIONS) + 25 * HOUR;
    assert_eq!(
        texts(&desk.endpoint_after(later).await.secrets),
        [ROTATIONS.to_string()]
    );
}

#[tokio::test]
async fn concurrent_rotations_lose_nothing() {
    let desk = Arc::new(Desk::open().await);
    for round in 0..10 {
        let tenant = tenants::store::create_tenant(
            &desk.fresh.database,
            &"Acme".parse().unwrap(),
            Timestamp::from_millis(round),
        )
        .await
        .unwrap();
        let desk = Desk {
            fresh: Fresh {
                url: desk.fresh.url.clone(),
                direct: None,
                settings: desk.fresh.settings.clone(),
                database: desk.fresh.database.clone(),
            },
            tenant: tenant.id,
            keyring: Keyring::new(MasterKey::parse(ENCRYPTION_KEY, Some(1)).unwrap(), vec![])
                .unwrap(),
        };
        let (one, two, three) = (secret("one"), secret("two"), secret("three"));
        desk.set_secret(&one, HOUR).await.unwrap();
        let (a, b) = tokio::join!(desk.set_secret(&two, HOUR), desk.set_secret(&three, HOUR));
        a.unwrap();
        b.unwrap();
        let mut live = texts(&desk.endpoint().await.secrets);
        assert_eq!(live.last().unwrap(), "one");
        live.sort();
        assert_eq!(live, ["one", "three", "two"]);
    }
}

#[tokio::test]
async fn invalid_arguments_are_refused_without_repeating_a_secret() {
    const FOR: &str = "set-config --callback-url";
    const HERE: &str = "set-config --callback-url https://93.184.216.34/";
    let desk = Desk::open().await;
    for (asked, refusal) in [
        ("set-config", "--callback-url"),
        (&format!("{FOR} http://93.184.216.34/"), "https"),
        (&format!("{FOR} ftp://93.184.216.34/"), "https"),
        (&format!("{FOR} nonsense"), "cannot be read"),
        (&format!("{FOR} https://u:hush@93.184.216.34/"), "password"),
        (&format!("{FOR} https://93.184.216.34/#x"), "fragment"),
        (&format!("{FOR} https://localhost/"), "private network"),
        (&format!("{FOR} https://127.0.0.1/"), "this machine"),
        (&format!("{FOR} https://2130706433/"), "this machine"),
        (&format!("{FOR} https://10.0.0.1/"), "private address"),
        (
            &format!("{FOR} https://[::ffff:10.0.0.1]/"),
            "private address",
        ),
        (&format!("{FOR} https://169.254.169.254/"), "metadata"),
        (&format!("{HERE} --secret hush"), "32 to 512"),
        (&format!("{HERE} --secret="), "32 to 512"),
        (&format!("{HERE} --overlap soon"), "24h"),
        (&format!("{HERE} --overlap 0s"), "retire-secret"),
        (&format!("{HERE} --overlap 91d"), "90d"),
        (&format!("{HERE} --is-active maybe"), "true"),
        ("allow 0.0.0.0/0:443", "too wide"),
        ("allow 10.1.0.0/16", "a network and a port"),
        ("allow 169.254.169.254:80", "never called"),
        ("list-events --limit 501", "500"),
        ("list-events --status lost", "pending"),
    ] {
        let words: Vec<&str> = asked.split(' ').collect();
        let ran = desk.webhook(&words);
        assert_eq!((ran.exit, ran.said.as_str()), (2, ""), "{asked}: {ran:?}");
        assert!(ran.complained.contains(refusal), "{asked}: {ran:?}");
        assert!(!ran.complained.contains("hush"), "{ran:?}");
    }
    let production = [
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
        ("ATTESTO_ENV", "production"),
    ];
    let words = ["set-config", "--callback-url", "http://127.0.0.1:9/"];
    let ran = desk.run(&words, "", &production);
    assert_eq!(ran.exit, 2);
    assert!(ran.complained.contains("production"), "{ran:?}");
    assert_eq!(desk.count("webhook_configs").await, 0);
}

#[tokio::test]
async fn missing_objects_exit_with_code_1() {
    let desk = Desk::open().await;
    for asked in ["get", "ping", "retire-secret", "disallow 10.1.0.0/16:443"] {
        let words: Vec<&str> = asked.split(' ').collect();
        let ran = desk.webhook(&words);
        assert_eq!((ran.exit, ran.said.as_str()), (1, ""), "{asked}: {ran:?}");
    }
    let nobody = Desk {
        tenant: "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".parse().unwrap(),
        ..desk
    };
    for asked in [
        "get",
        "set-config --is-active true",
        "set-config --callback-url https://93.184.216.34/",
        "allow",
        "allow 10.1.0.0/16:443",
        "list-events",
        "list-deliveries",
    ] {
        let words: Vec<&str> = asked.split(' ').collect();
        let ran = nobody.webhook(&words);
        assert_eq!(ran.exit, 1, "{asked}: {ran:?}");
        let refusal = "no such tenant";
        assert!(ran.complained.contains(refusal), "{asked}: {ran:?}");
    }
}

#[tokio::test]
async fn an_operator_opens_a_network_for_one_tenant() {
    let desk = Desk::open().await;
    let words = ["set-config", "--callback-url", "https://10.1.2.3/hook"];
    let refused = desk.webhook(&words);
    assert_eq!(refused.exit, 2);
    assert!(refused.complained.contains("webhook allow"), "{refused:?}");
    let opened = desk.answer(&["allow", "10.1.0.0/16:443"]);
    assert_eq!(opened["network"], "10.1.0.0/16:443");
    assert_eq!(
        desk.webhook(&["allow", "10.1.0.0/16:443"]).exit,
        1,
        "already"
    );
    desk.answer(&["allow", "[fd12:3456::/48]:8443"]);
    assert_eq!(desk.webhook(&words).exit, 0);
    let shown = desk.answer(&["get"]);
    assert_eq!(
        shown["allowedNetworks"],
        json!(["10.1.0.0/16:443", "[fd12:3456::/48]:8443"])
    );
    assert_eq!(shown["allowedHttpNetworks"], json!([]));
    assert_eq!(desk.webhook(&["allow"]).said.lines().count(), 2);
    desk.answer(&["allow", "10.1.0.0/16:443", "--http"]);
    let shown = desk.answer(&["get"]);
    assert_eq!(shown["allowedHttpNetworks"], json!(["10.1.0.0/16:443"]));
    assert_eq!(shown["allowedNetworks"].as_array().unwrap().len(), 2);
    let endpoint = desk.endpoint().await;
    assert!(
        endpoint
            .allow_list
            .is_allowed("10.1.2.3:443".parse().unwrap())
    );
    assert!(
        !endpoint
            .allow_list
            .is_allowed("10.1.2.3:80".parse().unwrap())
    );
    assert!(
        endpoint
            .allow_list
            .is_allowed("[fd12:3456::1]:8443".parse().unwrap())
    );
    desk.answer(&["disallow", "10.1.0.0/16:443"]);
    assert_eq!(desk.webhook(&["disallow", "10.1.0.0/16:443"]).exit, 1);
    assert!(
        !desk
            .endpoint()
            .await
            .allow_list
            .is_allowed("10.1.2.3:443".parse().unwrap())
    );
}

#[tokio::test]
async fn an_address_that_is_never_called_is_not_advised_to_be_allowed() {
    let desk = Desk::open().await;
    // Another network is allowed, by http too.
    desk.answer(&["allow", "10.1.0.0/16:80", "--http"]);
    for host in [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "0.0.0.0",
    ] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}/latest/meta-data/");
            let refused = desk.webhook(&["set-config", "--callback-url", &url]);
            assert_eq!(refused.exit, 2, "{url}: {refused:?}");
            assert!(
                refused.complained.contains("can never be a callback"),
                "{url}: {refused:?}"
            );
            assert!(
                !refused.complained.contains("webhook allow"),
                "{url}: {refused:?}"
            );
        }
        let allowed = desk.webhook(&["allow", &format!("{host}:80"), "--http"]);
        assert_eq!(allowed.exit, 2, "{allowed:?}");
        assert!(allowed.complained.contains("never called"), "{allowed:?}");
    }
    // Without an allowed network, the scheme alone is refused.
    desk.answer(&["disallow", "10.1.0.0/16:80"]);
    let words = |url| ["set-config", "--callback-url", url];
    let refused = desk.webhook(&words("http://169.254.169.254/"));
    assert!(
        refused.complained.contains("can never be a callback")
            && !refused.complained.contains("webhook allow"),
        "{refused:?}"
    );
    let refused = desk.webhook(&words("http://10.1.2.3/"));
    assert!(refused.complained.contains("webhook allow"), "{refused:?}");
}

#[tokio::test]
async fn a_sentence_that_ends_with_a_question_has_no_full_stop_behind_it() {
    let desk = Arc::new(Desk::open().await);
    // No program listens at this port any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let words = ["set-config", "--callback-url", &url];
    let ran = desk.develop(&words, &[]).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    let ran = desk.develop(&["ping"], &[]).await;
    assert_eq!(ran.exit, 1, "{ran:?}");
    assert!(ran.complained.trim_end().ends_with('?'), "{ran:?}");
}

#[tokio::test]
async fn a_ping_is_signed_sent_now_and_leaves_no_rows() {
    let desk = Arc::new(Desk::open().await);
    let receiver = Receiver::answering(OK).await;
    let mine = secret("mine");
    let url = receiver.url();
    let words = [
        "set-config",
        "--callback-url",
        &url,
        "--secret",
        mine.expose(),
    ];
    let ran = desk.develop(&words, &[]).await;
    assert_eq!(ran.exit, 0, "{ran:?}");

    // A proxy in the environment is not used.
    let proxy = Receiver::answering(OK).await;
    let at = format!("http://{}", proxy.address);
    let proxies = [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ]
    .map(|name| (name, at.as_str()));
    let ran = desk.develop(&["ping"], &proxies).await;
    assert_eq!((ran.exit, ran.complained.as_str()), (0, ""), "{ran:?}");
    assert_eq!(proxy.connections(), 0);
    let echo: Value = serde_json::from_str(&ran.said).unwrap();
    assert_eq!(echo["outcome"], "success");
    assert_eq!(
        (&echo["status"], &echo["body"]),
        (&json!(200), &json!("hello"))
    );
    assert!(echo["latencyMs"].is_u64());

    let requests = receiver.requests();
    let [request] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    let timestamp: i64 = request.headers["webhook-timestamp"].parse().unwrap();
    let id = &request.headers["webhook-id"];
    let signed = signature::sign_delivery(&mine.into(), id, timestamp, &request.body);
    assert_eq!(request.headers["x-attesto-signature"], signed.attesto);
    assert_eq!(request.headers["webhook-signature"], signed.standard);
    assert_eq!(request.headers["x-attesto-event"], "test");
    let text = String::from_utf8(request.body.clone()).unwrap();
    let names = [
        "event",
        "reason",
        "platformEvent",
        "eventId",
        "externalId",
        "timestamp",
        "tenantId",
        "source",
        "environment",
        "subject",
        "appUserId",
        "appUserIdSource",
        "sequence",
        "state",
        "stateError",
        "data",
        "raw",
    ];
    let places: Vec<_> = names
        .iter()
        .map(|name| text.find(&format!("\"{name}\":")))
        .collect();
    assert!(
        places.is_sorted() && places.iter().all(Option::is_some),
        "{text}"
    );
    let body: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(body.len(), names.len());
    assert_eq!(
        (&body["event"], &body["eventId"]),
        (&json!("test"), &json!(id))
    );
    for table in ["webhook_events", "webhook_deliveries"] {
        assert_eq!(desk.count(table).await, 0, "{table}");
    }

    // A refused ping is shown too.
    let busy = Receiver::answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nwait").await;
    desk.develop(&["set-config", "--callback-url", &busy.url()], &[])
        .await;
    let ran = desk.develop(&["ping"], &[]).await;
    assert_eq!(ran.exit, 1);
    let echo: Value = serde_json::from_str(&ran.said).unwrap();
    assert_eq!(
        (&echo["outcome"], &echo["status"]),
        (&json!("http_5xx"), &json!(503))
    );
    assert_eq!(echo["body"], "wait");
    assert!(ran.complained.contains("503"), "{ran:?}");
    // Without the development setting nothing is sent at all.
    let count = busy.connections();
    let strict = desk.clone();
    let ran = tokio::task::spawn_blocking(move || strict.webhook(&["ping"]))
        .await
        .unwrap();
    let echo: Value = serde_json::from_str(&ran.said).unwrap();
    assert_eq!((ran.exit, &echo["outcome"]), (1, &json!("blocked")));
    assert_eq!(busy.connections(), count);
}

#[tokio::test]
async fn events_and_deliveries_are_listed_newest_first() {
    let desk = Desk::open().await;
    assert_eq!(desk.webhook(&["list-events"]).said, "");
    desk.receive_three().await;
    let list = |words: &[&str]| -> Vec<Value> {
        let ran = desk.webhook(words);
        assert_eq!(ran.exit, 0, "{ran:?}");
        ran.said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let events = list(&["list-events"]);
    let statuses: Vec<_> = events
        .iter()
        .map(|event| event["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["failed", "pending", "delivered"]);
    assert_eq!(events[0]["event"], "subscription.renewed");
    assert_eq!(events[0]["platformEvent"], "apple.did_renew");
    assert_eq!(list(&["list-events", "--limit", "1"]).len(), 1);
    let pending = list(&["list-events", "--status", "pending"]);
    assert_eq!((pending.len(), &pending[0]["externalId"]), (1, &json!("2")));
    let deliveries = list(&["list-deliveries"]);
    assert_eq!(deliveries.len(), 3);
    assert_eq!(deliveries[0]["eventId"], events[0]["id"]);
    assert_eq!(deliveries[0]["nextAttemptAt"], Value::Null, "it is over");
    assert!(deliveries[1]["nextAttemptAt"].is_string());
    assert_eq!(list(&["list-deliveries", "--status", "delivered"]).len(), 1);
}

#[tokio::test]
async fn events_are_redelivered_on_request() {
    let desk = Desk::open().await;
    desk.answer(&["set-config", "--callback-url", CALLBACK]);
    desk.receive_three().await;
    let run = |what: &str, words: &[&str]| {
        let shell = desk.fresh.shell().set("USER", "anna");
        let ran = shell.run(&[&["webhook", what], words].concat());
        let said: Value = serde_json::from_str(&ran.said).unwrap_or_default();
        (ran.exit, said)
    };
    let redeliver = |words: &[&str]| run("redeliver", words);
    let event = "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D33";
    let (exit, would) = redeliver(&[event, "--dry-run"]);
    assert_eq!((exit, &would["count"]), (0, &json!(1)));
    assert_eq!(desk.count("webhook_deliveries").await, 3);
    let (exit, done) = redeliver(&[event, "--reason", "they lost it"]);
    assert_eq!((exit, &done["eventId"]), (0, &json!(event)));
    assert!(done["deliveryId"].as_str().unwrap().starts_with("del_"));
    let row: (String, String) = sqlx::query_as(
        "select requested_by, request_reason from webhook_deliveries where requested_by is not null",
    )
    .fetch_one(desk.fresh.database.pool())
    .await
    .unwrap();
    assert_eq!(
        row,
        (
            "attesto webhook redeliver (anna)".into(),
            "they lost it".into()
        )
    );
    // One is pending again, so none is failed any more.
    let health = &desk.answer(&["get"])["health"];
    assert_eq!(
        (&health["state"], &health["pending"]),
        (&json!("active"), &json!(2))
    );

    let of = ["--tenant", desk.tenant.as_str()];
    for (more, count) in [
        (vec!["--status", "failed"], 0),
        (vec!["--status", "pending"], 2),
        (vec!["--since", "24h"], 3),
        (vec!["--event-type", "product.refunded"], 0),
        (vec!["--event-type", "subscription.renewed"], 3),
    ] {
        let (exit, would) = redeliver(&[&of[..], &more, &["--dry-run"]].concat());
        assert_eq!((exit, &would["count"]), (0, &json!(count)), "{more:?}");
    }
    assert_eq!(desk.count("webhook_redeliveries").await, 0);
    let (exit, done) = redeliver(&[&of[..], &["--status", "delivered"]].concat());
    assert_eq!((exit, &done["count"]), (0, &json!(1)));
    assert!(done["redeliveryId"].is_string());
    assert_eq!(desk.count("webhook_redeliveries").await, 1);
    let id = done["redeliveryId"].as_str().unwrap();
    let (exit, stopped) = run("stop-redelivery", &[id]);
    assert_eq!((exit, &stopped["enqueued"]), (0, &json!(0)));
    assert_eq!(run("stop-redelivery", &[id]).0, 1, "it is over");

    let unknown = "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    let nobody = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    for (words, expected) in [
        (vec![unknown], 1),
        (vec![unknown, "--dry-run"], 1),
        (vec!["--tenant", nobody], 1),
        (vec![], 2),
        (vec![event, "--tenant", nobody], 2),
        (vec![event, "--status", "failed"], 2),
        (vec!["--tenant", nobody, "--since", "yesterday"], 2),
    ] {
        assert_eq!(redeliver(&words).0, expected, "{words:?}");
    }
    desk.answer(&["set-config", "--is-active", "false"]);
    assert_eq!(redeliver(&[event]).0, 1, "nowhere to deliver to");
}
