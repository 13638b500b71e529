-- The callbacks of tenants: where events are sent, what signs them, which networks are allowed, and how healthy each callback is.
-- tables: creates callback_probes, webhook_allowed_networks, webhook_client_certificates, webhook_configs, webhook_health, webhook_previous_secrets; locks tenants

-- A tenant has several callbacks, each with its own secrets, client certificate, health and deliveries.
create table webhook_configs (
    tenant_id text not null references tenants (id),
    callback smallint not null default 1 check (callback > 0),
    -- events: what Attesto makes of a notification. raw: the store's own message, byte for byte.
    kind text not null default 'events' check (kind in ('events', 'raw')),
    callback_url text not null,
    -- The newest of the secrets that sign deliveries.
    secret_enc bytea not null,
    -- The version that names the secret in output.
    secret_number integer not null default 1 check (secret_number > 0),
    secret_created_at timestamptz not null default now(),
    is_active boolean not null default true,
    -- Which events it is sent, by type, such as subscription.renewed or subscription.*; by store; by environment. Empty: all.
    events text[] not null default '{}',
    sources text[] not null default '{}',
    environments text[] not null default '{}',
    -- In the row of callback 1: the number that was given last. A number is not given twice.
    last_callback smallint not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, callback)
);

create trigger notify_change after insert or delete or update on webhook_configs
    for each row execute function notify_change();

-- The secrets before the newest one, which sign beside it until the end of their overlap. After that a row signs nothing, even
-- before it is deleted.
create table webhook_previous_secrets (
    tenant_id text not null,
    callback smallint not null default 1,
    number integer not null check (number > 0),
    secret_enc bytea not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    primary key (tenant_id, callback, number),
    foreign key (tenant_id, callback) references webhook_configs (tenant_id, callback)
);

-- The certificate and its key that Attesto shows to a callback which asks for a client certificate.
create table webhook_client_certificates (
    tenant_id text not null,
    callback smallint not null default 1,
    -- DER: the certificate, and those between it and its root.
    certificate_chain bytea[] not null check (cardinality(certificate_chain) > 0),
    -- Its private key, DER.
    key_enc bytea not null,
    not_before timestamptz not null,
    not_after timestamptz not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, callback),
    foreign key (tenant_id, callback) references webhook_configs (tenant_id, callback)
);

-- Networks that are not public and may be called for this tenant. Addresses of cloud metadata services stay blocked; see
-- src/egress.
create table webhook_allowed_networks (
    tenant_id text not null references tenants (id),
    network cidr not null,
    port integer not null check (port between 1 and 65535),
    -- Whether callbacks in the network may be called by http, without TLS.
    allow_http boolean not null default false,
    created_at timestamptz not null default now(),
    primary key (tenant_id, network, port)
);

-- The health of a callback. No row: nothing was sent to it yet.
create table webhook_health (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    tenant_id text not null references tenants (id),
    callback smallint not null default 1,
    callback_url text not null,
    -- A hash of the URL in eight bytes, as in webhook_deliveries.
    callback_key bigint generated always as (hashtextextended(callback_url, 0)) stored,
    state text not null default 'active' check (state in ('active', 'throttled', 'open', 'paused')),
    -- How many requests may be under way at once.
    allowed smallint not null default 1 check (allowed between 1 and 8),
    -- Consecutive attempts without success.
    failures integer not null default 0,
    -- The latest of them that got no answer at all.
    unreachable integer not null default 0,
    failing_since timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    -- Nothing is sent before this time; then one request as a test.
    closed_until timestamptz,
    -- How often in a row the circuit was opened: each time for longer.
    closings integer not null default 0,
    primary key (lane, tenant_id, callback, callback_key)
) with (fillfactor = 85);

-- The result of the latest probe of each callback.
create table callback_probes (
    tenant_id text not null references tenants (id),
    callback smallint not null default 1,
    -- The key of the probed URL, as in webhook_health.
    callback_key bigint not null,
    probed_at timestamptz not null,
    -- `reachable`, or why it is not: dns, connect, tls, blocked, timeout.
    result text not null,
    -- The cause in a sentence, without the URL.
    detail text,
    -- Since when every probe had the same result.
    since timestamptz not null,
    -- The expiry of the callback's certificate.
    certificate_ends_at timestamptz,
    primary key (tenant_id, callback)
);

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

-- What operators call a callback: its tenant, and its number where there are several.
create function callback_name(of_tenant text, number smallint) returns text language sql stable parallel safe as $$
    select of_tenant || case
        when number <> 1 or exists (select from webhook_configs where tenant_id = of_tenant and callback <> 1)
        then ' callback ' || number else '' end
$$;
