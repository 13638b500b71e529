//! The steps of `attesto dev`: start everything, send the example requests, make changes at the stores.

use std::convert::Infallible;
use std::fmt::Write as _;

use serde_json::json;

use super::super::callback_receiver::CallbackReceiver;
use super::args::DevArgs;
use super::environment::{self, DEMO_PRODUCT_ID, DevEnvironment};
use super::example_request::{
    ExampleBody, ExampleRequest, ExpectedResponse, format_json_shortened, print_stdout,
};
use super::store_events;
use crate::base::error::to_sentence;
use crate::base::shutdown::ShutdownSignals;
use crate::cli::context::{CommandContext, CommandError};
use crate::simulator::JwsForgery;

pub(crate) async fn run(args: DevArgs, context: &CommandContext) -> Result<(), CommandError> {
    let mut signals = ShutdownSignals::register_handlers().map_err(|problem| {
        CommandError::failed(to_sentence(format!("cannot wait for signals: {problem}")))
    })?;
    let mut environment = tokio::select! {
        environment = DevEnvironment::start(&args, context) => environment?,
        _ = signals.next_signal() => return Ok(()),
    };
    let outcome = tokio::select! {
        outcome = run_walkthrough(&mut environment, args.once) => outcome,
        _ = signals.next_signal() => Ok(()),
    };
    if outcome.is_ok() && !args.once {
        let signal = tokio::select! {
            signal = signals.next_signal() => signal,
            never = print_deliveries(environment.callback()) => match never {},
        };
        print_stdout(&format!(
            "\n{signal}: stopping the service, the simulated stores and Postgres.\n"
        ));
    }
    environment.stop().await;
    outcome
}

async fn print_deliveries(callback: &mut CallbackReceiver) -> Infallible {
    while let Some(delivery) = callback.next_delivery().await {
        print_stdout(&format!("callback <- {}\n", delivery.summary_line()));
    }
    std::future::pending().await
}

async fn run_walkthrough(environment: &mut DevEnvironment, once: bool) -> Result<(), CommandError> {
    print_stdout(&format_introduction(environment));
    let requests = run_example_requests(environment).await?;
    let events = store_events::run_store_events(environment, requests).await?;
    print_stdout(&format_conclusion(environment, requests, events, once));
    Ok(())
}

/// Sends, prints and checks the example requests. Returns their number.
async fn run_example_requests(environment: &DevEnvironment) -> Result<usize, CommandError> {
    let requests = build_example_requests(environment)?;
    let client = environment.http_client();
    let mut problems = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        print_stdout(&format!(
            "\n{}. {}\n\n{}\n\n",
            number + 1,
            request.title,
            request.curl_command()
        ));
        match request.send_request(client).await {
            Ok(response) => {
                print_stdout(&format!(
                    "HTTP {}\n{}\n",
                    response.status,
                    format_json_shortened(&response.body)
                ));
                let mismatches = request.find_mismatches(&response);
                problems.extend(
                    mismatches
                        .into_iter()
                        .map(|it| to_sentence(format!("request {}: {it}", number + 1))),
                );
            }
            Err(problem) => {
                problems.push(to_sentence(format!("request {}: {problem}", number + 1)));
            }
        }
    }
    if !problems.is_empty() {
        return Err(CommandError::failed(problems.join("\n")));
    }
    Ok(requests.len())
}

fn format_introduction(environment: &DevEnvironment) -> String {
    let mut text = format!(
        "Attesto {} is running in development mode. Everything runs on this machine; no purchase is real.\n\n",
        crate::VERSION
    );
    let control = format!(
        "{} (what they can do: curl -s {})",
        environment.simulator_url(),
        environment.control_url()
    );
    for (name, value) in [
        ("service", environment.service_url().to_owned()),
        ("simulated stores", control),
        ("database", environment.database_description()),
        ("tenant", environment.tenant_id().to_string()),
        ("its callback", environment.callback_url()),
    ] {
        let _ = writeln!(text, "  {name:<18}{value}");
    }
    for remark in environment.remarks() {
        let _ = writeln!(text, "\n{remark}");
    }
    text
}

/// The requests of a backend, and the answers it must get.
fn build_example_requests(
    environment: &DevEnvironment,
) -> Result<Vec<ExampleRequest>, CommandError> {
    let (apple, google) = (
        environment.apple_transaction(),
        environment.google_subscription(),
    );
    let (id, control) = (&apple.transaction_id, environment.control_url());
    let failed =
        |problem: crate::simulator::SimulatorError| CommandError::failed(problem.to_string());
    let jws = environment
        .simulator()
        .apple()
        .sign_transaction(id)
        .map_err(failed)?;
    let forged = environment
        .simulator()
        .apple()
        .forge_transaction(id, JwsForgery::AlteredPayload)
        .map_err(failed)?;
    let signed = |value: String, path: String| ExampleBody::Templated {
        before: "{\"signedTransaction\":\"".to_owned(),
        value,
        url: format!("'{control}/apple/{path}'"),
        after: "\"}".to_owned(),
    };
    let ask = |store: &str, title: &str, body: ExampleBody, fields| ExampleRequest {
        title: title.to_owned(),
        url: format!("{}/v1/{store}/verify", environment.service_url()),
        api_key: environment.api_key().to_owned(),
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
            "Is this App Store transaction real? Attesto asks Apple, and verifies what Apple signed.",
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
            "The same transaction as the app has it: a JWS, verified without a request to Apple.",
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

fn format_conclusion(
    environment: &DevEnvironment,
    requests: usize,
    events: usize,
    once: bool,
) -> String {
    let mut text = format!(
        "\nAll {requests} answers are right, and all {events} events arrived, signed.\n\n  API key   {}\n",
        environment.api_key()
    );
    if once {
        return text;
    }
    let (control, id) = (
        environment.control_url(),
        &environment.apple_transaction().transaction_id,
    );
    let _ = write!(
        text,
        "\nPaste any line above into another terminal. To see an answer change, refund the purchase and repeat the request;\n\
         the event is sent to the callback and shown here:\n\n\
         curl -s -X POST {control}/apple/transactions/{id}/refund\n"
    );
    let _ = write!(
        text,
        "\nTo use the command line with this database, in another terminal:\n\n{}\n\
         The log is in {}. Ctrl-C stops everything; the data is kept for the next run.\n",
        environment.shell_exports(),
        environment.log_path().display()
    );
    text
}
