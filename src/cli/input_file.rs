//! Reads a secret that a command is given: from a file, or from standard input when the file is called `-`, so that
//! it is never seen in the list of processes or in the shell's history.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::context::CommandError;
use crate::crypto::redact;

/// More than this is not a key file.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;

/// The whole content of `path`, or of standard input when `path` is `-`. What cannot be read is exit 1, what is too
/// large is exit 2.
pub(crate) fn read_file_or_stdin(path: &Path) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let name = redact::redact_path(path);
    let mut content = Zeroizing::new(Vec::new());
    let read = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(MAX_INPUT_BYTES + 1)
            .read_to_end(&mut content)
    } else {
        File::open(path).and_then(|file| file.take(MAX_INPUT_BYTES + 1).read_to_end(&mut content))
    };
    read.map_err(|error| CommandError::failed(format!("cannot read {name}: {error}.")))?;
    if content.len() as u64 > MAX_INPUT_BYTES {
        return Err(CommandError::usage_error(format!(
            "{name} is larger than {MAX_INPUT_BYTES} bytes, so it is not a key file."
        )));
    }
    Ok(content)
}
