//! The environment of a run: a database, the simulated stores, tenants with callbacks, and the
//! replicas.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::credentials::sealed_columns;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::{ConnectSettings, Database};
use attesto::simulator::state::apple::{NewTransaction, SimulatedEnvironment};
use attesto::simulator::state::google::NewSubscription;
use attesto::simulator::state::google_notifications::PushSubscription;
use attesto::simulator::{Simulator, SimulatorOptions};
use attesto::stores::apple;
use attesto::stores::apple::account::{EnvironmentChoice, SigningKey};
use attesto::stores::google;
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::tenants;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use super::Run;
use super::plan::{Fault, Order, Planned, Step};
use super::postgres::{Options, Postgres};
use super::pusher::{Accepted, Notification, Ports, push};
use super::receivers::Receivers;
use super::replica::{PATIENCE, Replica, Settings};

const TENANTS: usize = 4;
/// The Apple id of their apps.
const APP_APPLE_ID: i64 = 1_234_567_890;

/// Everything that was started.
pub(crate) struct Stage {
    pub(crate) postgres: Postgres,
    /// The synchronous standby, if there is one.
    pub(crate) standby: Option<Postgres>,
    pub(crate) database: Database,
    simulator: Simulator,
    pub(crate) receivers: Receivers,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) tenants: Vec<(TenantId, String)>,
    settings: Settings,
    /// The key that seals now.
    key: (u8, [u8; 32]),
    /// The running `encryption rotate`.
    resealing: Option<JoinHandle<()>>,
}

/// The encryption key at the start, and the one it is rotated to.
const OLD_KEY: (u8, [u8; 32]) = (1, [7; 32]);
const NEW_KEY: (u8, [u8; 32]) = (2, [8; 32]);
/// Tenants that only have secrets, so that a rotation takes several batches.
const SILENT: usize = 240;

fn text((id, bytes): (u8, [u8; 32])) -> String {
    format!("{id}:{}", STANDARD.encode(bytes))
}

fn ring(key: (u8, [u8; 32])) -> Keyring {
    let master = MasterKey::parse(&text(key), None).expect("thirty-two bytes");
    Keyring::new(master, Vec::new()).expect("one key")
}

impl Stage {
    pub(crate) async fn set(replicas: usize, on_volume: bool) -> Self {
        Self::set_with(replicas, on_volume, "").await
    }

    /// The same, with extra connection parameters for the replicas.
    pub(crate) async fn set_with(replicas: usize, on_volume: bool, parameters: &str) -> Self {
        let postgres = Postgres::start_with(Options::default().on_volume(on_volume));
        let url = postgres.url();
        Self::set_on(postgres, None, &url, replicas, parameters).await
    }

    /// The same with a synchronous standby, which replicas use when it is promoted.
    pub(crate) async fn set_replicated(replicas: usize) -> Self {
        let (postgres, standby) = tokio::task::block_in_place(|| {
            let postgres = Postgres::start_with(Options::default());
            let standby = postgres.start_standby();
            (postgres, standby)
        });
        let folder = |server: &Postgres| server.folder().display().to_string();
        let both = format!("{},{}", folder(&postgres), folder(&standby));
        let url = postgres.url().replace(&folder(&postgres), &both);
        postgres
            .set_parameter("synchronous_standby_names", Some("*"))
            .await;
        Self::set_on(postgres, Some(standby), &url, replicas, "").await
    }

    async fn set_on(
        postgres: Postgres,
        standby: Option<Postgres>,
        url: &str,
        replicas: usize,
        parameters: &str,
    ) -> Self {
        let connect = ConnectSettings::from_url(url).expect("our own URL");
        let database = Database::open(&connect);
        database.migrate(false).await.expect("it is empty");
        let clock = Clock::system();
        let simulator = Simulator::start(SimulatorOptions::new(clock.clone()))
            .await
            .expect("a free port");
        let keyring = ring(OLD_KEY);
        seal_for_the_silent(&database, &keyring).await;

        let receivers = Receivers::default();
        let callbacks = receivers.start().await;
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            let package = format!("com.example.chaos{number}");
            let name = package.parse().expect("a name");
            let tenant = tenants::store::create_tenant(&database, &name, clock.now())
                .await
                .expect("the database is there")
                .id;
            receivers
                .register(&database, &keyring, &tenant, (number, callbacks))
                .await;
            let file = simulator.google_service_account().to_string();
            let new = google::store::NewGoogleCredentials {
                package_name: &package,
                key_file: file.as_bytes(),
                account: &GoogleServiceAccount::parse(file.as_bytes())
                    .expect("the simulator's own"),
                pubsub_audience: Some("https://chaos.example"),
                pubsub_service_account: Some(simulator.google().push_account()),
                pubsub_topic: None,
            };
            google::store::set_credentials(&database, &keyring, &tenant, &new)
                .await
                .expect("the database is there");
            let subscription = PushSubscription {
                manual: true,
                ..PushSubscription::for_endpoint("https://chaos.example")
            };
            let apple = simulator.apple().api_key();
            let credentials = apple::account::AppleCredentials {
                bundle_id: package.clone(),
                key_id: apple.key_id,
                issuer_id: apple.issuer_id,
                key: SigningKey::parse(apple.private_key.as_bytes()).expect("the simulator's own"),
                environment: EnvironmentChoice::Auto,
                app_apple_id: Some(APP_APPLE_ID),
            };
            let new = apple::store::NewAppleCredentials {
                key_file: apple.private_key.as_bytes(),
                credentials: &credentials,
            };
            apple::store::set_credentials(&database, &keyring, &tenant, &new)
                .await
                .expect("the database is there");
            simulator
                .google()
                .set_push_subscription(&package, subscription)
                .expect("a new app");
            tenants.push((tenant, package));
        }

        let roots = postgres.folder().join("root.pem");
        std::fs::write(&roots, simulator.apple_root_pem()).expect("a file can be written");
        let mut settings = simulator.environment_variables();
        settings.retain(|(name, _)| *name != "APPLE_ROOT_CERTIFICATES");
        settings.extend([
            ("APPLE_ROOT_CERTIFICATES", roots.display().to_string()),
            ("DATABASE_URL", format!("{url}{parameters}")),
            ("ATTESTO_ENCRYPTION_KEY", text(OLD_KEY)),
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true".to_owned()),
            ("SHUTDOWN_GRACE_SECONDS", "5".to_owned()),
        ]);
        let settings = Settings(settings);
        let replicas: Vec<_> = (0..replicas)
            .map(|_| Replica::start(settings.clone()))
            .collect();
        let stage = Self {
            postgres,
            standby,
            database,
            simulator,
            receivers,
            replicas,
            tenants,
            settings,
            key: OLD_KEY,
            resealing: None,
        };
        stage.until_all_listen().await;
        stage
    }

    async fn until_all_listen(&self) {
        let begun = Instant::now();
        for replica in &self.replicas {
            while replica.port().lock().expect("not poisoned").is_none() {
                assert!(begun.elapsed() < PATIENCE, "a process does not listen");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// One third are Google purchases, which a replica looks up at Google Play; one third are
    /// Google test notifications, which it does not; one third are Apple's, signed twice.
    pub(crate) fn notifications(
        &self,
        count: u32,
        chance: &mut fastrand::Rng,
    ) -> Vec<Notification> {
        (0..count)
            .map(|number| {
                let (tenant, package) = &self.tenants[chance.usize(..self.tenants.len())];
                if number % 3 == 0 {
                    self.of_apple(tenant, package, number)
                } else {
                    self.of_google(tenant, package, number)
                }
            })
            .collect()
    }

    /// A Google test notification, which needs no lookup.
    pub(crate) fn a_test(&self, number: u32) -> Notification {
        let (tenant, package) = &self.tenants[number as usize % self.tenants.len()];
        self.of_google(tenant, package, 3 * number + 1)
    }

    /// The ports of the replicas.
    pub(crate) fn ports(&self) -> Arc<Ports> {
        Arc::new(self.replicas.iter().map(Replica::port).collect())
    }

    fn of_google(&self, tenant: &TenantId, package: &str, number: u32) -> Notification {
        let play = self.simulator.google();
        let now = Clock::system().now();
        let mut data = json!({
            "version": "1.0",
            "packageName": package,
            "eventTimeMillis": now.as_millis().to_string(),
        });
        if number % 3 == 1 {
            data["testNotification"] = json!({ "version": "1.0" });
        } else {
            let new = NewSubscription {
                package_name: Some(package.to_owned()),
                ..NewSubscription::default()
            };
            let subscription = play.buy_subscription(new).expect("a known app");
            data["subscriptionNotification"] = json!({
                "version": "1.0",
                "notificationType": 4,
                "purchaseToken": subscription.purchase_token,
            });
        }
        let body = json!({
            "message": { "data": STANDARD.encode(data.to_string()), "messageId": format!("{number:016}") },
            "subscription": "projects/chaos/subscriptions/attesto",
        });
        let token = self
            .simulator
            .identity()
            .google_signing_key()
            .sign_jwt(&json!({
                "iss": "https://accounts.google.com",
                "aud": "https://chaos.example",
                "email": play.push_account(),
                "email_verified": true,
                "iat": now.as_secs(),
                "exp": now.as_secs() + 3600,
            }));
        Notification {
            path: format!("/v1/webhooks/google/{tenant}"),
            bearer: Some(token),
            body: body.to_string(),
        }
    }

    fn of_apple(&self, tenant: &TenantId, package: &str, number: u32) -> Notification {
        let apple = self.simulator.apple();
        let new = NewTransaction {
            bundle_id: Some(package.to_owned()),
            environment: SimulatedEnvironment::Production,
            ..NewTransaction::default()
        };
        let bought = apple.create_transaction(new).expect("a known app");
        let payload = json!({
            "notificationType": "DID_RENEW",
            "notificationUUID": format!("00000000-0000-4000-8000-{number:012}"),
            "version": "2.0",
            "signedDate": Clock::system().now().as_millis(),
            "data": {
                "appAppleId": APP_APPLE_ID,
                "bundleId": package,
                "bundleVersion": "1",
                "environment": "Production",
                "signedTransactionInfo": apple.sign_transaction(&bought.transaction_id).expect("it was made"),
                "status": 1,
            },
        });
        let Value::Object(payload) = payload else {
            unreachable!("it is an object")
        };
        Notification {
            path: format!("/v1/webhooks/apple/{tenant}"),
            bearer: None,
            body: json!({ "signedPayload": apple.sign_payload(&payload) }).to_string(),
        }
    }

    /// Pushes while the planned faults happen, until every notification is accepted.
    pub(crate) async fn endure(&mut self, faults: &[Planned], run: &Run) -> Accepted {
        let Run {
            seed, events, rate, ..
        } = *run;
        let mut chance = fastrand::Rng::with_seed(seed);
        let notifications = self.notifications(events, &mut chance);
        let ports = self.ports();
        let client = attesto::outbound::build_http_client().expect("a client can be made");
        let accepted = Accepted::default();
        let begun = Instant::now();
        let pushing = {
            let (accepted, seed) = (accepted.clone(), chance.u64(..));
            tokio::spawn(async move {
                let mut pushes = JoinSet::new();
                let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
                for (number, notification) in (0..).zip(notifications) {
                    ticks.tick().await;
                    pushes.spawn(push(
                        client.clone(),
                        ports.clone(),
                        notification,
                        accepted.clone(),
                        seed.wrapping_add(number),
                    ));
                }
                while let Some(pushed) = pushes.join_next().await {
                    pushed.expect("every notification is accepted in the end");
                }
            })
        };
        for planned in faults {
            tokio::time::sleep_until((begun + planned.at).into()).await;
            println!(
                "{:>7.2} s  {:?}",
                begun.elapsed().as_secs_f64(),
                planned.fault
            );
            self.suffer(planned.fault).await;
        }
        pushing.await.expect("every notification is accepted");
        println!(
            "{:>7.2} s  all {events} are accepted",
            begun.elapsed().as_secs_f64()
        );
        accepted
    }

    /// The keyring that opens every secret at the end.
    pub(crate) fn keyring(&self) -> Keyring {
        ring(self.key)
    }

    /// Restarts every replica with these keys, one by one.
    fn roll_out(&mut self, order: Order, sealing: (u8, [u8; 32]), retired: Option<(u8, [u8; 32])>) {
        let settings = &mut self.settings.0;
        settings.retain(|(name, _)| !name.starts_with("ATTESTO_ENCRYPTION_KEY"));
        settings.push(("ATTESTO_ENCRYPTION_KEY", text(sealing)));
        settings.extend(retired.map(|key| ("ATTESTO_ENCRYPTION_KEYS_RETIRED", text(key))));
        let settings = &self.settings;
        let exchange = |replica: &mut Replica| {
            replica.set(settings.clone());
            replica.terminate();
        };
        match order {
            Order::FirstToLast => self.replicas.iter_mut().for_each(exchange),
            Order::LastToFirst => self.replicas.iter_mut().rev().for_each(exchange),
        }
    }

    async fn step(&mut self, step: Step, order: Order) {
        match step {
            Step::Announce => {
                tokio::task::block_in_place(|| self.roll_out(order, OLD_KEY, Some(NEW_KEY)));
            }
            Step::Swap => {
                tokio::task::block_in_place(|| self.roll_out(order, NEW_KEY, Some(OLD_KEY)));
            }
            Step::Reseal => self.resealing = Some(tokio::spawn(reseal(self.settings.clone()))),
            Step::Retire => {
                let resealing = self.resealing.take().expect("it was begun");
                resealing.await.expect("everything is sealed anew");
                self.key = NEW_KEY;
                tokio::task::block_in_place(|| self.roll_out(order, NEW_KEY, None));
            }
        }
    }

    /// Terminates five database sessions.
    pub(crate) async fn cut_sessions(&self) {
        let cut = sqlx::query(
            "select pg_terminate_backend(pid) from (
                select pid from pg_stat_activity
                where backend_type = 'client backend' and pid <> pg_backend_pid()
                order by random() limit 5
            ) chosen",
        );
        let cut = cut.execute(self.database.pool()).await;
        // The database may be down. An invalid statement (class 42) would terminate nothing, which
        // must not go unnoticed.
        if let Err(sqlx::Error::Database(error)) = cut {
            let class = error.code().unwrap_or_default();
            assert!(!class.starts_with("42"), "{error}");
        }
    }

    /// How many sessions were terminated, from the server's log.
    pub(crate) fn terminated(&self) -> usize {
        let log = String::from_utf8_lossy(&self.postgres.log()).into_owned();
        log.matches("terminating connection due to administrator command")
            .count()
    }

    async fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(number) => self.replicas[number].kill(),
            Fault::Terminate(number) => {
                tokio::task::block_in_place(|| self.replicas[number].terminate());
            }
            // Other faults happen meanwhile.
            Fault::Freeze(number, time) => self.replicas[number].freeze(time),
            Fault::CutSessions => self.cut_sessions().await,
            Fault::Key(step, order) => self.step(step, order).await,
            Fault::FillDisk(time) => {
                if tokio::task::block_in_place(|| self.postgres.fill()) {
                    tokio::time::sleep(time).await;
                    tokio::task::block_in_place(|| self.postgres.empty());
                    let log = String::from_utf8_lossy(&self.postgres.log()).into_owned();
                    let refusals = log.matches("No space left on device").count();
                    let panics = log.matches("PANIC:").count();
                    println!(
                        "           it was refused room {refusals} times, and gave up {panics} times"
                    );
                    assert!(refusals > 0, "the volume was not full");
                } else {
                    println!("           NOT DONE: only root can make a volume that can be filled");
                }
            }
            Fault::CrashDatabase(time) => {
                tokio::task::block_in_place(|| self.postgres.crash());
                tokio::time::sleep(time).await;
                tokio::task::block_in_place(|| self.postgres.resume());
            }
        }
    }

    /// Ends every retry delay.
    pub(crate) async fn end_pauses(&self) {
        let end = "update webhook_deliveries set next_attempt_at = now()
            where status = 'pending' and lease_until is null and next_attempt_at > now()";
        let _ = sqlx::query(end).execute(self.database.pool()).await;
        let tell = "select pg_notify('attesto_work', '')";
        let _ = sqlx::query(tell).execute(self.database.pool()).await;
    }

    /// Kills and restarts every replica. In between, when none can hold a lease, every lease is
    /// ended.
    pub(crate) async fn end_leases(&mut self) {
        tokio::task::block_in_place(|| self.replicas.iter_mut().for_each(Replica::die));
        let end = "update webhook_deliveries set lease_until = now() where lease_until > now()";
        sqlx::query(end)
            .execute(self.database.pool())
            .await
            .expect("the database is there again");
        self.replicas.iter_mut().for_each(Replica::begin);
    }

    /// The database URL for additional sessions.
    pub(crate) fn url(&self) -> String {
        self.postgres.url()
    }

    pub(crate) async fn strike(mut self) {
        tokio::task::block_in_place(|| self.replicas.iter_mut().for_each(Replica::end));
        self.database.close_connections().await;
        self.simulator.stop().await;
    }
}

/// `encryption rotate` with the replicas' keys: killed once in the middle, then repeated until it
/// succeeds.
async fn reseal(settings: Settings) {
    let command = || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_attesto"));
        command
            .args(["encryption", "rotate"])
            .env_clear()
            .envs(settings.0.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    };
    let mut first = command()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _ = first.kill().await;
    let begun = Instant::now();
    loop {
        let ran = command().output().await.expect("the binary runs");
        if ran.status.success() {
            return;
        }
        // The database may be down, and a killed replica may still be registered.
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(begun.elapsed() < PATIENCE, "it is not sealed anew: {said}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Secrets of many tenants that receive no notifications.
async fn seal_for_the_silent(database: &Database, keyring: &Keyring) {
    let now = Clock::system().now();
    let ids: Vec<String> = (0..SILENT)
        .map(|_| TenantId::mint(now).to_string())
        .collect();
    let blobs: Vec<Vec<u8>> = ids
        .iter()
        .map(|id| {
            keyring.seal(
                sealed_columns::GOOGLE_SERVICE_ACCOUNT.context_for(id),
                id.as_bytes(),
            )
        })
        .collect();
    for statement in [
        "insert into tenants (id, name) select id, 'silent' from unnest($1::text[], $2::bytea[]) as them (id, blob)",
        "insert into google_credentials (tenant_id, package_name, service_account_enc, client_email, key_fingerprint)
         select id, 'com.example.silent', blob, '', '' from unnest($1::text[], $2::bytea[]) as them (id, blob)",
    ] {
        sqlx::query(statement)
            .bind(&ids)
            .bind(&blobs)
            .execute(database.pool())
            .await
            .expect("the database is there");
    }
}
