-- What is watched: which settings and certificates each process lives by, what Apple said when it was last asked for a
-- test notification, and what a look at each callback found.
-- tables: creates apple_test_notifications, callback_probes; locks replicas, tenants

alter table replicas
    -- A fingerprint of each group of settings that should be the same everywhere. No value, and nothing of a secret.
    add column settings jsonb not null default '{}',
    -- When the certificates end that it lives by, by name.
    add column certificates jsonb not null default '{}';

create table apple_test_notifications (
    tenant_id text not null references tenants (id),
    environment text not null check (environment in ('production', 'sandbox')),
    asked_at timestamptz not null,
    -- Apple's word for how sending it went; NO_ADDRESS: App Store Connect knows no address for the app.
    result text not null,
    primary key (tenant_id, environment)
);

create table callback_probes (
    tenant_id text primary key references tenants (id),
    -- Of the URL that was looked at, as in webhook_health.
    callback_key bigint not null,
    probed_at timestamptz not null,
    -- `reachable`, or why it is not: dns, connect, tls, blocked, timeout.
    result text not null,
    -- The same in a sentence, without the URL.
    detail text,
    -- Since when every look has found the same.
    since timestamptz not null,
    -- When the certificate ends that the callback showed.
    certificate_ends_at timestamptz
);
