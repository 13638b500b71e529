//! How one attempt ended.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// In one word, for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeClass {
    /// 2xx, whole and in time.
    Success,
    /// The receiver sent us elsewhere, where we do not go.
    Http3xx,
    /// The receiver refused.
    Http4xx,
    /// The receiver failed. Also a status that HTTP does not have.
    Http5xx,
    /// Not done in time, whichever part took so long.
    Timeout,
    /// The name does not resolve.
    Dns,
    /// No connection, or one that broke, or that does not speak HTTP.
    Connect,
    /// The receiver's certificate does not convince, or the handshake failed.
    Tls,
    /// The address, or the URL itself, is one that must not be called.
    Blocked,
    /// The head of the answer is larger than we read.
    BodyLimit,
    /// Nothing could be signed: the tenant's secrets cannot be read or opened.
    Unsigned,
    /// Somebody else holds this delivery by now; what became of the attempt is not written.
    LeaseLost,
}

impl OutcomeClass {
    /// Each of them, as they are declared.
    pub const ALL: [Self; 12] = [
        Self::Success,
        Self::Http3xx,
        Self::Http4xx,
        Self::Http5xx,
        Self::Timeout,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Blocked,
        Self::BodyLimit,
        Self::Unsigned,
        Self::LeaseLost,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Http3xx => "http_3xx",
            Self::Http4xx => "http_4xx",
            Self::Http5xx => "http_5xx",
            Self::Timeout => "timeout",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Blocked => "blocked",
            Self::BodyLimit => "body_limit",
            Self::Unsigned => "unsigned",
            Self::LeaseLost => "lease_lost",
        }
    }

    /// The class of a whole answer's status.
    pub fn from_status(code: u16) -> Self {
        match code {
            200..300 => Self::Success,
            300..400 => Self::Http3xx,
            400..500 => Self::Http4xx,
            _ => Self::Http5xx,
        }
    }
}

impl fmt::Display for OutcomeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for OutcomeClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The receiver has it: 2xx, whole and in time.
    Delivered {
        /// 200 to 299.
        code: u16,
        /// The first kilobyte of what it said, as text. `None` where it must not be kept: see [`crate::egress::Vetted`].
        excerpt: Option<String>,
    },
    /// The receiver did not take it, or could not be reached, or must not be called. Counts as an attempt.
    Refused {
        /// Why.
        class: OutcomeClass,
        /// The status, when there was one.
        code: Option<u16>,
        /// How long the receiver asks us to wait from now on: `Retry-After`, uncapped. Never shorter than zero.
        retry_after: Option<Duration>,
        /// As in [`Outcome::Delivered`].
        excerpt: Option<String>,
        /// One sentence for operators. It may name an internal address: not for tenants.
        detail: String,
    },
    /// Nothing was sent, through no fault of the receiver's: our own resolver does not answer. Does not count.
    NotAttempted {
        /// Where it failed.
        class: OutcomeClass,
        /// One sentence for operators.
        detail: String,
    },
}

impl AttemptOutcome {
    /// In one word.
    pub fn class(&self) -> OutcomeClass {
        match self {
            Self::Delivered { .. } => OutcomeClass::Success,
            Self::Refused { class, .. } | Self::NotAttempted { class, .. } => *class,
        }
    }

    /// The receiver's status, when there was one.
    pub fn status_code(&self) -> Option<u16> {
        match self {
            Self::Delivered { code, .. } => Some(*code),
            Self::Refused { code, .. } => *code,
            Self::NotAttempted { .. } => None,
        }
    }

    /// The first kilobyte of the receiver's answer, as text.
    pub fn body_excerpt(&self) -> Option<&str> {
        match self {
            Self::Delivered { excerpt, .. } | Self::Refused { excerpt, .. } => excerpt.as_deref(),
            Self::NotAttempted { .. } => None,
        }
    }
}
