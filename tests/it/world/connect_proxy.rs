//! An HTTP proxy that makes tunnels, in the role of the operator's egress proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// What it does with a request, whose head it is given.
#[derive(Clone)]
pub(crate) enum Manner {
    /// Connects to where it is asked for.
    Tunnel,
    /// Connects to this address, whatever it is asked for.
    TunnelTo(SocketAddr),
    /// Sends these bytes and closes the connection.
    Answer(&'static str),
    /// Closes the connection.
    Close,
    /// Refuses one target, and connects to this address otherwise.
    RefuseOne(&'static str, SocketAddr),
    /// Reads the request and sends no answer.
    Silence,
}

/// It stops when dropped.
pub(crate) struct ConnectProxy {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl ConnectProxy {
    pub(crate) async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let kept = heads.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, manner.clone(), kept.clone()));
            }
        });
        Self {
            address,
            heads,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Its URL, without credentials.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its URL, with credentials.
    pub(crate) fn url_with(&self, credentials: &str) -> String {
        format!("http://{credentials}@{}", self.address)
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// What it was asked to connect to.
    pub(crate) fn targets(&self) -> Vec<String> {
        let target = |head: &String| {
            let rest = head.strip_prefix("CONNECT ").expect("only tunnels");
            rest.split_once(' ').unwrap().0.to_owned()
        };
        self.heads().iter().map(target).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    manner: Manner,
    heads: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    heads.lock().unwrap().push(head.clone());
    let target = head.split(' ').nth(1)?.to_owned();
    let target = match manner {
        Manner::Tunnel => TcpStream::connect(&target).await,
        Manner::TunnelTo(address) => TcpStream::connect(address).await,
        Manner::RefuseOne(refused, address) if target != refused => {
            TcpStream::connect(address).await
        }
        Manner::RefuseOne(..) => {
            let refusal = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
            return stream.write_all(refusal).await.ok();
        }
        Manner::Answer(answer) => return stream.write_all(answer.as_bytes()).await.ok(),
        Manner::Close => return None,
        Manner::Silence => {
            let _ = stream.read_u8().await;
            return None;
        }
    };
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    stream.write_all(established).await.ok()?;
    copy_bidirectional(&mut stream, &mut target.ok()?)
        .await
        .ok()?;
    Some(())
}
