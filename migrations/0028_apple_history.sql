-- How far Apple's history of notifications has been read for each tenant, so that the job `backfill` fetches what did not arrive.
-- previous release: works
-- tables: creates apple_history_reads; locks tenants

create table apple_history_reads (
    tenant_id text not null references tenants (id),
    environment text not null check (environment in ('production', 'sandbox')),
    -- What Apple signed before is stored, or was refused.
    read_until timestamptz not null,
    -- When it was last read to its end. Null: not yet.
    last_success_at timestamptz,
    -- When it is read next.
    next_read_at timestamptz not null,
    -- Where the reading goes on that was broken off, as HistoryPosition. Null: the next one begins anew.
    position jsonb,
    -- Why the last reading failed. Null: it did not.
    error text,
    -- How many notifications were recovered, of all readings.
    recovered bigint not null default 0,
    primary key (tenant_id, environment)
);
