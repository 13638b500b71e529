//! `attesto refund-question`: what the stores ask about refunds.

use std::time::Duration;

use serde_json::{Value, json};

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::duration::parse_up_to;
use crate::base::id::TenantId;
use crate::stores::shared::refund_questions::open_questions::{
    OpenQuestion, OpenQuestionQuery, load_open_questions,
};

/// A question takes an answer for 24 hours at most.
const MAX_DUE_WITHIN_DAYS: u64 = 7;
/// The most questions that are listed.
const MAX_LISTED: u16 = 1000;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RefundQuestionCommand {
    /// List the questions that still take an answer, those first whose deadline is nearest
    List(ListQuestionsArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto refund-question list\n  attesto refund-question list --due-within 2h \\\n    --tenant tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"
)]
pub(crate) struct ListQuestionsArgs {
    /// Tenant whose purchases they are about [default: all tenants]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,

    /// Only questions whose deadline is at most so far away: 2h, 30m
    #[arg(long, value_name = "DURATION", value_parser = parse_up_to(MAX_DUE_WITHIN_DAYS))]
    due_within: Option<Duration>,

    /// The most questions
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_LISTED)))]
    limit: u16,
}

pub(crate) async fn run(
    command: RefundQuestionCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        RefundQuestionCommand::List(arguments) => list_questions(arguments, context).await,
    }
}

async fn list_questions(
    arguments: ListQuestionsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    if let Some(tenant) = &arguments.tenant {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let query = OpenQuestionQuery {
        tenant: arguments.tenant,
        due_within: arguments.due_within,
        after: None,
        limit: arguments.limit.into(),
    };
    let page = load_open_questions(&database, &query).await?;
    let rows: Vec<Value> = page.questions.iter().map(table_row).collect();
    context.output.write_rows(
        &rows,
        &[
            "tenantId",
            "source",
            "purchase",
            "askedAt",
            "answerBy",
            "remaining",
            "defaultAnswerAt",
        ],
        "No store waits for an answer about a refund.",
    )?;
    if page.next.is_some() {
        let limit = arguments.limit;
        let note = format!("There are more than {limit}: --limit shows more, up to {MAX_LISTED}.");
        context.output.write_note(&note)?;
    }
    Ok(())
}

/// The question as in the answer of the route, and with what the table shows beside it.
fn table_row(question: &OpenQuestion) -> Value {
    let mut row = json!(question);
    let purchase = question
        .transaction_id
        .as_ref()
        .or(question.order_id.as_ref());
    row["purchase"] = json!(purchase);
    row["remaining"] = json!(hours_and_minutes(question.remaining_seconds));
    row
}

fn hours_and_minutes(seconds: u64) -> String {
    let minutes = seconds / 60;
    format!("{}h {:02}m", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_hours_and_minutes() {
        for (seconds, text) in [
            (0, "0h 00m"),
            (59, "0h 00m"),
            (7_199, "1h 59m"),
            (86_400, "24h 00m"),
        ] {
            assert_eq!(hours_and_minutes(seconds), text);
        }
    }
}
