//! A file that has another name until it is whole, and goes away again unless it is kept.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The file under its other name. Only its owner can read it.
pub(crate) struct Part(PathBuf);

impl Part {
    /// An empty one for what is to be `name`. What an earlier run left behind that was killed goes.
    pub(crate) fn of(name: &Path) -> io::Result<Self> {
        let mut part = name.as_os_str().to_owned();
        part.push(".part");
        let part = Self(PathBuf::from(part));
        let _ = std::fs::remove_file(&part.0);
        part.open().map(|_| part)
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.0)
    }

    /// Where it is for now.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it its name, where nothing is by that name.
    pub(crate) fn keep_as(&self, name: &Path) -> io::Result<()> {
        File::open(&self.0)?.sync_all()?;
        // Unlike a rename, a link never replaces what came there meanwhile.
        std::fs::hard_link(&self.0, name)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
