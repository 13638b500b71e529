//! `attesto health`: checks whether a running service is alive, or ready.
//!
//! For health checks of containers, systemd units and scripts without `curl`. It reads neither the database nor a secret.
//! Without `--url` it uses `PORT` and `BIND_ADDRESS` of this machine, and with `TLS_CERT_PATH` it uses TLS and trusts
//! exactly that certificate.

use std::time::Duration;

use reqwest::Url;
use serde_json::{Value, json};

use super::context::{CommandContext, CommandError};
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::config::{self, read_tls_files};
use crate::outbound::{self, CertificateTrust, HttpClientError};
use crate::server::tls::{TlsCertificate, TlsFiles};

/// A new certificate file may be in use only after this time; the service reloads it within seconds.
const CERTIFICATE_RELOAD_GRACE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// URL of the service
    #[arg(
        long,
        value_name = "URL",
        help = "URL of the service [default: PORT and BIND_ADDRESS on this machine]"
    )]
    url: Option<Url>,

    /// Check /ready instead of /health: whether the service can serve requests
    #[arg(long)]
    ready: bool,

    /// Timeout in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

/// Exit 0 when the service answers 200, else 1 with the reason.
pub(crate) async fn run(args: HealthArgs, context: &CommandContext) -> Result<(), CommandError> {
    let (mut url, client) = match args.url {
        Some(url) => (url, outbound::build_http_client()),
        None => local_service_client(context)?,
    };
    let client = client.map_err(CommandError::from_cause)?;
    // The URL is printed below, so it must not hold a password.
    if !matches!(url.scheme(), "http" | "https") || url.username() != "" || url.password().is_some()
    {
        return Err(CommandError::usage_error(
            "--url must look like http://127.0.0.1:8080 or https://attesto.example.com, without user and password.",
        ));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = if args.ready { "/ready" } else { "/health" };
    // The service may be below a path prefix, and `--url` may end in /health already.
    let prefix = url.path().trim_end_matches('/').to_owned();
    let prefix = prefix.strip_suffix(path).unwrap_or(&prefix);
    url.set_path(&format!("{prefix}{path}"));

    let request = fetch_health(&client, &url);
    let response = tokio::time::timeout(Duration::from_secs(args.timeout), request).await;
    let (status, body) = match response {
        Ok(Ok(answer)) => answer,
        Ok(Err(problem)) => {
            return Err(CommandError::failed(to_sentence(format!(
                "{url}: {problem}"
            ))));
        }
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

/// URL of the service on this machine, and a client for it.
fn local_service_client(
    context: &CommandContext,
) -> Result<(Url, Result<reqwest::Client, HttpClientError>), CommandError> {
    let listen = context.read_settings(config::read_listen_settings)?;
    let tls = context.read_settings(read_tls_files)?;
    if listen.port == 0 {
        return Err(CommandError::usage_error(
            "PORT is 0, which means any free port: give --url.",
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

/// Trusts exactly the certificate in `TLS_CERT_PATH`, unless the service may still use its previous one: when the new one
/// is invalid, or was written within [`CERTIFICATE_RELOAD_GRACE`]. Such a service is alive and must not be restarted.
fn choose_server_trust(files: &TlsFiles, now: Timestamp) -> CertificateTrust {
    match TlsCertificate::from_files(files, now) {
        Err(problem) => {
            eprintln!("attesto: warning: {problem}; the service keeps its previous certificate.");
            CertificateTrust::AnyCertificate
        }
        Ok(_) if files.changed_within(CERTIFICATE_RELOAD_GRACE, now) => {
            CertificateTrust::AnyCertificate
        }
        Ok(pair) => CertificateTrust::Pinned(pair.certificate().clone()),
    }
}

async fn fetch_health(client: &reqwest::Client, url: &Url) -> Result<(u16, Value), String> {
    /// An answer of /ready has a few hundred bytes.
    const MAX_BODY_BYTES: usize = 64 * 1024;
    let broken =
        |problem: reqwest::Error| outbound::root_cause(&problem.without_url()).to_lowercase();
    let mut response = client.get(url.clone()).send().await.map_err(broken)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err("the answer is too large to be Attesto's".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok((response.status().as_u16(), body))
}

/// The failed checks in the answer, or its status; nothing else of the body is repeated.
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
    fn another_certificate_is_trusted_only_while_the_service_may_use_it() {
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
    fn failed_checks_are_named() {
        let degraded = json!({"status": "degraded", "checks": {"db": "fail: connection refused", "encryption": "ok"}});
        assert_eq!(
            describe_failure(503, &degraded),
            "it answers 503: db: fail: connection refused"
        );
        assert_eq!(describe_failure(404, &Value::Null), "it answers 404");
        assert_eq!(describe_failure(200, &json!("hi")), "this is not Attesto");
    }
}
