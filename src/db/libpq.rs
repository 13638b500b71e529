//! The same server for Postgres' own programs, and other databases on it.

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgSslMode;
use url::form_urlencoded;

use super::connect_settings::ssl_mode_name;
use super::{ConnectSettings, Database};

impl Database {
    /// The database's name.
    pub fn database_name(&self) -> String {
        let options = self.direct_options();
        options
            .get_database()
            .unwrap_or_else(|| options.get_username())
            .to_owned()
    }

    /// Another database on the same server, with a small pool of its own.
    #[must_use]
    pub fn sibling_database(&self, name: &str) -> Self {
        let options = self.direct_options();
        let mut settings = ConnectSettings::with_options(options.database(name));
        settings.max_connections = 4;
        Self::open(&settings)
    }

    /// Environment variables with which Postgres' own programs reach this database. In the environment, unlike in
    /// arguments, only their own user and root can read the password.
    pub fn libpq_environment(&self) -> Vec<(&'static str, String)> {
        let options = self.direct_options();
        let list = self.direct_server().list();
        let hosts = list.servers.iter().map(|server| match server.get_socket() {
            Some(folder) => folder.display().to_string(),
            None => server.get_host().to_owned(),
        });
        let ports = list
            .servers
            .iter()
            .map(|server| server.get_port().to_string());
        let (hosts, ports): (Vec<_>, Vec<_>) = (hosts.collect(), ports.collect());
        let mode = ssl_mode_name(options.get_ssl_mode());
        let mut variables = vec![
            ("PGHOST", hosts.join(",")),
            ("PGPORT", ports.join(",")),
            ("PGTARGETSESSIONATTRS", list.target.as_str().to_owned()),
            ("PGUSER", options.get_username().to_owned()),
            ("PGDATABASE", self.database_name()),
            ("PGSSLMODE", mode.to_owned()),
            ("PGAPPNAME", "attesto-backup".to_owned()),
            ("PGCONNECT_TIMEOUT", "10".to_owned()),
        ];
        // sqlx does not expose the rest.
        let url = options.to_url_lossy();
        let password = url
            .password()
            .and_then(|it| form_urlencoded::parse(it.as_bytes()).next());
        if let Some((password, _)) = password {
            variables.push(("PGPASSWORD", password.into_owned()));
        }
        variables.extend(list.tls_files.libpq_variables());
        if list.tls_files.root.is_none() && matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
        {
            // Otherwise libpq looks for a file in the user's home. Its releases before 16 do not know the word, and say so.
            variables.push(("PGSSLROOTCERT", "system".to_owned()));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_server_is_told_in_its_order() {
        let url = "postgres://ada@one:6000,two/books";
        let settings = ConnectSettings::from_url(url).unwrap();
        let told = Database::open(&settings).libpq_environment();
        for expected in [
            ("PGHOST", "one,two"),
            ("PGPORT", "6000,5432"),
            ("PGTARGETSESSIONATTRS", "read-write"),
        ] {
            let expected = (expected.0, expected.1.to_owned());
            assert!(told.contains(&expected), "{expected:?}");
        }
    }

    #[tokio::test]
    async fn a_password_is_told_as_it_is() {
        let file = std::env::temp_dir().join(format!("attesto-root-{:x}.pem", fastrand::u64(..)));
        let made = rcgen::generate_simple_self_signed(["db.example".to_owned()]).unwrap();
        std::fs::write(&file, made.cert.pem()).unwrap();
        let file = file.to_str().unwrap();
        let url = format!(
            "postgres://ada:p%40ss%2B%3D%26%25%20w@db.example:6000/books?sslmode=verify-full&sslrootcert={file}"
        );
        let settings = ConnectSettings::from_url(&url).unwrap();
        std::fs::remove_file(file).unwrap();
        let told = Database::open(&settings).libpq_environment();
        for expected in [
            ("PGSSLROOTCERT", file),
            ("PGHOST", "db.example"),
            ("PGPORT", "6000"),
            ("PGUSER", "ada"),
            ("PGDATABASE", "books"),
            ("PGPASSWORD", "p@ss+=&% w"),
            ("PGSSLMODE", "verify-full"),
        ] {
            let expected = (expected.0, expected.1.to_owned());
            assert!(told.contains(&expected), "{expected:?}");
        }
    }
}
