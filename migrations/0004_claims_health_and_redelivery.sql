-- Claims of deliveries, the health of each callback, and redeliveries that an operator asked for.
-- tables: creates webhook_health, webhook_redeliveries; locks tenants; rewrites webhook_deliveries; unknown anything

alter table webhook_deliveries
    -- A hash of the callback's URL in eight bytes, since a long URL makes a large index. If two URLs of one tenant have
    -- the same hash, they share health and limits, and nothing else.
    add column callback_key bigint generated always as (hashtextextended(callback_url, 0)) stored,
    -- The number of leases given on this row so far. A worker writes the result of an attempt only while the row still has
    -- the number under which it was claimed.
    add column lease_no integer not null default 0,
    -- Until when a worker has the row. Null: no worker has it.
    add column lease_until timestamptz,
    -- Consecutive leases that ended without a result: the worker died.
    add column interruptions integer not null default 0,
    -- Set when workers died repeatedly while they had this row. It is not tried again until an operator asks for a redelivery.
    add column parked_at timestamptz,
    add column last_attempt_at timestamptz,
    -- How the last attempt ended, in one word: success, http_5xx, timeout, …
    add column last_outcome text,
    -- Who asked for this redelivery, and why. Null: the event's first delivery.
    add column requested_by text,
    add column request_reason text,
    -- The delivery that succeeded while this one waited for its next attempt.
    add column settled_by text;

-- Rows are updated at least twice within a minute of their insert. Vacuum after a fixed number of dead rows keeps the claim
-- fast in a large table.
alter table webhook_deliveries set (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- The index of a claim: callback by callback, the oldest few deliveries of each.
create index webhook_deliveries_waiting on webhook_deliveries (tenant_id, callback_key, next_attempt_at)
    where status = 'pending' and lease_until is null and parked_at is null;
create index webhook_deliveries_leased on webhook_deliveries (lease_until) where lease_until is not null;
create index webhook_deliveries_by_tenant on webhook_deliveries (tenant_id, created_at desc);
drop index webhook_deliveries_due;

-- Every callback with unfinished deliveries, due or not, in the order of the index. Seeks from one callback to the next
-- instead of reading the rows between (a loose index scan), so that a backlog of one callback does not slow down the others.
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

-- The health of a callback. No row: nothing was sent to it yet.
create table webhook_health (
    tenant_id text not null references tenants (id),
    callback_url text not null,
    callback_key bigint generated always as (hashtextextended(callback_url, 0)) stored,
    state text not null default 'active' check (state in ('active', 'throttled', 'open', 'paused')),
    -- How many requests may be under way at once.
    allowed smallint not null default 1 check (allowed between 1 and 8),
    -- Consecutive attempts without success.
    failures integer not null default 0,
    -- The latest of them that got no answer at all.
    unreachable integer not null default 0,
    failing_since timestamptz,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    -- Nothing is sent before this time; then one request as a test.
    closed_until timestamptz,
    -- How often in a row the circuit was opened: each time for longer.
    closings integer not null default 0,
    primary key (tenant_id, callback_key)
) with (fillfactor = 85);

-- Requests to deliver many events again. Any process enqueues the next few of them.
create table webhook_redeliveries (
    id text primary key,
    tenant_id text not null references tenants (id),
    -- Which events: by the status of their deliveries and by event type; null: all.
    status text check (status in ('pending', 'delivered', 'failed')),
    event_type text,
    received_from timestamptz not null,
    received_until timestamptz not null,
    requested_by text not null,
    reason text,
    -- The last event that was examined.
    cursor_received_at timestamptz,
    cursor_event_id text,
    enqueued integer not null default 0,
    next_batch_at timestamptz not null,
    created_at timestamptz not null,
    finished_at timestamptz
);

create index webhook_redeliveries_unfinished on webhook_redeliveries (next_batch_at) where finished_at is null;
