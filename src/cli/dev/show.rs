//! The show: everything is started, each question is asked and printed, then something happens at the stores.

use std::convert::Infallible;
use std::fmt::Write as _;

use serde_json::json;

use super::args::Args;
use super::callback::Callback;
use super::happening;
use super::question::{Body, Expected, Question, say, shown};
use super::stage::{self, PRODUCT, Stage};
use crate::cli::context::{Context, Failure};
use crate::shutdown::Signals;
use crate::simulator::Forgery;

/// Runs the command.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let mut signals = Signals::listen()
        .map_err(|problem| Failure::refused(format!("cannot wait for signals: {problem}")))?;
    let mut stage = tokio::select! {
        stage = Stage::set(&args, context) => stage?,
        _ = signals.next() => return Ok(()),
    };
    let asked = tokio::select! {
        asked = show_everything(&mut stage, args.once) => asked,
        _ = signals.next() => Ok(()),
    };
    if asked.is_ok() && !args.once {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            never = show_events(stage.callback()) => match never {},
        };
        say(&format!(
            "\n{signal}: stopping the service, the simulated stores and Postgres.\n"
        ));
    }
    stage.strike().await;
    asked
}

/// Events as they arrive.
async fn show_events(callback: &mut Callback) -> Infallible {
    while let Some(arrival) = callback.next().await {
        say(&format!("callback <- {}\n", arrival.line()));
    }
    std::future::pending().await
}

async fn show_everything(stage: &mut Stage, once: bool) -> Result<(), Failure> {
    say(&introduction(stage));
    let asked = ask_everything(stage).await?;
    let happened = happening::show(stage, asked).await?;
    say(&conclusion(stage, asked, happened, once));
    Ok(())
}

/// Asks, and returns how many questions that were.
async fn ask_everything(stage: &Stage) -> Result<usize, Failure> {
    let questions = questions(stage)?;
    let client = stage.client();
    let mut objections = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        say(&format!(
            "\n{}. {}\n\n{}\n\n",
            number + 1,
            question.title,
            question.curl()
        ));
        match question.ask(client).await {
            Ok(answer) => {
                say(&format!(
                    "HTTP {}\n{}\n",
                    answer.status,
                    shown(&answer.body)
                ));
                let wrong = question.objections(&answer);
                objections.extend(
                    wrong
                        .into_iter()
                        .map(|wrong| format!("question {}: {wrong}", number + 1)),
                );
            }
            Err(problem) => objections.push(format!("question {}: {problem}", number + 1)),
        }
    }
    if !objections.is_empty() {
        return Err(Failure::refused(objections.join("\n")));
    }
    Ok(questions.len())
}

fn introduction(stage: &Stage) -> String {
    let mut text = format!(
        "Attesto {} is running in development mode. Everything is on this machine; nothing is real.\n\n",
        crate::VERSION
    );
    let control = format!(
        "{} (what they can do: curl -s {})",
        stage.simulator_url(),
        stage.control_url()
    );
    for (name, value) in [
        ("service", stage.url().to_owned()),
        ("simulated stores", control),
        ("database", stage.database_note()),
        ("tenant", stage.tenant().to_string()),
        ("its callback", stage.callback_url()),
    ] {
        let _ = writeln!(text, "  {name:<18}{value}");
    }
    for remark in stage.remarks() {
        let _ = writeln!(text, "\n{remark}");
    }
    text
}

/// What a backend asks, and what it must hear.
fn questions(stage: &Stage) -> Result<Vec<Question>, Failure> {
    let (apple, google) = (stage.apple_transaction(), stage.google_subscription());
    let (id, control) = (&apple.transaction_id, stage.control_url());
    let refused = |problem: crate::simulator::Refused| Failure::refused(problem.to_string());
    let jws = stage.simulator().apple().signed(id).map_err(refused)?;
    let forged = stage
        .simulator()
        .apple()
        .forged(id, Forgery::AlteredPayload)
        .map_err(refused)?;
    let signed = |value: String, path: String| Body::Filled {
        before: "{\"signedTransaction\":\"".to_owned(),
        value,
        url: format!("'{control}/apple/{path}'"),
        after: "\"}".to_owned(),
    };
    let ask = |store: &str, title: &str, body: Body, fields| Question {
        title: title.to_owned(),
        url: format!("{}/v1/{store}/verify", stage.url()),
        key: stage.key().to_owned(),
        body,
        expected: Expected {
            status: 200,
            fields,
        },
    };
    let no = |error| vec![("/valid", json!(false)), ("/error", json!(error))];
    let token = &google.purchase_token;
    Ok(vec![
        ask(
            "apple",
            "Is this App Store transaction real? Attesto asks Apple, and checks what Apple signed.",
            Body::Json(json!({ "transactionId": id }).to_string()),
            vec![
                ("/valid", json!(true)),
                ("/status", json!("active")),
                ("/environment", json!("production")),
                ("/transaction/transactionId", json!(id)),
                ("/transaction/productId", json!(PRODUCT)),
            ],
        ),
        ask(
            "apple",
            "The same transaction as the app holds it: a JWS, checked here without asking anyone.",
            signed(jws, format!("transactions/{id}/jws")),
            vec![
                ("/valid", json!(true)),
                ("/status", json!("active")),
                ("/transaction/transactionId", json!(id)),
            ],
        ),
        ask(
            "google",
            "Is this Google Play subscription real?",
            Body::Json(
                json!({ "packageName": stage::APP, "type": "subscription", "purchaseToken": token }).to_string(),
            ),
            vec![
                ("/valid", json!(true)),
                ("/status", json!("active")),
                ("/purchase/purchaseToken", json!(token)),
            ],
        ),
        ask(
            "apple",
            "A forged JWS: the payload was changed after signing.",
            signed(forged, format!("forge?kind=altered-payload&transactionId={id}")),
            no("SIGNATURE_INVALID"),
        ),
        ask(
            "apple",
            "An id that Apple does not know.",
            Body::Json(json!({ "transactionId": "1999999999999999" }).to_string()),
            no("TRANSACTION_NOT_FOUND"),
        ),
    ])
}

fn conclusion(stage: &Stage, asked: usize, happened: usize, once: bool) -> String {
    let mut text = format!(
        "\nAll {asked} answers are right, and all {happened} events arrived, signed.\n\n  API key   {}\n",
        stage.key()
    );
    if once {
        return text;
    }
    let (control, id) = (
        stage.control_url(),
        &stage.apple_transaction().transaction_id,
    );
    let _ = write!(
        text,
        "\nPaste any line above into another terminal. To see an answer change, refund the purchase and ask again;\n\
         the event arrives at the callback and is shown here:\n\n\
         curl -s -X POST {control}/apple/transactions/{id}/refund\n"
    );
    let _ = write!(
        text,
        "\nTo use the command line on this database, in another terminal:\n\n{}\n\
         Log lines go to {}. Ctrl-C stops everything; the data stays for the next run.\n",
        stage.exports(),
        stage.log_path().display()
    );
    text
}
