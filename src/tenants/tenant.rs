//! A tenant: one team whose apps use Attesto.

use std::fmt;
use std::str::FromStr;

use super::intake::IntakeLimitOverrides;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;

/// A tenant as it is stored, and as commands show it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Its id, `tenant_` and a ULID.
    pub id: TenantId,
    /// The display name that the operator gave it.
    pub name: String,
    /// Whether its API keys work and its notifications are accepted.
    pub is_active: bool,
    /// Rate limits that differ from the settings.
    #[serde(skip)]
    pub limits: RateLimitOverrides,
    /// Budgets for notifications that differ from the settings.
    #[serde(skip)]
    pub intake: IntakeLimitOverrides,
    /// When it was created.
    pub created_at: Timestamp,
}

/// The rate limit of a tenant without its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The setting `RATE_LIMIT_PER_SECOND`.
    pub per_second: u32,
    /// The setting `RATE_LIMIT_BURST`.
    pub burst: u32,
}

/// Which requests of a tenant its rate limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitScope {
    /// Those to one process.
    Process,
    /// Those to all processes that serve with this database: each process admits its share.
    Installation,
}

impl RateLimit {
    /// The share of one of `replicas` processes, rounded up.
    #[must_use]
    pub fn divide_by(self, replicas: u32) -> Self {
        let replicas = replicas.max(1);
        Self {
            per_second: self.per_second.div_ceil(replicas),
            burst: self.burst.div_ceil(replicas),
        }
    }
}

/// A tenant's own limits; `None` means the one of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimitOverrides {
    /// Requests a second, from 1.
    pub per_second: Option<u32>,
    /// Requests at once after a pause, from 1.
    pub burst: Option<u32>,
}

impl RateLimitOverrides {
    /// The limit that applies, where `service` is that of the settings.
    pub fn or_default(self, service: RateLimit) -> RateLimit {
        RateLimit {
            per_second: self.per_second.unwrap_or(service.per_second),
            burst: self.burst.unwrap_or(service.burst),
        }
    }
}

/// The name of a tenant or a key: 1 to 200 characters, not all of them blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisplayName(String);

/// Why a text is not a [`DisplayName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 200 characters, and not only blanks")]
pub struct DisplayNameError;

impl DisplayName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DisplayName {
    type Err = DisplayNameError;

    fn from_str(text: &str) -> Result<Self, DisplayNameError> {
        // Postgres cannot store NUL.
        let good = !text.trim().is_empty() && text.chars().count() <= 200 && !text.contains('\0');
        good.then(|| Self(text.to_owned())).ok_or(DisplayNameError)
    }
}

impl fmt::Display for DisplayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_process_is_rounded_up_and_never_nothing() {
        for (replicas, per_second, burst) in [
            (0, 100, 7),
            (1, 100, 7),
            (2, 50, 4),
            (3, 34, 3),
            (7, 15, 1),
            (8, 13, 1),
            (u32::MAX, 1, 1),
        ] {
            let limit = RateLimit {
                per_second: 100,
                burst: 7,
            };
            let share = RateLimit { per_second, burst };
            assert_eq!(limit.divide_by(replicas), share, "{replicas}");
        }
    }

    #[test]
    fn a_name_is_counted_in_characters() {
        for good in ["a", &"é".repeat(200), " Acme Games ", "日本"] {
            assert_eq!(good.parse::<DisplayName>().unwrap().as_str(), good);
        }
        for bad in ["", " ", "\t\n", &"é".repeat(201), "a\0b"] {
            assert_eq!(bad.parse::<DisplayName>(), Err(DisplayNameError), "{bad:?}");
        }
    }

    #[test]
    fn a_tenants_own_limit_takes_precedence() {
        let service = RateLimit {
            per_second: 100,
            burst: 200,
        };
        let own = RateLimitOverrides {
            per_second: Some(5),
            burst: None,
        };
        assert_eq!(RateLimitOverrides::default().or_default(service), service);
        assert_eq!(
            own.or_default(service),
            RateLimit {
                per_second: 5,
                burst: 200
            }
        );
    }
}
