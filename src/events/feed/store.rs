//! The queries on the order of events and on the states of subjects.

use super::cursor::FeedCursor;
use crate::base::id::{EventId, TenantId};
use crate::db::{Database, Error};
use crate::events::EventSource;
use crate::events::purchase_state::{PurchaseState, StateError};
use crate::events::store::truncate_index_key;
use crate::tenants::lane::lane_column;

/// How many events one request numbers at most.
pub(super) const MAX_NUMBERED_EVENTS: i64 = 1000;

/// An event in its place.
pub(super) struct FeedEntry {
    pub(super) position: i64,
    pub(super) event: EventId,
}

/// Numbers the committed events of a tenant that have no number. Returns whether there may be more of them.
pub(super) async fn number_events(database: &Database, tenant: &TenantId) -> Result<bool, Error> {
    let number = sqlx::query_scalar!(
        r#"select number_events($1, $2) as "count!""#,
        tenant.as_str(),
        MAX_NUMBERED_EVENTS,
    )
    .fetch_one(database.pool());
    let count = database.writes().observe(number).await?;
    Ok(count >= MAX_NUMBERED_EVENTS)
}

/// Whether the event of the cursor has, or had, that number in this database.
pub(super) async fn is_known_cursor(
    database: &Database,
    tenant: &TenantId,
    cursor: &FeedCursor,
) -> Result<bool, Error> {
    sqlx::query_scalar!(
        r#"
        select case
            when exists (select from webhook_events where lane = $4 and tenant_id = $1 and feed_position = $2)
                or exists (select from webhook_events where lane = $4 and tenant_id = $1 and id = $3)
            then exists (select from webhook_events where lane = $4 and tenant_id = $1 and feed_position = $2 and id = $3)
            -- The event was deleted at the end of its retention period.
            else exists (select from event_feeds where lane = $4 and tenant_id = $1 and last_position >= $2)
        end as "is_known!"
        "#,
        tenant.as_str(),
        cursor.position,
        cursor.event.as_str(),
        lane_column(tenant),
    )
    .fetch_one(database.pool())
    .await
}

/// The numbered events of a tenant after a number.
pub(super) async fn list_entries(
    database: &Database,
    tenant: &TenantId,
    after: i64,
    limit: i64,
) -> Result<Vec<FeedEntry>, Error> {
    sqlx::query_as!(
        FeedEntry,
        r#"
        select feed_position as "position!", id as "event: EventId"
        from webhook_events
        where lane = $4 and tenant_id = $1 and feed_position > $2
        order by feed_position
        limit $3
        "#,
        tenant.as_str(),
        after,
        limit,
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await
}

/// The same of the events of one subject.
pub(super) async fn list_subject_entries(
    database: &Database,
    tenant: &TenantId,
    subject: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<FeedEntry>, Error> {
    sqlx::query_as!(
        FeedEntry,
        r#"
        -- A subject has few events, among all of the tenant's.
        with of_subject as materialized (
            select feed_position, id from webhook_events
            where lane = $5 and tenant_id = $1 and subject_key = $2
        )
        select feed_position as "position!", id as "event!: EventId"
        from of_subject
        where feed_position > $3
        order by feed_position
        limit $4
        "#,
        tenant.as_str(),
        &truncate_index_key(subject),
        after,
        limit,
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await
}

/// The position of a tenant's feed, and whether it has events without a number.
pub(super) struct FeedProgress {
    pub(super) tenant: TenantId,
    pub(super) last_position: i64,
    pub(super) has_unnumbered: bool,
}

pub(super) async fn load_progress(
    database: &Database,
    tenants: &[String],
) -> Result<Vec<FeedProgress>, Error> {
    sqlx::query_as!(
        FeedProgress,
        r#"
        select given.tenant as "tenant!: TenantId", coalesce(feed.last_position, 0) as "last_position!",
            has_unnumbered_events(given.tenant) as "has_unnumbered!"
        from unnest($1::text[]) as given (tenant)
        left join event_feeds feed on feed.lane = tenant_lane(given.tenant) and feed.tenant_id = given.tenant
        "#,
        tenants,
    )
    .fetch_all(database.pool())
    .await
}

/// The event that says what a purchase is worth, and the number of its newest event.
pub(super) struct SubjectRow {
    pub(super) event: EventId,
    pub(super) sequence: i64,
    pub(super) state: Option<PurchaseState>,
    pub(super) state_error: Option<StateError>,
    pub(super) last_sequence: i64,
}

/// The event with the newest state; where none has a state, the newest event. `None`: no event is about this subject.
pub(super) async fn find_newest_state(
    database: &Database,
    tenant: &TenantId,
    source: EventSource,
    key: &str,
) -> Result<Option<SubjectRow>, Error> {
    let row = sqlx::query!(
        r#"
        select id as "event: EventId", sequence as "sequence!", state::text as state, state_error,
            max(sequence) over () as "last_sequence!"
        from webhook_events
        where lane = $4 and tenant_id = $1 and source = $2 and subject_key = $3 and sequence is not null
        -- The text of a state's time sorts by time.
        order by state is null, state ->> 'asOf' collate "C" desc, sequence desc
        limit 1
        "#,
        tenant.as_str(),
        source.as_str(),
        &truncate_index_key(key),
        lane_column(tenant),
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| SubjectRow {
        event: row.event,
        sequence: row.sequence,
        state: row.state.and_then(|json| serde_json::from_str(&json).ok()),
        state_error: row.state_error.and_then(|name| name.parse().ok()),
        last_sequence: row.last_sequence,
    }))
}

/// The newest state of all events about a purchase. `None`: no event has told one.
pub(crate) async fn load_newest_state(
    database: &Database,
    tenant: &TenantId,
    source: EventSource,
    key: &str,
) -> Result<Option<PurchaseState>, Error> {
    let row = find_newest_state(database, tenant, source, key).await?;
    Ok(row.and_then(|row| row.state))
}
