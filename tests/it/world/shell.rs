//! Runs the `attesto` binary as an administrator does.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs `attesto …` in an environment that has only the variables set here.
#[derive(Clone, Default)]
pub(crate) struct Shell {
    /// Another program than this release's binary.
    program: Option<OsString>,
    environment: Vec<(String, String)>,
}

/// The exit code and output of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: i32,
    pub(crate) said: String,
    pub(crate) complained: String,
}

impl Shell {
    /// Runs another program.
    pub(crate) fn of(program: &OsStr) -> Self {
        Self {
            program: Some(program.to_owned()),
            environment: Vec::new(),
        }
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn set_all<'a, V: AsRef<str>>(
        self,
        variables: impl IntoIterator<Item = (&'a str, V)>,
    ) -> Self {
        let set = |shell: Self, (name, value): (&str, V)| shell.set(name, value.as_ref());
        variables.into_iter().fold(self, set)
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// With a text replaced in the value of a variable that is set.
    pub(crate) fn replace(mut self, name: &str, from: &str, to: &str) -> Self {
        for (known, value) in &mut self.environment {
            if known == name {
                *value = value.replace(from, to);
            }
        }
        self
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        self.run_with(words, "")
    }

    /// The command, for a test that chooses its input and output.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let this = OsStr::new(env!("CARGO_BIN_EXE_attesto"));
        let mut command = Command::new(self.program.as_deref().unwrap_or(this));
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args(words);
        command
    }

    /// With `input` on its standard input.
    pub(crate) fn run_with(&self, words: &[&str], input: impl AsRef<[u8]>) -> Ran {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        // The process may end without reading.
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_ref());
        let output = child.wait_with_output().expect("it ends");
        Ran {
            exit: output.status.code().expect("it was not killed"),
            said: String::from_utf8(output.stdout).expect("text"),
            complained: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// The same without blocking the runtime, in which what the command calls may run.
    pub(crate) async fn run_async(&self, words: &[&str], input: &str) -> Ran {
        let (shell, input) = (self.clone(), input.to_owned());
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let run = move || {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            shell.run_with(&words, &input)
        };
        tokio::task::spawn_blocking(run).await.expect("it ends")
    }

    /// The output of a successful command: one JSON object per line.
    pub(crate) fn rows(&self, words: &[&str]) -> Vec<Value> {
        self.run(words).rows()
    }
}

impl Ran {
    /// The output of a successful command: one JSON object per line.
    pub(crate) fn rows(&self) -> Vec<Value> {
        assert_eq!((self.exit, self.complained.as_str()), (0, ""), "{self:?}");
        self.lines()
    }

    /// The output as one JSON object per line, however the command ended.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let parse = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}: {self:?}"))
        };
        self.said.lines().map(parse).collect()
    }

    /// The output, which is one JSON object.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.said).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails when a text is in the output.
    pub(crate) fn assert_hides(&self, text: &str) {
        let all = [&self.said, &self.complained];
        assert!(!all.iter().any(|it| it.contains(text)), "{self:?}");
    }
}
