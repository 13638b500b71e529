//! Something that happens at a store, and the event it becomes at the callback.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::callback::Arrival;
use super::question::say;
use super::question::shown;
use super::stage::Stage;
use crate::cli::context::Failure;

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens, and what must come of it.
struct Happening<'a> {
    title: &'static str,
    /// Where the control API makes it happen.
    url: String,
    event: &'static str,
    /// `subject.key` of the event: what stays the same over a purchase's life.
    subject: &'a str,
}

/// What came of it.
struct Outcome {
    /// What the control API answered.
    answer: Value,
    arrival: Arrival,
    after: Duration,
}

/// Lets things happen one after the other, each with the `curl` line that does the same and the event that comes of it.
/// Returns how many there were. `asked` is the number of questions before them.
pub(super) async fn show(stage: &mut Stage, asked: usize) -> Result<usize, Failure> {
    let control = stage.control_url();
    let apple = stage.apple_transaction().clone();
    let google = stage.google_subscription().purchase_token.clone();
    let mut number = asked;
    let mut next = || {
        number += 1;
        number
    };
    let renewal = Happening {
        title: "An App Store subscription renews. Apple tells Attesto, Attesto tells the callback.",
        url: format!(
            "{control}/apple/transactions/{}/renew",
            apple.transaction_id
        ),
        event: "subscription.renewed",
        subject: &apple.original_transaction_id,
    };
    let renewed = renewal.show(stage, next()).await?;
    let renewal = renewed["transactionId"].as_str().unwrap_or_default();
    Happening {
        title: "Apple gives the money for that back.",
        url: format!("{control}/apple/transactions/{renewal}/refund"),
        event: "subscription.refunded",
        subject: &apple.original_transaction_id,
    }
    .show(stage, next())
    .await?;
    Happening {
        title: "A Google Play subscription renews.",
        url: format!("{control}/google/subscriptions/{google}/renew"),
        event: "subscription.renewed",
        subject: &google,
    }
    .show(stage, next())
    .await?;
    Ok(number - asked)
}

impl Happening<'_> {
    /// Shows it, and judges the event. Returns what the control API answered.
    async fn show(&self, stage: &mut Stage, number: usize) -> Result<Value, Failure> {
        say(&format!(
            "\n{number}. {}\n\ncurl -s -X POST {}\n\n",
            self.title, self.url
        ));
        let refused = |problem: &str| Failure::refused(format!("event {number}: {problem}"));
        let outcome = self
            .happen(stage)
            .await
            .map_err(|problem| refused(&problem))?;
        say(&format!(
            "callback <- {}, after {} ms\n{}\n",
            outcome.arrival.line(),
            outcome.after.as_millis(),
            shown(&outcome.arrival.body)
        ));
        if !outcome.arrival.is_signed {
            return Err(refused("its signature does not verify"));
        }
        Ok(outcome.answer)
    }

    async fn happen(&self, stage: &mut Stage) -> Result<Outcome, String> {
        let begun = Instant::now();
        let asked = stage.client().post(&self.url).send();
        let answer = asked.await.map_err(|problem| problem.to_string())?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("the simulated store answered {status}"));
        }
        let answer = answer.json().await.map_err(|problem| problem.to_string())?;
        let until = tokio::time::Instant::now() + PATIENCE;
        while let Ok(Some(arrival)) = tokio::time::timeout_at(until, stage.callback().next()).await
        {
            let subject = arrival.body.pointer("/subject/key");
            if subject.and_then(Value::as_str) == Some(self.subject)
                && arrival.text("event") == self.event
            {
                return Ok(Outcome {
                    answer,
                    arrival,
                    after: begun.elapsed(),
                });
            }
            // An earlier run may have left something to be delivered.
            say(&format!("callback <- {}\n", arrival.line()));
        }
        Err(format!(
            "{} did not arrive within {} seconds",
            self.event,
            PATIENCE.as_secs()
        ))
    }
}
