//! The show: everything is started, each question is asked and printed, then something happens at the stores.

use std::convert::Infallible;
use std::fmt::Write as _;

use serde_json::json;

use super::args::DevArgs;
use super::demo_callback::DemoCallback;
use super::environment::{self, DEMO_PRODUCT_ID, DevEnvironment};
use super::example_request::{
    ExampleBody, ExampleRequest, ExpectedResponse, format_json_shortened, print_stdout,
};
use super::store_events;
use crate::base::shutdown::ShutdownSignals;
use crate::cli::context::{CommandContext, CommandError};
use crate::simulator::JwsForgery;

/// Runs the command.
pub(crate) async fn run(args: DevArgs, context: &CommandContext) -> Result<(), CommandError> {
    let mut signals = ShutdownSignals::register_handlers()
        .map_err(|problem| CommandError::failed(format!("cannot wait for signals: {problem}")))?;
    let mut stage = tokio::select! {
        stage = DevEnvironment::start(&args, context) => stage?,
        _ = signals.next_signal() => return Ok(()),
    };
    let asked = tokio::select! {
        asked = run_walkthrough(&mut stage, args.once) => asked,
        _ = signals.next_signal() => Ok(()),
    };
    if asked.is_ok() && !args.once {
        let signal = tokio::select! {
            signal = signals.next_signal() => signal,
            never = print_deliveries(stage.callback()) => match never {},
        };
        print_stdout(&format!(
            "\n{signal}: stopping the service, the simulated stores and Postgres.\n"
        ));
    }
    stage.stop().await;
    asked
}

/// Events as they arrive.
async fn print_deliveries(callback: &mut DemoCallback) -> Infallible {
    while let Some(arrival) = callback.next_delivery().await {
        print_stdout(&format!("callback <- {}\n", arrival.summary_line()));
    }
    std::future::pending().await
}

async fn run_walkthrough(stage: &mut DevEnvironment, once: bool) -> Result<(), CommandError> {
    print_stdout(&format_introduction(stage));
    let asked = run_example_requests(stage).await?;
    let happened = store_events::run_store_events(stage, asked).await?;
    print_stdout(&format_conclusion(stage, asked, happened, once));
    Ok(())
}

/// Asks, and returns how many questions that were.
async fn run_example_requests(stage: &DevEnvironment) -> Result<usize, CommandError> {
    let questions = build_example_requests(stage)?;
    let client = stage.http_client();
    let mut objections = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        print_stdout(&format!(
            "\n{}. {}\n\n{}\n\n",
            number + 1,
            question.title,
            question.curl_command()
        ));
        match question.send_request(client).await {
            Ok(answer) => {
                print_stdout(&format!(
                    "HTTP {}\n{}\n",
                    answer.status,
                    format_json_shortened(&answer.body)
                ));
                let wrong = question.find_mismatches(&answer);
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
        return Err(CommandError::failed(objections.join("\n")));
    }
    Ok(questions.len())
}

fn format_introduction(stage: &DevEnvironment) -> String {
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
        ("service", stage.service_url().to_owned()),
        ("simulated stores", control),
        ("database", stage.database_description()),
        ("tenant", stage.tenant_id().to_string()),
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
fn build_example_requests(stage: &DevEnvironment) -> Result<Vec<ExampleRequest>, CommandError> {
    let (apple, google) = (stage.apple_transaction(), stage.google_subscription());
    let (id, control) = (&apple.transaction_id, stage.control_url());
    let refused =
        |problem: crate::simulator::SimulatorError| CommandError::failed(problem.to_string());
    let jws = stage
        .simulator()
        .apple()
        .sign_transaction(id)
        .map_err(refused)?;
    let forged = stage
        .simulator()
        .apple()
        .forge_transaction(id, JwsForgery::AlteredPayload)
        .map_err(refused)?;
    let signed = |value: String, path: String| ExampleBody::Templated {
        before: "{\"signedTransaction\":\"".to_owned(),
        value,
        url: format!("'{control}/apple/{path}'"),
        after: "\"}".to_owned(),
    };
    let ask = |store: &str, title: &str, body: ExampleBody, fields| ExampleRequest {
        title: title.to_owned(),
        url: format!("{}/v1/{store}/verify", stage.service_url()),
        api_key: stage.api_key().to_owned(),
        body,
        expected_response: ExpectedResponse {
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
            ExampleBody::Json(json!({ "transactionId": id }).to_string()),
            vec![
                ("/valid", json!(true)),
                ("/status", json!("active")),
                ("/environment", json!("production")),
                ("/transaction/transactionId", json!(id)),
                ("/transaction/productId", json!(DEMO_PRODUCT_ID)),
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
            ExampleBody::Json(
                json!({ "packageName": environment::DEMO_APP_ID, "type": "subscription", "purchaseToken": token }).to_string(),
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
            ExampleBody::Json(json!({ "transactionId": "1999999999999999" }).to_string()),
            no("TRANSACTION_NOT_FOUND"),
        ),
    ])
}

fn format_conclusion(stage: &DevEnvironment, asked: usize, happened: usize, once: bool) -> String {
    let mut text = format!(
        "\nAll {asked} answers are right, and all {happened} events arrived, signed.\n\n  API key   {}\n",
        stage.api_key()
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
        stage.shell_exports(),
        stage.log_path().display()
    );
    text
}
