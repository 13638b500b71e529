//! Pushes notifications as the stores do: to the replica that a load balancer picks, until one
//! answers 200.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// The current port of a replica.
pub(crate) type Port = Arc<Mutex<Option<u64>>>;
/// The current port of each replica.
pub(crate) type Ports = Vec<Port>;

/// One notification, ready to be pushed.
#[derive(Clone)]
pub(crate) struct Notification {
    pub(crate) path: String,
    pub(crate) bearer: Option<String>,
    pub(crate) body: String,
}

impl Notification {
    /// A request to the replica at this port.
    pub(crate) fn request(&self, client: &Client, port: u64) -> RequestBuilder {
        let request = client
            .post(format!("http://127.0.0.1:{port}{}", self.path))
            .header("content-type", "application/json")
            .body(self.body.clone());
        match &self.bearer {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// The accepted events.
#[derive(Clone, Default)]
pub(crate) struct Accepted(Arc<Mutex<HashMap<String, Acceptance>>>);

/// One event that was accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acceptance {
    /// When the first 200 arrived.
    pub(crate) at: Instant,
    /// Failed pushes before it.
    pub(crate) failures: u32,
}

impl Accepted {
    /// Records an event that was just answered with 200.
    pub(crate) fn note(&self, event: &str, failures: u32) {
        let acceptance = Acceptance {
            at: Instant::now(),
            failures,
        };
        let mut accepted = self.0.lock().expect("not poisoned");
        accepted.entry(event.to_owned()).or_insert(acceptance);
    }

    /// By event id.
    pub(crate) fn all(&self) -> HashMap<String, Acceptance> {
        self.0.lock().expect("not poisoned").clone()
    }
}

/// Pushes until a replica answers 200. There is no limit: the stores retry for days.
pub(crate) async fn push(
    client: Client,
    ports: Arc<Ports>,
    notification: Notification,
    accepted: Accepted,
    seed: u64,
) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut failures = 0;
    loop {
        let port = *ports[chance.usize(..ports.len())]
            .lock()
            .expect("not poisoned");
        if let Some(port) = port {
            let request = notification.request(&client, port);
            let request = request.timeout(Duration::from_secs(10));
            if let Ok(answer) = request.send().await {
                let status = answer.status().as_u16();
                // A 200 without a complete body is no success for a store either.
                let body: Option<Value> = answer.json().await.ok();
                let event = body.as_ref().and_then(|body| body["eventId"].as_str());
                if let (200, Some(event)) = (status, event) {
                    accepted.note(event, failures);
                    return;
                }
                assert!(
                    matches!(status, 200 | 503),
                    "a genuine notification was answered with {status}: {body:?}"
                );
            }
        }
        failures += 1;
        tokio::time::sleep(Duration::from_millis(chance.u64(50..300))).await;
    }
}
