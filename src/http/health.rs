//! `/health`: the process lives. `/ready`: it can do its work.
//!
//! Liveness touches nothing, so that an unreachable database restarts no process. Readiness checks, read-only, and answers
//! in time whatever it looks at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::future::{BoxFuture, join_all};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa::openapi::Schema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::api_docs::string_enum_schema;
use crate::base::single_flight::SingleFlight;

/// How long the checks may take. The contract promises an answer within two seconds.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1500);

/// Checks whether something works. `Err` is a few words that may be public: no host name, no SQL, no secret.
pub type ReadinessCheck = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What a process does not do although it can serve: a few words that may be public, or nothing.
pub type ReadinessNotice = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// State of `/health` and `/ready`.
#[derive(Clone)]
pub struct HealthState {
    checks: Arc<Vec<(&'static str, ReadinessCheck)>>,
    notices: Arc<Vec<(&'static str, ReadinessNotice)>>,
    /// `/ready` needs no key; concurrent requests share one run of the checks.
    running_checks: SingleFlight<(), BTreeMap<&'static str, String>>,
    shutting_down: CancellationToken,
}

impl HealthState {
    /// With named checks. `leaving` is cancelled when this process should get no more work.
    pub fn new(
        checks: Vec<(&'static str, ReadinessCheck)>,
        shutting_down: CancellationToken,
    ) -> Self {
        Self {
            checks: Arc::new(checks),
            notices: Arc::default(),
            running_checks: SingleFlight::default(),
            shutting_down,
        }
    }

    /// The same with notices, by name, which stand beside the checks while they have something to say.
    #[must_use]
    pub fn with_notices(self, notices: Vec<(&'static str, ReadinessNotice)>) -> Self {
        Self {
            notices: Arc::new(notices),
            ..self
        }
    }

    /// `/health` and `/ready`.
    pub fn into_routes(self) -> OpenApiRouter {
        Self::build_router().with_state(self)
    }

    /// The same, as they are described.
    pub fn openapi_document() -> utoipa::openapi::OpenApi {
        Self::build_router().into_openapi()
    }

    fn build_router() -> OpenApiRouter<Self> {
        OpenApiRouter::new()
            .routes(routes!(health))
            .routes(routes!(ready))
    }

    async fn run_checks(&self) -> BTreeMap<&'static str, String> {
        let checks = self.checks.clone();
        let look = || async move {
            join_all(checks.iter().map(|(name, check)| async {
                let outcome = match tokio::time::timeout(CHECK_TIMEOUT, check()).await {
                    Ok(Ok(())) => "ok".to_owned(),
                    Ok(Err(problem)) => format!("fail: {problem}"),
                    Err(_) => "fail: timeout".to_owned(),
                };
                (*name, outcome)
            }))
            .await
            .into_iter()
            .collect()
        };
        self.running_checks.share_call((), look).await
    }
}

/// Whether the process lives.
#[derive(serde::Serialize, ToSchema)]
struct Alive {
    /// Always `ok`: the process answers.
    #[schema(examples("ok"))]
    status: &'static str,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
}

fn readiness_status_schema() -> Schema {
    string_enum_schema(
        "Whether it can.",
        &[
            ("ok", "it can."),
            ("degraded", "it cannot; `checks` says why."),
        ],
    )
}

/// Whether the process can do its work.
#[derive(serde::Serialize, ToSchema)]
struct Readiness {
    /// Whether it can.
    #[schema(schema_with = readiness_status_schema)]
    status: &'static str,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    /// Each check by its name, `db` and `encryption`: `ok`, or `fail: ` and a few words. While the process is shutting down
    /// there is `server` too. `deliveries` is there while the process takes in notifications and does not deliver: `off: ` or
    /// `waiting: ` and why; it fails no check.
    #[schema(examples(json!({ "db": "ok", "encryption": "ok" })))]
    checks: BTreeMap<&'static str, String>,
}

/// Is the process alive?
///
/// Touches nothing. For the probe that restarts a process.
#[utoipa::path(
    get,
    path = "/health",
    tag = "operation",
    responses((status = 200, description = "It is alive", body = Alive, examples(
        ("alive" = (summary = "It is alive.", value = json!({ "status": "ok", "version": crate::VERSION })))
    )))
)]
async fn health() -> Json<Alive> {
    Json(Alive {
        status: "ok",
        version: crate::VERSION,
    })
}

/// Can the process do its work?
///
/// Looks at the database (whether it answers, may be written, and completes the writes of this process) and at the encryption
/// key, and answers within two seconds. For the probe that sends traffic; fails while the process is shutting down.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "operation",
    responses(
        (status = 200, description = "It can do its work", body = Readiness, examples(
            ("ready" = (summary = "It can do its work.", value = json!({
                "status": "ok", "version": crate::VERSION, "checks": { "db": "ok", "encryption": "ok" },
            })))
        )),
        (status = 503, description = "It cannot: `status` is `degraded` and `checks` says why", body = Readiness, examples(
            ("degraded" = (summary = "The database is away.", value = json!({
                "status": "degraded", "version": crate::VERSION,
                "checks": { "db": "fail: connection refused", "encryption": "ok" },
            })))
        )),
    )
)]
async fn ready(State(health): State<HealthState>) -> (StatusCode, Json<Readiness>) {
    let mut checks = health.run_checks().await;
    if health.shutting_down.is_cancelled() {
        checks.insert("server", "fail: shutting down".to_owned());
    }
    let fine = checks.values().all(|outcome| outcome == "ok");
    for (name, notice) in health.notices.iter() {
        if let Some(words) = notice() {
            checks.insert(name, words);
        }
    }
    let (code, status) = if fine {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "degraded")
    };
    let readiness = Readiness {
        status,
        version: crate::VERSION,
        checks,
    };
    (code, Json(readiness))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use axum::http::Request;
    use futures_util::FutureExt as _;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(health: &HealthState, path: &str) -> (u16, Value) {
        let router: axum::Router = health.clone().into_routes().into();
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16)
            .await
            .unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    fn passing_check() -> ReadinessCheck {
        Arc::new(|| std::future::ready(Ok(())).boxed())
    }

    #[tokio::test]
    async fn ready_says_what_fails_and_health_does_not_look() {
        let down: ReadinessCheck =
            Arc::new(|| std::future::ready(Err("connection refused".to_owned())).boxed());
        let leaving = CancellationToken::new();
        let health = HealthState::new(vec![("db", down), ("encryption", passing_check())], leaving);
        let (status, body) = ask(&health, "/ready").await;
        assert_eq!(status, 503);
        let checks = json!({"db": "fail: connection refused", "encryption": "ok"});
        assert_eq!(
            body,
            json!({"status": "degraded", "version": crate::VERSION, "checks": checks})
        );
        let (status, body) = ask(&health, "/health").await;
        assert_eq!(
            (status, body),
            (200, json!({"status": "ok", "version": crate::VERSION}))
        );
    }

    #[tokio::test]
    async fn ready_says_what_is_not_done_and_does_not_fail() {
        let leaving = CancellationToken::new();
        let health = HealthState::new(vec![("db", passing_check())], leaving);
        let quiet: ReadinessNotice = Arc::new(|| None);
        let says: ReadinessNotice = Arc::new(|| Some("off: it only receives".to_owned()));
        let health = health.with_notices(vec![("deliveries", says), ("jobs", quiet)]);
        let (status, body) = ask(&health, "/ready").await;
        let checks = json!({"db": "ok", "deliveries": "off: it only receives"});
        assert_eq!(
            (status, body),
            (
                200,
                json!({"status": "ok", "version": crate::VERSION, "checks": checks})
            )
        );
    }

    #[tokio::test]
    async fn ready_fails_while_leaving() {
        let leaving = CancellationToken::new();
        let health = HealthState::new(vec![("db", passing_check())], leaving.clone());
        assert_eq!(ask(&health, "/ready").await.0, 200);
        leaving.cancel();
        assert_eq!(ask(&health, "/ready").await.0, 503);
        assert_eq!(ask(&health, "/health").await.0, 200);
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_looked_at_once_and_given_up() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = looks.clone();
        let hangs: ReadinessCheck = Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending().boxed()
        });
        let health = HealthState::new(vec![("db", hangs)], CancellationToken::new());
        let start = tokio::time::Instant::now();
        let ((one, body), (two, _)) = tokio::join!(ask(&health, "/ready"), ask(&health, "/ready"));
        assert_eq!((one, two), (503, 503));
        assert_eq!(body["checks"]["db"], "fail: timeout");
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!(looks.load(Ordering::SeqCst), 1);
    }
}
