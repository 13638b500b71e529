//! Shared by the benchmarks: a server process, and its CPU time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running server, killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    metrics: Option<SocketAddr>,
    /// From the start of the process to its `listening` log line.
    pub(crate) ready: Duration,
}

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        let listening = loop {
            line.clear();
            assert!(
                lines.read_line(&mut line).expect("text") > 0,
                "it ended before it listened"
            );
            let line: Value = serde_json::from_str(&line).expect("JSON");
            if line["msg"] == "listening" {
                break line;
            }
        };
        let ready = start.elapsed();
        let port = listening["port"].as_u64().expect("a port");
        let port = u16::try_from(port).expect("a port");
        let metrics = listening["metrics"].as_str();
        // The log is read continuously, as a log collector does.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            metrics: metrics.map(|address| address.parse().expect("an address")),
            ready,
        }
    }

    /// CPU time used so far by all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// The value of a series of its metrics.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let address = self.metrics.expect("METRICS_ADDRESS is set");
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let line = answer
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Resident memory in megabytes.
    pub(crate) fn resident(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .expect("a line");
        line.split_whitespace()
            .nth(1)
            .expect("a number")
            .parse::<f64>()
            .expect("a number")
            / 1024.0
    }
}

/// The first number of a `schedstat` file: nanoseconds on a CPU.
pub(crate) fn on_processor(schedstat: &Path) -> Duration {
    let text = std::fs::read_to_string(schedstat).unwrap_or_default();
    let nanos = text.split_whitespace().next();
    Duration::from_nanos(nanos.and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// CPU time used so far by all threads of a process; zero if the process has ended.
pub(crate) fn cpu_of(process: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task"));
    threads
        .into_iter()
        .flatten()
        .flatten()
        .map(|thread| on_processor(&thread.path().join("schedstat")))
        .sum()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
