//! Something that happens at a store, and the event it becomes at the callback.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::callback::Arrival;
use super::question::shown;
use super::say;
use super::stage::Stage;
use crate::cli::context::Failure;

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens, and what must come of it.
struct Happening {
    title: &'static str,
    /// Where the control API makes it happen.
    url: String,
    event: &'static str,
    /// `subject.key` of the event: what stays the same over a purchase's life.
    subject: String,
}

/// Makes each happen, shows the `curl` line that does the same, and the event. Returns how many there were. `asked` is
/// the number of questions before them.
pub(super) async fn show(stage: &mut Stage, asked: usize) -> Result<usize, Failure> {
    let control = stage.control_url();
    let google = stage.google_subscription().purchase_token.clone();
    let happenings = [Happening {
        title: "A Google Play subscription renews. Google tells Attesto, Attesto tells the callback.",
        url: format!("{control}/google/subscriptions/{google}/renew"),
        event: "subscription.renewed",
        subject: google,
    }];
    let mut objections = Vec::new();
    for (number, happening) in (asked + 1..).zip(&happenings) {
        say(&format!(
            "\n{number}. {}\n\ncurl -s -X POST {}\n\n",
            happening.title, happening.url
        ));
        match happen(stage, happening).await {
            Ok((arrival, after)) => {
                say(&format!(
                    "callback <- {}, after {} ms\n{}\n",
                    arrival.line(),
                    after.as_millis(),
                    shown(&arrival.body)
                ));
                if !arrival.is_signed {
                    objections.push(format!("event {number}: its signature does not verify"));
                }
            }
            Err(problem) => objections.push(format!("event {number}: {problem}")),
        }
    }
    if objections.is_empty() {
        Ok(happenings.len())
    } else {
        Err(Failure::refused(objections.join("\n")))
    }
}

async fn happen(stage: &mut Stage, happening: &Happening) -> Result<(Arrival, Duration), String> {
    let begun = Instant::now();
    let asked = stage.client().post(&happening.url).send();
    let answer = asked.await.map_err(|problem| problem.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("the simulated store answered {}", answer.status()));
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    // An earlier run may have left something to be delivered.
    while let Ok(Some(arrival)) = tokio::time::timeout_at(until, stage.callback().next()).await {
        let subject = arrival.body.pointer("/subject/key");
        if subject.and_then(Value::as_str) == Some(&happening.subject)
            && arrival.text("event") == happening.event
        {
            return Ok((arrival, begun.elapsed()));
        }
        say(&format!("callback <- {}\n", arrival.line()));
    }
    Err(format!(
        "{} did not arrive within {} seconds",
        happening.event,
        PATIENCE.as_secs()
    ))
}
