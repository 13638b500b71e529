//! A temporary folder that is removed at the end of its test, after stopping a private Postgres
//! that still runs in it.
//!
//! As in [`super::postgres`], a shell waits until our end of a pipe closes, and then cleans up.

use std::fs::DirBuilder;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// `$1` is the folder. The fifth line of postmaster.pid says where the socket is, which may be
/// elsewhere.
const JANITOR: &str = r#"
read -r _
for note in $(find "$1" -name postmaster.pid); do
    socket=$(sed -n 5p "$note")
    kill -QUIT "$(head -n 1 "$note")" && sleep 0.2
    case $socket in /tmp/attesto-*) rm -rf "$socket" ;; esac
done
rm -rf "$1"
"#;

/// The folder of a test. Every user may enter it; only its owner may list it.
pub(crate) struct Folder {
    path: PathBuf,
    janitor: Child,
}

impl Folder {
    /// An empty folder. In /tmp, because a socket's path must be short and because Postgres runs as
    /// another user if the test runs as root.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/attesto-test-{}-{number}", std::process::id()));
        DirBuilder::new()
            .mode(0o711)
            .create(&path)
            .expect("a temporary folder can be made");
        let janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell runs");
        Self { path, janitor }
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}
