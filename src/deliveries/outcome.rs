//! How one attempt ended.

use std::time::Duration;

/// How an attempt ended, in one word for logs, metrics and the column `last_outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OutcomeClass {
    /// 2xx, and the whole answer arrived in time.
    Success,
    /// A redirect, which is not followed.
    #[strum(serialize = "http_3xx")]
    Http3xx,
    /// The receiver refused the request.
    #[strum(serialize = "http_4xx")]
    Http4xx,
    /// The receiver failed, or answered a status that HTTP does not define.
    #[strum(serialize = "http_5xx")]
    Http5xx,
    /// Some part of the attempt was not finished in time.
    Timeout,
    /// The host name does not resolve.
    Dns,
    /// No connection, a connection that broke, or a server that does not speak HTTP.
    Connect,
    /// The operator's egress proxy made no connection to the receiver.
    Proxy,
    /// The receiver's certificate is not trusted, or the TLS handshake failed.
    Tls,
    /// The address or the URL must not be called.
    Blocked,
    /// The head of the answer is larger than the limit.
    BodyLimit,
    /// Nothing could be signed: the tenant's secrets could not be read or opened.
    Unsigned,
    /// Another process held the lease by then, so the result was not written.
    LeaseLost,
}

impl OutcomeClass {
    /// The name in logs, metrics and the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The class of an HTTP status.
    pub fn from_status(code: u16) -> Self {
        match code {
            200..300 => Self::Success,
            300..400 => Self::Http3xx,
            400..500 => Self::Http4xx,
            _ => Self::Http5xx,
        }
    }
}

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The receiver answered 2xx, and the whole answer arrived in time.
    Delivered {
        /// 200 to 299.
        code: u16,
        /// The first kilobyte of the answer's body, as text. `None` where it must not be kept: see
        /// [`AllowedAddresses::is_allow_listed`](crate::egress::AllowedAddresses::is_allow_listed).
        excerpt: Option<String>,
    },
    /// The receiver refused it, could not be reached or must not be called. Counts as an attempt.
    Refused {
        /// Why the delivery was refused.
        class: OutcomeClass,
        /// The HTTP status, when there was one.
        code: Option<u16>,
        /// `Retry-After`, from now and not yet capped.
        retry_after: Option<Duration>,
        /// As in [`AttemptOutcome::Delivered`].
        excerpt: Option<String>,
        /// One sentence for operators. Not for tenants: it may name an internal address.
        detail: String,
    },
    /// Nothing was sent, because of a fault on our side such as a DNS resolver that does not answer. Does not count as an
    /// attempt.
    NotAttempted {
        /// Why nothing was sent.
        class: OutcomeClass,
        /// One sentence for operators.
        detail: String,
    },
}

impl AttemptOutcome {
    /// The word for it.
    pub fn class(&self) -> OutcomeClass {
        match self {
            Self::Delivered { .. } => OutcomeClass::Success,
            Self::Refused { class, .. } | Self::NotAttempted { class, .. } => *class,
        }
    }

    /// The HTTP status, when there was one.
    pub fn status_code(&self) -> Option<u16> {
        match self {
            Self::Delivered { code, .. } => Some(*code),
            Self::Refused { code, .. } => *code,
            Self::NotAttempted { .. } => None,
        }
    }

    /// The first kilobyte of the answer's body, as text.
    pub fn body_excerpt(&self) -> Option<&str> {
        match self {
            Self::Delivered { excerpt, .. } | Self::Refused { excerpt, .. } => excerpt.as_deref(),
            Self::NotAttempted { .. } => None,
        }
    }
    /// Why it was not delivered, in one sentence for operators.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Delivered { .. } => None,
            Self::Refused { detail, .. } | Self::NotAttempted { detail, .. } => Some(detail),
        }
    }
}
