//! Something that happens at a store, and the event it becomes at the callback.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::demo_callback::ReceivedDelivery;
use super::environment::DevEnvironment;
use super::example_request::format_json_shortened;
use super::example_request::print_stdout;
use crate::cli::context::CommandError;

/// How long an event may take.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens, and what must come of it.
struct ExampleStoreEvent<'a> {
    title: &'static str,
    /// Where the control API makes it happen.
    control_url: String,
    event_type: &'static str,
    /// `subject.key` of the event: what stays the same over a purchase's life.
    subject_key: &'a str,
}

/// What came of it.
struct StoreEventResult {
    /// What the control API answered.
    response: Value,
    delivery: ReceivedDelivery,
    elapsed: Duration,
}

/// Lets things happen one after the other, each with the `curl` line that does the same and the event that comes of it.
/// Returns how many there were. `asked` is the number of questions before them.
pub(super) async fn run_store_events(
    stage: &mut DevEnvironment,
    asked: usize,
) -> Result<usize, CommandError> {
    let control = stage.control_url();
    let apple = stage.apple_transaction().clone();
    let google = stage.google_subscription().purchase_token.clone();
    let mut number = asked;
    let mut next = || {
        number += 1;
        number
    };
    let renewal = ExampleStoreEvent {
        title: "An App Store subscription renews. Apple tells Attesto, Attesto tells the callback.",
        control_url: format!(
            "{control}/apple/transactions/{}/renew",
            apple.transaction_id
        ),
        event_type: "subscription.renewed",
        subject_key: &apple.original_transaction_id,
    };
    let renewed = renewal.run_and_print(stage, next()).await?;
    let renewal = renewed["transactionId"].as_str().unwrap_or_default();
    ExampleStoreEvent {
        title: "Apple gives the money for that back.",
        control_url: format!("{control}/apple/transactions/{renewal}/refund"),
        event_type: "subscription.refunded",
        subject_key: &apple.original_transaction_id,
    }
    .run_and_print(stage, next())
    .await?;
    ExampleStoreEvent {
        title: "A Google Play subscription renews.",
        control_url: format!("{control}/google/subscriptions/{google}/renew"),
        event_type: "subscription.renewed",
        subject_key: &google,
    }
    .run_and_print(stage, next())
    .await?;
    Ok(number - asked)
}

impl ExampleStoreEvent<'_> {
    /// Shows it, and judges the event. Returns what the control API answered.
    async fn run_and_print(
        &self,
        stage: &mut DevEnvironment,
        number: usize,
    ) -> Result<Value, CommandError> {
        print_stdout(&format!(
            "\n{number}. {}\n\ncurl -s -X POST {}\n\n",
            self.title, self.control_url
        ));
        let refused = |problem: &str| CommandError::failed(format!("event {number}: {problem}"));
        let outcome = self
            .trigger_and_wait(stage)
            .await
            .map_err(|problem| refused(&problem))?;
        print_stdout(&format!(
            "callback <- {}, after {} ms\n{}\n",
            outcome.delivery.summary_line(),
            outcome.elapsed.as_millis(),
            format_json_shortened(&outcome.delivery.body)
        ));
        if !outcome.delivery.is_signature_valid {
            return Err(refused("its signature does not verify"));
        }
        Ok(outcome.response)
    }

    async fn trigger_and_wait(
        &self,
        stage: &mut DevEnvironment,
    ) -> Result<StoreEventResult, String> {
        let begun = Instant::now();
        let asked = stage.http_client().post(&self.control_url).send();
        let answer = asked.await.map_err(|problem| problem.to_string())?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("the simulated store answered {status}"));
        }
        let answer = answer.json().await.map_err(|problem| problem.to_string())?;
        let until = tokio::time::Instant::now() + EVENT_TIMEOUT;
        while let Ok(Some(arrival)) =
            tokio::time::timeout_at(until, stage.callback().next_delivery()).await
        {
            let subject = arrival.body.pointer("/subject/key");
            if subject.and_then(Value::as_str) == Some(self.subject_key)
                && arrival.event_field("event") == self.event_type
            {
                return Ok(StoreEventResult {
                    response: answer,
                    delivery: arrival,
                    elapsed: begun.elapsed(),
                });
            }
            // An earlier run may have left something to be delivered.
            print_stdout(&format!("callback <- {}\n", arrival.summary_line()));
        }
        Err(format!(
            "{} did not arrive within {} seconds",
            self.event_type,
            EVENT_TIMEOUT.as_secs()
        ))
    }
}
