//! Retention: what is deleted after a time, and what stays whatever its age.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use attesto::base::id::TenantId;
use serde_json::{Value, json};

use crate::world::postgres::{Fresh, fresh_database};

struct Archive {
    fresh: Fresh,
    tenant: TenantId,
}

impl Archive {
    async fn open() -> Self {
        let fresh = fresh_database().await;
        let tenant = fresh.create_tenant().await;
        Self { fresh, tenant }
    }

    async fn run(&self, statement: &'static str, id: &str, days: i32) {
        sqlx::query(statement)
            .bind(id)
            .bind(self.tenant.as_str())
            .bind(days)
            .execute(self.fresh.database.pool())
            .await
            .unwrap();
    }

    async fn event(&self, id: &str, days: i32) {
        self.run(
            "insert into webhook_events
                (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, received_at, stored_body)
             values (tenant_lane($2), $1, $2, 'apple', $1, 'unknown', 'x', '{}', now() - make_interval(days => $3), '\\x007b7d')",
            id,
            days,
        )
        .await;
    }

    /// A delivery of the event whose id its own id starts with.
    async fn delivery(&self, id: &str, days: i32, status: &'static str) {
        let statement = match status {
            "delivered" => {
                "insert into webhook_deliveries
                    (lane, id, event_id, tenant_id, callback_url, status, last_response_body, delivered_at, created_at)
                 values (tenant_lane($2), $1, split_part($1, '/', 1), $2, 'x', 'delivered', 'ok', now() - make_interval(days => $3),
                    now() - make_interval(days => $3))"
            }
            "failed" => {
                "insert into webhook_deliveries
                    (lane, id, event_id, tenant_id, callback_url, status, last_response_body, failed_at, created_at)
                 values (tenant_lane($2), $1, split_part($1, '/', 1), $2, 'x', 'failed', 'no', now() - make_interval(days => $3),
                    now() - make_interval(days => $3))"
            }
            "parked" => {
                "insert into webhook_deliveries
                    (lane, id, event_id, tenant_id, callback_url, last_response_body, parked_at, created_at)
                 values (tenant_lane($2), $1, split_part($1, '/', 1), $2, 'x', 'well', now(), now() - make_interval(days => $3))"
            }
            _ => {
                "insert into webhook_deliveries
                    (lane, id, event_id, tenant_id, callback_url, last_response_body, created_at)
                 values (tenant_lane($2), $1, split_part($1, '/', 1), $2, 'x', 'wait', now() - make_interval(days => $3))"
            }
        };
        self.run(statement, id, days).await;
    }

    async fn audit(&self, id: &str, days: i32) {
        self.run(
            "insert into validation_audit (lane, id, tenant_id, source, identifier_hash, valid, latency_ms, occurred_at)
             values (tenant_lane($2), $1, $2, 'apple', '', true, 1, now() - make_interval(days => $3))",
            id,
            days,
        )
        .await;
    }

    /// An operator's change. Its hash is not valid, which another test checks.
    async fn operation(&self, days: i32) {
        let statement = "with noted as (select note_operation('test', 'test', $1, $2, null, null))
            select count(*) from noted";
        sqlx::query(statement)
            .bind("test")
            .bind(self.tenant.as_str())
            .execute(self.fresh.database.pool())
            .await
            .unwrap();
        self.run(
            "update operator_audit set occurred_at = now() - make_interval(days => $3)
             where seq = (select max(seq) from operator_audit) and target = $1 and tenant_id = $2",
            "test",
            days,
        )
        .await;
    }

    async fn ids(&self, statement: &'static str) -> Vec<String> {
        sqlx::query_scalar(statement)
            .fetch_all(self.fresh.database.pool())
            .await
            .unwrap()
    }

    async fn events(&self) -> Vec<String> {
        self.ids("select id from webhook_events order by id").await
    }

    /// The number of deleted rows of each kind.
    fn prune(&self, variables: &[(&str, &str)], words: &[&str]) -> Value {
        let shell = self.fresh.shell().set_all(variables.iter().copied());
        let lines = shell.rows(&[&["prune"], words].concat());
        let count = |line: &Value| {
            (
                line["kind"].as_str().unwrap().to_owned(),
                line["rows"].clone(),
            )
        };
        lines
            .iter()
            .map(count)
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

#[tokio::test]
async fn old_rows_are_deleted_and_undelivered_events_stay() {
    let archive = Archive::open().await;
    for (event, days) in [
        ("delivered", 91),
        ("failed", 91),
        ("none", 91),
        ("again", 91),
        ("parked", 91),
        ("waiting", 91),
        ("young", 89),
    ] {
        archive.event(event, days).await;
    }
    archive.delivery("delivered/1", 91, "delivered").await;
    archive.delivery("failed/1", 91, "failed").await;
    archive.delivery("again/1", 91, "failed").await;
    archive.delivery("again/2", 0, "pending").await;
    archive.delivery("parked/1", 91, "parked").await;
    archive.delivery("waiting/1", 91, "pending").await;
    archive.delivery("young/1", 31, "delivered").await;
    archive.delivery("young/2", 29, "failed").await;
    archive.audit("aud_old", 31).await;
    archive.operation(401).await;
    archive.operation(401).await;
    archive.operation(399).await;
    archive.audit("aud_young", 29).await;

    let expected = json!({
        "events": 3,
        "redeliveries": 0,
        "attemptDetails": 4,
        "validationAudit": 1,
        "firstSeen": 0,
        "retiredSecrets": 0,
        "operatorAudit": 2,
        "replacedCredentials": 0,
        "jobRuns": 0,
    });
    assert_eq!(archive.prune(&[], &["--dry-run"]), expected);
    assert_eq!(archive.events().await.len(), 7, "it was only counted");
    // The attempts of two deliveries were deleted with their events.
    let mut removed = expected;
    removed["attemptDetails"] = json!(2);
    assert_eq!(archive.prune(&[], &[]), removed);
    assert_eq!(
        archive.events().await,
        ["again", "parked", "waiting", "young"]
    );
    assert_eq!(
        archive
            .ids("select id || ' ' || coalesce(last_response_body, '-') from webhook_deliveries order by 1")
            .await,
        [
            "again/1 -",
            "again/2 wait",
            "parked/1 well",
            "waiting/1 wait",
            "young/1 -",
            "young/2 no"
        ]
    );
    assert_eq!(
        archive.ids("select id from validation_audit").await,
        ["aud_young"]
    );
    let again = archive.prune(&[], &[]);
    assert_eq!(
        (&again["events"], &again["attemptDetails"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn zero_keeps_forever_and_a_number_means_days() {
    let archive = Archive::open().await;
    archive.event("old", 4000).await;
    archive.delivery("old/1", 4000, "delivered").await;
    archive.audit("aud_old", 4000).await;
    let for_ever = [
        ("RETENTION_EVENTS_DAYS", "0"),
        ("RETENTION_VALIDATION_AUDIT_DAYS", "0"),
        ("RETENTION_ATTEMPT_DETAILS_DAYS", "0"),
    ];
    let kept = archive.prune(&for_ever, &[]);
    for kind in ["events", "attemptDetails", "validationAudit"] {
        assert_eq!(kept[kind], 0, "{kind}");
    }
    assert_eq!(archive.events().await, ["old"]);
    let details = archive
        .ids("select last_response_body from webhook_deliveries")
        .await;
    assert_eq!(details, ["ok"]);

    let long = [("RETENTION_EVENTS_DAYS", "4001")];
    assert_eq!(archive.prune(&long, &[])["events"], 0);
    let short = [("RETENTION_EVENTS_DAYS", "3999")];
    assert_eq!(archive.prune(&short, &[])["events"], 1);
}

#[tokio::test]
async fn many_rows_are_deleted_in_batches_around_kept_ones() {
    let archive = Archive::open().await;
    let many = "insert into webhook_events
            (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, received_at, stored_body)
         select tenant_lane($2), $1 || number, $2, 'apple', number, 'unknown', 'x', '{}', now() - make_interval(days => $3, secs => number),
            '\\x007b7d'
         from generate_series(1, 2300) number";
    archive.run(many, "e", 100).await;
    // More than a batch of consecutive rows stays.
    archive
        .run(
            "insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status)
             select tenant_lane($2), id, id, $2, 'x', case when split_part(id, $1, 2)::integer % 2 = $3 or split_part(id, $1, 2)::integer > 1600
                then 'pending' else 'delivered' end
             from webhook_events",
            "e",
            1,
        )
        .await;
    assert_eq!(archive.prune(&[], &["--dry-run"])["events"], 800);
    assert_eq!(archive.prune(&[], &[])["events"], 800);
    assert_eq!(archive.events().await.len(), 1500);
    let left = archive
        .ids("select id from webhook_deliveries where status <> 'pending'")
        .await;
    assert_eq!(left.len(), 0);
}

#[tokio::test]
async fn expired_secrets_and_old_job_runs_are_deleted_too() {
    let archive = Archive::open().await;
    archive
        .run(
            "insert into webhook_configs (tenant_id, callback_url, secret_enc)
             select $2, $1, '\\x01' where $3 = 0",
            "https://example.com/",
            0,
        )
        .await;
    for (number, hours) in [(1, -1), (2, 1)] {
        sqlx::query(
            "insert into webhook_previous_secrets (tenant_id, number, secret_enc, created_at, expires_at)
             values ($1, $2, '\\x01', now(), now() + make_interval(hours => $3))",
        )
        .bind(archive.tenant.as_str())
        .bind(number)
        .bind(hours)
        .execute(archive.fresh.database.pool())
        .await
        .unwrap();
    }
    for job in ["often", "often", "once"] {
        archive
            .run(
                "insert into job_runs (job, host, started_at, lease_until, finished_at, outcome, error)
                 values ($1, 'x', now() - make_interval(days => $3), now() - make_interval(days => $3),
                    now() - make_interval(days => $3), 'failed', $2)",
                job,
                40,
            )
            .await;
    }
    let gone = archive.prune(&[], &[]);
    assert_eq!(
        (&gone["retiredSecrets"], &gone["jobRuns"]),
        (&json!(1), &json!(1))
    );
    let left = archive
        .ids("select number::text from webhook_previous_secrets")
        .await;
    assert_eq!(left, ["2"]);
    let left = archive.ids("select job from job_runs order by job").await;
    assert_eq!(
        left,
        ["often", "once", "retention"],
        "the last of each stays"
    );
}

#[tokio::test]
async fn an_event_with_an_uncommitted_redelivery_stays() {
    let archive = Archive::open().await;
    for event in ["again", "done"] {
        archive.event(event, 100).await;
    }
    let mut asking = archive.fresh.database.pool().begin().await.unwrap();
    sqlx::query(
        "insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url) values (tenant_lane($1), 'new', 'again', $1, 'x')",
    )
    .bind(archive.tenant.as_str())
    .execute(&mut *asking)
    .await
    .unwrap();
    // Not committed yet: it is neither waited for nor ignored.
    assert_eq!(archive.prune(&[], &[])["events"], 1);
    asking.commit().await.unwrap();
    assert_eq!(archive.events().await, ["again"]);
    assert_eq!(archive.prune(&[], &[])["events"], 0);
}
