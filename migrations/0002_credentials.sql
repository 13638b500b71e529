-- The sealed credentials of tenants for the stores, and a proof that the encryption key is the right one.
-- tables: creates apple_credentials, apple_previous_credentials, encryption_canaries, google_credentials, google_previous_credentials; locks tenants

-- For each encryption key a known text sealed with it. If it can be decrypted, the key configured under that id is the key
-- that sealed the rest of the database.
create table encryption_canaries (
    key_id smallint primary key check (key_id between 1 and 255),
    canary_enc bytea not null,
    created_at timestamptz not null default now()
);

create table apple_credentials (
    tenant_id text primary key references tenants (id),
    bundle_id text not null,
    key_id text not null,
    issuer_id text not null,
    -- The .p8 file: a PKCS#8 P-256 key in PEM.
    private_key_enc bytea not null,
    -- The first 16 hex digits of the public key's SHA-256, to compare keys without decrypting them.
    key_fingerprint text not null,
    environment text not null default 'auto' check (environment in ('auto', 'production', 'sandbox')),
    -- Apple requires it in production; null: sandbox only.
    app_apple_id bigint check (app_apple_id > 0),
    -- How a purchase was used, as in the body of POST /v1/apple/consumption. Null: nothing is answered by itself.
    default_consumption jsonb,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table google_credentials (
    tenant_id text primary key references tenants (id),
    package_name text not null,
    -- The service account's JSON key file.
    service_account_enc bytea not null,
    client_email text not null,
    key_fingerprint text not null,
    pubsub_audience text,
    pubsub_service_account text,
    pubsub_topic text,
    -- never: the tenant does it. verify: Attesto does, after the first successful verification.
    acknowledge text not null default 'never' check (acknowledge in ('never', 'verify')),
    -- What to do about a refund, as in the body of POST /v1/google/refund-review. Null: nothing is answered by itself.
    default_refund_review jsonb,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create trigger notify_change after insert or delete or update on apple_credentials
    for each row execute function notify_change();
create trigger notify_change after insert or delete or update on google_credentials
    for each row execute function notify_change();

-- The store credentials before the present ones, for a limited time: `rollback-credentials` restores them.
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
