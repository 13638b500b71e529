//! The last result for each callback: the table `callback_probes`.

use std::time::Duration;

use serde::Serialize;

use super::result::{PROBE_RESULTS, probe_result};
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, TenantId};
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error};
use crate::deliveries::endpoint::ClientCertificate;
use crate::deliveries::endpoint::store::open_client_certificate;
use crate::deliveries::sender::ProbeOutcome;
use crate::egress::AllowList;

/// A callback that may be probed.
#[derive(Clone, Debug)]
pub(super) struct ProbeTarget {
    pub(super) tenant: TenantId,
    pub(super) callback: CallbackNumber,
    pub(super) url: String,
    pub(super) allowed: AllowList,
    pub(super) client_certificate: Option<ClientCertificate>,
    /// Whether there is a client certificate whose key cannot be opened, so that nothing can be found out.
    is_certificate_unreadable: bool,
    /// Whether an event was delivered recently, so that no probe is needed.
    has_recent_delivery: bool,
    /// The last result, if it is recent.
    last_result: Option<String>,
}

impl ProbeTarget {
    /// The result that it counts under without a probe.
    pub(super) fn known_result(&self) -> Option<&'static str> {
        let found = if self.has_recent_delivery {
            Some("delivered")
        } else if self.is_certificate_unreadable {
            Some("unknown")
        } else {
            self.last_result.as_deref()
        };
        PROBE_RESULTS.into_iter().find(|word| Some(*word) == found)
    }
}

/// The next active callbacks of active tenants, in the order of the tenants' ids and of their numbers, after the callback `after`.
pub(super) async fn list_probe_targets(
    database: &Database,
    keyring: Option<&Keyring>,
    after: Option<&(TenantId, CallbackNumber)>,
    every: Duration,
    known_for: Option<Duration>,
    limit: i64,
) -> Result<Vec<ProbeTarget>, Error> {
    let rows = sqlx::query!(
        r#"
        select config.tenant_id as "tenant!: TenantId", config.callback as "callback!: CallbackNumber",
            config.callback_url as "url!",
            array(
                select concat_ws(' ', allowed.network, allowed.port, case when allowed.allow_http then 'http' end)
                from webhook_allowed_networks allowed
                where allowed.tenant_id = config.tenant_id
            ) as "allowed!",
            coalesce(health.last_success_at > clock.now - make_interval(secs => $3)
                and probe.probed_at > clock.now - interval '1 day', false) as "is_well!",
            case when probe.probed_at > clock.now - make_interval(secs => $4) then probe.result end as "found?",
            certificate_chain as "certificate_chain?", key_enc as "key_enc?"
        from webhook_configs config
        join tenants on tenants.id = config.tenant_id and tenants.is_active
        left join webhook_client_certificates certificate
            on certificate.tenant_id = config.tenant_id and certificate.callback = config.callback
        left join webhook_health health
            on health.lane = tenant_lane(config.tenant_id) and health.tenant_id = config.tenant_id and health.callback = config.callback
            and health.callback_key = hashtextextended(config.callback_url, 0)
        left join callback_probes probe
            on probe.tenant_id = config.tenant_id and probe.callback = config.callback
            and probe.callback_key = hashtextextended(config.callback_url, 0)
        cross join (select attesto_now() as now) clock
        where config.is_active and ($1::text is null or (config.tenant_id, config.callback) > ($1, $5))
        order by config.tenant_id, config.callback limit $2
        "#,
        after.map(|(tenant, _)| tenant.as_str()),
        limit,
        every.as_secs_f64(),
        known_for.as_ref().map(Duration::as_secs_f64),
        after.map(|(_, callback)| callback.column()),
    )
    .fetch_all(database.pool())
    .await?;
    let callbacks = rows.into_iter().map(|row| {
        let sealed = row.certificate_chain.zip(row.key_enc);
        let owner = (row.tenant, row.callback);
        let opened =
            sealed.map(|(chain, key)| open_client_certificate(keyring?, &owner, chain, &key).ok());
        let (tenant, callback) = owner;
        ProbeTarget {
            tenant,
            callback,
            url: row.url,
            allowed: AllowList::from_column(&row.allowed),
            is_certificate_unreadable: matches!(opened, Some(None)),
            client_certificate: opened.flatten(),
            has_recent_delivery: row.is_well,
            last_result: row.found,
        }
    });
    Ok(callbacks.collect())
}

/// [`ProbeOutcome::Unknown`] says nothing about the callback and is not saved.
pub(super) async fn save_probe(
    database: &Database,
    callback: &ProbeTarget,
    probe: &ProbeOutcome,
) -> Result<(), Error> {
    let (detail, ends_at) = match probe {
        ProbeOutcome::Reachable {
            certificate_ends_at,
        } => (None, *certificate_ends_at),
        ProbeOutcome::Unreachable { detail, .. } => (Some(detail.as_str()), None),
        ProbeOutcome::Unknown => return Ok(()),
    };
    sqlx::query!(
        "
        insert into callback_probes as known
            (tenant_id, callback, callback_key, probed_at, result, detail, since, certificate_ends_at)
        select $1, $6, hashtextextended($2, 0), now, $3, $4, now, $5
        from (select attesto_now() as now) clock
        on conflict (tenant_id, callback) do update set
            callback_key = excluded.callback_key, probed_at = excluded.probed_at, result = excluded.result,
            detail = excluded.detail, certificate_ends_at = excluded.certificate_ends_at,
            since = case
                when known.callback_key = excluded.callback_key and known.result = excluded.result then known.since
                else excluded.since
            end
        ",
        callback.tenant.as_str(),
        callback.url,
        probe_result(probe),
        detail,
        ends_at.map(time::OffsetDateTime::from),
        callback.callback.column(),
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// The last probe of a callback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LastProbe {
    pub probed_at: Timestamp,
    /// `reachable`, or the reason why it is not: see [`PROBE_RESULTS`].
    pub result: String,
    /// The reason in one sentence.
    pub detail: Option<String>,
    /// The time of the first of the consecutive probes with this result.
    pub since: Timestamp,
    /// When the certificate of the callback expires.
    pub certificate_ends_at: Option<Timestamp>,
}

/// The last probe of the callback URL that is configured now. `None`: it was never probed.
pub(crate) async fn load_last_probe(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<Option<LastProbe>, Error> {
    sqlx::query_as!(
        LastProbe,
        r#"
        select probed_at as "probed_at: Timestamp", result, detail, since as "since: Timestamp",
            certificate_ends_at as "certificate_ends_at: Timestamp"
        from callback_probes probe
        join webhook_configs config on config.tenant_id = probe.tenant_id and config.callback = probe.callback
            and probe.callback_key = hashtextextended(config.callback_url, 0)
        where probe.tenant_id = $1 and probe.callback = $2
        "#,
        tenant.as_str(),
        callback.column(),
    )
    .fetch_optional(database.pool())
    .await
}

/// Callbacks that need attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AffectedCallbacks {
    /// The number of callbacks.
    pub count: i64,
    /// Some of them.
    pub first: Vec<AffectedCallback>,
}

/// A callback that needs attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AffectedCallback {
    pub tenant: TenantId,
    pub callback: CallbackNumber,
    /// The tenant's id, and the number of the callback where the tenant has several.
    pub name: String,
    /// The reason why it cannot be reached, or the time when a certificate expires.
    pub what: String,
}

/// Active callbacks that could not be reached by the last probe, and to which no event was delivered since.
pub(crate) async fn list_unreachable_callbacks(
    database: &Database,
    limit: i64,
) -> Result<AffectedCallbacks, Error> {
    let rows = sqlx::query!(
        r#"
        select probe.tenant_id as "tenant!: TenantId", probe.callback as "callback!: CallbackNumber",
            callback_name(probe.tenant_id, probe.callback) as "name!",
            concat_ws(': ', probe.result, probe.detail) as "what!", count(*) over () as "count!"
        from callback_probes probe
        join tenants on tenants.id = probe.tenant_id and tenants.is_active
        join webhook_configs config
            on config.tenant_id = probe.tenant_id and config.callback = probe.callback and config.is_active
            and probe.callback_key = hashtextextended(config.callback_url, 0)
        left join webhook_health health
            on health.lane = tenant_lane(probe.tenant_id) and health.tenant_id = probe.tenant_id and health.callback = probe.callback
            and health.callback_key = probe.callback_key
        where probe.result <> 'reachable'
            and (health.last_success_at is null or health.last_success_at < probe.probed_at)
        order by probe.since, probe.tenant_id, probe.callback limit $1
        "#,
        limit
    )
    .fetch_all(database.pool())
    .await?;
    Ok(AffectedCallbacks {
        count: rows.first().map_or(0, |row| row.count),
        first: rows
            .into_iter()
            .map(|row| AffectedCallback {
                tenant: row.tenant,
                callback: row.callback,
                name: row.name,
                what: row.what,
            })
            .collect(),
    })
}

/// Active callbacks whose own certificate expires before `before`.
pub(crate) async fn list_expiring_certificates(
    database: &Database,
    before: Timestamp,
    limit: i64,
) -> Result<AffectedCallbacks, Error> {
    let rows = sqlx::query!(
        r#"
        select probe.tenant_id as "tenant!: TenantId", probe.callback as "callback!: CallbackNumber",
            callback_name(probe.tenant_id, probe.callback) as "name!",
            probe.certificate_ends_at as "end!", count(*) over () as "count!"
        from callback_probes probe
        join tenants on tenants.id = probe.tenant_id and tenants.is_active
        join webhook_configs config
            on config.tenant_id = probe.tenant_id and config.callback = probe.callback and config.is_active
            and probe.callback_key = hashtextextended(config.callback_url, 0)
        where probe.certificate_ends_at < $1
        order by probe.certificate_ends_at, probe.tenant_id, probe.callback limit $2
        "#,
        time::OffsetDateTime::from(before),
        limit
    )
    .fetch_all(database.pool())
    .await?;
    Ok(AffectedCallbacks {
        count: rows.first().map_or(0, |row| row.count),
        first: rows
            .into_iter()
            .map(|row| AffectedCallback {
                tenant: row.tenant,
                callback: row.callback,
                name: row.name,
                what: Timestamp::from(row.end).to_string(),
            })
            .collect(),
    })
}
