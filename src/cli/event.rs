//! `attesto event`: a tenant's events, as its backend reads them back.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::events::feed::{
    DEFAULT_PAGE_EVENTS, EventFeed, FeedCursor, FeedError, FeedQuery, MAX_PAGE_EVENTS,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum EventCommand {
    /// List events in the order in which they are read back, and the cursor behind them
    List(ListEventsArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto event list tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E\n  attesto event list tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --after 120-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --limit 10"
)]
pub(crate) struct ListEventsArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Cursor: `next` of the answer before [default: the oldest event]
    #[arg(long, value_name = "CURSOR", value_parser = parse_cursor)]
    after: Option<FeedCursor>,

    /// Only events about the purchase with this key
    #[arg(long, value_name = "KEY")]
    subject: Option<String>,

    /// The most events
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PAGE_EVENTS, value_parser = parse_limit)]
    limit: usize,
}

fn parse_cursor(text: &str) -> Result<FeedCursor, String> {
    text.parse().map_err(|_| {
        "it is not a cursor: give `next` of an earlier answer, or leave it out".to_owned()
    })
}

fn parse_limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok();
    limit
        .filter(|limit| (1..=MAX_PAGE_EVENTS).contains(limit))
        .ok_or_else(|| format!("must be a whole number from 1 to {MAX_PAGE_EVENTS}"))
}

pub(crate) async fn run(
    command: EventCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        EventCommand::List(arguments) => list_events(arguments, context).await,
    }
}

async fn list_events(
    arguments: ListEventsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    ensure_tenant_exists(&database, &arguments.tenant).await?;
    let query = FeedQuery {
        after: arguments.after,
        subject: arguments.subject,
        limit: arguments.limit,
    };
    let feed = EventFeed::new(&database, &context.clock);
    let page = feed.load_page(&arguments.tenant, &query).await?;
    let mut lines: Vec<_> = page.events.iter().map(|body| event_line(body)).collect();
    let next = page.next.as_deref().unwrap_or("none yet");
    lines.push(format!(
        "{} events; next: {next}{}",
        page.events.len(),
        if page.has_more {
            "; there are more"
        } else {
            ""
        }
    ));
    context
        .output
        .write_json_or_text(&page, &lines.join("\n"))?;
    Ok(())
}

/// An event in one line of text.
fn event_line(body: &RawValue) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        event_id: String,
        event: String,
        timestamp: String,
        subject: Option<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        key: String,
    }
    match serde_json::from_str::<Body>(body.get()) {
        Ok(body) => {
            let subject = body.subject.map_or_else(|| "-".to_owned(), |it| it.key);
            let (id, event, time) = (body.event_id, body.event, body.timestamp);
            format!("{time}  {id}  {event}  {subject}")
        }
        Err(_) => body.get().to_owned(),
    }
}

impl From<FeedError> for CommandError {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Body(error) => error.into(),
            FeedError::ForeignCursor => Self::usage_error(to_sentence(format!("--after {error}"))),
            error => Self::from_cause(error),
        }
    }
}
