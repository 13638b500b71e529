-- Functions that all rooms use, the tenants, and their API keys.
--
-- Ids are a prefix and a ULID, made by the service. A column whose name ends in _enc holds a sealed value:
-- key id (1 byte), nonce (12), ciphertext, tag (16); see src/crypto/keyring.rs.
-- tables: creates api_keys, tenants

-- The present time for every statement. A test replaces the function in its own database by one that adds an offset, to move
-- time without waiting.
--
-- Postgres inlines the body when it plans, so that a call costs no more and indexes are used as before. `statement_timestamp()`
-- and not `now()`, which is the start of the transaction.
create function attesto_now() returns timestamptz
    language sql stable parallel safe
    as $$ select statement_timestamp() $$;

-- The lane of a tenant: the first byte of the SHA-256 of its id, modulo 64. `tenant_lane` in src/tenants/lane.rs computes the same.
--
-- Every table that grows with what users buy has the column `lane`, which is the lane of the row's tenant. It is the first column of
-- the table's keys and indexes, and every statement names the lanes whose rows it reads or writes.
--
-- Many of these indexes have a condition that holds for every row, such as `received_at is not null`. With it an index is used only
-- by statements that compare that column with something, if need be with `received_at > '-infinity'`; not by one that says
-- `received_at is not null`, which Postgres leaves out from version 17 on. Until a table is analyzed for the first time, Postgres takes
-- every index on it to find about one row: a statement might go through all rows of a lane or of a tenant, in an index that has
-- nothing else to offer it.
create function tenant_lane(tenant_id text) returns smallint language sql immutable strict parallel safe
    as $$ select (get_byte(sha256(convert_to(tenant_id, 'UTF8')), 0) % 64)::smallint $$;

create table tenants (
    id text primary key,
    name text not null check (char_length(name) between 1 and 200),
    is_active boolean not null default true,
    -- Null: the service's own RATE_LIMIT_PER_SECOND and RATE_LIMIT_BURST apply.
    rate_limit_per_second integer check (rate_limit_per_second > 0),
    rate_limit_burst integer check (rate_limit_burst > 0),
    -- How many notifications, and how much of them, is taken in for the tenant in a minute. Null: what the settings say.
    intake_events_per_minute integer check (intake_events_per_minute > 0),
    intake_megabytes_per_minute integer check (intake_megabytes_per_minute > 0),
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
