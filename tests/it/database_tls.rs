//! TLS to the database: what is wrong with it is said in a sentence, and no parameter that asks for it is dropped.

use std::net::Ipv4Addr;

use attesto::db::{ConnectSettings, Database};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

use crate::delivery_errors::{Authorities, leaf, self_signed, tls_acceptor};
use crate::serve::{Served, key};
use crate::world::postgres::{Fresh, cluster, empty_database, fresh_database};
use crate::world::shell::{Ran, Shell};
use crate::world::wait::HANG_LIMIT;

type Certificate = (Vec<CertificateDer<'static>>, KeyPair);

/// Speaks TLS before the test Postgres, as a server with `ssl = on` does; without a certificate, as one with `ssl = off`.
struct TlsServer {
    port: u16,
    _serving: AbortOnDropHandle<()>,
}

impl TlsServer {
    async fn with(certificate: Option<Certificate>) -> Self {
        let acceptor = certificate.map(tls_acceptor);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut question = [0; 8];
                    stream.read_exact(&mut question).await.ok()?;
                    assert_eq!(question, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]);
                    let Some(acceptor) = acceptor else {
                        stream.write_all(b"N").await.ok()?;
                        return forward(stream).await;
                    };
                    stream.write_all(b"S").await.ok()?;
                    forward(acceptor.accept(stream).await.ok()?).await
                });
            }
        });
        Self {
            port,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    fn url(&self, fresh: &Fresh, query: &str) -> String {
        let (port, name) = (self.port, fresh.database.database_name());
        format!("postgres://attesto@localhost:{port}/{name}?connect_timeout=5&{query}")
    }
}

async fn forward(mut outside: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
    let socket = cluster().join(".s.PGSQL.5432");
    let mut inside = UnixStream::connect(socket).await.unwrap();
    let copied = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
    copied.ok().map(drop)
}

async fn list_tenants(url: &str) -> Ran {
    let shell = Shell::default().set("DATABASE_URL", url);
    shell.run_async(&["tenant", "list"], "").await
}

fn expired(names: &[&str]) -> rcgen::CertificateParams {
    let mut params = leaf(names);
    params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    params
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_is_wrong_with_the_certificate_of_the_database_is_said() {
    let fresh = fresh_database().await;
    let authorities = Authorities::new();
    let root = format!("sslrootcert={}", authorities.file().display());
    let trusted = || authorities.issue(&leaf(&["localhost"]));
    let of_another = || authorities.issue(&leaf(&["other.example.com"]));
    let own = || self_signed(&leaf(&["localhost"]));
    let cases: Vec<(Option<Certificate>, String, &str, &[&str])> = vec![
        (
            Some(trusted()),
            format!("sslmode=verify-full&{root}"),
            "",
            &[],
        ),
        (
            Some(of_another()),
            format!("sslmode=verify-ca&{root}"),
            "",
            &[],
        ),
        // As for libpq, a root certificate is never ignored.
        (
            Some(of_another()),
            format!("sslmode=require&{root}"),
            "",
            &[],
        ),
        (Some(own()), "sslmode=require".to_owned(), "", &[]),
        (Some(own()), "sslmode=no-verify".to_owned(), "", &[]),
        (
            Some(own()),
            format!("sslmode=require&{root}"),
            "certificate not trusted",
            &[
                "the certificate of localhost is self-signed and not trusted here",
                "the parameter sslrootcert of the database's URL",
            ],
        ),
        (
            Some(own()),
            root.clone(),
            "certificate not trusted",
            &["the certificate of localhost is self-signed"],
        ),
        (
            Some(own()),
            "ssl=true".to_owned(),
            "certificate not trusted",
            &["the certificate of localhost is self-signed"],
        ),
        (
            Some(own()),
            "sslrootcert=system".to_owned(),
            "certificate not trusted",
            &["the certificate of localhost is self-signed"],
        ),
        (
            Some(authorities.issue(&expired(&["localhost"]))),
            format!("sslmode=verify-ca&{root}"),
            "certificate expired",
            &[
                "the certificate of localhost expired on 2020-01-01",
                "renew it",
            ],
        ),
        (
            Some(of_another()),
            format!("ssl=true&{root}"),
            "certificate of another host",
            &[
                "is for other.example.com and not for localhost",
                "correct the host in the database's URL",
                "sslmode=verify-ca",
            ],
        ),
        (
            None,
            "sslmode=require".to_owned(),
            "tls not offered",
            &["localhost offers no TLS", "sslmode=require", "ssl = on"],
        ),
        (None, "sslmode=prefer".to_owned(), "", &[]),
    ];
    for (certificate, query, class, words) in cases {
        let server = TlsServer::with(certificate).await;
        let url = server.url(&fresh, &query);
        let ran = list_tenants(&url).await;
        let database = Database::open(&ConnectSettings::from_url(&url).unwrap());
        let ping = database.ping(HANG_LIMIT).await;
        if words.is_empty() {
            assert_eq!((ran.exit, ping), (0, Ok(())), "{query}: {ran:?}");
            continue;
        }
        assert_eq!(ping.unwrap_err().to_string(), class, "{query}");
        let doctor = Shell::default()
            .set("DATABASE_URL", &url)
            .run_async(&["doctor", "--offline"], "")
            .await;
        for text in [&ran.complained, &doctor.said] {
            for words in words {
                assert!(text.contains(words), "{query}: {words:?} is not in {text}");
            }
            assert!(
                !text.contains("OtherError") && !text.contains("sqlx"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn the_service_says_in_ready_and_in_its_log_why_tls_fails() {
    let fresh = fresh_database().await;
    let authorities = Authorities::new();
    let server = TlsServer::with(Some(authorities.issue(&expired(&["localhost"])))).await;
    let root = format!("sslrootcert={}", authorities.file().display());
    let url = server.url(&fresh, &format!("sslmode=verify-full&{root}"));
    let process = Served::start(&url, &[("ATTESTO_ENCRYPTION_KEY", &key(1))]);
    let body = process.ready(503).await;
    assert_eq!(body["checks"]["db"], "fail: certificate expired");
    for name in ["database_unavailable", "change_listener_disconnected"] {
        let line = process.line(name).await;
        assert_eq!(line["causeClass"], "certificate expired", "{line}");
        let cause = line["cause"].as_str().unwrap();
        assert!(
            cause.starts_with("the certificate of localhost expired on 2020-01-01"),
            "{cause}"
        );
    }
}

#[tokio::test]
async fn what_asks_for_protection_is_given_or_refused() {
    let authorities = Authorities::new();
    let folder = authorities.folder.display();
    std::fs::write(authorities.folder.join("empty.pem"), "").unwrap();
    let root = authorities.file();
    let root = root.display();
    for (query, words) in [
        (
            "sslmode=bogus".to_owned(),
            "its parameter sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        ("ssl=perhaps".to_owned(), "its parameter ssl must be true"),
        (
            "channel_binding=require".to_owned(),
            "its parameter channel_binding asks for require, which is not supported here",
        ),
        (
            "gssencmode=require".to_owned(),
            "its parameter gssencmode asks for require",
        ),
        (
            "sslmode=require&sslnegotiation=direct".to_owned(),
            "its parameter sslnegotiation asks for direct",
        ),
        (
            "sslnegotiation=bogus".to_owned(),
            "its parameter sslnegotiation must be one of postgres",
        ),
        (
            "channel_binding=bogus".to_owned(),
            "its parameter channel_binding must be one of prefer, disable",
        ),
        (
            "sslmode=require&sslrootcert=system".to_owned(),
            "sslmode and sslrootcert contradict each other",
        ),
        (
            format!("sslmode=prefer&sslrootcert={root}"),
            "sslmode and sslrootcert contradict each other",
        ),
        (
            "sslmode=verify-full&sslrootcert=/nonexistent/ca.pem".to_owned(),
            "its parameter sslrootcert names the file /nonexistent/ca.pem, which does not exist",
        ),
        (
            format!("sslmode=verify-full&sslrootcert={folder}/empty.pem"),
            "empty.pem, which holds no certificate",
        ),
        (
            "sslmode=require&sslcert=/nonexistent/c.pem&sslkey=/nonexistent/k.pem".to_owned(),
            "its parameter sslcert names the file /nonexistent/c.pem",
        ),
        (
            format!("sslmode=require&sslcert={root}"),
            "its parameter sslcert needs sslkey",
        ),
        (
            format!("sslmode=require&sslcert={root}&sslkey={root}"),
            "its parameter sslkey names the file",
        ),
    ] {
        let ran = list_tenants(&format!("postgres://a@db.example/x?{query}")).await;
        assert_eq!(ran.exit, 2, "{query}: {ran:?}");
        assert!(ran.complained.contains(words), "{query}: {ran:?}");
    }
}

/// A file may disappear after the start.
#[tokio::test]
async fn a_root_certificate_that_went_is_named() {
    let fresh = fresh_database().await;
    let authorities = Authorities::new();
    let server = TlsServer::with(Some(authorities.issue(&leaf(&["localhost"])))).await;
    let root = format!("sslrootcert={}", authorities.file().display());
    let url = server.url(&fresh, &format!("sslmode=verify-full&{root}"));
    let database = Database::open(&ConnectSettings::from_url(&url).unwrap());
    std::fs::remove_file(authorities.file()).unwrap();
    let problem = database.ping(HANG_LIMIT).await.unwrap_err();
    assert_eq!(problem.to_string(), "tls file unusable");
    let error = database.connect_directly("attesto-test").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sslrootcert names the file"), "{text}");
}

/// No message holds a line of Postgres' source or a module of a library.
#[tokio::test]
async fn what_postgres_refuses_is_said_without_its_source() {
    let fresh = empty_database().await;
    let role = format!("reader_of_{}", fresh.database.database_name());
    let run_sql = async |text: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(text))
            .execute(fresh.database.pool())
            .await
            .unwrap();
    };
    run_sql(format!(
        "revoke create on schema public from public; create role {role} login"
    ))
    .await;
    let url = fresh.url.replace("user=attesto", &format!("user={role}"));
    let shell = Shell::default().set("DATABASE_URL", &url);
    let ran = shell.run_async(&["migrate"], "").await;
    assert_eq!(ran.exit, 1, "{ran:?}");
    let complained = &ran.complained;
    assert!(
        complained.contains("(permission denied for schema public)"),
        "{complained}"
    );
    assert!(!complained.contains("at line"), "{complained}");

    let migrated = fresh_database().await;
    let url = migrated
        .url
        .replace("user=attesto", &format!("user={role}"));
    let shell = Shell::default().set("DATABASE_URL", &url);
    let doctor = shell.run_async(&["doctor", "--offline"], "").await.said;
    assert!(
        doctor.contains("database.migrations: the database refuses: permission denied for table _sqlx_migrations. Grant the right"),
        "{doctor}"
    );
    assert!(
        !doctor.contains("at line") && !doctor.contains("42501"),
        "{doctor}"
    );
    run_sql(format!("drop role {role}")).await;

    // A port of something else.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _greeting = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            let _ = stream.read_u8().await;
        }
    }));
    let shell = Shell::default().set("DATABASE_URL", &format!("postgres://a@127.0.0.1:{port}/x"));
    for words in [
        ["migrate"].as_slice(),
        &["tenant", "list"],
        &["doctor", "--offline"],
    ] {
        let ran = shell.run_async(words, "").await;
        let text = format!("{}{}", ran.said, ran.complained);
        assert!(text.contains("does not speak Postgres' protocol"), "{text}");
        assert!(!text.contains("sqlx") && !text.contains("0x32"), "{text}");
    }
}
