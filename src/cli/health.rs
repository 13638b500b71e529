//! `attesto health`: asks a running service whether it lives, or whether it can serve.
//!
//! For where there is no `curl`: a container's health check, a unit of systemd, a script that waits. It reads neither the
//! database nor a secret; without `--url` it asks where `PORT` and `BIND_ADDRESS` say that the service of this machine
//! listens, and with `TLS_CERT_PATH` over TLS, believing exactly that certificate.

use std::time::Duration;

use reqwest::Url;
use serde_json::{Value, json};

use super::context::{CommandContext, CommandError};
use crate::base::clock::Timestamp;
use crate::config::{self, read_tls_files};
use crate::outbound::{self, CertificateTrust, HttpClientError};
use crate::server::tls::{TlsCertificate, TlsFiles};

/// How long a certificate may have been in its file without being in use: the service takes it within seconds.
const CERTIFICATE_RELOAD_GRACE: Duration = Duration::from_secs(30);

/// The arguments of `attesto health`.
#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// Where the service is
    #[arg(
        long,
        value_name = "URL",
        help = "Where the service is [default: where PORT and BIND_ADDRESS say, on this machine]"
    )]
    url: Option<Url>,

    /// Ask /ready instead of /health: whether it can serve, not only whether it lives
    #[arg(long)]
    ready: bool,

    /// How many seconds the answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

/// Runs the command: exit 0 when the service says 200, else 1 and a line that says why.
pub(crate) async fn run(args: HealthArgs, context: &CommandContext) -> Result<(), CommandError> {
    let (mut url, client) = match args.url {
        Some(url) => (url, outbound::build_http_client()),
        None => local_service_client(context)?,
    };
    let client = client.map_err(|problem| CommandError::failed(format!("{problem}.")))?;
    // A password is nothing to print, and what stands behind the path belongs to another question.
    if !matches!(url.scheme(), "http" | "https") || url.username() != "" || url.password().is_some()
    {
        return Err(CommandError::usage_error(
            "--url is like http://127.0.0.1:8080 or https://attesto.example.com, without a user and a password.",
        ));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = if args.ready { "/ready" } else { "/health" };
    // A service may be served below a prefix; `--url …/health` is meant well too.
    let prefix = url.path().trim_end_matches('/').to_owned();
    let prefix = prefix.strip_suffix(path).unwrap_or(&prefix);
    url.set_path(&format!("{prefix}{path}"));

    let asking = fetch_health(&client, &url);
    let answered = tokio::time::timeout(Duration::from_secs(args.timeout), asking).await;
    let (status, body) = match answered {
        Ok(Ok(answer)) => answer,
        Ok(Err(problem)) => return Err(CommandError::failed(format!("{url}: {problem}."))),
        Err(_) => {
            return Err(CommandError::failed(format!(
                "{url}: no answer within {} s.",
                args.timeout
            )));
        }
    };
    if status != 200 || body["status"] != "ok" {
        return Err(CommandError::failed(format!(
            "{url}: {}.",
            describe_failure(status, &body)
        )));
    }
    let version = body["version"].as_str().unwrap_or("unknown");
    let word = if args.ready { "ready" } else { "alive" };
    context.output.write_json_or_text(
        &json!({ "url": url.as_str(), "status": "ok", "version": version }),
        &format!("{word} (version {version})"),
    )?;
    Ok(())
}

/// Where the service of this machine listens, and how to speak with it.
fn local_service_client(
    context: &CommandContext,
) -> Result<(Url, Result<reqwest::Client, HttpClientError>), CommandError> {
    let listen = context.read_settings(config::read_listen_settings)?;
    let tls = context.read_settings(read_tls_files)?;
    if listen.port == 0 {
        return Err(CommandError::usage_error(
            "PORT is 0, which is another port each time: give --url.",
        ));
    }
    let (scheme, client) = match &tls {
        None => ("http", outbound::build_http_client()),
        Some(files) => (
            "https",
            outbound::build_local_http_client(choose_server_trust(files, context.clock.now())),
        ),
    };
    let url = format!("{scheme}://{}", listen.connect_addr());
    Ok((Url::parse(&url).expect("an address is a URL"), client))
}

/// Whom to believe at this machine's own port: whoever has exactly the certificate in `TLS_CERT_PATH`. Only where that is
/// one that the service is right not to have taken, or cannot have taken yet, another is believed too: a service that goes
/// on with the pair that was good lives, and must not be restarted into one that is not.
fn choose_server_trust(files: &TlsFiles, now: Timestamp) -> CertificateTrust {
    match TlsCertificate::from_files(files, now) {
        Err(problem) => {
            eprintln!("attesto: warning: {problem}; the service goes on with what it had.");
            CertificateTrust::AnyCertificate
        }
        Ok(_) if files.changed_within(CERTIFICATE_RELOAD_GRACE, now) => {
            CertificateTrust::AnyCertificate
        }
        Ok(pair) => CertificateTrust::Pinned(pair.certificate().clone()),
    }
}

async fn fetch_health(client: &reqwest::Client, url: &Url) -> Result<(u16, Value), String> {
    /// A ready answer has a few hundred bytes.
    const MOST: usize = 64 * 1024;
    let broken =
        |problem: reqwest::Error| outbound::root_cause(&problem.without_url()).to_lowercase();
    let mut response = client.get(url.clone()).send().await.map_err(broken)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > MOST {
            return Err("the answer is too large to be Attesto's".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok((response.status().as_u16(), body))
}

/// What an answer that is no 200 says, without repeating what is not ours.
fn describe_failure(status: u16, body: &Value) -> String {
    let failing: Vec<String> = body["checks"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, found)| Some((name, found.as_str()?)))
        .filter(|(_, found)| *found != "ok")
        .map(|(name, found)| format!("{name}: {found}"))
        .collect();
    match (status, failing.as_slice()) {
        (200, _) => "this is not Attesto".to_owned(),
        (status, []) => format!("it answers {status}"),
        (status, failing) => format!("it answers {status}: {}", failing.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;

    #[test]
    fn another_certificate_is_believed_only_where_the_service_may_have_one() {
        let folder = std::env::temp_dir().join(format!("attesto-health-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = TlsFiles {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let now = Clock::system().now();
        assert_eq!(
            choose_server_trust(&files, now),
            CertificateTrust::AnyCertificate,
            "it is new"
        );
        let later = now.plus(CERTIFICATE_RELOAD_GRACE * 2);
        let only = CertificateTrust::Pinned(made.cert.der().clone());
        assert_eq!(choose_server_trust(&files, later), only);
        std::fs::write(&files.key, "").unwrap();
        assert_eq!(
            choose_server_trust(&files, later),
            CertificateTrust::AnyCertificate,
            "it cannot be taken"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_fails_is_named() {
        let degraded = json!({"status": "degraded", "checks": {"db": "fail: connection refused", "encryption": "ok"}});
        assert_eq!(
            describe_failure(503, &degraded),
            "it answers 503: db: fail: connection refused"
        );
        assert_eq!(describe_failure(404, &Value::Null), "it answers 404");
        assert_eq!(describe_failure(200, &json!("hi")), "this is not Attesto");
    }
}
