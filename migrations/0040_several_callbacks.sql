-- Several callbacks of a tenant, each with its own secrets, client certificate, health and deliveries. Number 1 is the callback that
-- a tenant had so far.
-- previous release: stops, it knows one callback of a tenant
-- tables: locks webhook_redeliveries; reads_all callback_probes, webhook_client_certificates, webhook_configs, webhook_deliveries, webhook_health, webhook_previous_secrets; unknown anything

alter table webhook_configs
    add column callback smallint not null default 1 check (callback > 0),
    -- events: what Attesto makes of a notification. raw: the store's own message, byte for byte.
    add column kind text not null default 'events' check (kind in ('events', 'raw')),
    -- Which events it is sent, by type, such as subscription.renewed or subscription.*; by store; by environment. Empty: all.
    add column events text[] not null default '{}',
    add column sources text[] not null default '{}',
    add column environments text[] not null default '{}',
    -- In the row of callback 1: the number that was given last. A number is not given twice.
    add column last_callback smallint not null default 1;

alter table webhook_previous_secrets
    add column callback smallint not null default 1,
    drop constraint webhook_previous_secrets_tenant_id_fkey,
    drop constraint webhook_previous_secrets_pkey,
    add primary key (tenant_id, callback, number);
alter table webhook_client_certificates
    add column callback smallint not null default 1,
    drop constraint webhook_client_certificates_tenant_id_fkey,
    drop constraint webhook_client_certificates_pkey,
    add primary key (tenant_id, callback);
alter table webhook_configs
    drop constraint webhook_configs_pkey,
    add primary key (tenant_id, callback);
alter table webhook_previous_secrets
    add foreign key (tenant_id, callback) references webhook_configs (tenant_id, callback);
alter table webhook_client_certificates
    add foreign key (tenant_id, callback) references webhook_configs (tenant_id, callback);

alter table webhook_health
    add column callback smallint not null default 1,
    drop constraint webhook_health_pkey,
    add primary key (tenant_id, callback, callback_key);
alter table callback_probes
    add column callback smallint not null default 1,
    drop constraint callback_probes_pkey,
    add primary key (tenant_id, callback);

-- Null: every callback for which an event matches.
alter table webhook_redeliveries add column callback smallint;

alter table webhook_deliveries add column callback smallint not null default 1;

-- The index of a claim: in its lane, callback by callback, the oldest few deliveries of each.
create index webhook_deliveries_waiting_by_callback
    on webhook_deliveries (lane, tenant_id, callback, callback_key, next_attempt_at)
    where status = 'pending' and lease_until is null and parked_at is null;
drop index webhook_deliveries_waiting_by_lane;

-- As `delivery_callbacks_waiting` in 0021, with the number of the callback.
create function callbacks_waiting_in_lanes(lanes smallint[])
    returns table (lane smallint, tenant_id text, callback smallint, callback_key bigint, next_attempt_at timestamptz)
    language sql stable parallel safe rows 100
as $$
    with recursive waiting_callback as (
        select first.lane, first.tenant_id, first.callback, first.callback_key, first.next_attempt_at
        from unnest(lanes) as wanted (lane)
        cross join lateral (
            select waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            from webhook_deliveries waiting
            where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
                and waiting.lane = wanted.lane
            order by waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            limit 1
        ) first
        union all
        select next.lane, next.tenant_id, next.callback, next.callback_key, next.next_attempt_at
        from waiting_callback
        cross join lateral (
            select waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            from webhook_deliveries waiting
            where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
                and (waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key)
                    > (waiting_callback.lane, waiting_callback.tenant_id, waiting_callback.callback,
                        waiting_callback.callback_key)
            order by waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            limit 1
        ) next
        where next.lane = waiting_callback.lane
    )
    select lane, tenant_id, callback, callback_key, next_attempt_at from waiting_callback
$$;

-- Nothing calls it any more. It stays, because names in the schema stay, and its index is gone.
create or replace function delivery_callbacks_waiting(lanes smallint[])
    returns table (lane smallint, tenant_id text, callback_key bigint, next_attempt_at timestamptz)
    language sql stable parallel safe rows 100
as $$
    select lane, tenant_id, callback_key, next_attempt_at from callbacks_waiting_in_lanes(lanes)
$$;

-- In all lanes.
create or replace view webhook_callbacks_waiting as
select waiting.tenant_id, waiting.callback_key, waiting.lane, waiting.next_attempt_at, waiting.callback
from callbacks_waiting_in_lanes(array(select generate_series(0, 63)::smallint)) waiting;

-- Whether an event is a message that a store sent, or that its history returned in the form in which it would have sent it. Not one of
-- Attesto's own, and not an entry of Google's list of refunds.
create function is_store_message(source text, external_id text, platform_event text) returns boolean
    language sql immutable parallel safe
    as $$ select platform_event not like 'attesto.%' and (source <> 'google' or external_id not like 'voided:%') $$;

-- Whether a callback with this configuration is sent an event. An event whose environment is not known passes a filter by environment,
-- because it may belong to it.
create function callback_takes(
    kind text, events text[], sources text[], environments text[],
    event_type text, source text, environment text, external_id text, platform_event text
) returns boolean language sql immutable parallel safe as $$
    select (cardinality(events) = 0 or event_type = any(events) or split_part(event_type, '.', 1) || '.*' = any(events))
        and (cardinality(sources) = 0 or source = any(sources))
        and (cardinality(environments) = 0 or environment is null or environment = any(environments))
        and (kind <> 'raw' or is_store_message(source, external_id, platform_event))
$$;

-- The id of one of the deliveries that are enqueued together: `id` for the first, with number 0, and `id` with another last letter for
-- up to 31 more.
create function nth_delivery_id(id text, nth bigint) returns text language sql immutable parallel safe as $$
    select left(id, -1) || substr(
        '0123456789ABCDEFGHJKMNPQRSTVWXYZ',
        ((strpos('0123456789ABCDEFGHJKMNPQRSTVWXYZ', right(id, 1)) - 1 + nth) % 32)::int + 1,
        1)
$$;

-- The callbacks that a redelivery of an event goes to: those that had it, or, if none had it or one is named, those that it matches. A
-- status is that of the event's deliveries to that callback.
create function redelivery_targets(
    of_event text, only_callback smallint, only_status text, only_previous_url boolean
) returns table (callback smallint, callback_url text) language sql stable parallel safe rows 1 as $$
    select config.callback, config.callback_url
    from webhook_events event
    join webhook_configs config on config.tenant_id = event.tenant_id and config.is_active
    cross join lateral (
        select
            case
                when bool_or(delivery.status = 'delivered') then 'delivered'
                when bool_or(delivery.status = 'pending') then 'pending'
                when bool_or(delivery.status = 'failed') then 'failed'
            end as status,
            bool_or(delivery.status <> 'delivered' and delivery.callback_url <> config.callback_url) as waits_elsewhere,
            bool_or(delivery.status <> 'failed' and delivery.callback_url = config.callback_url) as is_here
        from webhook_deliveries delivery
        where delivery.event_id = event.id and delivery.callback = config.callback
    ) standing
    where event.id = of_event
        and (only_callback is null or config.callback = only_callback)
        and (only_status is null or standing.status = only_status)
        and (not only_previous_url or (standing.waits_elsewhere and not standing.is_here))
        and (standing.status is not null or (
            (only_callback is not null
                or not exists (select from webhook_deliveries delivery where delivery.event_id = event.id))
            and callback_takes(config.kind, config.events, config.sources, config.environments, event.event_type,
                event.source, event.environment, event.external_id, event.platform_event)
        ))
$$;

-- What operators call a callback: its tenant, and its number where there are several.
create function callback_name(of_tenant text, number smallint) returns text language sql stable parallel safe as $$
    select of_tenant || case
        when number <> 1 or exists (select from webhook_configs where tenant_id = of_tenant and callback <> 1)
        then ' callback ' || number else '' end
$$;

-- The row of a callback is named by its number too.
drop trigger audit_change on webhook_configs;
create constraint trigger audit_change after insert or delete or update on webhook_configs
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'callback');
drop trigger audit_change on webhook_previous_secrets;
create constraint trigger audit_change after insert or delete or update on webhook_previous_secrets
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'callback', 'number');
drop trigger audit_change on webhook_client_certificates;
create constraint trigger audit_change after insert or delete or update on webhook_client_certificates
    deferrable initially immediate for each row execute function audit_change('tenant_id', 'callback');

-- As in 0008. The number that was given last is no operator's change.
create or replace function auditable(line jsonb) returns jsonb language sql immutable as $$
    select coalesce(jsonb_object_agg(key, case
        when value = 'null' then value
        when key like '%\_enc' then to_jsonb('sealed:' || left(encode(sha256(convert_to(value #>> '{}', 'UTF8')), 'hex'), 16))
        when key like '%\_hash' then to_jsonb('hash:' || substr(value #>> '{}', 3, 16))
        when key like '%\_url' then to_jsonb(regexp_replace(value #>> '{}', '[?#].*$', '?…'))
        else value
    end), '{}')
    from jsonb_each(line)
    where key not in ('last_used_at', 'callback_key', 'last_callback')
$$;
