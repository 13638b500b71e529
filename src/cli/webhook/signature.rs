//! `webhook verify-signature`: helps to debug a receiver that rejects a signature.
//!
//! It works offline: it signs the body with the code that signs deliveries, and compares. When no value matches, it tries
//! the usual mistakes of receivers and names the one that explains the mismatch.

use std::path::PathBuf;

use serde::Serialize;

use super::super::context::{CommandContext, CommandError};
use super::super::{duration, input_file};
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::deliveries::endpoint::{SigningSecret, SigningSecrets};
use crate::deliveries::signature::{self, SignatureHeaders};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("header").required(true).multiple(false).args(["signature", "webhook_signature"]))]
pub(crate) struct VerifySignatureArgs {
    /// File with the signing secret, `-` for standard input
    #[arg(long, value_name = "FILE")]
    secret_path: PathBuf,

    /// File with the body, byte for byte as it arrived, `-` for standard input
    #[arg(long, value_name = "FILE")]
    body_path: PathBuf,

    /// Value of the header X-Attesto-Signature
    #[arg(long, value_name = "T=…,V1=…")]
    signature: Option<String>,

    /// Value of the header webhook-signature (Standard Webhooks)
    #[arg(long, value_name = "V1,…", requires_all = ["webhook_id", "webhook_timestamp"])]
    webhook_signature: Option<String>,

    /// Value of the header webhook-id
    #[arg(long, value_name = "ID", requires = "webhook_signature")]
    webhook_id: Option<String>,

    /// Value of the header webhook-timestamp
    #[arg(long, value_name = "SECONDS", requires = "webhook_signature")]
    webhook_timestamp: Option<i64>,

    /// Maximum age of a delivery: 90s, 5m, 24h
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse_up_to(3650))]
    tolerance: std::time::Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SignatureCheckView {
    /// Whether a receiver should accept the delivery.
    valid: bool,
    /// Position of the matching value in the header, counted from one.
    fits: Option<usize>,
    /// Number of values in the header.
    values: usize,
    signed_at: Timestamp,
    /// Seconds since it was signed; negative for a time in the future.
    age_seconds: i64,
    /// Full sentences; empty when `valid`.
    problems: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct ParsedSignatureHeader {
    timestamp: i64,
    values: Vec<String>,
}

/// The header that is checked.
enum SignatureHeaderFormat {
    Attesto,
    StandardWebhooks { id: String },
}

/// Exit 0 when a receiver should accept the delivery, else 1.
pub(crate) fn run(args: VerifySignatureArgs, context: &CommandContext) -> Result<(), CommandError> {
    let is_stdin = |path: &PathBuf| path.as_os_str() == "-";
    if is_stdin(&args.secret_path) && is_stdin(&args.body_path) {
        return Err(CommandError::usage_error(
            "the secret and the body cannot both come from standard input.",
        ));
    }
    let secret = input_file::read_text(&args.secret_path)?;
    let secret =
        SigningSecret::parse(secret.trim_end_matches(['\r', '\n'])).map_err(|problem| {
            CommandError::usage_error(to_sentence(format!("the secret: {problem}")))
        })?;
    let body = input_file::read_file_or_stdin(&args.body_path)?;
    let (form, header) = match (args.signature, args.webhook_signature) {
        (Some(signature), _) => (
            SignatureHeaderFormat::Attesto,
            parse_attesto_header(&signature),
        ),
        (None, Some(signature)) => {
            let form = SignatureHeaderFormat::StandardWebhooks {
                id: args.webhook_id.unwrap_or_default(),
            };
            let timestamp = args.webhook_timestamp.unwrap_or_default();
            (form, Some(parse_standard_header(timestamp, &signature)))
        }
        (None, None) => (SignatureHeaderFormat::Attesto, None),
    };
    let header = header.ok_or_else(|| {
        CommandError::usage_error(
            "--signature is not an X-Attesto-Signature header, which looks like t=1775830930,v1=<64 hexadecimal digits>.",
        )
    })?;

    let now = context.clock.now();
    let age_seconds = now.as_secs() - header.timestamp;
    let fits = find_matching_value(&form, &header, &secret, &body);
    let mut problems = Vec::new();
    if fits.is_none() {
        problems.push(diagnose_mismatch(&form, &header, &secret, &body).to_owned());
    }
    let tolerance = i64::try_from(args.tolerance.as_secs()).unwrap_or(i64::MAX);
    if age_seconds.saturating_abs() > tolerance {
        let when = if age_seconds > 0 {
            "ago"
        } else {
            "in the future"
        };
        problems.push(format!(
            "It was signed {} s {when}, and {tolerance} s are tolerated: it is a replay, or a clock is wrong.",
            age_seconds.saturating_abs()
        ));
    }
    let found = SignatureCheckView {
        valid: problems.is_empty(),
        fits,
        values: header.values.len(),
        signed_at: Timestamp::from_millis(header.timestamp.saturating_mul(1000)),
        age_seconds,
        problems,
    };
    let prose = if let Some(fits) = found.fits.filter(|_| found.valid) {
        format!(
            "The signature matches: value {fits} of {}, signed {age_seconds} s ago.",
            found.values
        )
    } else {
        found.problems.join("\n")
    };
    context.output.write_json_or_text(&found, &prose)?;
    if found.valid {
        Ok(())
    } else {
        Err(CommandError::failed(
            "a receiver should reject this delivery.",
        ))
    }
}

/// Parses the value of `X-Attesto-Signature`: `t=…,v1=…[,v1=…]`.
fn parse_attesto_header(header: &str) -> Option<ParsedSignatureHeader> {
    let (mut timestamp, mut values) = (None, Vec::new());
    for part in header.split(',') {
        match part.trim().split_once('=')? {
            ("t", value) => timestamp = value.parse().ok(),
            ("v1", value) => values.push(value.to_owned()),
            _ => {}
        }
    }
    (!values.is_empty()).then_some(ParsedSignatureHeader {
        timestamp: timestamp?,
        values,
    })
}

fn parse_standard_header(timestamp: i64, header: &str) -> ParsedSignatureHeader {
    ParsedSignatureHeader {
        timestamp,
        values: header.split_whitespace().map(str::to_owned).collect(),
    }
}

/// Position of the header value that this secret makes over the body, counted from one.
fn find_matching_value(
    form: &SignatureHeaderFormat,
    header: &ParsedSignatureHeader,
    secret: &SigningSecret,
    body: &[u8],
) -> Option<usize> {
    let secrets = SigningSecrets::from(secret.clone());
    let id = match form {
        SignatureHeaderFormat::Attesto => "",
        SignatureHeaderFormat::StandardWebhooks { id } => id,
    };
    let SignatureHeaders { attesto, standard } =
        signature::sign_delivery(&secrets, id, header.timestamp, body);
    let expected = match form {
        SignatureHeaderFormat::Attesto => attesto
            .split_once(",v1=")
            .map(|(_, value)| value.to_owned()),
        SignatureHeaderFormat::StandardWebhooks { .. } => Some(standard),
    }?;
    // Not in constant time: the user of this command has the secret.
    let at = header.values.iter().position(|value| *value == expected)?;
    Some(at + 1)
}

/// The most likely reason why no value matches.
fn diagnose_mismatch(
    form: &SignatureHeaderFormat,
    header: &ParsedSignatureHeader,
    secret: &SigningSecret,
    body: &[u8],
) -> &'static str {
    let fits = |secret: &SigningSecret, body: &[u8]| {
        find_matching_value(form, header, secret, body).is_some()
    };
    if let Some(shorter) = body.strip_suffix(b"\n") {
        let shorter = shorter.strip_suffix(b"\r").unwrap_or(shorter);
        if fits(secret, shorter) {
            return "It matches without the line end at the end of the body: an editor or `echo` added it.";
        }
    }
    if let Ok(read) = serde_json::from_slice::<serde_json::Value>(body)
        && let Ok(written) = serde_json::to_vec(&read)
        && fits(secret, &written)
    {
        return "It matches the same JSON in compact form: this body was parsed and serialized again. Check the bytes as they arrived.";
    }
    let text = secret.expose();
    let others = [
        text.strip_prefix("whsec_").map(str::to_owned),
        Some(format!("whsec_{text}")),
        Some(text.trim().to_owned()),
    ];
    for other in others.into_iter().flatten() {
        if SigningSecret::parse(&other).is_ok_and(|other| fits(&other, body)) {
            return "It matches a variant of the secret (with or without `whsec_`, or without surrounding blanks): use the secret exactly as it was printed.";
        }
    }
    "No value in the header matches this secret and this body: it is another secret, or the body was changed."
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"z":1.0,"a":"\u00fc"}"#;

    fn secret(text: &str) -> SigningSecret {
        SigningSecret::parse(text).unwrap()
    }

    fn signed(
        secret: &SigningSecret,
        body: &[u8],
    ) -> (ParsedSignatureHeader, ParsedSignatureHeader) {
        let both = signature::sign_delivery(&secret.clone().into(), "evt_1", 1_775_830_930, body);
        (
            parse_attesto_header(&both.attesto).unwrap(),
            parse_standard_header(1_775_830_930, &both.standard),
        )
    }

    #[test]
    fn the_signature_of_a_delivery_matches() {
        let mine = SigningSecret::generate();
        let (ours, theirs) = signed(&mine, BODY);
        let standard = SignatureHeaderFormat::StandardWebhooks { id: "evt_1".into() };
        assert_eq!(
            find_matching_value(&SignatureHeaderFormat::Attesto, &ours, &mine, BODY),
            Some(1)
        );
        assert_eq!(
            find_matching_value(&standard, &theirs, &mine, BODY),
            Some(1)
        );
        let other = SignatureHeaderFormat::StandardWebhooks { id: "evt_2".into() };
        assert_eq!(find_matching_value(&other, &theirs, &mine, BODY), None);
        let header = ParsedSignatureHeader {
            values: vec!["x".into(), ours.values[0].clone()],
            ..ours
        };
        assert_eq!(
            find_matching_value(&SignatureHeaderFormat::Attesto, &header, &mine, BODY),
            Some(2)
        );
    }

    #[test]
    fn usual_mistakes_are_named() {
        let mine = SigningSecret::generate();
        let (header, _) = signed(&mine, BODY);
        let why = |header: &ParsedSignatureHeader, secret: &SigningSecret, body: &[u8]| {
            diagnose_mismatch(&SignatureHeaderFormat::Attesto, header, secret, body)
        };
        let ended = [BODY, b"\n"].concat();
        assert!(why(&header, &mine, &ended).contains("line end"));
        let compact = br#"{"event":"test","n":[1,2]}"#;
        let (compact_header, _) = signed(&mine, compact);
        let pretty = serde_json::from_slice::<serde_json::Value>(compact).unwrap();
        let pretty = serde_json::to_vec_pretty(&pretty).unwrap();
        assert!(why(&compact_header, &mine, &pretty).contains("as they arrived"));
        let bare = secret(mine.expose().strip_prefix("whsec_").unwrap());
        assert!(why(&header, &bare, BODY).contains("whsec_"));
        let other = SigningSecret::generate();
        assert!(why(&header, &other, BODY).contains("another secret"));
    }

    #[test]
    fn a_malformed_header_is_refused() {
        for text in ["", "t=1", "v1=ab", "nonsense", "t=x,v1=ab", "t=1;v1=ab"] {
            assert_eq!(parse_attesto_header(text), None, "{text}");
        }
        let both = parse_attesto_header("t=5, v1=aa,v1=bb,v2=cc").unwrap();
        assert_eq!((both.timestamp, both.values.len()), (5, 2));
    }
}
