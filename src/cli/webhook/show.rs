//! `webhook show`: prints an event as it is sent, or what the store sent.

use serde::Serialize;

use super::super::context::{CommandContext, CommandError};
use crate::base::id::EventId;
use crate::deliveries::body::{load_event_body, raw_message};
use crate::deliveries::history::store::find_event_tenant;

#[derive(Debug, clap::Args)]
pub(crate) struct ShowEventArgs {
    /// The event's id, `evt_…`
    event: EventId,
    /// Show what the store sent, byte for byte, instead of what the callback is sent
    #[arg(long)]
    raw: bool,
}

/// The text is a string and not nested JSON, so that its bytes and line breaks are kept.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownEvent<'a> {
    event_id: &'a EventId,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
}

pub(super) async fn show_event(
    arguments: &ShowEventArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let ShowEventArgs { event, raw } = arguments;
    let database = context.open_database().await?;
    let body = match find_event_tenant(&database, event).await? {
        Some(tenant) => load_event_body(&database, &tenant, event).await?,
        None => None,
    };
    let body = body.ok_or_else(|| CommandError::failed(format!("no such event: {event}")))?;
    let mut shown = ShownEvent {
        event_id: event,
        body: None,
        raw: None,
    };
    let text = if *raw {
        let message = raw_message(&body).ok_or_else(|| {
            CommandError::failed(format!(
                "{event}: its body has no field `raw`, so what the store sent is not known"
            ))
        })?;
        shown.raw = Some(message);
        message
    } else {
        shown.body = Some(&body);
        &body
    };
    // A terminal would interpret control characters in the message. A file or pipe gets the exact bytes.
    if context.output.is_human_readable() {
        context.output.write_json_or_text(&shown, text)?;
    } else {
        context.output.write_raw_text(&shown, text)?;
    }
    Ok(())
}
