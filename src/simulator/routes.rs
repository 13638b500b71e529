//! The simulator over HTTP: one port, told apart by the first part of the path.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use url::form_urlencoded;

use super::context::SimulatorContext;
use super::request::{SimulatorRequest, SimulatorResponse, percent_decode_segment};
use super::state::apple::SimulatedEnvironment;
use super::{app_store_api, control, play_api};

/// Everything the simulator answers.
pub(super) fn build_router(shared: Arc<SimulatorContext>) -> Router {
    Router::new().fallback(handle_request).with_state(shared)
}

async fn handle_request(
    State(shared): State<Arc<SimulatorContext>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let call = parse_request(&method, &uri, &headers, &body);
    let reply = dispatch_request(&shared, &call);
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    build_response(reply)
}

fn dispatch_request(shared: &Arc<SimulatorContext>, call: &SimulatorRequest) -> SimulatorResponse {
    let segments: Vec<&str> = call.path_segments.iter().map(String::as_str).collect();
    let apple = |environment: SimulatedEnvironment| {
        app_store_api::handle_request(shared, environment, call)
    };
    let (place, reply) = match segments.as_slice() {
        ["apple", "production", ..] => {
            ("apple/production", apple(SimulatedEnvironment::Production))
        }
        ["apple", "sandbox", ..] => ("apple/sandbox", apple(SimulatedEnvironment::Sandbox)),
        ["google", "play", ..] => (
            "google/play",
            play_api::handle_request(shared, "play", call),
        ),
        ["google", "token"] => (
            "google/token",
            play_api::handle_request(shared, "token", call),
        ),
        ["google", "certs"] => (
            "google/certs",
            play_api::handle_request(shared, "certs", call),
        ),
        ["control", ..] | [] => return control::http::handle_request(shared, call),
        _ => {
            return SimulatorResponse::control_error(
                404,
                "Nothing is simulated at this path. GET /control says what is.",
            );
        }
    };
    let below = call.path.get(place.len() + 1..).unwrap_or_default();
    shared.record_request(place, below, call, &reply);
    reply
}

fn parse_request(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> SimulatorRequest {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let query = uri.query().unwrap_or_default();
    SimulatorRequest {
        method: method.to_string(),
        path: uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        path_segments: uri
            .path()
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(percent_decode_segment)
            .collect(),
        query: form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect(),
        bearer_token: text(header::AUTHORIZATION)
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::to_owned),
        wants_json: text(header::ACCEPT).is_some_and(|value| value.contains("json")),
        host: text(header::HOST)
            .or_else(|| uri.host())
            .unwrap_or("localhost")
            .to_owned(),
        body: body.to_vec(),
    }
}

fn build_response(reply: SimulatorResponse) -> Response {
    let body = if reply.cut {
        let half = Bytes::copy_from_slice(&reply.body[..reply.body.len() / 2]);
        let broken = async {
            // Long enough for the first half to be on its way; an error at once would swallow it.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        };
        let half = futures_util::stream::once(async { Ok(half) });
        Body::from_stream(half.chain(futures_util::stream::once(broken)))
    } else {
        Body::from(reply.body)
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
