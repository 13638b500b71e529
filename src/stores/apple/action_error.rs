//! Why Apple was not told something about a transaction, and the HTTP answer to each reason below it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::api::AppleApiError;
use super::error::AppleVerifyError;
use crate::http::Problem;
use crate::stores::shared::refund_questions::BeginAnswerError;

/// Why Apple was not told.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AppleActionError {
    /// As for a verification: the transaction is not known, or there is no answer.
    #[error("{0}")]
    Verify(AppleVerifyError),
    /// Apple knows the transaction, and does not take this about it.
    #[error("Apple does not take it: error {code}")]
    NotAccepted {
        reason: NotAcceptedReason,
        /// The `errorCode` of Apple's answer.
        code: i64,
    },
    #[error(transparent)]
    NotBegun(Arc<BeginAnswerError>),
}

impl From<BeginAnswerError> for AppleActionError {
    fn from(error: BeginAnswerError) -> Self {
        Self::NotBegun(Arc::new(error))
    }
}

/// Why Apple does not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum NotAcceptedReason {
    /// Not about a product of this type.
    ProductType,
    /// A value is not one of Apple's.
    InvalidValue,
    /// The purchase is shared by the family of its buyer.
    FamilyShared,
    /// The transaction is not the first one of its purchase.
    NotOriginal,
}

impl NotAcceptedReason {
    /// By Apple's `errorCode`.
    fn from_code(code: i64) -> Option<Self> {
        Some(match code {
            4_000_043 | 4_000_047 => Self::ProductType,
            4_000_032..=4_000_042 | 4_000_183 => Self::InvalidValue,
            4_000_185 => Self::FamilyShared,
            4_000_187 => Self::NotOriginal,
            _ => return None,
        })
    }

    fn message(self) -> &'static str {
        match self {
            Self::ProductType => {
                "Apple does not take this about a product of this type. Asking again will not help."
            }
            Self::FamilyShared => {
                "Apple names no user of a purchase that the family of its buyer shares."
            }
            Self::NotOriginal => {
                "This is not the first transaction of the purchase. Send the originalTransactionId, which is subject.key."
            }
            Self::InvalidValue => {
                "Apple does not take a value of this request, which this release still sends. The error code says which; a newer release may help."
            }
        }
    }
}

impl From<AppleVerifyError> for AppleActionError {
    fn from(error: AppleVerifyError) -> Self {
        if let AppleVerifyError::Api(AppleApiError::Unexpected {
            status: 400,
            code: Some(code),
            ..
        }) = error
            && let Some(reason) = NotAcceptedReason::from_code(code)
        {
            return Self::NotAccepted { reason, code };
        }
        Self::Verify(error)
    }
}

impl From<AppleActionError> for Problem {
    fn from(error: AppleActionError) -> Self {
        match error {
            AppleActionError::Verify(error) => error.into(),
            AppleActionError::NotBegun(error) => (&*error).into(),
            AppleActionError::NotAccepted { reason, code } => {
                Self::rejection("NOT_ACCEPTED", reason.message())
                    .with_detail("reason", Value::from(<&str>::from(reason)))
                    .with_detail("appleErrorCode", json!(code))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_apple_says_of_the_request_is_a_refusal() {
        let answer = |status, code| {
            let error = AppleVerifyError::Api(AppleApiError::Unexpected {
                status,
                code: Some(code),
                message: None,
                retry_after: None,
            });
            let problem = Problem::from(AppleActionError::from(error));
            (
                problem.code.as_str(),
                json!(problem.details)["reason"].clone(),
            )
        };
        for (code, reason) in [
            (4_000_035, "invalid_value"),
            (4_000_036, "invalid_value"),
            (4_000_041, "invalid_value"),
            (4_000_043, "product_type"),
            (4_000_047, "product_type"),
            (4_000_183, "invalid_value"),
            (4_000_185, "family_shared"),
            (4_000_187, "not_original"),
        ] {
            assert_eq!(answer(400, code), ("NOT_ACCEPTED", json!(reason)), "{code}");
            // A code counts only under its own status.
            assert_eq!(answer(404, code).0, "APPLE_API_ERROR", "{code}");
        }
        for code in [4_000_000, 4_000_002, 5_000_000] {
            assert_eq!(answer(400, code).0, "APPLE_API_ERROR", "{code}");
        }
    }
}
