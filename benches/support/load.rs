//! A load generator that costs little, and the processor time of threads by name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::support::on_processor;

/// A runtime of one thread, whose processor time is told by [`cpu_of_thread`].
pub(crate) fn named_runtime(name: &'static str) -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// CPU time used so far by the threads of this process with this name, of at most 15 bytes.
pub(crate) fn cpu_of_thread(name: &str) -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux");
    let named = threads
        .flatten()
        .map(|thread| thread.path())
        .filter(|thread| {
            let found = std::fs::read_to_string(thread.join("comm"));
            found.is_ok_and(|found| found.trim_end() == name)
        });
    named
        .map(|thread| on_processor(&thread.join("schedstat")))
        .sum()
}

/// A whole request as it is written to a connection.
pub(crate) fn post_request(path: &str, bearer: Option<&str>, body: &str) -> Vec<u8> {
    let authorization = bearer.map_or_else(String::new, |token| {
        format!("authorization: Bearer {token}\r\n")
    });
    format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{authorization}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends each request once, over this many connections, each of which waits for its answer. Every answer must be 200. Returns
/// the time that it took.
pub(crate) async fn send_all(
    server: SocketAddr,
    connections: usize,
    requests: Arc<Vec<Vec<u8>>>,
) -> Duration {
    let next = Arc::new(AtomicUsize::new(0));
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(server).await.expect("it listens");
        stream.set_nodelay(true).expect("a TCP stream");
        streams.push(stream);
    }
    let begun = Instant::now();
    let mut senders = JoinSet::new();
    for mut stream in streams {
        let (next, requests) = (next.clone(), requests.clone());
        senders.spawn(async move {
            let mut answer = Vec::with_capacity(4096);
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                stream.write_all(request).await.expect("it is open");
                read_answer(&mut stream, &mut answer).await;
            }
        });
    }
    senders.join_all().await;
    begun.elapsed()
}

/// Reads one answer to its end.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) {
    answer.clear();
    let mut whole = None;
    while whole.is_none_or(|whole| answer.len() < whole) {
        let read = stream.read_buf(answer).await.expect("it is open");
        assert!(read > 0, "the server closed the connection");
        if whole.is_none()
            && let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&answer[..end]).expect("text");
            assert!(
                head.starts_with("HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(answer)
            );
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            whole = Some(end + 4 + length.expect("a length"));
        }
    }
}
