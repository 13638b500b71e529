-- Secrets that still sign beside the newest one, and what an operator opened for one tenant's callback.
-- tables: creates webhook_allowed_networks, webhook_previous_secrets; locks tenants; reads_all webhook_configs

-- The newest secret is webhook_configs.secret_enc. Secrets are counted, so that people can speak of them.
alter table webhook_configs
    add column secret_number integer not null default 1 check (secret_number > 0),
    add column secret_created_at timestamptz not null default now();

-- Those before it, for as long as their overlap was promised. A row whose time is over signs nothing, whether it is
-- still here or not.
create table webhook_previous_secrets (
    tenant_id text not null references webhook_configs (tenant_id),
    number integer not null check (number > 0),
    secret_enc bytea not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    primary key (tenant_id, number)
);

-- Networks that are not public and may be called for this tenant all the same. Metadata services stay closed whatever
-- stands here; see src/deliveries/guard.
create table webhook_allowed_networks (
    tenant_id text not null references tenants (id),
    network cidr not null,
    port integer not null check (port between 1 and 65535),
    created_at timestamptz not null default now(),
    primary key (tenant_id, network, port)
);
