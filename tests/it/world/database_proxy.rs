//! A proxy to the database that can stall, or drop notifications as a pooler in transaction mode
//! does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

use super::wait::pause;

/// The type of Postgres' NotificationResponse message.
const NOTIFICATION: u8 = b'A';
/// The application name of the listening connection.
const EAR: &[u8] = b"attesto-changes";

pub(crate) struct Wire {
    /// The URL of the database through the proxy.
    pub(crate) url: String,
    manners: Arc<Manners>,
    _carrying: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Manners {
    frozen: AtomicBool,
    ears_frozen: AtomicBool,
    swallowing: AtomicBool,
    /// How many notifications were dropped or delayed.
    unheard: AtomicUsize,
}

impl Wire {
    /// To a database on a Unix socket, such as the test Postgres.
    pub(crate) async fn to(url: &str) -> Self {
        let target = url::Url::parse(url).expect("our own URL");
        let folder = target.query_pairs().find(|(name, _)| name == "host");
        let (_, folder) = folder.expect("it is behind a socket");
        let socket = format!("{folder}/.s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!(
            "postgres://attesto@{}{}?sslmode=disable",
            listener.local_addr().expect("it is bound"),
            target.path()
        );
        let manners = Arc::new(Manners::default());
        let carried = manners.clone();
        let carrying = tokio::spawn(async move {
            loop {
                let (here, _) = listener.accept().await.expect("it listens");
                let there = UnixStream::connect(&socket).await.expect("it is there");
                let (from_us, to_us) = here.into_split();
                let (from_it, to_it) = there.into_split();
                let (manners, is_ear) = (carried.clone(), Arc::<AtomicBool>::default());
                let said = is_ear.clone();
                tokio::spawn(async move { carry_questions(from_us, to_it, &said).await });
                tokio::spawn(async move { carry_answers(from_it, to_us, &manners, &is_ear).await });
            }
        });
        Self {
            url,
            manners,
            _carrying: AbortOnDropHandle::new(carrying),
        }
    }

    /// Stops forwarding the database's messages, without closing connections.
    pub(crate) fn freeze(&self) {
        self.manners.frozen.store(true, Ordering::SeqCst);
    }

    /// The same for listening connections only.
    pub(crate) fn freeze_ears(&self) {
        self.manners.ears_frozen.store(true, Ordering::SeqCst);
    }

    /// Drops all notifications.
    pub(crate) fn swallow_notifications(&self) {
        self.manners.swallowing.store(true, Ordering::SeqCst);
    }

    /// Notifications that did not arrive.
    pub(crate) fn unheard(&self) -> usize {
        self.manners.unheard.load(Ordering::SeqCst)
    }
}

async fn carry_questions(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_ear: &AtomicBool,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let said = &buffer[..count];
        // The startup message contains the application name.
        if said.windows(EAR.len()).any(|words| words == EAR) {
            is_ear.store(true, Ordering::SeqCst);
        }
        if to.write_all(said).await.is_err() {
            return;
        }
    }
}

/// Forwards message by message: a type, a length that includes itself, and the content.
async fn carry_answers(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    manners: &Manners,
    is_ear: &AtomicBool,
) {
    loop {
        let mut head = [0; 5];
        if from.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = [head[1], head[2], head[3], head[4]];
        let length = usize::try_from(u32::from_be_bytes(length)).expect("it fits");
        let mut message = vec![0; length - 4];
        if from.read_exact(&mut message).await.is_err() {
            return;
        }
        let is_frozen = || {
            let of_ears = manners.ears_frozen.load(Ordering::SeqCst);
            manners.frozen.load(Ordering::SeqCst) || (of_ears && is_ear.load(Ordering::SeqCst))
        };
        let is_swallowed = manners.swallowing.load(Ordering::SeqCst);
        if head[0] == NOTIFICATION && (is_swallowed || is_frozen()) {
            manners.unheard.fetch_add(1, Ordering::SeqCst);
        }
        while is_frozen() {
            pause(Duration::from_millis(10)).await;
        }
        if head[0] == NOTIFICATION && is_swallowed {
            continue;
        }
        if to.write_all(&head).await.is_err() || to.write_all(&message).await.is_err() {
            return;
        }
    }
}
