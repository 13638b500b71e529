//! What each crowd does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::tenants::{ApiKeyEnvironment, RawApiKey};
use futures_util::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::service::Service;

const MEBIBYTE: usize = 1024 * 1024;

/// A way to cost the server more than the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Crowd {
    /// 400 bodies of 1 MiB over HTTP/1.1 that end one byte early
    UnfinishedBodies,
    /// The same on 40 connections of HTTP/2 with 64 streams each
    UnfinishedStreams,
    /// 3000 connections that send nothing
    SilentConnections,
    /// 2000 connections with 30 KiB of a head that does not end
    UnfinishedHeads,
    /// 100 connections, each request with another made-up key
    MadeUpKeys,
    /// 50 connections that push one token of Google's to made-up tenants
    PushesToMadeUpTenants,
    /// 20 connections that post 1 MiB of small fields
    SmallFields,
}

/// What a crowd's members saw, by status or error.
#[derive(Clone, Default)]
struct Outcomes(Arc<Mutex<BTreeMap<String, usize>>>);

impl Outcomes {
    fn add(&self, what: impl Into<String>) {
        *self.0.lock().entry(what.into()).or_default() += 1;
    }
}

/// Lets the crowd act until its time is over; returns what it saw.
pub(crate) async fn run(crowd: Crowd, service: &Service, stay: Duration) -> String {
    let outcomes = Outcomes::default();
    let mut members = JoinSet::new();
    let address: Arc<str> = service.address().into();
    let path = format!("/v1/webhooks/apple/{}", service.tenant());
    let end = Instant::now() + stay;
    let (count, member): (usize, Member) = match crowd {
        Crowd::UnfinishedBodies => {
            let head = request_head("POST", &path, "", MEBIBYTE);
            let sent = [head.into_bytes(), vec![b' '; MEBIBYTE - 1]].concat();
            (400, Member::Sends(sent.into()))
        }
        Crowd::UnfinishedStreams => (40, Member::OpensStreams(path.into())),
        Crowd::SilentConnections => (3000, Member::Sends([].into())),
        Crowd::UnfinishedHeads => {
            let head = format!(
                "GET /health HTTP/1.1\r\nHost: a\r\nX: {}",
                "y".repeat(30_000)
            );
            (2000, Member::Sends(head.into_bytes().into()))
        }
        Crowd::MadeUpKeys => (100, Member::MakesUpKeys),
        Crowd::PushesToMadeUpTenants => (50, Member::Pushes(service.foreign_google_token().into())),
        Crowd::SmallFields => {
            let fields = "[{}],".repeat(MEBIBYTE / 5 - 20);
            let body = format!("{{\"x\":[{fields}0]}}");
            let head = request_head("POST", &path, "", body.len());
            (
                20,
                Member::Repeats(format!("{head}{body}").into_bytes().into()),
            )
        }
    };
    for _ in 0..count {
        let (member, address, outcomes) = (member.clone(), address.clone(), outcomes.clone());
        members.spawn(async move {
            while Instant::now() < end {
                let acted = member.act(&address, &outcomes, end);
                let left = end.saturating_duration_since(Instant::now());
                match tokio::time::timeout(left, acted).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => outcomes.add(format!("{:?}", error.kind())),
                    Err(_) => return,
                }
                tokio::task::yield_now().await;
            }
        });
    }
    members.join_all().await;
    let outcomes = outcomes.0.lock();
    let mut text = String::new();
    for (what, count) in outcomes.iter() {
        let _ = write!(text, "{what} × {count}, ");
    }
    if text.is_empty() {
        "no answer".to_owned()
    } else {
        text.trim_end_matches(", ").to_owned()
    }
}

/// What a member of a crowd does again and again.
#[derive(Clone)]
enum Member {
    /// Sends bytes and waits for the end of the connection.
    Sends(Arc<[u8]>),
    /// Sends a whole request and reads the status, on one connection.
    Repeats(Arc<[u8]>),
    MakesUpKeys,
    /// Pushes this token.
    Pushes(Arc<str>),
    /// Opens streams to this path.
    OpensStreams(Arc<str>),
}

impl Member {
    async fn act(&self, address: &str, outcomes: &Outcomes, end: Instant) -> std::io::Result<()> {
        match self {
            Self::Sends(bytes) => {
                let mut stream = TcpStream::connect(address).await?;
                stream.write_all(bytes).await?;
                outcomes.add(read_status(&mut stream).await?);
                Ok(())
            }
            Self::Repeats(request) => {
                let mut stream = TcpStream::connect(address).await?;
                while Instant::now() < end {
                    stream.write_all(request).await?;
                    let status = read_status(&mut stream).await?;
                    let is_refused = status == "503";
                    outcomes.add(status);
                    if is_refused {
                        // The server reads no further request on this connection.
                        break;
                    }
                }
                Ok(())
            }
            Self::MakesUpKeys => {
                let mut stream = TcpStream::connect(address).await?;
                while Instant::now() < end {
                    let key = RawApiKey::generate(ApiKeyEnvironment::Live);
                    let key = format!("Authorization: Bearer {}\r\n", key.expose());
                    let request = request_head("POST", "/v1/apple/verify", &key, 0);
                    stream.write_all(request.as_bytes()).await?;
                    outcomes.add(read_status(&mut stream).await?);
                }
                Ok(())
            }
            Self::Pushes(token) => {
                let mut stream = TcpStream::connect(address).await?;
                while Instant::now() < end {
                    let tenant = TenantId::mint(Clock::system().now());
                    let path = format!("/v1/webhooks/google/{tenant}");
                    let token = format!("Authorization: Bearer {token}\r\n");
                    let request = request_head("POST", &path, &token, 0);
                    stream.write_all(request.as_bytes()).await?;
                    outcomes.add(read_status(&mut stream).await?);
                }
                Ok(())
            }
            Self::OpensStreams(path) => open_streams(address, path, outcomes).await,
        }
    }
}

fn request_head(method: &str, path: &str, header: &str, length: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\n{header}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// The status of the next answer, whose head and body come in one piece.
async fn read_status(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut answer = vec![0; 16 * 1024];
    let count = stream.read(&mut answer).await?;
    let status = answer[..count].get(9..12);
    Ok(match status {
        Some(status) => String::from_utf8_lossy(status).into_owned(),
        None => "closed".to_owned(),
    })
}

/// One connection of HTTP/2, on each of whose streams a body of 1 MiB ends one byte early.
async fn open_streams(address: &str, path: &str, outcomes: &Outcomes) -> std::io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let io = TokioIo::new(stream);
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = connected.map_err(std::io::Error::other)?;
    let connection = tokio::spawn(connection);
    let mut requests = JoinSet::new();
    for _ in 0..64 {
        let pieces = (0..63).map(|_| Bytes::from(vec![b' '; 16 * 1024]));
        let pieces = stream::iter(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
        let body = StreamBody::new(Box::pin(pieces.chain(stream::pending())));
        let request = hyper::Request::post(format!("http://{address}{path}")).body(body);
        let (mut sender, request) = (sender.clone(), request.expect("a good request"));
        requests.spawn(async move {
            sender.ready().await?;
            sender.send_request(request).await
        });
    }
    while let Some(Ok(answer)) = requests.join_next().await {
        match answer {
            Ok(answer) => outcomes.add(answer.status().as_str()),
            Err(_) => outcomes.add("stream ended"),
        }
    }
    connection.abort();
    Ok(())
}
