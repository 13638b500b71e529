//! Which user runs Postgres. Usually our own; Postgres refuses root, so root runs it as a user with fewer rights.

use std::process::{Command, Stdio};

use super::error::EmbeddedError;

/// Tried in this order. The second comes with Debian's package. Never `nobody`: other services that run as `nobody` could
/// read the data.
const DEFAULT_ACCOUNTS: [&str; 2] = ["attesto", "postgres"];

/// A user of this machine other than ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemAccount {
    /// How messages call it.
    pub name: String,
    /// Its user id, never 0.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl SystemAccount {
    /// Whom to become: `None` stays what we are. `named` is `ATTESTO_PG_USER`; it counts only for root, who alone can
    /// become another user.
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

    /// Asks `id`, which knows every directory of users this machine uses, not only /etc/passwd.
    fn find_by_name(name: &str) -> Option<Self> {
        let ask = |what| {
            let asked = Command::new("id")
                .args([what, "--", name])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output()
                .ok()?;
            String::from_utf8(asked.stdout).ok()?.trim().parse().ok()
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
