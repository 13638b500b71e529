//! The files that `sslrootcert`, `sslcert` and `sslkey` of the database's URL name.
//!
//! sqlx reads them at every connection, and says of a missing one no more than that a file does not exist.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A path that is longer is hardly one.
const MAX_SHOWN_PATH_BYTES: usize = 200;

/// The files of one URL. Without TLS there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) root: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// What is wrong with one of the files. Begins with the parameter's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFileError(String);

impl fmt::Display for TlsFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsFileError {}

impl TlsFiles {
    /// Reads each of them.
    pub(super) fn check(&self) -> Result<(), TlsFileError> {
        match (&self.certificate, &self.key) {
            (Some(_), None) => return Err(incomplete("sslcert", "sslkey")),
            (None, Some(_)) => return Err(incomplete("sslkey", "sslcert")),
            _ => {}
        }
        if let Some(path) = &self.root {
            check_file("sslrootcert", path, find_problem_of_roots)?;
        }
        if let Some(path) = &self.certificate {
            check_file("sslcert", path, |pem| read_certificates(pem).err())?;
        }
        if let Some(path) = &self.key {
            check_file("sslkey", path, find_problem_of_key)?;
        }
        Ok(())
    }

    /// With the variables by which Postgres' own programs know them.
    pub(super) fn libpq_variables(&self) -> impl Iterator<Item = (&'static str, String)> {
        let each = [
            ("PGSSLROOTCERT", &self.root),
            ("PGSSLCERT", &self.certificate),
            ("PGSSLKEY", &self.key),
        ];
        each.into_iter()
            .filter_map(|(name, path)| Some((name, path.as_ref()?.display().to_string())))
    }
}

fn incomplete(given: &str, missing: &str) -> TlsFileError {
    TlsFileError(format!(
        "{given} needs {missing} beside it: name the file of the other one too"
    ))
}

fn check_file(
    parameter: &str,
    path: &Path,
    find_problem: impl Fn(&[u8]) -> Option<&'static str>,
) -> Result<(), TlsFileError> {
    let problem = match std::fs::read(path) {
        Ok(content) => find_problem(&content).map(str::to_owned),
        Err(error) => Some(describe_read_error(&error)),
    };
    match problem {
        Some(problem) => Err(TlsFileError(format!(
            "{parameter} names the file {}, {problem}",
            shown_path(path)
        ))),
        None => Ok(()),
    }
}

fn describe_read_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "which does not exist: correct the path, or put the file there".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "which this user may not read: change the file's owner or mode".to_owned()
        }
        io::ErrorKind::IsADirectory => "which is a folder: name a file in it".to_owned(),
        _ => format!("which cannot be read: {error}"),
    }
}

fn find_problem_of_roots(pem: &[u8]) -> Option<&'static str> {
    let certificates = match read_certificates(pem) {
        Ok(certificates) => certificates,
        Err(problem) => return Some(problem),
    };
    let mut roots = RootCertStore::empty();
    let mut added = certificates.into_iter().map(|one| roots.add(one));
    added
        .any(|added| added.is_err())
        .then_some("which holds a certificate that cannot be used as that of an authority")
}

fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err("which holds no certificate in PEM form: is it another file, or empty?")
        }
        Ok(certificates) => Ok(certificates),
        Err(_) => Err("which holds a damaged certificate: copy it there once more"),
    }
}

fn find_problem_of_key(pem: &[u8]) -> Option<&'static str> {
    // In the title of PKCS #8 files, and in a header of older ones.
    if pem.windows(9).any(|word| word == b"ENCRYPTED") {
        return Some("whose key is protected by a passphrase: store it without one");
    }
    PrivateKeyDer::from_pem_slice(pem)
        .is_err()
        .then_some("which holds no private key in PEM form: is it another file, or empty?")
}

/// Something else may stand where a path is expected, such as the key itself.
fn shown_path(path: &Path) -> String {
    let text = path.display().to_string();
    let is_path = text.len() <= MAX_SHOWN_PATH_BYTES && !text.contains("-----");
    if is_path && !text.contains(char::is_control) {
        text
    } else {
        "(which is not a path)".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_parameter() {
        let folder = std::env::temp_dir().join(format!("attesto-tls-{:x}", fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        let made = rcgen::generate_simple_self_signed(["db".to_owned()]).unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.join(name);
            std::fs::write(&path, content).unwrap();
            Some(path)
        };
        let certificate = file("cert.pem", &made.cert.pem());
        let key = file("key.pem", &made.signing_key.serialize_pem());
        let empty = file("empty.pem", "");
        let good = TlsFiles {
            root: certificate.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
        };
        assert_eq!(good.check(), Ok(()));
        let missing = Some(folder.join("missing.pem"));
        for (files, words) in [
            (
                TlsFiles {
                    root: missing.clone(),
                    ..good.clone()
                },
                ["sslrootcert names", "missing.pem", "does not exist"],
            ),
            (
                TlsFiles {
                    root: empty.clone(),
                    ..good.clone()
                },
                ["sslrootcert names", "empty.pem", "no certificate"],
            ),
            (
                TlsFiles {
                    root: key.clone(),
                    ..good.clone()
                },
                ["sslrootcert names", "key.pem", "no certificate"],
            ),
            (
                TlsFiles {
                    certificate: missing,
                    ..good.clone()
                },
                ["sslcert names", "missing.pem", "does not exist"],
            ),
            (
                TlsFiles {
                    key: certificate.clone(),
                    ..good.clone()
                },
                ["sslkey names", "cert.pem", "no private key"],
            ),
            (
                TlsFiles {
                    key: file("locked.pem", "ENCRYPTED"),
                    ..good.clone()
                },
                ["sslkey names", "locked.pem", "passphrase"],
            ),
            (
                TlsFiles {
                    key: Some("-----BEGIN s3cret".into()),
                    ..good.clone()
                },
                ["sslkey names", "not a path", "does not exist"],
            ),
            (
                TlsFiles {
                    key: None,
                    ..good.clone()
                },
                ["sslcert needs", "sslkey", "too"],
            ),
        ] {
            let said = files.check().unwrap_err().to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
