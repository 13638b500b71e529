//! The table `owed_acknowledgements`. Only the database's clock decides what is due.

use std::time::Duration;

use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::lane::LaneSet;
use crate::crypto::token;
use crate::db::{Database, Error};
use crate::events::SubjectType;
use crate::tenants::lane::lane_column;

/// How long before its deadline the tenant is told of a purchase, where half of the time that it has is more.
const MAX_NOTICE: Duration = Duration::from_hours(24);
/// How long a process may take for one purchase. Another one takes it over then.
const LEASE_TTL: Duration = Duration::from_mins(1);
/// How long after its deadline a purchase stays on the list, so that what is received late does not list it again.
const KEPT_AFTER_DEADLINE: Duration = Duration::from_hours(24);

/// What a process takes off the list at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimLimits {
    pub(super) purchases: u32,
    pub(super) purchases_per_tenant: u32,
}

/// A purchase that was not acknowledged, claimed by this process until its lease ends.
#[derive(Clone, Debug)]
pub(super) struct OwedAcknowledgement {
    pub(super) tenant: TenantId,
    pub(super) purchase_token: String,
    pub(super) kind: SubjectType,
    pub(super) acknowledge_by: Timestamp,
    /// Whether that time has come.
    pub(super) is_over: bool,
    /// Whether the tenant is to be told: the deadline is near.
    pub(super) is_near: bool,
    /// Whether Attesto is to acknowledge it.
    pub(super) is_wanted: bool,
    /// How often Google was asked, this time included.
    pub(super) attempt: u32,
    token_hash: Vec<u8>,
    /// The end of the lease, which tells this claim from others.
    lease: time::OffsetDateTime,
}

/// A purchase that is not acknowledged, before it is listed.
#[derive(Clone, Debug)]
pub(in crate::stores::google) struct NewOwedAcknowledgement {
    pub(in crate::stores::google) purchase_token: String,
    pub(in crate::stores::google) kind: SubjectType,
    pub(in crate::stores::google) acknowledge_by: Timestamp,
}

impl NewOwedAcknowledgement {
    /// Lists the purchase. One that is listed already stays as it is. `now` is of the clock that Google's times are compared with.
    pub(in crate::stores::google) async fn list(
        &self,
        database: &Database,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let left = self.acknowledge_by.duration_since(now);
        if left.is_zero() {
            return Ok(());
        }
        insert(database, tenant, self, left).await
    }

    /// Lists the purchase as one that Attesto is to acknowledge, `delay` from now.
    pub(in crate::stores::google) async fn list_wanted(
        &self,
        database: &Database,
        tenant: &TenantId,
        now: Timestamp,
        delay: Duration,
    ) -> Result<(), Error> {
        let left = self.acknowledge_by.duration_since(now);
        insert_wanted(database, tenant, self, left, delay).await
    }
}

/// Changes nothing, and writes nothing, where the purchase is listed: a notification may be repeated often.
async fn insert(
    database: &Database,
    tenant: &TenantId,
    owed: &NewOwedAcknowledgement,
    left: Duration,
) -> Result<(), Error> {
    let hash = token::sha256(owed.purchase_token.as_bytes());
    let quiet = left.saturating_sub(MAX_NOTICE.min(left / 2));
    sqlx::query!(
        "insert into owed_acknowledgements \
                (lane, tenant_id, token_hash, purchase_token, subject_type, acknowledge_by, next_check_at) \
         values ($7, $1, $2, $3, $4, attesto_now() + make_interval(secs => $5), attesto_now() + make_interval(secs => $6)) \
         on conflict do nothing",
        tenant.as_str(),
        hash.as_slice(),
        owed.purchase_token,
        owed.kind.as_str(),
        left.as_secs_f64(),
        quiet.as_secs_f64(),
        lane_column(tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

async fn insert_wanted(
    database: &Database,
    tenant: &TenantId,
    owed: &NewOwedAcknowledgement,
    left: Duration,
    delay: Duration,
) -> Result<(), Error> {
    let hash = token::sha256(owed.purchase_token.as_bytes());
    sqlx::query!(
        "insert into owed_acknowledgements \
                (lane, tenant_id, token_hash, purchase_token, subject_type, acknowledge_by, next_check_at, is_wanted) \
         values ($7, $1, $2, $3, $4, attesto_now() + make_interval(secs => $5), attesto_now() + make_interval(secs => $6), true) \
         on conflict (lane, tenant_id, token_hash) do update set is_wanted = true, next_check_at = excluded.next_check_at \
          where not owed_acknowledgements.is_wanted",
        tenant.as_str(),
        hash.as_slice(),
        owed.purchase_token,
        owed.kind.as_str(),
        left.as_secs_f64(),
        delay.as_secs_f64(),
        lane_column(tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// Takes due purchases for [`LEASE_TTL`], those first that are due longest, without those of inactive tenants.
pub(super) async fn claim_due(
    database: &Database,
    limits: ClaimLimits,
) -> Result<Vec<OwedAcknowledgement>, Error> {
    let mut rows = Vec::new();
    let mut claim = database
        .start_claim(LaneSet::ALL, limits.purchases as usize)
        .await?;
    while let Some((group, left)) = claim.next(rows.len()) {
        let claimed = sqlx::query!(
        r#"
        with due as (
            select waiting.lane, waiting.tenant_id, waiting.token_hash, waiting.next_check_at,
                row_number() over (partition by waiting.tenant_id order by waiting.next_check_at, waiting.token_hash) as place
            from owed_acknowledgements waiting
            join tenants on tenants.id = waiting.tenant_id and tenants.is_active
            where waiting.lane = any($5) and waiting.next_check_at <= attesto_now()
        ), free as (
            select lane, tenant_id, token_hash, attesto_now() as now from owed_acknowledgements
            where (lane, tenant_id, token_hash) in (
                    select lane, tenant_id, token_hash from due where place <= $2 order by next_check_at limit $1
                )
                and next_check_at <= attesto_now() and ($6::int2 is null or lane = $6)
            for update skip locked
        )
        update owed_acknowledgements owed
        set next_check_at = attesto_now() + make_interval(secs => $3), attempt_count = attempt_count + 1
        from free
        where (owed.lane, owed.tenant_id, owed.token_hash) = (free.lane, free.tenant_id, free.token_hash)
            and ($6::int2 is null or owed.lane = $6)
        returning owed.tenant_id as "tenant!: TenantId", owed.token_hash, owed.purchase_token, owed.subject_type,
            owed.acknowledge_by, owed.acknowledge_by <= free.now as "is_over!",
            owed.acknowledge_by - free.now <= least(make_interval(secs => $4), (owed.acknowledge_by - owed.created_at) / 2)
                as "is_near!",
            owed.is_wanted, owed.attempt_count, owed.next_check_at as "lease!"
        "#,
        left,
        i64::from(limits.purchases_per_tenant),
        LEASE_TTL.as_secs_f64(),
        MAX_NOTICE.as_secs_f64(),
        &group.columns(),
        group.only_column(),
    )
    .fetch_all(database.pool())
    .await?;
        rows.extend(claimed);
    }
    let owed = rows.into_iter().map(|row| {
        Ok(OwedAcknowledgement {
            tenant: row.tenant,
            purchase_token: row.purchase_token,
            kind: row
                .subject_type
                .parse()
                .map_err(|error: strum::ParseError| Error::Decode(error.into()))?,
            acknowledge_by: row.acknowledge_by.into(),
            is_over: row.is_over,
            is_near: row.is_near,
            is_wanted: row.is_wanted,
            attempt: row.attempt_count.unsigned_abs(),
            token_hash: row.token_hash,
            lease: row.lease,
        })
    });
    owed.collect()
}

/// Puts a claimed purchase off; for ever without a delay. Without effect if another process has claimed it since.
pub(super) async fn put_off(
    database: &Database,
    owed: &OwedAcknowledgement,
    delay: Option<Duration>,
) -> Result<(), Error> {
    sqlx::query!(
        "update owed_acknowledgements set next_check_at = attesto_now() + make_interval(secs => $4) \
          where lane = $5 and tenant_id = $1 and token_hash = $2 and next_check_at = $3",
        owed.tenant.as_str(),
        owed.token_hash,
        owed.lease,
        delay.map(|delay| delay.as_secs_f64()),
        lane_column(&owed.tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// Takes a claimed purchase off the list. Without effect if another process has claimed it since.
pub(super) async fn remove(database: &Database, owed: &OwedAcknowledgement) -> Result<(), Error> {
    sqlx::query!(
        "delete from owed_acknowledgements \
          where lane = $4 and tenant_id = $1 and token_hash = $2 and next_check_at = $3",
        owed.tenant.as_str(),
        owed.token_hash,
        owed.lease,
        lane_column(&owed.tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// Takes off the list what is over.
pub(super) async fn remove_old(database: &Database) -> Result<(), Error> {
    sqlx::query!(
        "delete from owed_acknowledgements where lane = any($2) and acknowledge_by <= attesto_now() - make_interval(secs => $1)",
        KEPT_AFTER_DEADLINE.as_secs_f64(),
        &LaneSet::ALL.columns(),
    )
    .execute(database.pool())
    .await
    .map(drop)
}
