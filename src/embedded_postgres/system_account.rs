//! The user that runs Postgres: the user of this process, or an unprivileged one if this process runs as root, because
//! Postgres refuses to run as root.

use std::process::{Command, Stdio};

use super::error::EmbeddedError;

/// Tried in this order. Debian's package creates the second one. The system's account for programs
/// without rights is not used, because other programs that run under it could read the data.
const DEFAULT_ACCOUNTS: [&str; 2] = ["attesto", "postgres"];

/// A user of this machine other than the one that this process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemAccount {
    /// The name for messages. It may be the user id.
    pub name: String,
    /// Its user id, never 0.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl SystemAccount {
    /// The user to run Postgres as; `None` for the user of this process. `named` is `ATTESTO_PG_USER`. It only has an
    /// effect for root, because no other user can change its user id.
    pub fn choose_for_postgres(named: Option<&str>) -> Result<Option<Self>, EmbeddedError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let account = match named {
            Some(name) => {
                Self::find_by_name(name).ok_or_else(|| EmbeddedError::UnknownAccount {
                    name: name.to_owned(),
                })?
            }
            None => DEFAULT_ACCOUNTS
                .into_iter()
                .find_map(Self::find_by_name)
                .ok_or(EmbeddedError::NoUnprivilegedAccount)?,
        };
        if account.uid == 0 {
            return Err(EmbeddedError::RootAccount { name: account.name });
        }
        Ok(Some(account))
    }

    /// Runs the program `id`, which reads every user database of the machine and not only `/etc/passwd`.
    fn find_by_name(name: &str) -> Option<Self> {
        let ask = |what| {
            let output = Command::new("id")
                .args([what, "--", name])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output()
                .ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        Some(Self {
            name: name.to_owned(),
            uid: ask("-u")?,
            gid: ask("-g")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_a_stranger_is_not() {
        let root = SystemAccount::find_by_name("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(SystemAccount::find_by_name("no-such-user-here"), None);
        assert_eq!(
            SystemAccount::find_by_name("-u"),
            None,
            "a name is never an option"
        );
    }
}
