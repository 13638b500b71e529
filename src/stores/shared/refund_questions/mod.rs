//! Questions of the stores about refunds: Apple's `CONSUMPTION_REQUEST` and Google's pending refund review.
//!
//! Guarantees: a question is listed before its notification is answered; the answer of the tenant's settings is sent when the deadline
//! comes near, and not if the backend has sent one, or is sending it; a store's refusal is kept, anything else is
//! tried again until the deadline.
//!
//! - [`open_questions`]: those that still take an answer, for people and backends
//! - [`routes`]: `GET /v1/refund-questions`
//! - [`store`]: the list of questions
//! - [`watch`]: the loop that sends the answers of tenants' settings

pub(crate) mod open_questions;
pub(crate) mod routes;
pub(crate) mod store;
mod watch;

pub(crate) use store::{
    BeginAnswerError, BegunAnswer, NewRefundQuestion, RefundQuestion, RefundQuestionKey,
};
pub(crate) use watch::{DefaultAnswer, DefaultAnswers, RefundAnswerMetrics, RefundAnswerSource};
pub use watch::{RefundAnswerRound, RefundAnswerWatch};
