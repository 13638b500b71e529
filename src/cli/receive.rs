//! `attesto receive`: a callback on this machine, to see what deliveries look like.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::interval;
use zeroize::Zeroizing;

use super::callback_receiver::{CallbackReceiver, ReceivedDelivery, SignatureCheck};
use super::context::{CommandContext, CommandError};
use super::input_file;
use super::output::is_stdout_closed;
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::deliveries::endpoint::SigningSecret;

/// How often to look whether the output is still read.
const CLOSED_PIPE_INTERVAL: Duration = Duration::from_secs(1);
/// Fields of an event that fill screens, and are not shown on a terminal.
const LONG_FIELDS: [&str; 2] = ["data", "raw"];

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ctrl-C stops the command. A service calls this address only if private callbacks are allowed\n(WEBHOOK_ALLOW_PRIVATE_CALLBACKS=true, or attesto webhook allow … --http).\n\nExamples:\n  attesto receive\n  attesto receive --listen 127.0.0.1:9000 --secret-path secret.txt\n  attesto receive --secret-env WEBHOOK_SECRET --status 503"
)]
pub(crate) struct ReceiveArgs {
    /// The address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// File with the signing secret, `-` for standard input; signatures are checked with it
    #[arg(long, value_name = "FILE", conflicts_with = "secret_env")]
    secret_path: Option<PathBuf>,
    /// Environment variable with the signing secret
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
    /// The status to answer; a delivery whose signature does not verify is answered with 401
    #[arg(long, value_name = "STATUS", default_value = "200", value_parser = parse_status)]
    status: StatusCode,
}

fn parse_status(text: &str) -> Result<StatusCode, String> {
    let status = text.parse::<StatusCode>().ok();
    status
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or_else(|| "must be an HTTP status from 200 to 599".to_owned())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReceivedEvent<'a> {
    received_at: Timestamp,
    delivery_id: &'a str,
    attempt: &'a str,
    signature: SignatureCheck,
    answered: u16,
    event: &'a Value,
}

pub(crate) async fn run(args: ReceiveArgs, context: &CommandContext) -> Result<(), CommandError> {
    let secret = read_secret(&args, context)?;
    let (stop, _listening) = context.cancel_on_signal()?;
    let listener = TcpListener::bind(args.listen).await.map_err(|cause| {
        CommandError::failed(to_sentence(format!(
            "cannot listen on {}: {cause}",
            args.listen
        )))
    })?;
    let is_checked = secret.is_some();
    let mut receiver = CallbackReceiver::start(listener, secret, args.status)?;
    let check = if is_checked {
        "Signatures are checked."
    } else {
        "Signatures are not checked: --secret-path or --secret-env gives the secret."
    };
    eprintln!("attesto: listening at {} {check}", receiver.url());
    let mut closed_pipe = interval(CLOSED_PIPE_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = closed_pipe.tick() => if is_stdout_closed() {
                return Ok(());
            },
            delivery = receiver.next_delivery() => match delivery {
                Some(delivery) => write_delivery(&delivery, context)?,
                None => return Ok(()),
            },
        }
    }
}

fn read_secret(
    args: &ReceiveArgs,
    context: &CommandContext,
) -> Result<Option<SigningSecret>, CommandError> {
    let text = match (&args.secret_path, &args.secret_env) {
        (Some(path), _) => input_file::read_text(path)?,
        (None, Some(name)) => {
            let value = context.environment_variable(name);
            let value = value.and_then(|value| value.into_string().ok());
            // What was typed is not repeated: it may be the secret itself.
            Zeroizing::new(value.ok_or_else(|| {
                CommandError::usage_error(
                    "--secret-env: there is no environment variable of that name.",
                )
            })?)
        }
        (None, None) => return Ok(None),
    };
    SigningSecret::parse(text.trim_end_matches(['\r', '\n']))
        .map(Some)
        .map_err(|problem| CommandError::usage_error(to_sentence(format!("the secret: {problem}"))))
}

fn write_delivery(
    delivery: &ReceivedDelivery,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let received = ReceivedEvent {
        received_at: context.clock.now(),
        delivery_id: &delivery.delivery_id,
        attempt: &delivery.attempt,
        signature: delivery.signature,
        answered: delivery.answered,
        event: &delivery.body,
    };
    let text = format!(
        "{}, answered {}\n{}",
        delivery.summary_line(),
        delivery.answered,
        describe_event(&delivery.body)
    );
    context.output.write_json_or_text(&received, &text)?;
    Ok(())
}

/// The fields with a value, each in a line, except the long ones.
fn describe_event(event: &Value) -> String {
    let Some(fields) = event.as_object() else {
        return "    the body is not an event".to_owned();
    };
    let shown = fields
        .iter()
        .filter(|(name, value)| !LONG_FIELDS.contains(&name.as_str()) && !value.is_null());
    let lines: Vec<_> = shown
        .map(|(name, value)| match value {
            Value::String(text) => format!("    {name}: {text}"),
            value => format!("    {name}: {value}"),
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_shown_without_what_the_store_sent() {
        let event = json!({
            "event": "subscription.renewed",
            "appUserId": null,
            "subject": { "key": "1" },
            "data": { "long": 1 },
            "raw": "long",
        });
        assert_eq!(
            describe_event(&event),
            "    event: subscription.renewed\n    subject: {\"key\":\"1\"}"
        );
        assert_eq!(describe_event(&Value::Null), "    the body is not an event");
    }

    #[test]
    fn a_status_is_one_that_ends_an_exchange() {
        for (text, status) in [
            ("200", Some(200)),
            ("503", Some(503)),
            ("101", None),
            ("600", None),
            ("x", None),
        ] {
            let parsed = parse_status(text).ok().map(|status| status.as_u16());
            assert_eq!(parsed, status, "{text}");
        }
    }
}
