//! Reads a secret that a command is given: from a file, or from standard input when the file is called `-`, so that
//! it is never seen in the list of processes or in the shell's history.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::context::Failure;
use super::spelling;

/// More than this is not a key file.
const MAX_BYTES: u64 = 1024 * 1024;

/// The whole content of `path`, or of standard input when `path` is `-`. What cannot be read is exit 1, what is too
/// large is exit 2.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let name = shown(path);
    let mut content = Zeroizing::new(Vec::new());
    let read = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(MAX_BYTES + 1)
            .read_to_end(&mut content)
    } else {
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content))
    };
    read.map_err(|error| Failure::refused(format!("cannot read {name}: {error}.")))?;
    if content.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!(
            "{name} is larger than {MAX_BYTES} bytes, so it is not a key file."
        )));
    }
    Ok(content)
}

/// The path as it may be repeated: not when it looks like the secret itself, put where its file's path belongs.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_there = path
        .parent()
        .is_some_and(|folder| folder.parent().is_some() && folder.is_dir());
    if is_there || !spelling::may_be_secret(&text) {
        text.into_owned()
    } else {
        "what was given as a file's path (give the path of a file, not the secret itself)"
            .to_owned()
    }
}
