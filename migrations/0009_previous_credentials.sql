-- The store credentials before the present ones, for a limited time: `rollback-credentials` restores them.
-- tables: creates apple_previous_credentials, google_previous_credentials; locks tenants

create table apple_previous_credentials (
    tenant_id text primary key references tenants (id),
    bundle_id text not null,
    key_id text not null,
    issuer_id text not null,
    private_key_enc bytea not null,
    key_fingerprint text not null,
    environment text not null,
    app_apple_id bigint,
    replaced_at timestamptz not null,
    -- After this time the row is not used; the job `retention` deletes it.
    expires_at timestamptz not null
);

create table google_previous_credentials (
    tenant_id text primary key references tenants (id),
    package_name text not null,
    service_account_enc bytea not null,
    client_email text not null,
    key_fingerprint text not null,
    pubsub_audience text,
    pubsub_service_account text,
    pubsub_topic text,
    replaced_at timestamptz not null,
    expires_at timestamptz not null
);
