-- For the monitoring jobs: settings and certificates of each process, the result of the latest test notification from Apple, and
-- the result of the latest probe of each callback.
-- tables: creates apple_test_notifications, callback_probes; locks replicas, tenants

alter table replicas
    -- A fingerprint of each group of settings that must be equal in all processes. No values, no secrets.
    add column settings jsonb not null default '{}',
    -- The expiry of the certificates that the process uses, by name.
    add column certificates jsonb not null default '{}';

create table apple_test_notifications (
    tenant_id text not null references tenants (id),
    environment text not null check (environment in ('production', 'sandbox')),
    asked_at timestamptz not null,
    -- Apple's sendAttemptResult; NO_ADDRESS: App Store Connect has no notification URL for the app.
    result text not null,
    primary key (tenant_id, environment)
);

create table callback_probes (
    tenant_id text primary key references tenants (id),
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
    certificate_ends_at timestamptz
);
