//! Secrets with recognisable words: after every failure they must not be in the log, in an error
//! response, in command output, or in help texts.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use attesto::db::change_listener::ChangeListener;
use attesto::db::{ConnectSettings, Database};
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::NewSubscription;
use attesto::simulator::{Fault, JwsForgery};
use attesto::telemetry::{LogFormat, LogSettings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::world::attesto::{APP, Answer, Tenant, World};
use crate::world::folder::Folder;
use crate::world::log::{Page, logging};
use crate::world::postgres::fresh_database;
use crate::world::wait::{finished, pause, wait_until};

const PURCHASE_TOKEN: &str = "planted-purchase-token.0123456789";
const ACCESS_TOKEN: &str = "planted-access-token";
const DATABASE_PASSWORD: &str = "planted-database-password";
/// The encryption key of a `World`.
const KEY_BYTES: [u8; 32] = [7; 32];

/// The planted secrets, each with its name.
struct Planted(Vec<(&'static str, String)>);

impl Planted {
    fn in_world(world: &World, tenant: &Tenant, jws: &str) -> Self {
        let mut planted = Self(vec![
            ("a purchase token", "planted-purchase-token".to_owned()),
            ("an access token", ACCESS_TOKEN.to_owned()),
            ("the database's password", DATABASE_PASSWORD.to_owned()),
            ("the encryption key", STANDARD.encode(KEY_BYTES)),
            (
                "an encryption key's bytes",
                format!("{:?}", &KEY_BYTES[..8]),
            ),
        ]);
        // Without its first eight characters, which are no secret.
        let random = &tenant.key.expose()["attesto_live_".len()..];
        planted.0.push(("an API key", random[8..].to_owned()));
        for part in jws.split('.').skip(1) {
            planted.0.push(("a JWS", part.to_owned()));
        }
        let file = world.simulator.google_service_account();
        planted.pem("a .p8", &world.simulator.apple().api_key().private_key);
        planted.pem(
            "a service account's key",
            file["private_key"].as_str().expect("a text"),
        );
        planted
    }

    /// Every line of a key file, so that a part of it is found too.
    fn pem(&mut self, name: &'static str, pem: &str) {
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        self.0.extend(
            lines
                .filter(|line| line.len() > 20)
                .map(|line| (name, line.to_owned())),
        );
    }

    fn is_not_in(&self, text: &str, place: &str) {
        for (name, secret) in &self.0 {
            assert!(!text.contains(secret), "{name} is in {place}: {text}");
        }
    }
}

async fn asks(world: &World, tenant: &Tenant, store: &str, body: Value) -> Answer {
    world.verify(store, tenant, &body).await
}

fn subscription(token: &str) -> Value {
    json!({ "packageName": APP, "type": "subscription", "purchaseToken": token })
}

/// Requests for every error response of the server, and their expected answers.
async fn mishaps(world: &World, tenant: &Tenant, jws: &str, forged: &str) -> Vec<Answer> {
    let key = tenant.key.expose();
    let faults = [
        Fault::at_place("apple").status(500).times(0),
        Fault::at_place("apple").error_code(4_290_000),
        Fault::at_place("apple").body(&json!({ "signedTransactionInfo": forged }).to_string()),
        Fault::at_place("apple").body(&json!({ "signedTransactionInfo": 7, "x": jws }).to_string()),
        Fault::at_place("apple").cut().times(0),
        Fault::at_place("google/play").status(403).body(&echo(403)),
        Fault::at_place("google/play").status(400).body(&echo(400)),
        Fault::at_place("google/play")
            .status(500)
            .times(0)
            .body(&echo(500)),
        Fault::at_place("google/play").body(&json!({ "startTime": PURCHASE_TOKEN }).to_string()),
        Fault::at_place("google/play").cut().times(0),
    ];
    let mut answers = Vec::new();
    for fault in faults {
        world.simulator.clear_faults();
        world.simulator.add_fault(fault).expect("a fault");
        answers.push(asks(world, tenant, "apple", json!({ "transactionId": "1" })).await);
        answers.push(asks(world, tenant, "google", subscription(PURCHASE_TOKEN)).await);
    }
    world.simulator.clear_faults();
    // Play refuses this access token; a new one is requested, and refused too.
    world.simulator.google().expire_access_tokens();
    let bought = json!({ "access_token": ACCESS_TOKEN, "expires_in": 3600 }).to_string();
    let token = Fault::at_place("google/token").times(2).body(&bought);
    world.simulator.add_fault(token).expect("a fault");
    answers.push(asks(world, tenant, "google", subscription(PURCHASE_TOKEN)).await);
    world.simulator.clear_faults();

    let both = json!({ "transactionId": key, "signedTransaction": jws, "environment": jws });
    let long = json!({ "transactionId": jws, "expectedAppUserId": key });
    let large = json!({ "signedTransaction": jws.repeat(8) });
    for (store, body) in [
        ("apple", json!({ "signedTransaction": forged })),
        ("apple", json!({ "signedTransaction": format!("{jws}x") })),
        ("apple", json!({ "signedTransaction": key })),
        ("apple", json!({ "transactionId": key })),
        ("apple", json!({ "transactionId": PURCHASE_TOKEN })),
        ("apple", json!([jws, key])),
        ("apple", json!({ key: PURCHASE_TOKEN })),
        ("apple", both),
        ("apple", long),
        ("apple", large),
        ("google", subscription(PURCHASE_TOKEN)),
        ("google", subscription(key)),
        (
            "google",
            json!({ "packageName": key, "purchaseToken": [PURCHASE_TOKEN], "type": key }),
        ),
    ] {
        answers.push(asks(world, tenant, store, body).await);
    }
    let path = format!("/v1/{key}/verify/{key}?key={key}&token={PURCHASE_TOKEN}");
    answers.push(world.ask("GET", &path, Some(key), None).await);
    let wrong = format!("{key}x");
    answers.push(
        world
            .ask("POST", "/v1/apple/verify", Some(&wrong), None)
            .await,
    );
    answers
}

/// A Google that repeats the request in its error.
fn echo(status: u16) -> String {
    let message = format!("No purchase {PURCHASE_TOKEN}; asked with a token of planted words.");
    json!({ "error": { "code": status, "message": message, "errors": [{ "reason": "odd" }] } })
        .to_string()
}

#[tokio::test]
async fn no_secret_is_in_the_log_or_in_an_error_response() {
    for classes_only in [false, true] {
        let page = Page::default();
        let log = LogSettings {
            level: LevelFilter::TRACE,
            format: LogFormat::Json,
            is_cause_redacted: classes_only,
        };
        let (writer, _logging) = logging(&log, &page);

        let world = World::new().await;
        let tenant = world.tenant().await;
        let apple = world.simulator.apple();
        let bought = apple
            .create_transaction(NewTransaction::default())
            .expect("a purchase");
        let jws = apple
            .sign_transaction(&bought.transaction_id)
            .expect("signed");
        let forged = apple
            .forge_transaction(&bought.transaction_id, JwsForgery::AlteredPayload)
            .expect("forged");
        let planted = Planted::in_world(&world, &tenant, &jws);

        let answers = mishaps(&world, &tenant, &jws, &forged).await;
        // An access token that was refused when it was new is kept for ten minutes.
        world.pass(Duration::from_mins(10)).await;
        // Successful requests are logged too.
        let new = NewSubscription {
            purchase_token: Some(PURCHASE_TOKEN.to_owned()),
            ..NewSubscription::default()
        };
        world
            .simulator
            .google()
            .buy_subscription(new)
            .expect("a purchase");
        for (store, body) in [
            ("google", subscription(PURCHASE_TOKEN)),
            ("apple", json!({ "signedTransaction": jws })),
            ("apple", json!({ "transactionId": bought.transaction_id })),
        ] {
            let answer = asks(&world, &tenant, store, body).await;
            assert_eq!(answer.body["valid"], true, "{}", answer.body);
        }
        // A stored value was changed outside Attesto.
        for table in ["apple_credentials", "google_credentials"] {
            let column = if table.starts_with("apple") {
                "private_key_enc"
            } else {
                "service_account_enc"
            };
            let broken = format!(
                "update {table} set {column} = set_byte({column}, 20, get_byte({column}, 20) # 1)"
            );
            sqlx::query(sqlx::AssertSqlSafe(broken))
                .execute(world.database().pool())
                .await
                .expect("it is changed");
        }
        let mut broken = Vec::new();
        wait_until("the changes are noticed", async || {
            broken.clear();
            for (store, body) in [
                ("google", subscription(PURCHASE_TOKEN)),
                ("apple", json!({ "transactionId": "1" })),
            ] {
                let answer = asks(&world, &tenant, store, body).await;
                if answer.status == 500 {
                    broken.push(answer);
                }
            }
            broken.len() == 2
        })
        .await;
        world.end().await;
        writer.flush();

        for answer in answers.iter().chain(&broken) {
            assert_ne!(answer.body["valid"], true, "{}", answer.body);
            let told = format!("{} {:?}", answer.body, answer.headers);
            planted.is_not_in(&told, "an answer");
        }
        let log = String::from_utf8(page.0.lock().expect("not poisoned").clone()).expect("text");
        assert!(
            log.lines().count() >= answers.len(),
            "each has its line: {log}"
        );
        assert!(
            log.contains("INTERNAL_ERROR") && log.contains("GOOGLE_API_ERROR"),
            "{log}"
        );
        assert_eq!(log.contains("\"cause\""), !classes_only, "{log}");
        planted.is_not_in(&log, "the log");
    }
}

/// The standard output and standard error of a command.
struct Said {
    exit: Option<i32>,
    results: String,
    errors: String,
}

/// The binary, in an environment full of secrets.
struct Shell {
    variables: Vec<(String, String)>,
}

impl Shell {
    fn in_world(world: &World, mode: &str) -> Self {
        let key = STANDARD.encode(KEY_BYTES);
        // The database accepts any password; this one is only a planted secret.
        let url = format!("{}&password={DATABASE_PASSWORD}", world.fresh.url);
        let mut variables = Vec::new();
        // Production refuses simulated stores; nothing listens at their addresses.
        for (name, value) in world.simulator.environment_variables() {
            match (mode, name) {
                (_, "APPLE_ROOT_CERTIFICATES") => {}
                ("production", _) => {
                    variables.push((name.to_owned(), "https://127.0.0.1:1/".to_owned()));
                }
                _ => variables.push((name.to_owned(), value)),
            }
        }
        for (name, value) in [
            ("ATTESTO_ENCRYPTION_KEY", &*key),
            ("DATABASE_URL", &*url),
            ("ATTESTO_ENV", mode),
            ("LOG_LEVEL", "trace"),
        ] {
            variables.push((name.to_owned(), value.to_owned()));
        }
        Self { variables }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attesto"));
        command
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .args(words)
            .stdin(Stdio::null());
        command
    }

    fn says(&self, words: &[&str]) -> Said {
        self.says_with(words, &[])
    }

    /// With other values for some variables; an empty value removes the variable.
    fn says_with(&self, words: &[&str], variables: &[(&str, &str)]) -> Said {
        let mut command = self.command(words);
        for (name, value) in variables {
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        let output = command.output().expect("the binary runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Said {
            exit: output.status.code(),
            results: text(output.stdout),
            errors: text(output.stderr),
        }
    }
}

const SET_APPLE: [&str; 6] = [
    "--bundle-id=com.example.app",
    "--key-id=2X9R4HXF34",
    "--issuer-id=57246542-96fe-1a63-e053-0824d011072a",
    "--environment=auto",
    "--app-apple-id=1234567890",
    "--output=json",
];

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a long list of mishaps")]
async fn no_secret_is_in_command_output() {
    let world = World::new().await;
    let tenant = world.stranger().await;
    let (id, key) = (tenant.id.as_str(), tenant.key.expose());
    let apple = world.simulator.apple();
    let bought = apple
        .create_transaction(NewTransaction::default())
        .expect("a purchase");
    let jws = apple
        .sign_transaction(&bought.transaction_id)
        .expect("signed");
    let planted = Planted::in_world(&world, &tenant, &jws);
    let shell = Shell::in_world(&world, "development");

    let folder = Folder::new();
    let file = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).expect("it is written");
        path.display().to_string()
    };
    let p8 = apple.api_key().private_key;
    let account = world.simulator.google_service_account().to_string();
    let (good_p8, good_account) = (file("key.p8", &p8), file("account.json", &account));
    let sec1 = file("sec1.pem", &p8.replace("PRIVATE KEY", "EC PRIVATE KEY"));
    let cut = file("cut.p8", &p8[..p8.len() / 2]);
    let cut_account = file("cut.json", &account[..account.len() - 40]);
    let odd_account = file("odd.json", &account.replace("-----BEGIN", "-----BEGONE"));
    let set_apple = |path: &str| {
        let path = format!("--key-path={path}");
        shell.says(&[&["apple", "set-credentials", id, &path], &SET_APPLE[..]].concat())
    };
    let set_google = |path: &str| {
        let path = format!("--service-account-path={path}");
        let words = [
            "google",
            "set-credentials",
            id,
            "--package-name=com.example.app",
        ];
        shell.says(&[&words[..], &[&path]].concat())
    };

    let mut said = vec![
        (0, set_apple(&good_p8)),
        (0, set_google(&good_account)),
        (0, shell.says(&["apple", "get-credentials", id])),
        (0, shell.says(&["google", "get-credentials", id])),
        (0, shell.says(&["key", "list", id])),
        (0, shell.says(&["tenant", "list"])),
        (0, shell.says(&["migrate"])),
        (2, set_apple(&sec1)),
        (2, set_apple(&cut)),
        (2, set_apple(&good_account)),
        (2, set_google(&cut_account)),
        (2, set_google(&odd_account)),
        (2, set_google(&good_p8)),
        // The secret itself, instead of the path of its file.
        (1, set_apple(&p8)),
        (1, set_apple(&p8.replace('\n', ""))),
        (1, set_google(&account)),
    ];
    // A secret instead of another argument.
    let url = format!("postgres://attesto:{DATABASE_PASSWORD}@127.0.0.1:1/x");
    for secret in [key, &*url, &*p8, &*account, &*jws] {
        for words in [
            vec![secret],
            vec!["key", "list", secret],
            vec!["key:revoke", secret],
            vec!["tenant", "rename", secret, secret],
            vec!["tenant", "activate", id, secret],
            vec!["apple", "set-credentials", id, "--key-path", secret],
            vec!["apple", "set-credentials", id, "--key-id", secret],
            vec!["google", "set-credentials", id, "--package-name", secret],
            vec!["--output", secret, "tenant", "list"],
        ] {
            said.push((2, shell.says(&words)));
        }
    }
    let unreachable = ["--database-url", &*url, "tenant", "list"];
    said.push((1, shell.says(&unreachable)));
    let encryption = STANDARD.encode(KEY_BYTES);
    let broken_url = url.replace("postgres", "mysql");
    for variables in [
        [("DATABASE_URL", ""), ("DATABASE_URL_FILE", &*url)],
        [
            ("ATTESTO_ENCRYPTION_KEY", ""),
            ("ATTESTO_ENCRYPTION_KEY_FILE", &*encryption),
        ],
        [
            ("DATABASE_URL", &*broken_url),
            ("ATTESTO_ENCRYPTION_KEY", &*jws),
        ],
        [
            ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &*encryption),
            ("PORT", &*encryption),
        ],
        [("APPLE_PRODUCTION_URL", &*url), ("LOG_FORMAT", key)],
    ] {
        said.push((2, shell.says_with(&["serve"], &variables)));
    }
    for words in [
        &["--help"][..],
        &["serve", "--help"],
        &["dev", "--help"],
        &["simulator", "--help"],
        &["migrate", "--help"],
        &["tenant", "create", "--help"],
        &["key", "create", "--help"],
        &["apple", "set-credentials", "--help"],
        &["google", "set-credentials", "--help"],
    ] {
        said.push((0, shell.says(words)));
    }
    for (exit, said) in &said {
        let all = format!("{}{}", said.results, said.errors);
        planted.is_not_in(&all, "what a command says");
        assert_eq!(said.exit, Some(*exit), "{all}");
    }

    // A new key is printed once, in one place.
    let made = shell.says(&["key", "create", id]);
    let shown: Value = serde_json::from_str(&made.results).expect("JSON");
    assert!(shown["rawKey"].is_string() && made.errors.is_empty());
    world.end().await;
}

#[tokio::test]
async fn no_secret_is_in_server_output() {
    for mode in ["development", "production"] {
        let world = World::new().await;
        let tenant = world.tenant().await;
        let apple = world.simulator.apple();
        let bought = apple
            .create_transaction(NewTransaction::default())
            .expect("a purchase");
        let jws = apple
            .sign_transaction(&bought.transaction_id)
            .expect("signed");
        let planted = Planted::in_world(&world, &tenant, &jws);
        let mut shell = Shell::in_world(&world, mode);
        let folder = Folder::new();
        if mode != "production" {
            let root = folder.join("root.pem");
            std::fs::write(&root, world.simulator.apple_root_pem()).expect("it is written");
            let root = root.display().to_string();
            shell
                .variables
                .push(("APPLE_ROOT_CERTIFICATES".to_owned(), root));
        }
        let mut child = shell
            .command(&["serve", "--port=0", "--bind-address=127.0.0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut log = io::BufReader::new(child.stdout.take().expect("it is piped"));
        let mut said = String::new();
        let port = loop {
            let mut line = String::new();
            let read = io::BufRead::read_line(&mut log, &mut line).expect("text");
            assert!(read > 0, "it ended: {said}");
            said.push_str(&line);
            let line: Value = serde_json::from_str(&line).expect("JSON");
            if line["msg"] == "listening" {
                break line["port"].clone();
            }
        };

        let client = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let key = tenant.key.expose();
        for (path, body) in [
            ("apple", json!({ "signedTransaction": jws })),
            ("apple", json!({ "transactionId": "1" })),
            ("apple", json!({ "transactionId": jws })),
            ("google", subscription(PURCHASE_TOKEN)),
            ("google", json!([key])),
        ] {
            let url = format!("http://127.0.0.1:{port}/v1/{path}/verify?key={key}");
            let answer = client.post(url).bearer_auth(key).json(&body).send().await;
            let answer = answer.expect("an answer").text().await.expect("a body");
            if !answer.contains(r#""valid":true"#) {
                planted.is_not_in(&answer, "an answer");
            }
        }
        // The database stops; messages about that contain no secret either.
        world.end().await;
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it is there");
        io::Read::read_to_string(&mut log, &mut said).expect("text");
        let output = child.wait_with_output().expect("it ends");
        said.push_str(&String::from_utf8(output.stderr).expect("text"));
        assert!(
            said.contains("http_request") && said.contains("stopped"),
            "{said}"
        );
        planted.is_not_in(&said, "the log");
    }
}

/// In production the cause of an error is logged only by its class, also outside requests.
#[tokio::test]
async fn in_production_no_log_line_repeats_a_database_message() {
    let page = Page::default();
    let log = LogSettings {
        level: LevelFilter::TRACE,
        format: LogFormat::Json,
        is_cause_redacted: true,
    };
    let (writer, _logging) = logging(&log, &page);
    let url = format!("{}&user=planted_role", fresh_database().await.url);
    let settings = ConnectSettings::from_url(&url).expect("a good URL");
    let database = Database::open(&settings);
    let changes = ChangeListener::new(&database);
    let stop = CancellationToken::new();
    let listening = changes.run_until_stopped(stop.clone());
    let waiting = async {
        let written = || String::from_utf8(page.0.lock().expect("not poisoned").clone());
        while !written()
            .expect("text")
            .contains("change_listener_disconnected")
        {
            writer.flush();
            pause(Duration::from_millis(10)).await;
        }
        stop.cancel();
        written().expect("text")
    };
    let both = async { tokio::join!(listening, waiting).1 };
    let log = finished("the loss is logged", both).await;
    assert!(log.contains("authentication failed"), "{log}");
    assert!(!log.contains("planted_role"), "{log}");
}
