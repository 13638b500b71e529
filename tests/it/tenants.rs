//! Authentication: which keys are accepted, how soon changes take effect, what is cached, and when
//! the cache is not used.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::{KeyId, ReplicaId, TenantId};
use attesto::credentials::canary::{self, CanaryError};
use attesto::credentials::{TenantCache, sealed_columns};
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::change_listener::ChangeListener;
use attesto::db::{ConnectSettings, Database, Error};
use attesto::http::{ErrorCode, Problem};
use attesto::tenants::RateLimit;
use attesto::tenants::caller::AuthError;
use attesto::tenants::{ApiKeyEnvironment, Authenticator, Caller, RawApiKey, Tenant, store};
use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use futures_util::FutureExt as _;
use serde_json::json;
use sqlx::Executor as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::world::attesto::World;
use crate::world::database_proxy::Wire;
use crate::world::postgres::fresh_database;
use crate::world::wait::wait_until;

const LIMIT: RateLimit = RateLimit {
    per_second: 1_000_000,
    burst: 1_000_000,
};

/// The authentication of one process, with its own database.
struct Office {
    database: Database,
    clock: Clock,
    changes: ChangeListener,
    callers: Authenticator,
    tenant: Tenant,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Office {
    /// With a listener for changes.
    async fn open() -> Self {
        let mut office = Self::deaf(LIMIT).await;
        office.listen();
        office.hears().await;
        office
    }

    /// Without a listener for changes.
    async fn deaf(limit: RateLimit) -> Self {
        Self::at(&fresh_database().await.url, limit).await
    }

    async fn at(url: &str, limit: RateLimit) -> Self {
        let database = Database::open(&ConnectSettings::from_url(url).unwrap());
        let clock = Clock::fixed(Timestamp::parse("2026-04-10T14:22:10Z").unwrap());
        let changes = ChangeListener::new(&database);
        let callers = Authenticator::new(&database, &changes, &clock, limit);
        let name = "Acme".parse().unwrap();
        let tenant = store::create_tenant(&database, &name, clock.now())
            .await
            .unwrap();
        Self {
            database,
            clock,
            changes,
            callers,
            tenant,
            tasks: Vec::new(),
        }
    }

    fn listen(&mut self) {
        let changes = self.changes.clone();
        let listening =
            tokio::spawn(async move { changes.run_until_stopped(CancellationToken::new()).await });
        self.tasks.push(AbortOnDropHandle::new(listening));
    }

    async fn hears(&self) {
        wait_until("changes are heard", async || self.changes.is_listening()).await;
    }

    async fn key(&self) -> (KeyId, RawApiKey) {
        let raw = RawApiKey::generate(ApiKeyEnvironment::Live);
        let id = self.store(&raw).await;
        (id, raw)
    }

    /// A new key, once this process was notified of it: that clears what is cached of its tenant.
    async fn heard_key(&self) -> (KeyId, RawApiKey) {
        let heard = Arc::new(AtomicU32::new(0));
        let counted = heard.clone();
        self.changes.subscribe(move |change| {
            if change.affects_table("api_keys") {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let key = self.key().await;
        wait_until("notified", async || heard.load(Ordering::SeqCst) > 0).await;
        key
    }

    async fn store(&self, raw: &RawApiKey) -> KeyId {
        store::create_api_key(
            &self.database,
            &self.tenant.id,
            None,
            ApiKeyEnvironment::Live,
            raw,
            self.clock.now(),
        )
        .await
        .unwrap()
        .id
    }

    async fn call(&self, key: &RawApiKey) -> Result<Caller, AuthError> {
        self.call_with(&format!("Bearer {}", key.expose())).await
    }

    async fn call_with(&self, authorization: &str) -> Result<Caller, AuthError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_str(authorization).unwrap(),
        );
        self.callers.authenticate_headers(&headers).await
    }

    async fn is_let_in(&self, key: &RawApiKey) -> bool {
        match self.call(key).await {
            Ok(_) => true,
            Err(AuthError::Unauthenticated) => false,
            Err(other) => panic!("{other}"),
        }
    }

    /// Waits until the change takes effect.
    async fn until_in_effect(&self, key: &RawApiKey, let_in: bool) {
        let what = if let_in { "let in" } else { "refused" };
        wait_until(what, async || self.is_let_in(key).await == let_in).await;
    }

    /// Revokes every key without a notification.
    async fn revoke_secretly(&self) {
        self.secretly("update api_keys set revoked_at = now()")
            .await;
    }

    /// Changes rows without a notification, to test the cache.
    async fn secretly(&self, sql: &'static str) {
        let mut connection = self.database.pool().sqlx_pool().acquire().await.unwrap();
        for statement in [
            "set session_replication_role = replica",
            sql,
            "reset session_replication_role",
        ] {
            sqlx::raw_sql(statement)
                .execute(&mut *connection)
                .await
                .unwrap();
        }
    }

    async fn cut_the_listener_off(&self) {
        let cut = sqlx::query_scalar::<_, bool>(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'attesto-changes'",
        )
        .fetch_all(self.database.pool())
        .await
        .unwrap();
        assert_eq!(cut, [true], "one connection listens");
    }

    async fn last_used(&self, key: &KeyId) -> Option<Timestamp> {
        let keys = store::list_api_keys(&self.database, &self.tenant.id, 500, 0)
            .await
            .unwrap();
        keys.iter().find(|it| it.id == *key).unwrap().last_used_at
    }
}

#[tokio::test]
async fn a_valid_key_identifies_its_tenant_and_any_other_gets_one_answer() {
    let office = Office::open().await;
    let (id, raw) = office.key().await;
    assert_eq!(
        office.call(&raw).await.unwrap(),
        Caller {
            tenant: office.tenant.id.clone(),
            key: id,
            environment: ApiKeyEnvironment::Live,
            first_seen_key: None,
        }
    );
    let mut answers = Vec::new();
    let (revoked_id, revoked) = office.key().await;
    store::revoke_api_key(&office.database, &revoked_id, office.clock.now())
        .await
        .unwrap();
    for wrong in [
        "Bearer ".to_owned(),
        "Bearer nonsense".to_owned(),
        format!("Basic {}", raw.expose()),
        format!("Bearer {}x", raw.expose()),
        format!("Bearer {}", raw.expose().to_uppercase()),
        format!(
            "Bearer {}",
            RawApiKey::generate(ApiKeyEnvironment::Live).expose()
        ),
        format!(
            "Bearer {}",
            RawApiKey::generate(ApiKeyEnvironment::Test).expose()
        ),
        format!("Bearer {}", revoked.expose()),
    ] {
        let problem = Problem::from(office.call_with(&wrong).await.unwrap_err());
        answers.push((problem.code, problem.message, problem.details.len()));
    }
    let nothing = office.callers.authenticate_headers(&HeaderMap::new()).await;
    let problem = Problem::from(nothing.unwrap_err());
    answers.push((problem.code, problem.message, problem.details.len()));
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn api_keys_are_cached_and_changes_take_effect() {
    let office = Office::open().await;
    let (id, raw) = office.heard_key().await;
    wait_until("remembered", async || {
        // Cached: the database would refuse it now, but no notification was sent.
        office.secretly("update tenants set is_active = true").await;
        assert!(office.is_let_in(&raw).await);
        office
            .secretly("update tenants set is_active = false")
            .await;
        office.is_let_in(&raw).await
    })
    .await;
    office.secretly("update tenants set is_active = true").await;

    let (database, tenant, now) = (&office.database, &office.tenant.id, office.clock.now());
    store::set_tenant_active(database, tenant, false, now)
        .await
        .unwrap();
    office.until_in_effect(&raw, false).await;
    store::set_tenant_active(database, tenant, true, now)
        .await
        .unwrap();
    office.until_in_effect(&raw, true).await;
    store::revoke_api_key(database, &id, now).await.unwrap();
    office.until_in_effect(&raw, false).await;

    // A key that was unknown a moment ago, and is cached as unknown.
    let raw = RawApiKey::generate(ApiKeyEnvironment::Live);
    assert!(!office.is_let_in(&raw).await);
    office.store(&raw).await;
    office.until_in_effect(&raw, true).await;
}

#[tokio::test]
async fn without_a_listener_the_cache_is_not_used() {
    let office = Office::deaf(LIMIT).await;
    let (id, raw) = office.key().await;
    assert!(office.is_let_in(&raw).await);
    store::revoke_api_key(&office.database, &id, office.clock.now())
        .await
        .unwrap();
    assert!(!office.is_let_in(&raw).await, "at once");
}

#[tokio::test]
async fn the_cache_is_not_used_when_the_listener_is_disconnected() {
    let office = Office::open().await;
    let (_, raw) = office.key().await;
    assert!(office.is_let_in(&raw).await);
    office.revoke_secretly().await;
    office.cut_the_listener_off().await;
    office.until_in_effect(&raw, false).await;
    office.hears().await;
    assert!(!office.is_let_in(&raw).await);
}

#[tokio::test]
async fn a_stalled_listener_connection_is_detected() {
    let direct = fresh_database().await.url;
    let wire = Wire::to(&direct).await;
    let mut office = Office::at(&wire.url, LIMIT).await;
    office.listen();
    office.hears().await;
    wire.freeze();
    wait_until("the stalled connection is noticed", async || {
        !office.changes.is_listening()
    })
    .await;
}

#[tokio::test]
async fn a_pooler_that_drops_notifications_disables_the_cache() {
    let direct = fresh_database().await.url;
    let wire = Wire::to(&direct).await;
    wire.swallow_notifications();
    let mut office = Office::at(&wire.url, LIMIT).await;
    office.listen();
    let (id, raw) = office.key().await;
    // Each attempt to listen sends itself a notification, which is lost.
    wait_until("it tried to listen three times", async || {
        assert!(!office.changes.is_listening());
        assert!(office.is_let_in(&raw).await);
        wire.unheard() >= 3
    })
    .await;
    store::revoke_api_key(&office.database, &id, office.clock.now())
        .await
        .unwrap();
    assert!(!office.is_let_in(&raw).await);
}

/// The pool of a test has five connections, so that one look-up of unknown keys runs at once and 512 wait.
#[tokio::test]
async fn a_crowd_with_made_up_keys_keeps_no_known_key_out() {
    let office = Office::open().await;
    let (_, raw) = office.heard_key().await;
    assert!(office.is_let_in(&raw).await);
    let mut locker = office.database.connect_directly("locker").await.unwrap();
    locker
        .execute("begin; lock table api_keys in access exclusive mode")
        .await
        .unwrap();

    let made_up: Vec<_> = (0..600)
        .map(|_| RawApiKey::generate(ApiKeyEnvironment::Live))
        .collect();
    let mut calls: Vec<_> = made_up
        .iter()
        .map(|key| Box::pin(office.call(key)))
        .collect();
    let at_once: Vec<_> = calls
        .iter_mut()
        .filter_map(futures_util::FutureExt::now_or_never)
        .collect();
    assert_eq!(at_once.len(), 600 - 1 - 512);
    for answer in at_once {
        let problem = Problem::from(answer.unwrap_err());
        assert_eq!(problem.code, ErrorCode::Unavailable);
        assert!(problem.retry_after.is_some(), "{problem:?}");
    }

    // Nothing can be read now, and neither the crowd nor the time makes the key unknown.
    for _ in 0..3 {
        office.clock.advance(Duration::from_mins(10));
        let answer = Box::pin(office.call(&raw)).now_or_never();
        assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
    }
    // A key that was known before is read beside the crowd, also when it has to be read anew.
    drop(calls);
    locker.execute("rollback").await.unwrap();
    office.until_in_effect(&raw, true).await;
}

#[tokio::test]
async fn a_known_key_is_read_again_behind_the_answer() {
    let office = Office::open().await;
    let (_, raw) = office.heard_key().await;
    assert!(office.is_let_in(&raw).await);
    office.revoke_secretly().await;
    office.clock.advance(Duration::from_mins(5));
    assert!(office.is_let_in(&raw).await, "as it was read last");
    office.until_in_effect(&raw, false).await;
}

#[tokio::test]
async fn a_look_up_that_has_begun_is_finished_and_remembered_without_its_caller() {
    let office = Office::open().await;
    let (_, raw) = office.key().await;
    wait_until("remembered", async || {
        let answer = Box::pin(office.call(&raw)).now_or_never();
        answer.is_some_and(|answer| answer.is_ok())
    })
    .await;
}

#[tokio::test]
async fn an_unavailable_database_is_not_an_invalid_key() {
    let away = "postgres://attesto@127.0.0.1:1/attesto?connect_timeout=1";
    let database = Database::open(&ConnectSettings::from_url(away).unwrap());
    let clock = Clock::fixed(Timestamp::from_millis(0));
    let callers = Authenticator::new(&database, &ChangeListener::new(&database), &clock, LIMIT);
    let mut headers = HeaderMap::new();
    let key = format!(
        "Bearer {}",
        RawApiKey::generate(ApiKeyEnvironment::Live).expose()
    );
    headers.insert(header::AUTHORIZATION, key.parse().unwrap());
    let problem = Problem::from(callers.authenticate_headers(&headers).await.unwrap_err());
    assert_eq!(problem.code, ErrorCode::Unavailable);
    assert!(problem.retry_after.is_some());

    headers.insert(header::AUTHORIZATION, "Bearer nonsense".parse().unwrap());
    let problem = Problem::from(callers.authenticate_headers(&headers).await.unwrap_err());
    assert_eq!(
        problem.code,
        ErrorCode::Unauthenticated,
        "no database is needed"
    );
}

#[tokio::test]
async fn tenant_rate_limits_apply_and_change_while_running() {
    let mut office = Office::deaf(RateLimit {
        per_second: 1,
        burst: 3,
    })
    .await;
    office.listen();
    office.hears().await;
    let (_, raw) = office.key().await;
    let granted = async || {
        let mut granted = 0;
        loop {
            match office.call(&raw).await {
                Ok(_) => granted += 1,
                Err(refused @ AuthError::RateLimited { .. }) => {
                    let problem = Problem::from(refused);
                    assert_eq!(problem.code, ErrorCode::RateLimited);
                    assert_eq!(problem.details["retryAfterSeconds"], 1);
                    return granted;
                }
                Err(other) => panic!("{other}"),
            }
        }
    };
    assert_eq!(granted().await, 3);
    let changes = store::LimitChanges {
        burst: Some(Some(7)),
        ..store::LimitChanges::default()
    };
    let (id, now) = (&office.tenant.id, office.clock.now());
    store::set_limits(&office.database, id, changes, now)
        .await
        .unwrap();
    wait_until("let in again", async || office.call(&raw).await.is_ok()).await;
    assert_eq!(granted().await, 6, "seven, one of them just above");
    office.clock.advance(Duration::from_secs(2));
    assert_eq!(granted().await, 2);
}

#[tokio::test]
async fn a_limit_of_the_installation_is_divided_among_the_processes_that_serve() {
    let world = World::with(&[
        ("RATE_LIMIT_SCOPE", "installation"),
        ("RATE_LIMIT_PER_SECOND", "5"),
        ("RATE_LIMIT_BURST", "9"),
    ])
    .await;
    let tenant = world.stranger().await;
    let key = tenant.key.expose();
    let granted = async |address: SocketAddr| {
        let url = format!("http://{address}/v1/apple/verify");
        let mut granted = 0;
        while world
            .ask_at(&url, "POST", Some(key), Some(&json!({})))
            .await
            .status
            != 429
        {
            granted += 1;
        }
        granted
    };
    let one = world.address();
    world.send_heartbeat().await;
    assert_eq!(granted(one).await, 9, "one process");

    let second = world.replica().await;
    second.send_heartbeat().await.expect("it is written");
    assert_eq!(granted(one).await, 0, "not yet heard of");
    world.send_heartbeat().await;
    let both = (granted(one).await, granted(second.address()).await);
    assert_eq!(both, (5, 5), "half each, rounded up");
    world.clock.advance(Duration::from_secs(1));
    let both = (granted(one).await, granted(second.address()).await);
    assert_eq!(both, (3, 3), "half the rate each, rounded up");

    second.stop(Duration::from_secs(5)).await;
    world.send_heartbeat().await;
    assert_eq!(granted(one).await, 9, "the second one has stopped");

    sqlx::query(
        "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
        select $1, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids from replicas",
    )
    .bind(ReplicaId::mint(world.clock.now()).as_str())
    .execute(world.database().pool())
    .await
    .expect("a row of a process that is killed");
    world.send_heartbeat().await;
    assert_eq!(
        granted(one).await,
        5,
        "a second one was killed a moment ago"
    );
    world.pass(Duration::from_mins(1)).await;
    world.send_heartbeat().await;
    assert_eq!(granted(one).await, 9, "it was not seen for a minute");
    world.end().await;
}

#[tokio::test]
async fn the_last_use_is_written_at_most_once_a_minute_and_before_stopping() {
    let office = Office::open().await;
    let (id, raw) = office.key().await;
    let at = |seconds| {
        let begun = Timestamp::parse("2026-04-10T14:22:10Z").unwrap();
        Some(begun.plus(Duration::from_secs(seconds)))
    };
    let wait = |seconds| office.clock.advance(Duration::from_secs(seconds));

    office.callers.flush_usage().await.unwrap();
    assert_eq!(office.last_used(&id).await, None);
    office.call(&raw).await.unwrap();
    office.callers.flush_usage().await.unwrap();
    assert_eq!(office.last_used(&id).await, at(0));

    wait(30);
    office.call(&raw).await.unwrap();
    office.callers.flush_usage().await.unwrap();
    assert_eq!(office.last_used(&id).await, at(0), "within the minute");
    wait(30);
    office.callers.flush_usage().await.unwrap();
    assert_eq!(
        office.last_used(&id).await,
        at(30),
        "the use of the minute before, although the key rests now"
    );

    wait(10);
    office.call(&raw).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    office.callers.run_usage_writer(stop).await;
    assert_eq!(office.last_used(&id).await, at(70), "before stopping");
}

#[tokio::test]
async fn credentials_are_cached_until_they_change() {
    let office = Office::open().await;
    let cached: TenantCache<u32, Error> = TenantCache::new(
        "google_credentials",
        Duration::from_mins(5),
        office.clock.clone(),
        &office.changes,
    );
    let loads = Arc::new(AtomicU32::new(0));
    let get = async |cached: &TenantCache<u32, Error>| {
        let loads = loads.clone();
        let load = async move {
            tokio::task::yield_now().await;
            Ok(Some(loads.fetch_add(1, Ordering::SeqCst) + 1))
        };
        let tenant = &office.tenant.id;
        cached
            .get_or_load(tenant, load)
            .await
            .unwrap()
            .map(|value| *value)
    };

    let together = futures_util::future::join_all((0..20).map(|_| get(&cached))).await;
    assert_eq!(together, [Some(1); 20], "one load for all");
    assert_eq!(get(&cached).await, Some(1));

    sqlx::query(
        "insert into google_credentials (tenant_id, package_name, service_account_enc, client_email, key_fingerprint)
         values ($1, 'com.example', '\\x00', 'a@b', 'f')",
    )
    .bind(office.tenant.id.as_str())
    .execute(office.database.pool())
    .await
    .unwrap();
    wait_until("loaded again", async || get(&cached).await == Some(2)).await;

    office.clock.advance(Duration::from_secs(299));
    assert_eq!(get(&cached).await, Some(2));
    office.clock.advance(Duration::from_secs(1));
    assert_eq!(get(&cached).await, Some(3), "its time was over");

    cached.invalidate(&office.tenant.id);
    assert_eq!(get(&cached).await, Some(4));

    office.cut_the_listener_off().await;
    wait_until("forgotten", async || get(&cached).await == Some(5)).await;
}

#[tokio::test]
async fn missing_credentials_are_cached_briefly_and_errors_never() {
    let office = Office::open().await;
    let cached: TenantCache<u32, &str> = TenantCache::new(
        "google_credentials",
        Duration::from_mins(5),
        office.clock.clone(),
        &office.changes,
    );
    let tenant = &office.tenant.id;
    let failed = cached.get_or_load(tenant, async { Err("away") }).await;
    assert_eq!(*failed.unwrap_err(), "away");
    assert_eq!(
        cached.get_or_load(tenant, async { Ok(None) }).await,
        Ok(None)
    );
    assert_eq!(
        cached.get_or_load(tenant, async { Ok(Some(1)) }).await,
        Ok(None)
    );
    office.clock.advance(Duration::from_secs(5));
    let value = cached.get_or_load(tenant, async { Ok(Some(1)) }).await;
    assert_eq!(value, Ok(Some(Arc::new(1))));

    // Plaintext is removed from memory without a further lookup.
    let value = Arc::downgrade(&value.unwrap().unwrap());
    assert!(value.upgrade().is_some());
    office.clock.advance(Duration::from_mins(5));
    cached.remove_expired();
    assert!(value.upgrade().is_none());
}

#[tokio::test]
async fn made_up_tenants_drop_no_value() {
    let office = Office::open().await;
    let cached: TenantCache<u32, Error> = TenantCache::new(
        "google_credentials",
        Duration::from_mins(5),
        office.clock.clone(),
        &office.changes,
    );
    let tenant = &office.tenant.id;
    let first = cached.get_or_load(tenant, async { Ok(Some(1)) }).await;
    assert_eq!(first.unwrap().as_deref(), Some(&1));
    for number in 0..10_001 {
        let made_up = TenantId::mint(Timestamp::from_millis(number));
        let absent = cached.get_or_load(&made_up, async { Ok(None) }).await;
        assert_eq!(absent.unwrap(), None);
    }
    let again = cached.get_or_load(tenant, async { Ok(Some(2)) }).await;
    assert_eq!(again.unwrap().as_deref(), Some(&1), "not loaded again");
}

#[tokio::test]
async fn nothing_is_cached_while_the_listener_is_down() {
    let office = Office::deaf(LIMIT).await;
    let cached: TenantCache<u32, Error> = TenantCache::new(
        "google_credentials",
        Duration::from_mins(5),
        office.clock.clone(),
        &office.changes,
    );
    for number in 1..4 {
        let value = cached
            .get_or_load(&office.tenant.id, async move { Ok(Some(number)) })
            .await;
        assert_eq!(*value.unwrap().unwrap(), number);
    }
}

fn ring(sealing: (u8, u8), retired: &[(u8, u8)]) -> Keyring {
    let key = |(id, fill): (u8, u8)| {
        let text = base64::engine::general_purpose::STANDARD.encode([fill; 32]);
        MasterKey::parse(&format!("{id}:{text}"), None).unwrap()
    };
    Keyring::new(key(sealing), retired.iter().copied().map(key).collect()).unwrap()
}

#[tokio::test]
async fn a_wrong_encryption_key_is_detected() {
    let office = Office::deaf(LIMIT).await;
    let database = &office.database;
    let check = async |ring: Keyring| {
        canary::ensure_canaries(database, &ring)
            .await
            .map_err(|error| match error {
                CanaryError::Database(error) => panic!("{error}"),
                told => told.error_class(),
            })
    };
    assert_eq!(check(ring((1, 1), &[])).await, Ok(()), "the first time");
    assert_eq!(check(ring((1, 1), &[])).await, Ok(()), "and ever after");
    assert_eq!(check(ring((1, 9), &[])).await, Err("wrong encryption key"));
    assert_eq!(
        check(ring((2, 2), &[(1, 9)])).await,
        Err("wrong encryption key"),
        "a retired key is looked at as well"
    );
    assert_eq!(check(ring((2, 2), &[(1, 1)])).await, Ok(()), "rotated");
    assert_eq!(
        check(ring((2, 2), &[])).await,
        Ok(()),
        "nothing needs key 1"
    );

    let blob = ring((1, 1), &[]).seal(
        sealed_columns::GOOGLE_SERVICE_ACCOUNT.context_for(office.tenant.id.as_str()),
        b"{}",
    );
    sqlx::query(
        "insert into google_credentials (tenant_id, package_name, service_account_enc, client_email, key_fingerprint)
         values ($1, 'com.example', $2, 'a@b', 'f')",
    )
    .bind(office.tenant.id.as_str())
    .bind(blob)
    .execute(database.pool())
    .await
    .unwrap();
    assert_eq!(
        check(ring((2, 2), &[])).await,
        Err("encryption key missing")
    );
    assert_eq!(check(ring((2, 2), &[(1, 1)])).await, Ok(()));
}

#[tokio::test]
async fn every_sealed_column_is_listed() {
    let office = Office::deaf(LIMIT).await;
    let there: Vec<(String, String)> = sqlx::query_as(
        r"select table_name::text, column_name::text from information_schema.columns
          where table_schema = 'public' and column_name like '%\_enc' order by 1, 2",
    )
    .fetch_all(office.database.pool())
    .await
    .unwrap();
    let mut known: Vec<_> = sealed_columns::ALL_SEALED_COLUMNS
        .iter()
        .map(|it| (it.table.to_owned(), it.column.to_owned()))
        .collect();
    known.sort();
    assert_eq!(there, known);
}

#[tokio::test]
async fn an_unknown_tenant_has_no_keys_and_is_not_changed() {
    let office = Office::deaf(LIMIT).await;
    let unknown = TenantId::mint(Timestamp::from_millis(0));
    let now = office.clock.now();
    let raw = RawApiKey::generate(ApiKeyEnvironment::Test);
    let name = "x".parse().unwrap();
    let database = &office.database;
    for refused in [
        store::create_api_key(database, &unknown, None, ApiKeyEnvironment::Test, &raw, now)
            .await
            .unwrap_err(),
        store::set_tenant_active(database, &unknown, true, now)
            .await
            .unwrap_err(),
        store::rename_tenant(database, &unknown, &name, now)
            .await
            .unwrap_err(),
        store::set_limits(database, &unknown, store::LimitChanges::default(), now)
            .await
            .unwrap_err(),
    ] {
        assert!(
            matches!(&refused, store::TenantChangeError::TenantNotFound(id) if *id == unknown),
            "{refused}"
        );
    }
}
