//! Reads a column of type `timestamptz` as a [`Timestamp`]: `as "created_at: Timestamp"` in a query.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};
use time::OffsetDateTime;

use crate::base::clock::Timestamp;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as Type<Postgres>>::type_info()
    }

    fn compatible(column: &PgTypeInfo) -> bool {
        <OffsetDateTime as Type<Postgres>>::compatible(column)
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        OffsetDateTime::decode(value).map(Self::from)
    }
}
