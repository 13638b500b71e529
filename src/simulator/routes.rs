//! Every route of the simulator: the control API, and the stores, which the first parts of the path tell apart.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;

use super::context::SimulatorContext;
use super::request::{SimulatorRequest, SimulatorResponse};
use super::state::SimulatorError;
use super::state::apple::SimulatedEnvironment;
use super::{app_store_api, control, play_api};

pub(super) fn build_router(context: Arc<SimulatorContext>) -> Router {
    control::router()
        .fallback(handle_store_request)
        .method_not_allowed_fallback(handle_store_request)
        .with_state(context)
}

async fn handle_store_request(
    State(context): State<Arc<SimulatorContext>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = SimulatorRequest::new(&method, &uri, &headers, body);
    let segments: Vec<&str> = request.path_segments.iter().map(String::as_str).collect();
    let apple = |environment| app_store_api::handle_request(&context, environment, &request);
    let play = |service| match control::GoogleScenario::new(context.clone()).apply_rules() {
        Ok(()) => play_api::handle_request(&context, service, &request),
        Err(_) => SimulatorResponse::html_error_page(500),
    };
    let (place, response) = match segments.as_slice() {
        ["apple", "production", ..] => {
            ("apple/production", apple(SimulatedEnvironment::Production))
        }
        ["apple", "sandbox", ..] => ("apple/sandbox", apple(SimulatedEnvironment::Sandbox)),
        ["google", "play", ..] => ("google/play", play("play")),
        ["google", "token"] => ("google/token", play("token")),
        ["google", "certs"] => ("google/certs", play("certs")),
        ["control", ..] => {
            return SimulatorError::not_found(format!(
                "The control API has no {method} {uri}. GET /control lists what it has."
            ))
            .into_response();
        }
        _ => {
            return SimulatorError::not_found(
                "Nothing is simulated at this path. GET /control lists what is.",
            )
            .into_response();
        }
    };
    context.record_request(place, &request, &response);
    if !response.delay.is_zero() {
        tokio::time::sleep(response.delay).await;
    }
    build_response(response)
}

fn build_response(response: SimulatorResponse) -> Response {
    let body = if response.cut {
        let half = Bytes::copy_from_slice(&response.body[..response.body.len() / 2]);
        let broken = async {
            // Gives the first half time to leave: an error at once would discard it.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        };
        let half = futures_util::stream::once(async { Ok(half) });
        Body::from_stream(half.chain(futures_util::stream::once(broken)))
    } else {
        Body::from(response.body)
    };
    (response.status, response.headers, body).into_response()
}
