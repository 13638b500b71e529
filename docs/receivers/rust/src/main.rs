//! A receiver for Attesto's events, with axum.
//!
//!     ATTESTO_WEBHOOK_SECRET=whsec_... cargo run
//!
//! Settings, from the environment:
//!
//! - `ATTESTO_WEBHOOK_SECRET`: what `attesto webhook set-config` printed
//! - `ATTESTO_WEBHOOK_SECRET_PREVIOUS`: the one before it, while you change secrets (optional)
//! - `EVENTS_DIR`: where events are stored for your own code (./events)
//! - `STATES_DIR`: where the newest state of each purchase is kept (./states)
//! - `HOST`, `PORT`: where to listen (127.0.0.1, 3000); behind your web server, which ends TLS

use std::collections::HashMap;
use std::fs::{self, File, create_dir_all, hard_link, remove_file};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;

const PATH: &str = "/hooks/attesto";
const WINDOW_SECONDS: u64 = 300;
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// The receiver's settings.
struct Setup {
    secrets: Vec<String>,
    folder: PathBuf,
    states: PathBuf,
}

/// Whether one of our secrets signed these bytes, within the last five minutes. `now` is in seconds since 1970.
fn is_from_attesto(secrets: &[String], header: &str, body: &[u8], now: u64) -> bool {
    let mut timestamp = "";
    let mut given = Vec::new();
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", value)) => timestamp = value,
            Some(("v1", value)) => given.extend(bytes_of_hex(value)),
            _ => {}
        }
    }
    let digits = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let Some(moment) = timestamp.parse::<u64>().ok().filter(|_| digits) else {
        return false;
    };
    if now.abs_diff(moment) > WINDOW_SECONDS {
        return false;
    }
    let signed = [timestamp.as_bytes(), b".", body].concat();
    let mut fits = false;
    for secret in secrets {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        for value in &given {
            // In constant time.
            fits |= hmac::verify(&key, &signed, value).is_ok();
        }
    }
    fits
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |letter: u8| match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

/// Stores an event for your own code. False if it is already stored.
///
/// Here an event is a file that is created atomically. In your application, use a table with the event's id as its
/// primary key, and `INSERT ... ON CONFLICT DO NOTHING`, in one transaction with what the event changes.
fn keep(folder: &Path, event_id: &str, body: &[u8]) -> io::Result<bool> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let draft = folder.join(format!(".draft-{event_id}-{}-{number}", std::process::id()));
    let written = (|| {
        let mut file = File::create_new(&draft)?;
        file.write_all(body)?;
        file.sync_all()?;
        hard_link(&draft, folder.join(format!("{event_id}.json")))
    })();
    let removed = remove_file(&draft);
    match written {
        Ok(()) => removed.map(|()| true),
        Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(problem) => Err(problem),
    }
}

/// The part of an event that is needed here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    event_id: String,
    source: Option<String>,
    subject: Option<Subject>,
    sequence: Option<i64>,
    state: Option<PurchaseState>,
}

#[derive(Deserialize)]
struct Subject {
    key: String,
}

/// What a purchase is worth: the fields that are needed here.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PurchaseState {
    entitled: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    entitled_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    as_of: OffsetDateTime,
}

impl PurchaseState {
    /// The gate: may the customer use the product now?
    fn is_entitled(&self, now: OffsetDateTime) -> bool {
        self.entitled && self.entitled_until.is_none_or(|end| now < end)
    }
}

/// The newest state of a purchase.
#[derive(Serialize, Deserialize)]
struct KeptState {
    sequence: i64,
    state: PurchaseState,
}

fn event_of(body: &[u8]) -> Option<Event> {
    let event: Event = serde_json::from_slice(body).ok()?;
    let random = event.event_id.strip_prefix("evt_")?;
    let known = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
    (random.len() == 26 && random.bytes().all(known)).then_some(event)
}

/// Keeps the newest state of the event's purchase, and returns what is kept; `None` if nothing is known yet.
///
/// Newest is the latest `asOf`, and of equal ones the higher `sequence`; an event without a state changes nothing. Here the
/// state is a file. In your application it is a row, and all of this is one `INSERT ... ON CONFLICT DO UPDATE ... WHERE`.
fn keep_state(folder: &Path, event: &Event) -> io::Result<Option<PurchaseState>> {
    static LOCK: Mutex<()> = Mutex::new(());
    let Some(subject) = &event.subject else {
        return Ok(None);
    };
    let source = event.source.as_deref().unwrap_or_default();
    let key = format!("{source} {}", subject.key);
    let name = digest::digest(&digest::SHA256, key.as_bytes());
    let name: String = name
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = folder.join(format!("{name}.json"));
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut kept: Option<KeptState> = match fs::read(&path) {
        Ok(text) => Some(serde_json::from_slice(&text)?),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => None,
        Err(problem) => return Err(problem),
    };
    if let Some(state) = &event.state {
        let sequence = event.sequence.unwrap_or_default();
        let is_newer = kept
            .as_ref()
            .is_none_or(|kept| (state.as_of, sequence) > (kept.state.as_of, kept.sequence));
        if is_newer {
            let state = state.clone();
            let newest = kept.insert(KeptState { sequence, state });
            let draft = path.with_extension("draft");
            fs::write(&draft, serde_json::to_vec(newest)?)?;
            fs::rename(&draft, &path)?;
        }
    }
    Ok(kept.map(|kept| kept.state))
}

async fn receive(
    State(setup): State<Arc<Setup>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    let refuse = |status, why| (status, Json(json!({ "error": why })));
    // The exact bytes that arrived, before parsing.
    let header = headers.get("x-attesto-signature");
    let header = header.and_then(|header| header.to_str().ok()).unwrap_or("");
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |age| age.as_secs());
    if !is_from_attesto(&setup.secrets, header, &body, now) {
        return refuse(StatusCode::UNAUTHORIZED, "not signed by Attesto");
    }
    let Some(event) = event_of(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "no event");
    };
    let event_id = event.event_id.clone();
    let kept = tokio::task::spawn_blocking(move || {
        let is_new = keep(&setup.folder, &event.event_id, &body)?;
        let state = keep_state(&setup.states, &event)?;
        Ok((is_new, state))
    });
    match kept.await.map_err(io::Error::other).flatten() {
        Ok((is_new, state)) => {
            let entitled = state.map(|state| state.is_entitled(OffsetDateTime::now_utc()));
            let content = json!({ "eventId": event_id, "isNew": is_new, "entitled": entitled });
            (StatusCode::OK, Json(content))
        }
        // Attesto will send it again.
        Err(problem) => {
            eprintln!("cannot keep {event_id}: {problem}");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "cannot keep it")
        }
    }
}

/// The receiver, to be served by itself or nested into a larger application. Both folders must exist.
pub(crate) fn receiver(secrets: Vec<String>, folder: PathBuf, states: PathBuf) -> Router {
    let setup = Setup {
        secrets,
        folder,
        states,
    };
    Router::new()
        .route(PATH, post(receive))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(setup))
}

/// Serves it, with the settings of the environment.
#[tokio::main]
pub(crate) async fn main() -> io::Result<()> {
    let given: HashMap<String, String> = std::env::vars().collect();
    let setting = |name: &str, otherwise: &str| {
        let value = given.get(name).filter(|value| !value.is_empty());
        value.map_or_else(|| otherwise.to_owned(), Clone::clone)
    };
    let names = ["ATTESTO_WEBHOOK_SECRET", "ATTESTO_WEBHOOK_SECRET_PREVIOUS"];
    let mut secrets = names.map(|name| setting(name, "")).to_vec();
    secrets.retain(|secret| !secret.is_empty());
    if secrets.is_empty() {
        let message = "set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed";
        return Err(io::Error::other(message));
    }
    let folder = PathBuf::from(setting("EVENTS_DIR", "events"));
    let states = PathBuf::from(setting("STATES_DIR", "states"));
    create_dir_all(&folder)?;
    create_dir_all(&states)?;
    let address = format!(
        "{}:{}",
        setting("HOST", "127.0.0.1"),
        setting("PORT", "3000")
    );
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}{PATH}", listener.local_addr()?);
    axum::serve(listener, receiver(secrets, folder, states)).await
}
