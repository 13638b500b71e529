//! Runs the shell blocks of a documentation page, one after the other, next to a complete server
//! with simulated stores.
//!
//! Placeholders of the reader's own values (`tenant_…`, a key, an address) are filled in. A program
//! that is neither ours nor available everywhere, or that would not end, is replaced by a stub,
//! with the reason: [`STUBBED_PROGRAMS`]. Any other placeholder (`…`, `<name>`) fails, and so does
//! a line with an exit code other than 0.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use attesto::events::{EventRecorder, EventType, NewEvent};
use attesto::simulator::state::apple::{NewTransaction, SimulatedApp};
use attesto::simulator::state::apple_notifications::{NewNotification, NotificationUrls};
use attesto::simulator::state::google::NewSubscription;
use attesto::stores::apple::account::EnvironmentChoice;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::attesto::{APP, APP_APPLE_ID, Tenant, World};
use super::event::test_event;
use super::folder::Folder;
use super::postgres::{empty_database, fresh_database};
use super::receiver::Receiver;
use crate::docs::{blocks, root};

/// The stubs: program, what is run instead, and why. `$desk` is the folder of the runner,
/// `$repository` this repository.
pub(crate) const STUBBED_PROGRAMS: [(&str, &str, &str); 10] = [
    (
        "date",
        "echo 2026-04-10",
        "a day must not end in the middle of a test",
    ),
    (
        "sudo",
        r#"for word; do case $word in docs/*) [ -f "$word" ] || exit 1 ;; esac; done"#,
        "a test changes nothing on its machine: whether our files are there",
    ),
    (
        "createdb",
        r#"cp "$desk/empty" "$desk/database""#,
        "from then on the page speaks of another database",
    ),
    (
        "git",
        "mkdir attesto && ln -s ../bin attesto/bin",
        "nothing is fetched in a test",
    ),
    (
        "cargo",
        r#"case $* in
            "install --locked --path .") ;;
            "bench --bench "*) [ -f "$repository/benches/$3.rs" ] ;;
            *) exit 1 ;;
        esac"#,
        "it takes minutes: whether there is a measurement of that name",
    ),
    (
        "python3",
        r#"[ "$1" = receiver.py ] && [ -n "$ATTESTO_WEBHOOK_SECRET" ] && [ -f "$repository/docs/receivers/python/$1" ]"#,
        "tests/it/receiver_examples.rs starts every receiver",
    ),
    (
        "docker",
        r#"case $* in
            "compose exec attesto "*) shift 3; exec "$@" ;;
            "compose exec -T attesto "*) shift 4; exec "$@" ;;
            "compose up -d") [ -s secrets/encryption_key ] && [ -s secrets/database_url ] && [ -s secrets/postgres_password ] ;;
            *) exit 1 ;;
        esac"#,
        "containers are not everywhere: what is typed inside of one is typed, and what it needs must be there",
    ),
    (
        "kubectl",
        r#"case $* in
            "create namespace "* | "-n attesto create secret generic "* | "apply -k "*) ;;
            "-n attesto exec deploy/attesto -- "* | "-n attesto exec -i deploy/attesto -- "*) ;;
            *) exit 1 ;;
        esac
        while [ $# -gt 0 ]; do
            case $1 in
                --) shift; exec "$@" ;;
                --from-file=*) [ -s "${1#--from-file=}" ] || exit 1 ;;
                -k) [ -f "$2/kustomization.yaml" ] || exit 1 ;;
            esac
            shift
        done"#,
        "no cluster is here: what is typed inside of it is typed, and the files must be there",
    ),
    (
        "fly",
        r#"case $* in
            "secrets import --stage --app "*) grep -q '^DATABASE_URL=.' ;;
            "launch --copy-config --no-deploy "*) ;;
            *) exit 1 ;;
        esac"#,
        "a cloud's command line",
    ),
    (
        "gcloud",
        r#"printf '%s\n' "$*" >>"$desk/gcloud"
        case $* in *" keys create "*) cp "$desk/service-account.json" . ;; esac"#,
        "a cloud's command line: what it was told is looked at afterwards",
    ),
];

/// Lines that may end with another exit code than 0: a part of the line, the code, and why.
pub(crate) const ALLOWED_EXIT_CODES: [(&str, i32, &str); 3] = [
    (
        "attesto doctor",
        1,
        "an installation of a test has no backup of last week, and whatever else it gives advice on",
    ),
    (
        "attesto webhook stop-redelivery",
        1,
        "what is to be stopped is over in a moment here",
    ),
    (
        r#"curl -s -d {"transactionId":"1"}"#,
        22,
        "a tenant without credentials is answered 400, and says so",
    ),
];

/// Whether a program that pages use is not installed; this is printed.
fn is_program_missing(program: &str) -> bool {
    let missing = !Path::new("/usr/bin").join(program).exists();
    if missing {
        eprintln!("{program} is not installed: what needs it was not typed");
    }
    missing
}

/// `attesto`, which stores values of its output that a reader would use later, and which ends where
/// it would otherwise run until interrupted.
const ATTESTO_WRAPPER: &str = r#"
if [ -e "$desk/database" ]; then DATABASE_URL=$(cat "$desk/database"); export DATABASE_URL; fi
# A page that makes a key means that one.
if [ -n "${ATTESTO_ENCRYPTION_KEY_FILE:-}" ]; then unset ATTESTO_ENCRYPTION_KEY; fi
remember() { # FILE FIELD
    found=$(printf '%s\n' "$said" | sed -n 's/.*"'"$2"'":"\([^"]*\)".*/\1/p')
    [ -z "$found" ] || printf %s "$found" >"$desk/$1"
}
code=0
case "$1 ${2:-}" in
serve* | simulator*)
    export PORT=0 BIND_ADDRESS=127.0.0.1
    [ "$1" = serve ] || set -- "$@" --port 0
    mkfifo "$desk/says.$$"
    "$program" "$@" >"$desk/says.$$" &
    listens=
    while read -r line; do
        case $line in
        *'"msg":"listening"'* | *'"control":'*) [ -n "$listens" ] || kill -TERM $! && listens=1 ;;
        esac
    done <"$desk/says.$$"
    wait $! || exit
    [ -n "$listens" ] && exit
    echo "it ended without listening" >&2
    exit 1
    ;;
"tail "*) exec "$program" "$@" --no-follow ;;
"tenant import") DATABASE_URL=$(cat "$desk/elsewhere") exec "$program" "$@" ;;
"apple request-test-notification")
    # What somebody entered in App Store Connect.
    to=$(cat "$desk/service")/v1/webhooks/apple/$(cat "$desk/tenant")
    /usr/bin/curl -s "$(cat "$desk/stores")/control/apple/push/com.example.app" -d '{"sandbox":"'"$to"'"}' >"$desk/entered"
    exec "$program" "$@"
    ;;
"tenant create") said=$("$program" "$@") || code=$? && remember tenant id ;;
"key create") said=$("$program" "$@") || code=$? && remember key rawKey ;;
"webhook set-config") said=$("$program" "$@") || code=$? && remember secret secret ;;
"audit verify") said=$("$program" "$@") || code=$? && remember head head ;;
"encryption generate-identity") said=$("$program" "$@") || code=$? && remember recipient recipient ;;
*) said=$("$program" "$@") || code=$? ;;
esac
printf '%s\n' "$said"
"#;

/// `curl`, which fails on an error response.
const CURL_WRAPPER: &str = r#"
case " $* " in *" --fail "*) ;; *) set -- --fail-with-body "$@" ;; esac
code=0
/usr/bin/curl "$@" || code=$?
"#;

/// The shell blocks of a page, each as a script: `sh` as it is, of `console` the lines after the
/// prompt.
pub(crate) fn shell_scripts(page: &str) -> Vec<String> {
    let of = |(language, block): (String, String)| match language.as_str() {
        "sh" => Some(block),
        "console" => {
            let mut script = String::new();
            let mut goes_on = false;
            for line in block.lines() {
                let typed = line.strip_prefix("$ ");
                if let Some(typed) = typed.or_else(|| goes_on.then_some(line)) {
                    script.extend([typed, "\n"]);
                    goes_on = typed.ends_with('\\');
                }
            }
            Some(script)
        }
        _ => None,
    };
    blocks(page).0.into_iter().filter_map(of).collect()
}

/// A documentation page, by its path from the root.
pub(crate) fn read_page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) struct DocRunner {
    pub(crate) world: World,
    pub(crate) tenant: Tenant,
    pub(crate) receiver: Receiver,
    folder: Folder,
    environment: Vec<(String, String)>,
    /// Placeholders on pages, and their values.
    placeholders: Vec<(String, String)>,
}

impl DocRunner {
    pub(crate) async fn new() -> Self {
        let world = World::today_with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1")]).await;
        let tenant = world.tenant().await;
        let receiver = Receiver::answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let folder = Folder::new();
        for name in ["bin", "work", "work/bin"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        let mut desk = Self {
            environment: build_environment(&world, &folder),
            placeholders: Vec::new(),
            world,
            tenant,
            receiver,
            folder,
        };
        desk.install_programs();
        desk.prepare_fixtures().await;
        desk
    }

    /// Installs stubs and wrappers of the programs on the pages.
    fn install_programs(&self) {
        let start = format!(
            "#!/bin/sh\ndesk={}; repository={}; program={}\n",
            self.folder.display(),
            root().display(),
            env!("CARGO_BIN_EXE_attesto")
        );
        let mut end = String::from("case \"${0##*/} $*\" in\n");
        for (part, code, _) in ALLOWED_EXIT_CODES {
            let words = part.split(' ').map(|word| format!("*'{word}'"));
            end.push_str(&words.collect::<String>());
            let accepted = format!("*) [ $code != {code} ] || code=0 ;;\n");
            end.push_str(&accepted);
        }
        end.push_str("esac\nexit $code\n");
        let program = |name: &str, script: String| {
            let path = self.folder.join("bin").join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        for (name, script, _) in STUBBED_PROGRAMS {
            program(name, format!("{start}{script}\n"));
        }
        program("attesto", format!("{start}{ATTESTO_WRAPPER}{end}"));
        program("curl", format!("{start}{CURL_WRAPPER}{end}"));
        let key = r#"attesto key create "$(cat "$desk/tenant")" | sed -n 's/.*"id":"\(key_[0-9A-Z]*\)".*/\1/p'"#;
        program(
            "a-new-key",
            format!(
                "{start}cp \"$desk/key\" \"$desk/first-key\"\n{key}\nmv \"$desk/first-key\" \"$desk/key\"\n"
            ),
        );

        // Our own scripts build and measure for minutes: only their names are checked.
        for script in std::fs::read_dir(root().join("bin")).unwrap() {
            let name = script.unwrap().file_name();
            symlink("/bin/true", self.folder.join("work/bin").join(name)).unwrap();
        }
        symlink(root().join("docs"), self.folder.join("work/docs")).unwrap();
    }

    /// Files and values that pages assume.
    async fn prepare_fixtures(&mut self) {
        self.write_note("tenant", self.tenant.id.as_str());
        self.write_note("key", self.tenant.key.expose());
        self.write_note("empty", &empty_database().await.url);
        self.create_import_database().await;
        let simulator = &self.world.simulator;
        let apple = simulator.apple().api_key();
        self.write_work_file("SubscriptionKey_2X9R4HXF34.p8", &apple.private_key);
        let client = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()])
            .expect("a certificate with a name");
        self.write_work_file("client.pem", &client.cert.pem());
        self.write_work_file("client.key", &client.signing_key.serialize_pem());
        let account = simulator.google_service_account().to_string();
        self.write_note("service-account.json", &account);
        self.write_work_file("service-account.json", &account);
        let app = SimulatedApp {
            app_apple_id: APP_APPLE_ID.unsigned_abs(),
            ..SimulatedApp::for_bundle_id(APP)
        };
        simulator.apple().set_app(app).unwrap();
        // The app that the pages name.
        let id = "2000000000000001".to_owned();
        let bought = NewTransaction {
            transaction_id: Some(id.clone()),
            ..NewTransaction::default()
        };
        simulator.apple().create_transaction(bought).unwrap();
        self.write_work_file(
            "transaction.jws",
            &simulator.apple().sign_transaction(&id).unwrap(),
        );
        self.write_work_file(
            "purchases.csv",
            &format!("reference,transactionId\nactive,{id}\nTRANSACTION_NOT_FOUND,1\n"),
        );
        let subscribed = simulator
            .google()
            .buy_subscription(NewSubscription::default());
        let token = subscribed.unwrap().purchase_token;
        self.write_work_file("token.txt", &token);
        let urls = NotificationUrls {
            production: None,
            sandbox: Some(self.apple_webhook_url()),
            manual: true,
        };
        simulator.apple().set_notification_urls(APP, urls).unwrap();
        let test = NewNotification {
            transaction_id: Some(id.clone()),
            ..NewNotification::new("DID_RENEW", None)
        };
        let signed = simulator
            .apple()
            .publish_notification(APP, &test)
            .unwrap()
            .signed_payload;
        self.write_work_file(
            "notification.json",
            &json!({ "signedPayload": signed }).to_string(),
        );

        self.set_placeholders(&id, &token);
        let asked = self.world.simulator.google().ask_refund_review(&token);
        let asked = asked.unwrap();
        self.add_placeholder("<orderId>", &asked.order_id);
        self.add_placeholder("<pendingRefundToken>", &asked.pending_refund_token);
        let callback = self.receiver.url();
        self.run_script(&format!(
            "attesto webhook set-config tenant_… --callback-url {callback}"
        ));
        self.run_script("attesto webhook ping tenant_…");
        let ping = self.receiver.requests().pop().unwrap();
        self.write_work_file("body.json", std::str::from_utf8(&ping.body).unwrap());
        self.write_work_file("secret.txt", &self.webhook_secret());
        let signature = ping.headers["x-attesto-signature"].clone();
        self.add_placeholder("t=1775830930,v1=…", &signature);
        let event = self.create_failed_event("a failure").await;
        self.add_placeholder("evt_…", &event);

        // Previous credentials to roll back to, after the pages set new ones.
        self.world
            .set_apple(&self.tenant, EnvironmentChoice::Sandbox, None)
            .await;
        self.run_script("attesto google set-credentials tenant_… --package-name com.example.app --service-account-path service-account.json --pubsub-topic projects/example/topics/play");
    }

    /// Sets the values of the placeholders. `id` and `token` are of purchases.
    fn set_placeholders(&mut self, id: &str, token: &str) {
        let callback = self.receiver.url();
        let base = self.world.url("");
        let simulator = &self.world.simulator;
        let stores = simulator.control_url().to_string();
        let stores = stores.trim_end_matches('/').trim_end_matches("/control");
        self.write_note("service", &base);
        self.write_note("stores", stores);
        let remembered = |file: &str| format!("$(cat '{}')", self.folder.join(file).display());
        let new_key = format!("$({})", self.folder.join("bin/a-new-key").display());
        let apple = simulator.apple().api_key();
        let fillings = [
            ("tenant_…", remembered("tenant")),
            ("<tenant>", remembered("tenant")),
            ("key_…", new_key),
            ("attesto_test_…", remembered("key")),
            ("attesto_live_…", remembered("key")),
            ("whsec_…", remembered("secret")),
            ("attesto-recipient-1:…", remembered("recipient")),
            ("1042:9f86…", remembered("head")),
            (
                "postgres://attesto@db.internal/attesto",
                remembered("empty"),
            ),
            ("red_…", "red_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".to_owned()),
            ("https://attesto.example.com", base.clone()),
            ("http://127.0.0.1:8080", base),
            ("http://127.0.0.1:8090", stores.to_owned()),
            ("https://app.example.com/hooks/attesto", callback.clone()),
            ("http://127.0.0.1:3000/hooks/attesto", callback.clone()),
            ("--key-id 2X9R4HXF34", format!("--key-id {}", apple.key_id)),
            ("<keyId>", apple.key_id.clone()),
            (
                "57246542-96fe-1a63-e053-0824d011072a",
                apple.issuer_id.clone(),
            ),
            ("<issuerId>", apple.issuer_id),
            ("<appAppleId>", APP_APPLE_ID.to_string()),
            ("2000000123456789", id.to_owned()),
            ("<transactionId>", id.to_owned()),
            ("<purchaseToken>", token.to_owned()),
        ];
        self.placeholders = fillings
            .map(|(stands, for_it)| (stands.to_owned(), for_it))
            .into();
    }

    /// The URL for Apple's notifications of this tenant.
    pub(crate) fn apple_webhook_url(&self) -> String {
        let path = format!("/v1/webhooks/apple/{}", self.tenant.id);
        self.world.url(&path)
    }

    /// From now on a tenant is imported into another, empty installation.
    pub(crate) async fn create_import_database(&self) {
        self.write_note("elsewhere", &fresh_database().await.url);
    }

    fn write_note(&self, name: &str, content: &str) {
        std::fs::write(self.folder.join(name), content).unwrap();
    }

    /// The stored value of this name.
    pub(crate) fn read_note(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }

    /// The secret that signed the delivery made during the setup.
    pub(crate) fn webhook_secret(&self) -> String {
        self.read_note("secret")
    }

    /// Writes a file into the working folder of the scripts.
    pub(crate) fn write_work_file(&self, name: &str, content: &str) {
        std::fs::write(self.folder.join("work").join(name), content).unwrap();
    }

    /// Adds a placeholder and its value.
    pub(crate) fn add_placeholder(&mut self, stands: &str, for_it: &str) {
        self.placeholders
            .push((stands.to_owned(), for_it.to_owned()));
    }

    /// An event whose delivery failed permanently.
    async fn create_failed_event(&self, external_id: &str) -> String {
        let event = NewEvent {
            event_type: EventType::SubscriptionRenewed,
            platform_event: "google.subscription_renewed".into(),
            ..test_event(&self.tenant.id, external_id)
        };
        let database = self.world.database();
        let record = EventRecorder::new(database, &self.world.clock, |_| {});
        let stored = record.record_event(&event).await.unwrap().event_id;
        sqlx::query(
            "update webhook_deliveries set status = 'failed', failed_at = now(), attempt_count = 6 where event_id = $1",
        )
        .bind(stored.as_str())
        .execute(database.pool())
        .await
        .unwrap();
        stored.to_string()
    }

    /// The script with its placeholders filled in and without comments.
    fn fill_placeholders(&self, script: &str) -> String {
        let (mut filled, mut quote, mut rest) = (String::new(), None, script);
        while let Some(letter) = rest.chars().next() {
            let found = self
                .placeholders
                .iter()
                .find(|(it, _)| rest.starts_with(it));
            if let Some((stands, for_it)) = found {
                // The shell substitutes nothing within single quotes.
                match quote {
                    Some('\'') if for_it.starts_with('$') => {
                        filled.extend(["'\"", for_it, "\"'"]);
                    }
                    _ => filled.push_str(for_it),
                }
                rest = &rest[stands.len()..];
                continue;
            }
            match (quote, letter) {
                (None, '#') if filled.is_empty() || filled.ends_with(char::is_whitespace) => {
                    rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                    continue;
                }
                (None, '\'' | '"') => quote = Some(letter),
                (Some(open), _) if open == letter => quote = None,
                _ => {}
            }
            filled.push(letter);
            rest = &rest[letter.len_utf8()..];
        }
        filled
    }

    /// The standard output of the script, which must succeed.
    pub(crate) fn run_script(&self, script: &str) -> String {
        if script.contains("| jq ") && is_program_missing("jq") {
            return String::new();
        }
        let filled = self.fill_placeholders(script);
        let left_out = filled.split('<').skip(1).any(|rest| {
            let end = rest.find('>').unwrap_or(0);
            end > 0 && rest[..end].chars().all(char::is_alphanumeric)
        });
        assert!(
            !filled.contains('…') && !left_out,
            "what is left out cannot be typed: {filled}"
        );
        let mut command = Command::new("/bin/sh");
        command
            .args(["-eux", "-c", &filled])
            .current_dir(self.folder.join("work"))
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        // The simulated stores and the server run in this runtime, which must not be blocked.
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let said = String::from_utf8(output.stdout).unwrap();
        let complained = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success(),
            "{script}\nended with {:?}\n{said}\n{complained}",
            output.status.code()
        );
        said
    }

    /// Runs a page, and returns the output of each block.
    pub(crate) fn run_page(&self, name: &str) -> Vec<String> {
        // An earlier page may have stored other values.
        self.write_note("tenant", self.tenant.id.as_str());
        self.write_note("key", self.tenant.key.expose());
        let scripts = shell_scripts(&read_page(name));
        assert!(!scripts.is_empty(), "{name} has nothing to type");
        scripts
            .iter()
            .map(|script| self.run_script(script))
            .collect()
    }
}

fn build_environment(world: &World, folder: &Folder) -> Vec<(String, String)> {
    let roots = folder.join("root.pem");
    std::fs::write(&roots, world.simulator.apple_root_pem()).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.join("bin").display());
    let own = [
        ("PATH", path.as_str()),
        ("DATABASE_URL", &world.fresh.url),
        ("ATTESTO_ENV", "test"),
        // No push is received there, but `doctor` checks that the address can be reached.
        (
            "GOOGLE_PUBSUB_URL",
            world.simulator.google_play_url().as_str(),
        ),
        ("APPLE_ROOT_CERTIFICATES", &roots.display().to_string()),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
        ("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([7; 32])),
        ("PURCHASE_TOKEN", "a purchase token"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let stores = world.simulator.environment_variables();
    stores
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(own)
        .collect()
}
