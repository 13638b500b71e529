//! The tenants' callbacks: they record what they get, and answer slowly or with errors at random.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attesto::base::id::TenantId;
use attesto::crypto::keyring::Keyring;
use attesto::db::Database;
use attesto::deliveries::endpoint::store::{self, EndpointChange};
use attesto::deliveries::endpoint::{SigningSecret, SigningSecrets};
use attesto::deliveries::signature;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;

/// What all callbacks got.
#[derive(Clone, Default)]
pub(crate) struct Receivers(Arc<Mutex<Seen>>);

#[derive(Default)]
pub(crate) struct Seen {
    /// By event id: the time of each 200.
    pub(crate) taken: HashMap<String, Vec<Instant>>,
    /// By event id: how often it was refused.
    pub(crate) refused: HashMap<String, usize>,
    /// Requests whose signature does not verify.
    pub(crate) unsigned: usize,
    /// The body of each event that was answered with 200, by its id, where they are kept.
    pub(crate) bodies: Vec<(String, Bytes)>,
    keeps_bodies: bool,
    secrets: HashMap<usize, SigningSecrets>,
}

impl Receivers {
    /// Those that keep what they get.
    pub(crate) fn keeping_bodies() -> Self {
        let receivers = Self::default();
        receivers.seen(|seen| seen.keeps_bodies = true);
        receivers
    }

    /// Starts the server; the path of a tenant's callback is the tenant's number.
    pub(crate) async fn start(&self) -> SocketAddr {
        let routes = Router::new()
            .route("/{number}", post(receive))
            .with_state(self.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        address
    }

    /// Makes them the callback of a tenant, by its number.
    pub(crate) async fn register(
        &self,
        database: &Database,
        keyring: &Keyring,
        tenant: &TenantId,
        (number, address): (usize, SocketAddr),
    ) {
        let secret = SigningSecret::parse(&format!("{number}").repeat(40)).expect("a secret");
        let url = format!("http://{address}/{number}");
        let change = EndpointChange {
            callback_url: Some(&url),
            secret: Some(&secret),
            overlap: Duration::ZERO,
            ..EndpointChange::default()
        };
        store::change_endpoint(database, keyring, tenant, &change)
            .await
            .expect("the database is there");
        self.seen(|seen| seen.secrets.insert(number, secret.into()));
    }

    /// Reads what arrived.
    pub(crate) fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().expect("not poisoned"))
    }
}

async fn receive(
    State(receivers): State<Receivers>,
    Path(number): Path<usize>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let event = text("x-attesto-event-id");
    let timestamp = text("x-attesto-timestamp").parse().unwrap_or_default();
    let pause = receivers.seen(|seen| {
        let secrets = &seen.secrets[&number];
        let expected = signature::sign_delivery(secrets, &text("webhook-id"), timestamp, &body);
        if text("x-attesto-signature") != expected.attesto
            || text("webhook-signature") != expected.standard
        {
            seen.unsigned += 1;
        }
        // The answer depends only on the event's id, so that other random choices do not change it.
        let mood = event.bytes().map(usize::from).sum::<usize>() % 100;
        if mood < 2 && !seen.refused.contains_key(&event) {
            seen.refused.insert(event.clone(), 1);
            return None;
        }
        let millis = if mood > 90 {
            20 * (mood as u64 - 90)
        } else {
            0
        };
        Some(Duration::from_millis(millis))
    });
    let Some(pause) = pause else {
        return StatusCode::INTERNAL_SERVER_ERROR;
    };
    tokio::time::sleep(pause).await;
    receivers.seen(|seen| {
        let taken = seen.taken.entry(event.clone()).or_default();
        taken.push(Instant::now());
        if seen.keeps_bodies && taken.len() == 1 {
            seen.bodies.push((event, body));
        }
    });
    StatusCode::OK
}
