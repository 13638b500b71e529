//! Changes at the simulated stores, and the events that follow at the callback.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::callback_receiver::{ReceivedDelivery, SignatureCheck};
use super::environment::DevEnvironment;
use super::example_request::format_json_shortened;
use super::example_request::print_stdout;
use crate::base::error::to_sentence;
use crate::cli::context::CommandError;

const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

struct ExampleStoreEvent<'a> {
    title: &'static str,
    /// Operation of the simulator's control API that makes the change.
    control_url: String,
    event_type: &'static str,
    /// `subject.key` of the expected event.
    subject_key: &'a str,
}

struct StoreEventResult {
    /// Answer of the control API.
    response: Value,
    delivery: ReceivedDelivery,
    elapsed: Duration,
}

/// Makes the changes one after the other, and prints each as a `curl` line with the event that follows. Returns their
/// number. `request_count` is the number of example requests before them.
pub(super) async fn run_store_events(
    environment: &mut DevEnvironment,
    request_count: usize,
) -> Result<usize, CommandError> {
    let control = environment.control_url();
    let apple = environment.apple_transaction().clone();
    let google = environment.google_subscription().purchase_token.clone();
    let mut number = request_count;
    let mut next = || {
        number += 1;
        number
    };
    let renewal = ExampleStoreEvent {
        title: "An App Store subscription renews. Apple notifies Attesto, and Attesto sends the event to the callback.",
        control_url: format!(
            "{control}/apple/transactions/{}/renew",
            apple.transaction_id
        ),
        event_type: "subscription.renewed",
        subject_key: &apple.original_transaction_id,
    };
    let renewed = renewal.run_and_print(environment, next()).await?;
    let renewal = renewed["transactionId"].as_str().unwrap_or_default();
    ExampleStoreEvent {
        title: "Apple refunds that renewal.",
        control_url: format!("{control}/apple/transactions/{renewal}/refund"),
        event_type: "subscription.refunded",
        subject_key: &apple.original_transaction_id,
    }
    .run_and_print(environment, next())
    .await?;
    ExampleStoreEvent {
        title: "A Google Play subscription renews.",
        control_url: format!("{control}/google/subscriptions/{google}/renew"),
        event_type: "subscription.renewed",
        subject_key: &google,
    }
    .run_and_print(environment, next())
    .await?;
    Ok(number - request_count)
}

impl ExampleStoreEvent<'_> {
    /// Returns the answer of the control API.
    async fn run_and_print(
        &self,
        environment: &mut DevEnvironment,
        number: usize,
    ) -> Result<Value, CommandError> {
        print_stdout(&format!(
            "\n{number}. {}\n\ncurl -s -X POST {}\n\n",
            self.title, self.control_url
        ));
        let failed =
            |problem: &str| CommandError::failed(to_sentence(format!("event {number}: {problem}")));
        let outcome = self
            .trigger_and_wait(environment)
            .await
            .map_err(|problem| failed(&problem))?;
        print_stdout(&format!(
            "callback <- {}, after {} ms\n{}\n",
            outcome.delivery.summary_line(),
            outcome.elapsed.as_millis(),
            format_json_shortened(&outcome.delivery.body)
        ));
        if outcome.delivery.signature != SignatureCheck::Verified {
            return Err(failed("its signature does not verify"));
        }
        Ok(outcome.response)
    }

    async fn trigger_and_wait(
        &self,
        environment: &mut DevEnvironment,
    ) -> Result<StoreEventResult, String> {
        let started = Instant::now();
        let request = environment.http_client().post(&self.control_url).send();
        let response = request.await.map_err(|problem| problem.to_string())?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("the simulated store answered {status}"));
        }
        let response = response
            .json()
            .await
            .map_err(|problem| problem.to_string())?;
        let deadline = tokio::time::Instant::now() + EVENT_TIMEOUT;
        while let Ok(Some(delivery)) =
            tokio::time::timeout_at(deadline, environment.callback().next_delivery()).await
        {
            let subject = delivery.body.pointer("/subject/key");
            if subject.and_then(Value::as_str) == Some(self.subject_key)
                && delivery.event_field("event") == self.event_type
            {
                return Ok(StoreEventResult {
                    response,
                    delivery,
                    elapsed: started.elapsed(),
                });
            }
            // A delivery that an earlier run left waiting.
            print_stdout(&format!("callback <- {}\n", delivery.summary_line()));
        }
        Err(format!(
            "{} did not arrive within {} seconds",
            self.event_type,
            EVENT_TIMEOUT.as_secs()
        ))
    }
}
