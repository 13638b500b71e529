//! `attesto inspect`: decodes data that Apple signed, and says whether the service would accept it.
//!
//! It works offline: it needs no database, no tenant and no network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::apple::parse_app_apple_id;
use super::context::{CommandContext, CommandError};
use super::input_file;
use super::state_text::{LABEL_WIDTH, state_rows};
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::config::StoreSettings;
use crate::stores::apple::account::AppleEnvironment;
use crate::stores::apple::inspection::{
    self, CertificateDetails, ExpectedAppIdentity, Inspection, SignedDataKind,
};
use crate::stores::apple::trust::JwsVerifier;

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The JWS, or a file with it or with JSON that holds it (a notification, an answer of Apple's API, an Attesto
    /// event); `-` for standard input
    #[arg(value_name = "JWS|FILE")]
    what: String,

    /// Bundle ID it must have
    #[arg(long, value_name = "ID")]
    bundle_id: Option<String>,

    /// Apple ID of the app that production data must have
    #[arg(long, value_name = "NUMBER", value_parser = parse_app_apple_id)]
    app_apple_id: Option<i64>,

    /// Environment it must have
    #[arg(long, value_enum)]
    environment: Option<InspectEnvironment>,

    /// Root certificates to trust instead of Apple's: a DER or PEM file, or a folder of them
    #[arg(
        long,
        value_name = "PATH",
        help = "Root certificates to trust instead of Apple's: a DER or PEM file, or a folder of them [env: APPLE_ROOT_CERTIFICATES]"
    )]
    roots: Option<PathBuf>,

    /// Check the certificates at this time, such as 2026-04-10T14:22:10Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_arg)]
    at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum InspectEnvironment {
    Production,
    Sandbox,
}

impl From<InspectEnvironment> for AppleEnvironment {
    fn from(environment: InspectEnvironment) -> Self {
        match environment {
            InspectEnvironment::Production => Self::Production,
            InspectEnvironment::Sandbox => Self::Sandbox,
        }
    }
}

fn parse_timestamp_arg(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text)
        .ok_or_else(|| "must be a time like 2026-04-10T14:22:10Z (RFC 3339)".to_owned())
}

/// Exit 0 when the service would accept the data, else 1.
pub(crate) fn run(args: InspectArgs, context: &CommandContext) -> Result<(), CommandError> {
    let stores = context.read_settings(StoreSettings::from_raw)?;
    let verifier = match args
        .roots
        .as_ref()
        .or(stores.apple_root_certificates.as_ref())
    {
        None => JwsVerifier::with_apple_roots(),
        Some(path) => JwsVerifier::with_roots_from(path).map_err(|problem| {
            CommandError::usage_error(to_sentence(format!("--roots: {problem}")))
        })?,
    };
    // As a service with the same settings does, except that no OCSP responder is asked.
    let verifier = if stores.is_apple_ocsp_enabled {
        verifier.check_validity_at_now()
    } else {
        verifier
    };
    let text = read_jws_input(&args.what)?;
    let expected = ExpectedAppIdentity {
        bundle_id: args.bundle_id,
        app_apple_id: args.app_apple_id,
        environment: args.environment.map(AppleEnvironment::from),
    };
    let now = args.at.unwrap_or_else(|| context.clock.now());
    let found = inspection::inspect_signed_data(&text, &verifier, &expected, now).ok_or_else(|| {
        if inspection::is_version_1_notification(&text) {
            return CommandError::usage_error(
                "this is a notification of version 1, which Apple has deprecated and does not sign: choose version 2 for this URL in App Store Connect.",
            );
        }
        CommandError::usage_error(
            "no JWS found: expected three base64url parts joined by dots, or JSON with such a text in signedPayload, signedTransaction, signedTransactionInfo, signedRenewalInfo or signedAppTransactionInfo.",
        )
    })?;
    context
        .output
        .write_json_or_text(&found, &format_inspection(&found))?;
    if found.believed {
        Ok(())
    } else {
        Err(CommandError::failed("the service would refuse it."))
    }
}

/// The JWS itself, or the content of the named file.
fn read_jws_input(what: &str) -> Result<String, CommandError> {
    let is_jws = what.split('.').count() == 3 && what.starts_with("ey");
    if is_jws && !Path::new(what).exists() {
        return Ok(what.to_owned());
    }
    Ok(input_file::read_text(Path::new(what))?.to_string())
}

fn format_inspection(found: &Inspection) -> String {
    let mut text = String::new();
    write_inspection(&mut text, found, "");
    text.trim_end().to_owned()
}

// Results of `writeln!` are ignored: writing to a `String` cannot fail.
fn write_inspection(text: &mut String, found: &Inspection, indent: &str) {
    let what = match found.kind {
        SignedDataKind::Transaction => "a transaction",
        SignedDataKind::Renewal => "renewal info",
        SignedDataKind::Notification => "a notification",
        SignedDataKind::AppTransaction => "an app transaction",
        SignedDataKind::Unknown => "signed data of an unknown kind",
    };
    let verdict = if found.believed {
        "Apple signed it, and it would be accepted"
    } else {
        "it would be REFUSED"
    };
    let field = found
        .field
        .map_or_else(String::new, |field| format!("{field}: "));
    let _ = writeln!(text, "{indent}{field}{what}; {verdict}.");
    for refusal in &found.refusals {
        let _ = writeln!(text, "{indent}  ✗ {refusal}");
    }
    for remark in &found.remarks {
        let _ = writeln!(text, "{indent}  · {remark}");
    }
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    let signed_on = found.signed_on.map(|moment| moment.to_string());
    let _ = writeln!(text, "{indent}  signed       {}", or_none(signed_on));
    let _ = writeln!(
        text,
        "{indent}  environment  {}",
        or_none(found.environment.clone())
    );
    if let Some(status) = found.status {
        let word = serde_json::to_value(status).unwrap_or_default();
        let word = word.as_str().unwrap_or_default();
        let _ = writeln!(text, "{indent}  status now   {word}");
    }
    for (label, value) in found.state.as_ref().map(state_rows).unwrap_or_default() {
        let _ = writeln!(text, "{indent}  {label:<LABEL_WIDTH$} {value}");
    }
    for link in &found.certificates {
        let _ = writeln!(text, "{indent}  {}", format_certificate_line(link));
    }
    if let Some(payload) = &found.payload {
        let pretty = serde_json::to_string_pretty(&omit_nested_jws(payload)).unwrap_or_default();
        let pretty = pretty.replace('\n', &format!("\n{indent}  "));
        let _ = writeln!(text, "{indent}  {pretty}");
    }
    for part in &found.parts {
        let _ = writeln!(text);
        write_inspection(text, part, &format!("{indent}    "));
    }
}

fn format_certificate_line(link: &CertificateDetails) -> String {
    let Some(subject) = &link.subject else {
        return format!("{:<15} cannot be read", link.role);
    };
    let day = |moment: Option<Timestamp>| {
        let text = moment.map(|moment| moment.to_string()).unwrap_or_default();
        text.split('T').next().unwrap_or_default().to_owned()
    };
    let marker = match (&link.marker, link.carries_marker) {
        (Some(marker), Some(true)) => format!(", carries {marker}"),
        (Some(marker), _) => format!(", LACKS {marker}"),
        (None, _) => String::new(),
    };
    format!(
        "{:<15} {} to {}{marker}: {subject}",
        link.role,
        day(link.not_before),
        day(link.not_after)
    )
}

/// Replaces each nested JWS, which is shown decoded below.
fn omit_nested_jws(payload: &serde_json::Value) -> serde_json::Value {
    let mut shown = payload.clone();
    for block in ["data", "appData"] {
        let fields = shown.get_mut(block).and_then(|block| block.as_object_mut());
        for (name, value) in fields.into_iter().flatten() {
            if name.starts_with("signed") && value.is_string() {
                *value = "… (see below)".into();
            }
        }
    }
    shown
}
