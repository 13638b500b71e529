-- Tenants, their API keys and their sealed store credentials.
--
-- Ids are a prefix and a ULID, made by the service. A column whose name ends in _enc holds a sealed value:
-- key id (1 byte), nonce (12), ciphertext, tag (16); see src/crypto/keyring.rs.
-- tables: creates api_keys, apple_credentials, encryption_canaries, google_credentials, tenants

create table tenants (
    id text primary key,
    name text not null check (char_length(name) between 1 and 200),
    is_active boolean not null default true,
    -- Null: the service's own RATE_LIMIT_PER_SECOND and RATE_LIMIT_BURST apply.
    rate_limit_per_second integer check (rate_limit_per_second > 0),
    rate_limit_burst integer check (rate_limit_burst > 0),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table api_keys (
    id text primary key,
    tenant_id text not null references tenants (id),
    -- SHA-256 of the whole key. The key itself is shown once and not stored.
    key_hash bytea not null unique check (octet_length(key_hash) = 32),
    -- The first 8 of the 43 random characters, by which an operator tells keys apart.
    key_prefix text not null check (char_length(key_prefix) = 8),
    name text check (char_length(name) between 1 and 200),
    environment text not null default 'live' check (environment in ('live', 'test')),
    -- Written at most once a minute.
    last_used_at timestamptz,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

create index api_keys_by_tenant on api_keys (tenant_id, created_at desc);

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
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- For each encryption key a known text sealed with it. If it can be decrypted, the key configured under that id is the key
-- that sealed the rest of the database.
create table encryption_canaries (
    key_id smallint primary key check (key_id between 1 and 255),
    canary_enc bytea not null,
    created_at timestamptz not null default now()
);

-- Every process caches API keys and credentials and listens on this channel to drop what changed. A trigger instead of a
-- NOTIFY by the service, so that a change made in psql is noticed too. These tables change rarely; no statement of a request
-- notifies. Payload: table:tenant_id.
create function notify_change() returns trigger language plpgsql as $$
begin
    perform pg_notify('attesto_changes', tg_table_name || ':' || case
        when tg_table_name = 'tenants' then coalesce(to_jsonb(new) ->> 'id', to_jsonb(old) ->> 'id')
        else coalesce(to_jsonb(new) ->> 'tenant_id', to_jsonb(old) ->> 'tenant_id')
    end);
    return null;
end
$$;

create trigger notify_change after insert or delete or update on tenants
    for each row execute function notify_change();
-- Not on last_used_at, which changes often and affects no answer.
create trigger notify_change after insert or delete or update of tenant_id, key_hash, environment, revoked_at on api_keys
    for each row execute function notify_change();
create trigger notify_change after insert or delete or update on apple_credentials
    for each row execute function notify_change();
create trigger notify_change after insert or delete or update on google_credentials
    for each row execute function notify_change();
