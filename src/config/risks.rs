//! Settings that work and are dangerous: the service starts with them and warns, and `attesto doctor` reports them. What
//! production refuses is refused where the setting is read.

use super::raw::RawSettings;
use super::settings::{AppSettings, DatabaseSource};

/// A setting that works and is dangerous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingRisk {
    /// The name of the check in `attesto doctor`. It never changes between releases.
    pub check: &'static str,
    /// What is set, and what is dangerous about it, in a sentence.
    pub problem: String,
    /// What to do about it, in a sentence.
    pub advice: &'static str,
}

/// `settings` is the result of parsing `raw`. The permissions of files are checked elsewhere.
pub fn find_setting_risks(raw: &RawSettings<'_>, settings: &AppSettings) -> Vec<SettingRisk> {
    let mut risks = Vec::new();
    let is_missing = |name: &str| matches!(raw.find_text(name), Ok(None));
    let address = settings.listen.bind_addr();
    if is_missing("ATTESTO_ENV") && is_missing("NODE_ENV") && !address.ip().is_loopback() {
        risks.push(SettingRisk {
            check: "settings.environment",
            problem: format!(
                "ATTESTO_ENV is not set, so that what is for development only is allowed, and the service listens on {address}."
            ),
            advice: "Set ATTESTO_ENV to production; or set it to development, or BIND_ADDRESS to 127.0.0.1, if this is no production.",
        });
    }
    if settings.keyring.is_sealing_key_zero() {
        risks.push(SettingRisk {
            check: "settings.encryption_key",
            problem: "ATTESTO_ENCRYPTION_KEY is all zeros, so that sealed values are as good as in plain text.".to_owned(),
            advice: "Make a key with `attesto encryption generate-key`, and rotate to it; production refuses this one.",
        });
    }
    if let DatabaseSource::Url(connect) = &settings.database
        && let Some((host, mode)) = connect.remote_host_without_tls()
    {
        risks.push(SettingRisk {
            check: "settings.database_tls",
            problem: format!(
                "The database is on another host, {host}, and sslmode={mode} does not require TLS."
            ),
            advice: "Add sslmode=verify-full to the database's URL, with sslrootcert=… for a certificate authority of your own.",
        });
    }
    risks
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Settings, and what is said of them.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

    #[test]
    fn what_is_dangerous_is_found_and_nothing_else() {
        let (good, zero) = (STANDARD.encode([7; 32]), STANDARD.encode([0; 32]));
        let (key, url, env) = ("ATTESTO_ENCRYPTION_KEY", "DATABASE_URL", "ATTESTO_ENV");
        let (environment, tls) = ("settings.environment", "settings.database_tls");
        let cases: [Case<'_>; 19] = [
            (&[], &[environment]),
            (&[("BIND_ADDRESS", "10.1.2.3")], &[environment]),
            (&[("BIND_ADDRESS", "127.0.0.1")], &[]),
            (&[("BIND_ADDRESS", "::1")], &[]),
            (&[(env, "development")], &[]),
            (&[("NODE_ENV", "production")], &[]),
            (&[(env, " ")], &[environment]),
            (
                &[(env, "test"), (key, zero.as_str())],
                &["settings.encryption_key"],
            ),
            (&[(env, "test"), (url, "postgres://a@db.example/b")], &[tls]),
            (&[(env, "test"), (url, "postgres://a@db/b")], &[tls]),
            (
                &[
                    (env, "test"),
                    (url, "postgres://a@10.1.2.3/b?sslmode=disable"),
                ],
                &[tls],
            ),
            (
                &[
                    (env, "test"),
                    (url, "postgres://a@[fd00::1]/b?sslmode=disable"),
                ],
                &[tls],
            ),
            (
                &[(env, "test"), (url, "postgres://a@db/b?sslmode=disable")],
                &[],
            ),
            (
                &[
                    (env, "test"),
                    (url, "postgres://a@db.example/b?sslmode=require"),
                ],
                &[],
            ),
            (
                &[
                    (env, "test"),
                    (url, "postgres://a@db.example/b?sslmode=verify-full"),
                ],
                &[],
            ),
            (&[(env, "test"), (url, "postgres://a@127.0.0.1/b")], &[]),
            (
                &[(env, "test"), (url, "postgres:///b?host=/run/pg&user=a")],
                &[],
            ),
            (
                &[
                    (env, "test"),
                    ("DATABASE_DIRECT_URL", "postgres://a@db.example/b"),
                ],
                &[tls],
            ),
            (
                &[(key, zero.as_str()), (url, "postgres://a@db.example/b")],
                &[environment, "settings.encryption_key", tls],
            ),
        ];
        for (set, expected) in cases {
            let lookup = |name: &str| {
                let given = set.iter().find(|(set, _)| *set == name);
                let given = given.map(|(_, value)| OsString::from(value));
                given.or_else(|| match name {
                    "DATABASE_URL" => Some("postgres://a@localhost/b".into()),
                    "ATTESTO_ENCRYPTION_KEY" => Some(good.clone().into()),
                    _ => None,
                })
            };
            let raw = RawSettings::new([], &lookup);
            let settings = AppSettings::parse(&raw).expect("these can be read");
            let found = find_setting_risks(&raw, &settings);
            let found: Vec<_> = found.iter().map(|risk| risk.check).collect();
            assert_eq!(found, expected, "{set:?}");
        }
    }
}
