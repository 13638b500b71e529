//! A file that has a temporary name until it is complete. It is removed unless it was given its final name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The temporary file, readable only by its owner. Dropping it removes the temporary name.
pub(crate) struct PartialFile(PathBuf);

impl PartialFile {
    /// Creates an empty file named `<name>.<16 hex digits>.part`. An existing file is never reused: another process may
    /// be writing it.
    pub(crate) fn create_for(name: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(io::Error::other)?;
        let mut part = name.as_os_str().to_owned();
        part.push(format!(".{:016x}.part", u64::from_ne_bytes(random)));
        let path = PathBuf::from(part);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self(path))
    }

    /// The temporary path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives the file its final name. Fails if a file of that name exists.
    pub(crate) fn persist_as(&self, name: &Path) -> io::Result<()> {
        File::open(&self.0)?.sync_all()?;
        // A hard link, because a rename would replace a file that was created under this name meanwhile.
        std::fs::hard_link(&self.0, name)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_new_and_existing_files_are_not_replaced() {
        let folder = std::env::temp_dir().join(format!("attesto-part-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (name, other) = (folder.join("dump"), folder.join("dump.part"));
        std::fs::write(&other, "another file").expect("a file");
        let (one, two) = (
            PartialFile::create_for(&name).expect("one"),
            PartialFile::create_for(&name).expect("two"),
        );
        std::fs::write(one.path(), "one").expect("written");
        drop(two);
        one.persist_as(&name).expect("its name");
        assert!(one.persist_as(&name).is_err(), "never over another one");
        drop(one);
        assert_eq!(std::fs::read_to_string(&name).expect("kept"), "one");
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 2);
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
