//! One server process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The environment of every replica.
#[derive(Clone)]
pub(crate) struct Settings(pub(crate) Vec<(&'static str, String)>);

/// A server process and its port.
pub(crate) struct Replica {
    settings: Settings,
    child: Option<Child>,
    port: Arc<Mutex<Option<u64>>>,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Replica {
    pub(crate) fn start(settings: Settings) -> Self {
        let mut replica = Self {
            settings,
            child: None,
            port: Arc::default(),
            complaints: Arc::default(),
        };
        replica.begin();
        replica
    }

    /// The port it listens on, once it listens.
    pub(crate) fn port(&self) -> Arc<Mutex<Option<u64>>> {
        self.port.clone()
    }

    /// Sets the environment for the next start.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Log lines that must never occur, whatever happens to the process: unexpected errors, panics,
    /// secrets that do not open.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().expect("not poisoned").clone()
    }

    /// Starts the process.
    pub(crate) fn begin(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_attesto"))
            .args(["serve", "--port=0", "--bind-address=127.0.0.1"])
            .env_clear()
            .envs(self.settings.0.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary runs");
        let output = child.stdout.take().expect("it is piped");
        let (port, complaints) = (self.port.clone(), self.complaints.clone());
        std::thread::spawn(move || listen(output, &port, &complaints));
        self.child = Some(child);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    fn forget(&mut self) {
        *self.port.lock().expect("not poisoned") = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// Kills it with `kill -9` and waits for its end.
    pub(crate) fn die(&mut self) {
        self.signal(Signal::KILL);
        self.forget();
    }

    /// Kills it and starts a new one.
    pub(crate) fn kill(&mut self) {
        self.die();
        self.begin();
    }

    /// Sends SIGTERM, waits for the end, and starts a new one. SIGCONT comes first, because a
    /// stopped process does not handle SIGTERM.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        self.forget();
        self.begin();
    }

    /// Stops it with SIGSTOP, and continues it after this long. A process that replaced it
    /// meanwhile is not affected.
    pub(crate) fn freeze(&self, time: Duration) {
        let Some(pid) = self.child.as_ref().map(Pid::from_child) else {
            return;
        };
        let _ = kill_process(pid, Signal::STOP);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let _ = kill_process(pid, Signal::CONT);
        });
    }

    /// Ends it without a restart.
    pub(crate) fn end(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        self.forget();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.die();
    }
}

fn listen(output: ChildStdout, port: &Mutex<Option<u64>>, complaints: &Mutex<Vec<String>>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        // A killed process may leave an incomplete line.
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if said["msg"] == "listening" {
            *port.lock().expect("not poisoned") = said["port"].as_u64();
        }
        let message = said["msg"].as_str().unwrap_or_default();
        let is_fault =
            said["status"] == 500 || matches!(message, "panic" | "webhook_secret_unreadable");
        if is_fault || said["level"] == "fatal" {
            complaints.lock().expect("not poisoned").push(line);
        }
    }
}

/// How long a process may take to end before the run fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
