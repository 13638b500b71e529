//! The example receivers (`docs/receivers`), run and sent deliveries by Attesto's own sender and
//! signer.
//!
//! The one in Rust is compiled into this file. Each of the others needs its language on this
//! machine; if it is missing, the test says so on stderr and passes.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use attesto::deliveries::endpoint::{CallbackKind, SigningSecret, SigningSecrets, WebhookEndpoint};
use attesto::deliveries::{DeliveryJob, Sender, SenderSettings, signature};
use attesto::egress::{AllowList, EgressPolicy};
use attesto::events::purchase_state::{StateBasis, StateStatus};
use attesto::events::{EventSource, EventSubject, EventType, NewEvent, PurchaseState, SubjectType};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use crate::world::folder::Folder;
use crate::world::receiver::Receiver;
use crate::world::wait::finished;

#[expect(
    clippy::disallowed_methods,
    clippy::format_collect,
    clippy::struct_field_names,
    reason = "the lints are for this product, and the example is for readers who copy it"
)]
#[path = "../../docs/receivers/rust/src/main.rs"]
mod rust;

/// The example is a complete program.
const _: fn() -> std::io::Result<()> = rust::main;

/// Starts `$@` and stops it when our end of the pipe closes, however this process ends.
const KEEPER: &str = r#"
"$@" 2>&1 </dev/null &
pid=$!
read -r _
kill "$pid"
wait "$pid" 2>/dev/null
"#;

/// How the receiver of a language is built and run.
struct Language {
    name: &'static str,
    /// Succeeds if the receiver can run.
    probe: &'static [&'static str],
    /// The command that runs it. `{file}` is the receiver, `{folder}` a folder for build output;
    /// `{host}` and `{port}` are for those that do not read them from the environment.
    run: &'static [&'static str],
    /// The command that builds it first.
    build: &'static [&'static str],
    file: &'static str,
}

const PYTHON: Language = Language {
    name: "python",
    probe: &[
        "python3",
        "-c",
        "import sys; sys.exit(sys.version_info < (3, 9))",
    ],
    run: &["python3", "-B", "{file}"],
    build: &[],
    file: "receiver.py",
};
const NODE: Language = Language {
    name: "node",
    probe: &[
        "node",
        "-e",
        "process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)",
    ],
    run: &["node", "{file}"],
    build: &[],
    file: "receiver.mjs",
};
const GO: Language = Language {
    name: "go",
    probe: &["go", "version"],
    run: &["{folder}/receiver"],
    build: &["go", "build", "-o", "{folder}/receiver", "{file}"],
    file: "receiver.go",
};
const RUBY: Language = Language {
    name: "ruby",
    probe: &["ruby", "-ropenssl", "-e", "exit RUBY_VERSION >= '3.0'"],
    run: &["ruby", "-w", "{file}"],
    build: &[],
    file: "receiver.rb",
};
const PHP: Language = Language {
    name: "php",
    probe: &["php", "-r", "exit(PHP_VERSION_ID < 80100 ? 1 : 0);"],
    run: &["php", "-S", "{host}:{port}", "{file}"],
    build: &[],
    file: "receiver.php",
};
const JAVA: Language = Language {
    name: "java",
    // Only a JDK has it; it refuses an unknown release.
    probe: &["javac", "--release", "17", "--version"],
    run: &["java", "-XX:TieredStopAtLevel=1", "{file}"],
    build: &[],
    file: "Receiver.java",
};

/// A running receiver and the folder of its data. It stops when dropped.
struct Running {
    url: String,
    events: Folder,
    _states: Folder,
    _building: Option<Folder>,
    _keeper: Option<Child>,
    _task: Option<AbortOnDropHandle<()>>,
}

/// The secrets the receiver knows, new in every run.
struct Known {
    current: SigningSecret,
    previous: SigningSecret,
    stranger: SigningSecret,
}

impl Known {
    fn new() -> Self {
        // One as Attesto generates it, and one as a person may choose it, with every character that
        // an environment allows.
        let chosen = format!("{}=, ü \"'$x\\ %s", EventId::mint(now()));
        Self {
            current: SigningSecret::generate(),
            previous: SigningSecret::parse(&chosen).expect("a good secret"),
            stranger: SigningSecret::generate(),
        }
    }
}

fn now() -> Timestamp {
    Clock::system().now()
}

impl Language {
    /// `None` if the language is missing.
    async fn start(&self, known: &Known) -> Option<Running> {
        let probed = Command::new(self.probe[0])
            .args(&self.probe[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !probed.await.is_ok_and(|status| status.success()) {
            // Not captured with the test's output: a skipped test should be visible.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED receiver_examples::{}: `{}` is missing or too old on this machine",
                self.name,
                self.probe[0]
            );
            return None;
        }

        let (events, states, building) = (Folder::new(), Folder::new(), Folder::new());
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs/receivers")
            .join(self.name)
            .join(self.file);
        let (host, port) = free_address();
        let filled = |word: &&str| {
            word.replace("{file}", &file.display().to_string())
                .replace("{folder}", &building.display().to_string())
                .replace("{host}", &host.to_string())
                .replace("{port}", &port.to_string())
        };
        if let Some((program, rest)) = self.build.split_first() {
            let built = Command::new(program)
                .args(rest.iter().map(filled))
                .stdin(Stdio::null())
                .output()
                .await
                .expect("it runs");
            let said = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "{}: {said}", self.name);
        }
        let mut keeper = Command::new("/bin/sh")
            .args(["-c", KEEPER, "keeper"])
            .args(self.run.iter().map(filled))
            .env("ATTESTO_WEBHOOK_SECRET", known.current.expose())
            .env("ATTESTO_WEBHOOK_SECRET_PREVIOUS", known.previous.expose())
            .env("EVENTS_DIR", &*events)
            .env("STATES_DIR", &*states)
            .env("HOST", host.to_string())
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell runs");
        let mut said = BufReader::new(keeper.stdout.take().expect("piped")).lines();
        let here = format!("http://{host}:{port}");
        let listening = async {
            let mut heard = String::new();
            loop {
                match said.next_line().await.expect("it writes text") {
                    Some(line) if line.contains(&here) => return,
                    Some(line) => heard = heard + &line + "\n",
                    None => panic!("{} does not start: {heard}", self.name),
                }
            }
        };
        finished("the receiver says where it listens", listening).await;
        // It must be able to write further output.
        let task = tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        Some(Running {
            url: format!("{here}/hooks/attesto"),
            events,
            _states: states,
            _building: Some(building),
            _keeper: Some(keeper),
            _task: Some(AbortOnDropHandle::new(task)),
        })
    }
}

/// A free port on a separate address, so that no other process takes it before the receiver does.
fn free_address() -> (Ipv4Addr, u16) {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 64 | (a & 63), b, c.max(1));
    let listener = [own, Ipv4Addr::LOCALHOST]
        .into_iter()
        .find_map(|host| TcpListener::bind((host, 0)).ok())
        .expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    match address.ip() {
        std::net::IpAddr::V4(host) => (host, address.port()),
        std::net::IpAddr::V6(_) => unreachable!("it was bound to IPv4"),
    }
}

async fn start_rust(known: &Known) -> Running {
    let (events, states) = (Folder::new(), Folder::new());
    let secrets = [&known.current, &known.previous].map(|secret| secret.expose().to_owned());
    let receiver = rust::receiver(secrets.to_vec(), events.to_path_buf(), states.to_path_buf());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let task = tokio::spawn(async { axum::serve(listener, receiver).await.expect("it serves") });
    Running {
        url: format!("http://{address}/hooks/attesto"),
        events,
        _states: states,
        _building: None,
        _keeper: None,
        _task: Some(AbortOnDropHandle::new(task)),
    }
}

impl Running {
    /// Sends as the dispatcher does, at this time; returns the status and whether the receiver
    /// calls the event new.
    async fn send(
        &self,
        secrets: &SigningSecrets,
        at: Timestamp,
        id: &EventId,
        body: &str,
    ) -> (u16, Option<bool>) {
        let (code, said) = self.send_for_answer(secrets, at, id, body).await;
        (code, said["isNew"].as_bool())
    }

    /// The same with the whole answer.
    async fn send_for_answer(
        &self,
        secrets: &SigningSecrets,
        at: Timestamp,
        id: &EventId,
        body: &str,
    ) -> (u16, Value) {
        let clock = Clock::fixed(at);
        let settings = SenderSettings::new(Duration::from_secs(10), EgressPolicy::new(true));
        let sender = Sender::new(settings, &clock).expect("a sender");
        let job = DeliveryJob {
            id: DeliveryId::mint(at),
            event_id: id.clone(),
            tenant_id: TenantId::mint(at),
            callback: CallbackNumber::FIRST,
            event_type: "subscription.renewed".to_owned(),
            attempt_number: 1,
            callback_url: self.url.clone(),
            body: body.to_owned().into(),
        };
        let endpoint = WebhookEndpoint {
            secrets: secrets.clone(),
            kind: CallbackKind::Events,
            allow_list: AllowList::default(),
            client_certificate: None,
        };
        let outcome = sender.send(&job, &endpoint).await;
        let said = outcome.body_excerpt().unwrap_or_default();
        let said: Value = serde_json::from_str(said).unwrap_or_default();
        let code = outcome.status_code();
        let code = code.unwrap_or_else(|| panic!("no answer: {:?}", outcome.detail()));
        (code, said)
    }

    /// Sends with exactly this signature, and returns the status.
    async fn send_signed(&self, signature: Option<&[u8]>, body: &[u8]) -> u16 {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.post(&self.url).body(body.to_vec());
        if let Some(signature) = signature {
            request = request.header("X-Attesto-Signature", signature);
        }
        request.send().await.unwrap().status().as_u16()
    }

    /// The files it stored, by name.
    fn kept(&self) -> Vec<(String, String)> {
        let files = std::fs::read_dir(&*self.events).unwrap();
        let mut kept: Vec<_> = files
            .map(|file| {
                let file = file.unwrap();
                let name = file.file_name().into_string().unwrap();
                (name, std::fs::read_to_string(file.path()).unwrap())
            })
            .collect();
        kept.sort();
        kept
    }
}

fn event() -> (EventId, String) {
    event_with(None, None, None)
}

fn event_with(
    subject: Option<EventSubject>,
    sequence: Option<i64>,
    state: Option<PurchaseState>,
) -> (EventId, String) {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    let (now, id) = (now(), EventId::mint(now()));
    let event = NewEvent {
        tenant: "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".parse().unwrap(),
        source: EventSource::Google,
        external_id: "12345678901234567890".to_owned(),
        event_type: EventType::SubscriptionRenewed,
        reason: None,
        platform_event: "google.subscription.2".to_owned(),
        occurred_at: None,
        environment: None,
        subject,
        app_user_id: Some("grüße \u{1f600} \u{2028}".to_owned()),
        app_user_id_source: Some(attesto::events::AppUserIdSource::Purchase),
        state,
        state_error: None,
        data: raw(
            r#"{"eventId":"evt_00000000000000000000000000","n":123456789012345678901234567890}"#,
        ),
        facts: None,
        raw: raw("{ \"spaced\" :\t1e400, \"ü\":\"\\u00fc\\/\" }"),
        shared_content: None,
        answer_by: None,
        is_recovered: false,
    };
    let body = event.to_json_body(&id, now).with_sequence(sequence);
    (id, body)
}

/// Everything that a receiver must accept, and everything that it must refuse.
async fn examine(receiver: &Running, known: &Known) {
    // Only the first test installs it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut expected = takes_what_is_ours_once(receiver, known).await;
    expected.extend(keeps_the_newest_state(receiver, known).await);
    refuses_strangers(receiver, known).await;
    refuses_the_malformed(receiver, known).await;
    expected.sort();
    assert_eq!(receiver.kept(), expected);

    // An event that cannot be stored is not acknowledged.
    let (id, body) = event();
    std::fs::remove_dir_all(&*receiver.events).unwrap();
    std::fs::write(&*receiver.events, "in the way").unwrap();
    let current = SigningSecrets::from(known.current.clone());
    let sent = receiver.send(&current, now(), &id, &body).await;
    assert_eq!(sent, (500, None));
    std::fs::remove_file(&*receiver.events).unwrap();
}

/// Returns the files it must have stored then.
async fn takes_what_is_ours_once(receiver: &Running, known: &Known) -> Vec<(String, String)> {
    let now = now();
    let alone = |secret: &SigningSecret| SigningSecrets::from(secret.clone());
    let rotating = |newest: &SigningSecret, previous: &SigningSecret| SigningSecrets {
        newest: newest.clone(),
        previous: vec![previous.clone()],
    };
    let mut expected = Vec::new();
    // Signed with a known secret, alone or beside an unknown one, well within five minutes.
    let window = Duration::from_mins(4);
    let current = alone(&known.current);
    for (secrets, at) in [
        (current.clone(), now),
        (alone(&known.previous), now),
        (rotating(&known.current, &known.previous), now),
        (rotating(&known.stranger, &known.current), now),
        (rotating(&known.previous, &known.stranger), now),
        (current.clone(), now.minus(window)),
        (current.clone(), now.plus(window)),
    ] {
        let (id, body) = event();
        let sent = receiver.send(&secrets, at, &id, &body).await;
        assert_eq!(sent, (200, Some(true)));
        // A redelivery.
        let again = receiver.send(&current, now, &id, &body).await;
        assert_eq!(again, (200, Some(false)));
        expected.push((format!("{id}.json"), body));
    }

    // Several concurrent copies are new once.
    let (id, body) = event();
    let repeats = (0..8).map(|_| receiver.send(&current, now, &id, &body));
    let answers = futures_util::future::join_all(repeats).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    let new = answers.iter().filter(|(_, is_new)| *is_new == Some(true));
    assert_eq!(new.count(), 1, "{answers:?}");
    expected.push((format!("{id}.json"), body));
    expected
}

/// A purchase's state in an event: when the store stated it, whether it entitles, and until when.
fn state(as_of: i64, entitled: bool, entitled_until: Option<Timestamp>) -> PurchaseState {
    PurchaseState {
        status: StateStatus::Active,
        entitled,
        entitled_until,
        // Text that looks like what is searched for, as a store may allow.
        product_id: Some(r#"{"asOf":"9999-01-01T00:00:00.000Z"}"#.into()),
        base_plan_id: None,
        offer_id: Some(r"back\slash".into()),
        period: None,
        will_renew: Some(true),
        renews_as: None,
        renews_at: None,
        ownership: None,
        quantity: Some(1),
        refundable_quantity: None,
        acknowledge_by: None,
        basis: StateBasis::Store,
        as_of: Timestamp::from_millis(as_of),
    }
}

/// The receiver's gate, in the answer's `entitled`: by the newest `asOf`, of equal ones by the higher `sequence`, until the
/// end. Returns the files it must have stored then.
async fn keeps_the_newest_state(receiver: &Running, known: &Known) -> Vec<(String, String)> {
    const T1: i64 = 1_775_830_930_999;
    let hour = Duration::from_hours(1);
    let (past, future) = (now().minus(hour), now().plus(hour));
    let current = SigningSecrets::from(known.current.clone());
    let mut expected = Vec::new();
    let (purchase, other) = ("the \"purchase\" \\", "another");
    for (key, sequence, state, entitled) in [
        (None, None, None, None),
        (Some(purchase), Some(1), None, None),
        (
            Some(purchase),
            Some(2),
            Some(state(T1, true, Some(future))),
            Some(true),
        ),
        // Older, though it arrives later.
        (
            Some(purchase),
            Some(3),
            Some(state(T1 - 1, false, None)),
            Some(true),
        ),
        // Stated at the same time: the higher sequence counts, in whichever order they arrive.
        (
            Some(purchase),
            Some(11),
            Some(state(T1, false, None)),
            Some(false),
        ),
        (
            Some(purchase),
            Some(9),
            Some(state(T1, true, None)),
            Some(false),
        ),
        // Nothing is known: what is kept stays.
        (Some(purchase), Some(12), None, Some(false)),
        // Newer, though its sequence is lower; another purchase does not matter.
        (
            Some(purchase),
            Some(5),
            Some(state(T1 + 1, true, None)),
            Some(true),
        ),
        (
            Some(other),
            Some(1),
            Some(state(T1, false, None)),
            Some(false),
        ),
        (Some(purchase), Some(13), None, Some(true)),
        // The end has passed, whatever the state said when it was stored.
        (
            Some(purchase),
            Some(14),
            Some(state(T1 + 2, true, Some(past))),
            Some(false),
        ),
    ] {
        let subject = key.map(|key| EventSubject {
            key: key.to_owned(),
            product_id: None,
            r#type: SubjectType::Subscription,
            current: true,
            superseded_by: None,
        });
        let (id, body) = event_with(subject, sequence, state);
        for is_new in [true, false] {
            let (status, said) = receiver.send_for_answer(&current, now(), &id, &body).await;
            let answer = json!({ "eventId": id, "isNew": is_new, "entitled": entitled });
            assert_eq!((status, said), (200, answer), "{key:?} {sequence:?}");
        }
        expected.push((format!("{id}.json"), body));
    }
    expected
}

/// Signed with an unknown secret, too old, too new, or altered on the way.
async fn refuses_strangers(receiver: &Running, known: &Known) {
    let (now, beyond) = (now(), Duration::from_secs(400));
    let current = SigningSecrets::from(known.current.clone());
    for (secrets, at) in [
        (known.stranger.clone().into(), now),
        (current.clone(), now.minus(beyond)),
        (current.clone(), now.plus(beyond)),
    ] {
        let (id, body) = event();
        let sent = receiver.send(&secrets, at, &id, &body).await;
        assert_eq!(sent, (401, None));
    }

    let (id, body) = event();
    let good =
        signature::sign_delivery(&current, id.as_str(), now.as_secs(), body.as_bytes()).attesto;
    for tampered in [
        body.replace("renewed", "revoked"),
        format!("{body} "),
        body[..body.len() - 1].to_owned(),
        " ".to_owned(),
    ] {
        let status = receiver.send_signed(Some(good.as_bytes()), tampered.as_bytes());
        assert_eq!(status.await, 401, "{tampered:?}");
    }
    let (moment, mac) = good.split_once(',').unwrap();
    let later = format!("t={}", now.as_secs() + 1);
    let forged = [
        String::new(),
        "nonsense".to_owned(),
        ",=,,t,v1,=".to_owned(),
        moment.to_owned(),
        mac.to_owned(),
        format!("{later},{mac}"),
        format!("{good},{later}"),
        format!("{moment},v0={}", &mac[3..]),
        format!("{moment},v1="),
        format!("{moment},{}", &mac[..mac.len() - 1]),
        format!("{moment},{}", &mac[..mac.len() - 2]),
        format!("{moment},{mac}00"),
        format!("t=,{mac}"),
        format!("t=+{},{mac}", now.as_secs()),
        format!("t={}.0,{mac}", now.as_secs()),
        format!("t=99999999999999999999999999,{mac}"),
        format!("t=NaN,{mac}"),
    ];
    for header in forged {
        let status = receiver.send_signed(Some(header.as_bytes()), body.as_bytes());
        assert_eq!(status.await, 401, "{header:?}");
    }
    let odd = [moment.as_bytes(), b",v1=\xff\xfe"].concat();
    for header in [None, Some(odd.as_slice())] {
        let status = receiver.send_signed(header, body.as_bytes()).await;
        assert_eq!(status, 401, "{header:?}");
    }
}

/// Validly signed, but not an event.
async fn refuses_the_malformed(receiver: &Running, known: &Known) {
    let secrets = SigningSecrets::from(known.current.clone());
    for body in [
        " ",
        "[]",
        "null",
        "no json",
        "{}",
        r#"{"eventId":7}"#,
        r#"{"eventId":"../../etc/passwd"}"#,
        r#"{"eventId":"evt_../4T5W6X7Y8Z9A0B1C2D3E012"}"#,
    ] {
        let signed = signature::sign_delivery(&secrets, "", now().as_secs(), body.as_bytes());
        let signature = signed.attesto.into_bytes();
        let status = receiver.send_signed(Some(&signature), body.as_bytes());
        assert_eq!(status.await, 400, "{body:?}");
    }
}

async fn run(language: Language) {
    let known = Known::new();
    if let Some(receiver) = language.start(&known).await {
        examine(&receiver, &known).await;
    }
}

#[tokio::test]
async fn rust_accepts_each_genuine_delivery_once() {
    let known = Known::new();
    examine(&start_rust(&known).await, &known).await;
}

#[tokio::test]
async fn python_accepts_each_genuine_delivery_once() {
    run(PYTHON).await;
}

#[tokio::test]
async fn node_accepts_each_genuine_delivery_once() {
    run(NODE).await;
}

#[tokio::test]
async fn go_accepts_each_genuine_delivery_once() {
    run(GO).await;
}

#[tokio::test]
async fn ruby_accepts_each_genuine_delivery_once() {
    run(RUBY).await;
}

#[tokio::test]
async fn php_accepts_each_genuine_delivery_once() {
    run(PHP).await;
}

#[tokio::test]
async fn java_accepts_each_genuine_delivery_once() {
    run(JAVA).await;
}

/// The Standard Webhooks libraries in Python and JavaScript, each with the code its users would
/// write. The delivery is on stdin.
const LIBRARIES: [(&str, &[&str]); 2] = [
    (
        "python",
        &[
            "venv/bin/python",
            "-c",
            "
import json, sys
from standardwebhooks import Webhook
given = json.load(sys.stdin)
event = Webhook(given['secret']).verify(given['body'], given['headers'])
print(event['eventId'])
",
        ],
    ),
    (
        "node",
        &[
            "node",
            "-e",
            "
const { Webhook } = require('./node_modules/standardwebhooks');
const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(new Webhook(given.secret).verify(given.body, given.headers).eventId);
",
        ],
    ),
];

/// `bin/test-standard-webhooks` downloads the libraries and runs this test.
#[tokio::test]
#[ignore = "needs packages of other languages; bin/test-standard-webhooks fetches them and runs it"]
async fn standard_webhooks_libraries_accept_our_deliveries() {
    let folder = attesto::config::read_env_var("STANDARD_WEBHOOKS").expect("set by the script");
    let catcher = Receiver::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let running = Running {
        url: catcher.url(),
        events: Folder::new(),
        _states: Folder::new(),
        _building: None,
        _keeper: None,
        _task: None,
    };
    let known = Known::new();
    let secrets = SigningSecrets {
        newest: known.current.clone(),
        previous: vec![known.previous.clone()],
    };
    let (id, body) = event();
    // How a library gets a secret that a person chose.
    let chosen = format!("whsec_{}", STANDARD.encode(known.previous.expose()));
    let stranger = known.stranger.expose().to_owned();
    for (secret, at, changed, accepted) in [
        (known.current.expose(), now(), false, true),
        (&chosen, now(), false, true),
        (&stranger, now(), false, false),
        (known.current.expose(), now(), true, false),
        (
            known.current.expose(),
            now().minus(Duration::from_secs(400)),
            false,
            false,
        ),
    ] {
        running.send(&secrets, at, &id, &body).await;
        let received = catcher.requests().pop().unwrap();
        let mut body = String::from_utf8(received.body).unwrap();
        if changed {
            body = body.replace("renewed", "revoked");
        }
        let given = json!({"secret": secret, "headers": received.headers, "body": body});
        for (name, command) in LIBRARIES {
            let mut program = Command::new(match command[0] {
                "node" => "node".into(),
                inside => Path::new(&folder).join(inside),
            });
            program
                .args(&command[1..])
                .current_dir(&folder)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = program.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(given.to_string().as_bytes()).await.unwrap();
            drop(stdin);
            let output = child.wait_with_output().await.unwrap();
            let (said, complaint) = (
                String::from_utf8(output.stdout).unwrap(),
                String::from_utf8_lossy(&output.stderr),
            );
            let expected = if accepted { id.as_str() } else { "" };
            assert_eq!(said.trim(), expected, "{name}: {complaint}");
            assert_eq!(
                complaint.contains("WebhookVerificationError"),
                !accepted,
                "{name}: {complaint}"
            );
        }
    }
}
