//! All checks. A new check is an entry here, a query in `store.rs` and, if a count is not sufficient, a judgement.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::check::{Check, CheckGroup, CountWithNames, CountWording};
use super::check_result::MAX_NAMED;
use super::expiry::{self, CredentialKind};
use super::jobs::{DRIFT_JOB, EXPIRY_JOB};
use super::{
    database, deliveries, drift, files, keys, listener, logs, processes, settings, store, stores,
    tenants,
};
use crate::credentials::reseal;
use crate::deliveries::queue_stats::QueueStats;
use crate::deliveries::{hold, probe};
use crate::events::unresolved::store::UnresolvedStats;
use crate::replicas::LiveReplicas;

/// How long the check of `LISTEN` and `NOTIFY` waits for its own notification.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(3);

/// In the order in which they run and are printed within their groups.
pub(super) fn all_checks() -> Vec<Check> {
    let mut checks = vec![
        Check::local(CheckGroup::Settings, "settings.read", |c| {
            settings::check_settings(c).boxed_local()
        }),
        Check::local(CheckGroup::Files, "files.secret", |c| {
            async { files::check_files(&c.raw) }.boxed_local()
        }),
        Check::local(CheckGroup::Listener, "listener.tls", |c| {
            async { listener::check_listener(&c.raw, c.clock.now()).into() }.boxed_local()
        }),
    ];
    checks.extend(database_checks());
    checks.extend(key_and_process_checks());
    checks.extend(tenant_checks());
    checks.extend(tenant_age_checks());
    checks.extend(delivery_checks());
    checks.extend(drift_checks());
    checks.extend(log_checks());
    checks.push(Check::local(CheckGroup::Stores, "stores.roots", |c| {
        async { stores::check_apple_roots(&c.raw, c.clock.now()) }.boxed_local()
    }));
    checks.push(Check::local(
        CheckGroup::Stores,
        "stores.egress_proxy",
        |c| stores::check_egress_proxy(&c.raw, c.is_online).boxed_local(),
    ));
    checks.push(Check::local(CheckGroup::Stores, "stores.reachable", |c| {
        stores::check_stores_reachable(&c.raw, c.is_online).boxed_local()
    }));
    checks
}

fn database_checks() -> [Check; 10] {
    let group = CheckGroup::Database;
    [
        Check::judged(
            group,
            "database.reachable",
            |c| async { Ok(c.database.check_answer(database::PING_TIMEOUT).await) }.boxed(),
            |answer, _| database::judge_reachable(answer),
        ),
        Check::judged(
            group,
            "database.pooler",
            |c| {
                async {
                    Ok(c.database
                        .is_pooler_same_database(database::PING_TIMEOUT)
                        .await)
                }
                .boxed()
            },
            |answer, _| answer.map(database::judge_pooler),
        ),
        Check::judged(
            group,
            "database.server",
            |c| store::load_postgres_server(&c.database).boxed(),
            |server, c| {
                let most = c.database.max_connections();
                database::judge_server(&server, most, c.clock.now())
            },
        ),
        Check::judged(
            group,
            "database.migrations",
            |c| c.database.load_schema_state().boxed(),
            |schema, _| database::judge_migrations(schema),
        ),
        Check::judged(
            group,
            "database.distribution",
            |c| c.database.count_missing_distribution_steps().boxed(),
            |missing, _| missing.map(database::judge_distribution),
        ),
        Check::judged(
            group,
            "database.rights",
            |c| database::list_tables_without_privileges(&c.database).boxed(),
            |tables, _| tables.map(|tables| database::judge_privileges(&tables)),
        ),
        Check::judged(
            group,
            "database.notifications",
            |c| {
                c.database
                    .receives_own_notifications(NOTIFICATION_TIMEOUT)
                    .boxed()
            },
            |arrive, _| database::judge_notifications(arrive),
        ),
        Check::judged(
            group,
            "database.vitals",
            |c| c.database.load_health(&c.clock).boxed(),
            |health, _| database::judge_health(&health),
        ),
        Check::judged(
            group,
            "database.slots",
            |c| store::list_replication_slots(&c.database).boxed(),
            |slots, _| database::judge_replication_slots(&slots),
        ),
        Check::judged(
            group,
            "database.disk",
            |c| store::find_data_directory(&c.database).boxed(),
            |folder, c| {
                let folder = folder.filter(|_| c.database.is_on_this_machine())?;
                database::check_disk(&folder)
            },
        ),
    ]
}

fn key_and_process_checks() -> [Check; 5] {
    [
        Check::judged(
            CheckGroup::Keys,
            "keys.canary",
            |c| keys::load_canary_statuses(c).boxed(),
            |statuses, _| keys::judge_canaries(statuses.as_deref()),
        ),
        Check::judged(
            CheckGroup::Keys,
            "keys.in_use",
            |c| reseal::list_key_usage(&c.database).boxed(),
            |usage, c| keys::judge_key_usage(&usage, c.keyring.as_deref()),
        ),
        Check::judged(
            CheckGroup::Keys,
            "keys.sample",
            |c| keys::open_samples(c).boxed(),
            |samples, _| -> Vec<_> { samples.iter().map(keys::judge_sample).collect() },
        ),
        Check::judged(
            CheckGroup::Processes,
            "processes.serving",
            |c| LiveReplicas::load(&c.database).boxed(),
            |live, c| processes::judge_replicas(&live.replicas, c),
        ),
        Check::judged(
            CheckGroup::Processes,
            "processes.jobs",
            |c| processes::load_job_runs(c).boxed(),
            |(live, runs), _| -> Vec<_> {
                let is_serving = !live.replicas.is_empty();
                let results = runs.iter();
                results
                    .map(|run| processes::judge_last_run(run, is_serving))
                    .collect()
            },
        ),
    ]
}

fn tenant_checks() -> Vec<Check> {
    let group = CheckGroup::Tenants;
    vec![
        Check::judged(
            group,
            "tenants.count",
            |c| store::count_active_tenants(&c.database).boxed(),
            |count, _| tenants::judge_tenant_count(count),
        ),
        Check::counted(
            group,
            "tenants.credentials",
            |c| store::list_tenants_without_credentials(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "Every active tenant has credentials for a store.",
                one: "active tenant has no store credentials and cannot verify purchases",
                many: "active tenants have no store credentials and cannot verify purchases",
                advice: "`attesto apple set-credentials` or `attesto google set-credentials`; or `attesto tenant deactivate`.",
            },
        )
        .in_job(DRIFT_JOB, "tenant_credentials"),
        Check::counted(
            group,
            "tenants.api_keys",
            |c| store::list_tenants_without_api_keys(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "Every active tenant has an API key.",
                one: "active tenant has no API key and cannot send requests",
                many: "active tenants have no API key and cannot send requests",
                advice: "`attesto key create`, or `attesto tenant deactivate`.",
            },
        ),
        Check::counted(
            group,
            "tenants.app_apple_id",
            |c| store::list_tenants_without_app_apple_id(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "The app's Apple ID is set wherever production purchases are verified.",
                one: "tenant cannot verify production purchases: the app's Apple ID is missing",
                many: "tenants cannot verify production purchases: the app's Apple ID is missing",
                advice: "`attesto apple set-credentials … --app-apple-id`; App Store Connect shows it under App Information.",
            },
        ),
        Check::judged(
            group,
            "tenants.readable",
            |c| tenants::open_credentials(c).boxed(),
            |problems, _| problems.map(|problems| tenants::judge_credentials(&problems)),
        ),
        Check::counted(
            group,
            "tenants.history",
            |c| {
                async {
                    let before = c.clock.now().minus(tenants::MAX_HISTORY_AGE);
                    store::list_unread_histories(&c.database, before, MAX_NAMED).await
                }
                .boxed()
            },
            CountWording {
                none: "Apple's history of notifications was read for every tenant and environment within three days.",
                one: "history of notifications at Apple was not read for three days, and some may be missing",
                many: "histories of notifications at Apple were not read for three days, and some may be missing",
                advice: "`attesto apple backfill --tenant <tenant>` says why; the job `backfill` reads it once a day.",
            },
        ),
        Check::counted(
            group,
            "tenants.refund_answers",
            |c| store::list_tenants_with_unanswered_questions(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "No store asked about a refund within a week without getting an answer.",
                one: "tenant did not answer a store that asked about a refund, within a week",
                many: "tenants did not answer a store that asked about a refund, within a week",
                advice: "The backend answers with `POST /v1/apple/consumption` or `POST /v1/google/refund-review`; `attesto apple set-default-answer` and `attesto google set-default-answer` set what is sent otherwise.",
            },
        ),
        Check::counted(
            group,
            "tenants.refund_questions",
            |c| store::list_tenants_with_due_questions(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "No store waits for an answer about a refund that only the backend can give within two hours.",
                one: "tenant must answer a store that asks about a refund within two hours; no default answer will",
                many: "tenants must answer a store that asks about a refund within two hours; no default answer will",
                advice: "`attesto refund-question list --due-within 2h` lists them; `attesto apple set-default-answer` and `attesto google set-default-answer` set what is sent where the backend does not answer.",
            },
        ),
        Check::judged(
            group,
            "tenants.intake",
            |c| LiveReplicas::load(&c.database).boxed(),
            |live, _| tenants::judge_intake(&live),
        ),
    ]
}

/// How old and how used the credentials and keys of tenants are.
fn tenant_age_checks() -> [Check; 3] {
    let group = CheckGroup::Tenants;
    [
        Check::judged(
            group,
            "tenants.apple_age",
            |c| expiry::find_due(c, CredentialKind::AppleInAppPurchase, MAX_NAMED).boxed(),
            |due, _| due.map(|due| tenants::judge_credential_age(&due)),
        )
        .in_job(EXPIRY_JOB, CredentialKind::AppleInAppPurchase.as_str()),
        Check::judged(
            group,
            "tenants.google_age",
            |c| expiry::find_due(c, CredentialKind::GoogleServiceAccount, MAX_NAMED).boxed(),
            |due, _| due.map(|due| tenants::judge_credential_age(&due)),
        )
        .in_job(EXPIRY_JOB, CredentialKind::GoogleServiceAccount.as_str()),
        Check::judged(
            group,
            "tenants.unused_keys",
            |c| expiry::find_due(c, CredentialKind::ApiKey, MAX_NAMED).boxed(),
            |due, _| due.map(|due| tenants::judge_credential_age(&due)),
        )
        .in_job(EXPIRY_JOB, CredentialKind::ApiKey.as_str()),
    ]
}

fn delivery_checks() -> [Check; 9] {
    let group = CheckGroup::Deliveries;
    [
        Check::judged(
            group,
            "deliveries.lag",
            |c| QueueStats::load(&c.database).boxed(),
            |stats, _| deliveries::judge_queue(&stats),
        ),
        Check::judged(
            group,
            "deliveries.hold",
            |c| hold::store::load_active_hold(&c.database).boxed(),
            |hold, _| hold.map(|hold| deliveries::judge_hold(&hold)),
        ),
        Check::counted(
            group,
            "deliveries.leases",
            |c| store::count_expired_leases(&c.database).boxed(),
            CountWording {
                none: "No delivery is left over from a process that stopped.",
                one: "delivery is left over from a process that stopped, and no other process has taken it",
                many: "deliveries are left over from a process that stopped, and no other process has taken them",
                advice: "Start a process that delivers (WEBHOOK_DISPATCHER_DISABLED must not be set everywhere).",
            },
        ),
        Check::counted(
            group,
            "deliveries.callbacks",
            |c| {
                store::list_failing_callbacks(&c.database, deliveries::MAX_FAILING_TIME, MAX_NAMED)
                    .boxed()
            },
            CountWording {
                none: "No callback is closed or has failed for long.",
                one: "callback is closed because of failures, or has accepted nothing for a quarter of an hour",
                many: "callbacks are closed because of failures, or have accepted nothing for a quarter of an hour",
                advice: "Inform these tenants; `attesto webhook get` shows since when, `attesto webhook ping` tries the callback now.",
            },
        )
        .in_job(DRIFT_JOB, "callback_closed"),
        Check::judged(
            group,
            "deliveries.failed",
            |c| store::list_recent_failures(&c.database, MAX_NAMED).boxed(),
            |failures, _| deliveries::judge_recent_failures(&failures),
        ),
        Check::counted(
            group,
            "deliveries.reachable",
            |c| async {
                let found = probe::store::list_unreachable_callbacks(&c.database, MAX_NAMED).await?;
                Ok(CountWithNames::from(found))
            }
            .boxed(),
            CountWording {
                none: "No callback is known to be unreachable.",
                one: "callback was unreachable when last probed",
                many: "callbacks were unreachable when last probed",
                advice: "`attesto webhook get <tenant>` says why; `attesto jobs run probe` connects again and sends nothing.",
            },
        ),
        Check::judged(
            group,
            "deliveries.certificates",
            |c| deliveries::list_expiring_certificates(c).boxed(),
            |tenants, _| tenants.map(|tenants| deliveries::judge_callback_certificates(&tenants)),
        )
        .in_job(EXPIRY_JOB, "callbacks"),
        Check::judged(
            group,
            "deliveries.client_certificates",
            |c| deliveries::list_expiring_client_certificates(c).boxed(),
            |tenants, _| tenants.map(|tenants| deliveries::judge_client_certificates(&tenants)),
        )
        .in_job(EXPIRY_JOB, "client_certificates"),
        Check::judged(
            group,
            "deliveries.states",
            |c| UnresolvedStats::load(&c.database).boxed(),
            |stats, _| deliveries::judge_unresolved_states(stats),
        ),
    ]
}

/// Configuration that no longer matches what is in use, as far as no check of another group covers it.
fn drift_checks() -> [Check; 9] {
    let group = CheckGroup::Drift;
    [
        Check::counted(
            group,
            "drift.callback_off",
            |c| store::list_disabled_callbacks(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "No active tenant's callback is switched off.",
                one: "callback is switched off",
                many: "callbacks are switched off",
                advice: "Events are stored and not sent. `attesto webhook set-config <tenant> --is-active true` switches it on.",
            },
        )
        .in_job(DRIFT_JOB, "callback_off"),
        Check::counted(
            group,
            "drift.callback_unused",
            |c| store::list_unused_callbacks(&c.database, drift::SETUP_GRACE_PERIOD, MAX_NAMED).boxed(),
            CountWording {
                none: "Every callback has a stored delivery, or is new.",
                one: "callback has no stored delivery",
                many: "callbacks have no stored delivery",
                advice: "This is normal if nothing was bought within RETENTION_EVENTS_DAYS. Otherwise: does the store send its notifications here? docs/google-notifications.md says how; `attesto webhook ping <tenant>` tries the callback.",
            },
        )
        .in_job(DRIFT_JOB, "callback_unused"),
        Check::counted(
            group,
            "drift.apple_address",
            |c| store::list_failed_test_notifications(&c.database, true, MAX_NAMED).boxed(),
            CountWording {
                none: "No app is known to lack its notification URL.",
                one: "app had no notification URL when Apple was last asked",
                many: "apps had no notification URL when Apple was last asked",
                advice: "App Store Connect, App Information, App Store Server Notifications: https://<your host>/v1/webhooks/apple/<tenant>; then `attesto apple request-test-notification <tenant>`.",
            },
        )
        .in_job(DRIFT_JOB, "apple_address"),
        Check::counted(
            group,
            "drift.apple_unreached",
            |c| store::list_failed_test_notifications(&c.database, false, MAX_NAMED).boxed(),
            CountWording {
                none: "No app's notification URL is known to be unreachable.",
                one: "app's test notification did not arrive when Apple last sent one",
                many: "apps' test notifications did not arrive when Apple last sent one",
                advice: "`attesto apple request-test-notification <tenant>` tries again and says what to correct.",
            },
        )
        .in_job(DRIFT_JOB, "apple_unreached"),
        Check::counted(
            group,
            "drift.apple_silent",
            |c| store::list_tenants_without_apple_events(&c.database, drift::SETUP_GRACE_PERIOD, MAX_NAMED).boxed(),
            CountWording {
                none: "Every tenant with an Apple key and a callback has a stored event from Apple, or is new.",
                one: "tenant with an Apple key and a callback has no stored event from Apple",
                many: "tenants with an Apple key and a callback have no stored event from Apple",
                advice: "This is normal if nothing was bought within RETENTION_EVENTS_DAYS. `attesto apple request-test-notification <tenant>` says whether App Store Connect has the right URL.",
            },
        )
        .in_job(DRIFT_JOB, "apple_silent"),
        Check::counted(
            group,
            "drift.google_pusher",
            |c| store::list_tenants_without_push_account(&c.database, MAX_NAMED).boxed(),
            CountWording {
                none: "Every tenant with a Google service account and a callback accepts Pub/Sub pushes.",
                one: "tenant refuses all notifications from Google: the service account of the push subscription is not set",
                many: "tenants refuse all notifications from Google: the service account of the push subscription is not set",
                advice: "`attesto google set-credentials … --pubsub-service-account`, the account of the push subscription; docs/google-notifications.md.",
            },
        )
        .in_job(DRIFT_JOB, "google_pusher"),
        Check::counted(
            group,
            "drift.settings",
            |c| drift::find_differing_settings(c).boxed(),
            CountWording {
                none: "All processes have the same settings where they should.",
                one: "group of settings differs between processes",
                many: "groups of settings differ between processes",
                advice: "`attesto config check` on each shows them. This is normal while a change is rolled out.",
            },
        )
        .in_job(DRIFT_JOB, "settings"),
        Check::only_counted(group, "drift.keys", |c| drift::find_missing_keys(c).boxed())
            .in_job(DRIFT_JOB, "keys"),
        Check::only_counted(group, drift::MIGRATIONS, |c| drift::find_schema_mismatch(c).boxed())
            .in_job(DRIFT_JOB, "migrations"),
    ]
}

fn log_checks() -> [Check; 2] {
    [
        Check::judged(
            CheckGroup::Logs,
            "logs.operators",
            |c| logs::verify_chain(&c.database).boxed(),
            |chain, _| logs::judge_chain(&chain),
        ),
        Check::judged(
            CheckGroup::Logs,
            "logs.backups",
            |c| store::find_latest_backup(&c.database).boxed(),
            |backup, _| logs::judge_latest_backup(backup.as_ref()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_begin_with_their_group() {
        let checks = all_checks();
        let names: BTreeSet<_> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), checks.len());
        for check in &checks {
            let (group, _) = check.group.name_and_title();
            assert_eq!(check.name.split('.').next(), Some(group), "{}", check.name);
        }
    }
}
