-- Previous secrets that sign beside the newest one, and networks that an operator allowed for one tenant's callback.
-- tables: creates webhook_allowed_networks, webhook_previous_secrets; locks tenants; reads_all webhook_configs

-- The newest secret is webhook_configs.secret_enc. The version names a secret in output.
alter table webhook_configs
    add column secret_number integer not null default 1 check (secret_number > 0),
    add column secret_created_at timestamptz not null default now();

-- The secrets before it, until the end of their overlap. After that a row signs nothing, even before it is deleted.
create table webhook_previous_secrets (
    tenant_id text not null references webhook_configs (tenant_id),
    number integer not null check (number > 0),
    secret_enc bytea not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    primary key (tenant_id, number)
);

-- Networks that are not public and may be called for this tenant. Addresses of cloud metadata services stay blocked; see
-- src/egress.
create table webhook_allowed_networks (
    tenant_id text not null references tenants (id),
    network cidr not null,
    port integer not null check (port between 1 and 65535),
    created_at timestamptz not null default now(),
    primary key (tenant_id, network, port)
);
