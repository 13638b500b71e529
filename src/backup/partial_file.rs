//! A file that has another name until it is whole, and goes away again unless it is kept.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The file under its temporary name, which no other file has. Only its owner can read it.
pub(crate) struct PartialFile(PathBuf);

impl PartialFile {
    /// An empty one for what is to be `name`, called `<name>.<16 digits>.part`. It is made anew and never found: what is there
    /// may be another run's.
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

    /// Where it is for now.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it its name, where nothing is by that name.
    pub(crate) fn persist_as(&self, name: &Path) -> io::Result<()> {
        File::open(&self.0)?.sync_all()?;
        // Unlike a rename, a link never replaces what came there meanwhile.
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
    fn it_is_not_shared_and_existing_files_stay() {
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
