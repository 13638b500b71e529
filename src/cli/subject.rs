//! `attesto subject`: what a tenant's purchase is worth.

use serde_json::value::RawValue;

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::state_text::{self, LABEL_WIDTH};
use super::verify::{VerifyDependencies, print_rejection};
use crate::base::id::TenantId;
use crate::events::EventSource;
use crate::events::feed::{EventFeed, KnownSubject};
use crate::stores::shared::subject_source::SubjectSource;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SubjectCommand {
    /// Show the newest state of a purchase, and the event that it is from
    Show(ShowSubjectArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto subject show tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    apple 2000000100000001 --refresh"
)]
pub(crate) struct ShowSubjectArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// The store that sold it
    #[arg(value_enum)]
    source: StoreArg,

    /// The purchase's `subject.key`: for Apple the original transaction id, for Google the first purchase token
    key: String,

    /// Ask the store now, with the tenant's credentials
    #[arg(long)]
    refresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StoreArg {
    /// Sold by the App Store
    Apple,
    /// Sold by Google Play
    Google,
}

pub(crate) async fn run(
    command: SubjectCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        SubjectCommand::Show(arguments) => show_subject(arguments, context).await,
    }
}

async fn show_subject(
    arguments: ShowSubjectArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let (tenant, key) = (&arguments.tenant, arguments.key.as_str());
    ensure_tenant_exists(&database, tenant).await?;
    let source = match arguments.source {
        StoreArg::Apple => EventSource::Apple,
        StoreArg::Google => EventSource::Google,
    };
    let feed = EventFeed::new(&database, &context.clock);
    let known = feed.find_subject(tenant, source, key).await?;
    let subject = if arguments.refresh {
        let dependencies = VerifyDependencies::load(context).await?;
        let refreshed = match source {
            EventSource::Apple => {
                let apple = dependencies.build_apple(context)?;
                apple.refresh_subject(tenant, key).await
            }
            EventSource::Google => {
                let google = dependencies.build_google(context);
                google.refresh_subject(tenant, key).await
            }
        };
        let found = match refreshed {
            Ok(found) => found,
            Err(problem) => return print_rejection(context, problem),
        };
        let last_sequence = known.and_then(|known| known.last_sequence);
        KnownSubject::from_store(
            source,
            &found.subject,
            found.state,
            found.state_error,
            last_sequence,
        )
    } else {
        known.ok_or_else(|| {
            CommandError::failed(format!(
                "no stored event of {tenant} is about this purchase; --refresh asks the store"
            ))
        })?
    };
    context
        .output
        .write_json_or_text(&subject, &subject_text(&subject))?;
    Ok(())
}

fn subject_text(subject: &KnownSubject) -> String {
    let mut rows: Vec<(&str, String)> =
        vec![("subject", RawValue::get(&subject.subject).to_owned())];
    match (&subject.state, subject.state_error) {
        (Some(state), _) => rows.extend(state_text::state_rows(state)),
        (None, Some(error)) => rows.push((
            "state",
            format!(
                "not known, because {}",
                state_text::explain_state_error(error)
            ),
        )),
        (None, None) => rows.push(("state", "not known".to_owned())),
    }
    let from = match (&subject.event_id, subject.sequence) {
        (Some(event), Some(sequence)) => format!("{event}, number {sequence}"),
        _ => "the store, asked now".to_owned(),
    };
    rows.push(("from", from));
    let lines = rows
        .into_iter()
        .map(|(label, text)| format!("{label:<LABEL_WIDTH$} {text}"));
    lines.collect::<Vec<_>>().join("\n")
}
