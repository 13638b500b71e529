-- For which user each purchase was first verified, of tenants that ask for it.
-- previous release: works
-- tables: creates first_seen_keys, first_seen_purchases; locks tenants

-- A row: the tenant has asked for it. The key is random, so that a rotation of the encryption key, which seals it again, changes
-- no hash. Without the row, what the hashes below belong to cannot be tested any more.
create table first_seen_keys (
    tenant_id text primary key references tenants (id),
    key_enc bytea not null,
    created_at timestamptz not null default now()
);

create constraint trigger audit_change after insert or delete or update on first_seen_keys
    deferrable initially immediate for each row execute function audit_change('tenant_id');
-- Processes keep the sealed key with the tenant's API keys.
create trigger notify_change after insert or delete or update on first_seen_keys
    for each row execute function notify_change();

create table first_seen_purchases (
    tenant_id text not null references tenants (id),
    -- HMAC-SHA-256 of the store and the subject's key, with the tenant's key.
    purchase_hash bytea not null check (octet_length(purchase_hash) = 32),
    -- HMAC-SHA-256 of that hash and the user: the same user has another hash in each row.
    user_hash bytea not null check (octet_length(user_hash) = 32),
    first_seen_at timestamptz not null,
    -- When the purchase was last verified, to the day: a row is removed some time after that.
    last_seen_at timestamptz not null,
    primary key (tenant_id, purchase_hash)
);

create index first_seen_purchases_by_age on first_seen_purchases (last_seen_at);
