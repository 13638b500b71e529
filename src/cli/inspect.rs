//! `attesto inspect`: takes a signed thing of Apple's apart and says whether it would be believed, and if not, why.
//!
//! Offline: it needs no database, no tenant, no network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::context::{CommandContext, CommandError};
use super::input_file;
use crate::base::clock::Timestamp;
use crate::config::StoreSettings;
use crate::stores::apple::account::AppleEnvironment;
use crate::stores::apple::inspection::{
    self, CertificateDetails, ExpectedAppIdentity, Inspection, SignedDataKind,
};
use crate::stores::apple::trust::JwsVerifier;

/// The arguments of `attesto inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The JWS; or a file that holds it, or JSON around it (a notification's body, an answer of Apple's, an event of
    /// Attesto's); `-` for standard input
    #[arg(value_name = "JWS|FILE")]
    what: String,

    /// The bundle id it must be of
    #[arg(long, value_name = "ID")]
    bundle_id: Option<String>,

    /// The app's Apple ID it must name, if it is of production
    #[arg(long, value_name = "NUMBER")]
    app_apple_id: Option<i64>,

    /// Where it must be
    #[arg(long, value_enum)]
    environment: Option<InspectEnvironment>,

    /// The roots to trust instead of Apple's: a DER or PEM file, or a folder of them
    #[arg(
        long,
        value_name = "PATH",
        help = "The roots to trust instead of Apple's: a DER or PEM file, or a folder of them [env: APPLE_ROOT_CERTIFICATES]"
    )]
    roots: Option<PathBuf>,

    /// Judge it as of this moment, such as 2026-04-10T14:22:10Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp_arg)]
    at: Option<Timestamp>,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum InspectEnvironment {
    Production,
    Sandbox,
}

impl From<InspectEnvironment> for AppleEnvironment {
    fn from(place: InspectEnvironment) -> Self {
        match place {
            InspectEnvironment::Production => Self::Production,
            InspectEnvironment::Sandbox => Self::Sandbox,
        }
    }
}

fn parse_timestamp_arg(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text)
        .ok_or_else(|| "must be a time like 2026-04-10T14:22:10Z (RFC 3339)".to_owned())
}

/// Runs the command: exit 0 when it would be believed, else 1.
pub(crate) fn run(args: InspectArgs, context: &CommandContext) -> Result<(), CommandError> {
    let stores = context.read_settings(StoreSettings::from_raw)?;
    let verifier = match args
        .roots
        .as_ref()
        .or(stores.apple_root_certificates.as_ref())
    {
        None => JwsVerifier::with_apple_roots(),
        Some(path) => JwsVerifier::with_roots_from(path)
            .map_err(|problem| CommandError::usage_error(format!("--roots: {problem}.")))?,
    };
    // As the service judges with the same settings; who revoked what only Apple's responders know, and nobody is asked here.
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
        CommandError::usage_error(
            "this holds no JWS of Apple's: three parts of base64url joined by dots, or JSON with one in signedPayload, signedTransaction, signedTransactionInfo, signedRenewalInfo or signedAppTransactionInfo.",
        )
    })?;
    context
        .output
        .write_json_or_text(&found, &format_inspection(&found))?;
    if found.believed {
        Ok(())
    } else {
        Err(CommandError::failed("it would be refused."))
    }
}

/// The JWS itself, or the content of the file that is named.
fn read_jws_input(what: &str) -> Result<String, CommandError> {
    let is_jws = what.split('.').count() == 3 && what.starts_with("ey");
    if is_jws && !Path::new(what).exists() {
        return Ok(what.to_owned());
    }
    let bytes = input_file::read_file_or_stdin(Path::new(what))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| CommandError::usage_error("this is no text."))
}

fn format_inspection(found: &Inspection) -> String {
    let mut text = String::new();
    write_inspection(&mut text, found, "");
    text.trim_end().to_owned()
}

/// Writing to a `String` cannot fail.
fn write_inspection(text: &mut String, found: &Inspection, indent: &str) {
    let what = match found.kind {
        SignedDataKind::Transaction => "a transaction",
        SignedDataKind::Renewal => "renewal info",
        SignedDataKind::Notification => "a notification",
        SignedDataKind::AppTransaction => "an app transaction",
        SignedDataKind::Unknown => "something signed",
    };
    let verdict = if found.believed {
        "Apple signed it, and it would be believed"
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
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "not said".to_owned());
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

/// What is signed inside is shown by itself; its text is noise here.
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
