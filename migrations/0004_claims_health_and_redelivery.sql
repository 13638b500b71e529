-- How deliveries are claimed, how each callback has behaved lately, and what an operator asked to have delivered again.
-- tables: creates webhook_health, webhook_redeliveries; locks tenants; rewrites webhook_deliveries; unknown anything

alter table webhook_deliveries
    -- Which of the tenant's callbacks this goes to, in eight bytes: a long URL makes a large index. Two URLs of one
    -- tenant that share a key share their health and their limits, and nothing else.
    add column callback_key bigint generated always as (hashtextextended(callback_url, 0)) stored,
    -- Counts the leases ever given on this row. A worker writes what became of an attempt only while the row still has
    -- the number it was claimed under.
    add column lease_no integer not null default 0,
    -- Until when a worker holds the row. Null: nobody does.
    add column lease_until timestamptz,
    -- Leases that ended without a result since the last one that had one: the worker died.
    add column interruptions integer not null default 0,
    -- Set when workers died over this row again and again. It waits for a person, who can ask for a redelivery.
    add column parked_at timestamptz,
    add column last_attempt_at timestamptz,
    -- How the last attempt ended, in one word: success, http_5xx, timeout, …
    add column last_outcome text,
    -- Who asked for this delivery, and why. Null: nobody, it belongs to its event.
    add column requested_by text,
    add column request_reason text,
    -- The delivery that brought the event to the tenant before this one's own schedule did.
    add column settled_by text;

-- Rows are written at least twice in the minute they are made in. Cleaning up after a fixed number of dead rows keeps
-- the claim quick however long the history is.
alter table webhook_deliveries set (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- What a claim walks: from one callback of one tenant to the next, and along the oldest few of each.
create index webhook_deliveries_waiting on webhook_deliveries (tenant_id, callback_key, next_attempt_at)
    where status = 'pending' and lease_until is null and parked_at is null;
create index webhook_deliveries_leased on webhook_deliveries (lease_until) where lease_until is not null;
create index webhook_deliveries_by_tenant on webhook_deliveries (tenant_id, created_at desc);
drop index webhook_deliveries_due;

-- Every callback that deliveries wait for, due or not, in the order of the index. Jumps from one to the next instead of
-- reading what lies between, so a backlog of one costs the others nothing.
create view webhook_callbacks_waiting as
with recursive callback as (
    (
        select tenant_id, callback_key
        from webhook_deliveries
        where status = 'pending' and lease_until is null and parked_at is null
        order by tenant_id, callback_key
        limit 1
    )
    union all
    select next.tenant_id, next.callback_key
    from callback
    cross join lateral (
        select waiting.tenant_id, waiting.callback_key
        from webhook_deliveries waiting
        where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
            and (waiting.tenant_id, waiting.callback_key) > (callback.tenant_id, callback.callback_key)
        order by waiting.tenant_id, waiting.callback_key
        limit 1
    ) next
)
select tenant_id, callback_key from callback;

-- How a callback has behaved lately. No row: it has never answered, and was never asked.
create table webhook_health (
    tenant_id text not null references tenants (id),
    callback_url text not null,
    callback_key bigint generated always as (hashtextextended(callback_url, 0)) stored,
    state text not null default 'active' check (state in ('active', 'throttled', 'open', 'paused')),
    -- How many requests may be under way at once.
    allowed smallint not null default 1 check (allowed between 1 and 8),
    -- Attempts without a success since the last one.
    failures integer not null default 0,
    -- Those of them, without a break, in which nobody answered at all.
    unreachable integer not null default 0,
    failing_since timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    -- Nothing is sent before this; then one request, to see.
    closed_until timestamptz,
    -- How often in a row it was closed: each time for longer.
    closings integer not null default 0,
    primary key (tenant_id, callback_key)
) with (fillfactor = 85);

-- "Deliver all of these again", worked off a few at a time by whichever process is there.
create table webhook_redeliveries (
    id text primary key,
    tenant_id text not null references tenants (id),
    -- Which events: by the state of their deliveries, by their word; null takes all.
    status text check (status in ('pending', 'delivered', 'failed')),
    event_type text,
    received_from timestamptz not null,
    received_until timestamptz not null,
    requested_by text not null,
    reason text,
    -- The last event that was looked at.
    cursor_received_at timestamptz,
    cursor_event_id text,
    enqueued integer not null default 0,
    next_batch_at timestamptz not null,
    created_at timestamptz not null,
    finished_at timestamptz
);

create index webhook_redeliveries_unfinished on webhook_redeliveries (next_batch_at) where finished_at is null;
