//! The backends of the tenants: each request is repeated until it is answered.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::ledger::App;
use super::stage::acknowledges_at_once;
use crate::chaos::receivers::Receivers;
use crate::histories::actor::Question;
use crate::world::attesto::World;

/// A request that has no answer yet.
struct Request {
    tenant: usize,
    path: String,
    body: Value,
}

/// The backends of all tenants.
pub(crate) struct Backend {
    /// The API keys by the number of the tenant.
    keys: Vec<String>,
    open: Vec<Request>,
    /// What was asked, so that nothing is asked twice.
    begun: BTreeSet<String>,
    /// How many of the events that were received were looked at.
    events_read: usize,
}

impl Backend {
    pub(crate) fn new(keys: Vec<String>) -> Self {
        Self {
            keys,
            open: Vec::new(),
            begun: BTreeSet::new(),
            events_read: 0,
        }
    }

    /// Verifies a new purchase.
    pub(crate) fn verify_google(&mut self, tenant: usize, package: &str, token: &str) {
        let body = json!({ "packageName": package, "purchaseToken": token });
        self.begin(tenant, "/v1/google/verify", body);
    }

    /// The same by a question of the app.
    pub(crate) fn verify_once(&mut self, tenant: usize, question: Question) {
        let path = format!("/v1/{}/verify", question.store);
        self.begin(tenant, &path, question.body);
    }

    /// Acknowledges what is due, where nothing else does.
    pub(crate) fn take_events(&mut self, receivers: &Receivers, apps: &[App]) {
        let new = receivers.seen(|seen| {
            let new = seen.bodies[self.events_read..].to_vec();
            self.events_read = seen.bodies.len();
            new
        });
        for (_, body) in new {
            let event: Value = serde_json::from_slice(&body).unwrap_or_default();
            let is_of = |app: &App| event["tenantId"] == app.tenant.as_str();
            let tenant = apps.iter().position(is_of);
            let Some(tenant) = tenant.filter(|tenant| !acknowledges_at_once(*tenant)) else {
                continue;
            };
            if event["event"] == "purchase.acknowledge_due" {
                let data = &event["data"];
                let body = json!({
                    "packageName": data["packageName"], "purchaseToken": data["purchaseToken"],
                });
                self.begin(tenant, "/v1/google/acknowledge", body);
            }
        }
    }

    fn begin(&mut self, tenant: usize, path: &str, body: Value) {
        if self.begun.insert(format!("{path} {body}")) {
            self.open.push(Request {
                tenant,
                path: path.to_owned(),
                body,
            });
        }
    }

    /// Sends every open request once.
    pub(crate) async fn ask(&mut self, world: &World, service: Option<&str>) {
        let Some(service) = service else {
            return;
        };
        let answers = self.open.iter().map(async |request| {
            let url = format!("{service}{}", request.path);
            let key = Some(self.keys[request.tenant].as_str());
            let answer = world
                .try_ask_at(&url, "POST", key, Some(&request.body))
                .await;
            answer.is_some_and(|answer| answer.status == 200)
        });
        let answers = join_all(answers).await;
        let mut answered = answers.into_iter();
        self.open.retain(|_| answered.next() == Some(false));
    }
}
