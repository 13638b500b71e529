//! Why Google gave no purchase: Google says no, or says neither yes nor no.
//!
//! The two are never mixed up: only an answer of Google's about the purchase is a "no". A refused credential, a quota, an
//! outage and the error page of a gateway are not.

use std::time::Duration;

use crate::outbound::{UpstreamError, push_path_segment};
use crate::stores::shared::client::{MAX_CALLS_PER_TENANT, TooManyCallsError};

/// Google's quotas are per minute: the wait that is named when Google names none.
pub(super) const DEFAULT_RETRY_AFTER: Duration = Duration::from_mins(1);
/// No code of Google's is longer.
const MAX_CODE_LENGTH: usize = 64;

/// Why a question about a purchase brought none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PurchaseLookupError {
    /// Google says that there is no such purchase.
    #[error("{0}")]
    NotFound(#[from] GoogleNotFound),
    /// Google says that another app made the token.
    #[error("the purchase is of another app")]
    OtherApp,
    /// Google says that the token is of another product.
    #[error("the purchase is of another product")]
    OtherProduct,
    /// Google said neither yes nor no.
    #[error("{0}")]
    Api(#[from] GoogleApiError),
}

/// In which way there is no such purchase, as a sentence for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GoogleNotFound {
    /// Google does not know the token, or not yet: for some 100 ms after a purchase it does not know what it has sold.
    #[error("Google knows no purchase with this token.")]
    Unknown,
    /// It is not a token.
    #[error("Google knows no purchase with this token.")]
    Malformed,
    /// Replaced by another purchase, or expired for so long that Google has deleted it.
    #[error(
        "This purchase is gone: Google knew it, but it was replaced, or it ended so long ago that Google no longer tells."
    )]
    Gone,
    /// A product's token was asked about as a subscription, or the reverse.
    #[error(
        "Google does not know this token as a purchase of the type asked about; is it of the other type?"
    )]
    OtherType,
}

/// Why a call to Google says neither yes nor no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GoogleApiError {
    /// The token endpoint or Play refused the service account: it was deleted, its key was disabled, it lacks the
    /// permission, or this machine's clock is wrong.
    #[error("Google refused the service account: status {status}, {}: {}", .reason.as_deref().unwrap_or("no reason"), .message.as_deref().unwrap_or("no message"))]
    Unauthorized {
        status: u16,
        /// Google's code, such as `permissionDenied` or `invalid_grant`.
        reason: Option<String>,
        /// Google's sentence, for the operator.
        message: Option<String>,
    },
    /// Play knows no app of the configured package name.
    #[error("Google knows no app of this package name: status 404, {reason}")]
    UnknownApp { reason: String },
    /// The project's quota is used up.
    #[error("Google's quota is used up: status {status}")]
    RateLimited { status: u16, retry_after: Duration },
    /// Any other answer, after retries where those could help.
    #[error("Google answered with status {status}, {}: {}", .reason.as_deref().unwrap_or("no reason"), .message.as_deref().unwrap_or("no message"))]
    Unexpected {
        status: u16,
        reason: Option<String>,
        message: Option<String>,
        /// When to try again, if Google said so.
        retry_after: Option<Duration>,
    },
    /// A success that cannot be read.
    #[error("Google's answer cannot be read: {0}")]
    Unreadable(String),
    /// The connection failed, or the answer did not come in time.
    #[error("Google gave no answer: {0}")]
    NoResponse(#[from] UpstreamError),
    /// [`MAX_CALLS_PER_TENANT`] were running, and none of them ended in time.
    #[error("{MAX_CALLS_PER_TENANT} questions of this tenant are waiting for Google already")]
    TooManyInFlight,
}

impl From<TooManyCallsError> for GoogleApiError {
    fn from(TooManyCallsError: TooManyCallsError) -> Self {
        Self::TooManyInFlight
    }
}

impl PurchaseLookupError {
    /// Takes the purchase token out of Google's sentences, which go to the log.
    pub(super) fn redact_purchase_token(mut self, purchase_token: &str) -> Self {
        let mut encoded = String::new();
        if push_path_segment(&mut encoded, purchase_token).is_some()
            && let Self::Api(
                GoogleApiError::Unauthorized {
                    reason, message, ..
                }
                | GoogleApiError::Unexpected {
                    reason, message, ..
                },
            ) = &mut self
        {
            for text in [reason, message].into_iter().flatten() {
                *text = text.replace(purchase_token, "…").replace(&encoded, "…");
            }
        }
        self
    }
}

impl GoogleApiError {
    /// When to ask again, if Google said so.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Unexpected { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What the log says in production: the kind and Google's own code, nothing of a purchase.
    pub(super) fn class(&self) -> String {
        let code = |reason: &Option<String>| reason.as_deref().unwrap_or("no reason").to_owned();
        match self {
            Self::Unauthorized { status, reason, .. } => {
                format!("google credentials {status} {}", code(reason))
            }
            Self::UnknownApp { reason } => format!("google application 404 {reason}"),
            Self::RateLimited { status, .. } => format!("google quota {status}"),
            Self::Unexpected { status, reason, .. } => {
                format!("google unexpected {status} {}", code(reason))
            }
            Self::Unreadable(_) => "google unreadable".to_owned(),
            Self::NoResponse(UpstreamError::Proxy(_)) => "google egress proxy".to_owned(),
            Self::NoResponse(_) => "google no answer".to_owned(),
            Self::TooManyInFlight => "google crowded".to_owned(),
        }
    }
}

/// Whether this is a code such as Google has, `invalidValue` or `RESOURCE_EXHAUSTED`, which may be repeated in an answer
/// and in any log. Anything else could be the purchase token.
pub(super) fn is_error_code(text: &str) -> bool {
    (1..=MAX_CODE_LENGTH).contains(&text.len())
        && text
            .bytes()
            .all(|letter| letter.is_ascii_alphabetic() || letter == b'_')
}
