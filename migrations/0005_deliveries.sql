-- The deliveries of events to the tenants' callbacks, how they are claimed, redeliveries that operators ask for, and holds.
-- tables: creates delivery_holds, delivery_lanes, webhook_deliveries, webhook_redeliveries; locks tenants, webhook_events

-- The deliveries of each tenant belong to one of 64 lanes, so that several processes claim at the same time, each in other lanes. A
-- process claims deliveries of the lanes whose rows it has locked.
--
-- Rows whose locks decide which process works when several could, instead of advisory locks, which every role that may connect can
-- take. Only a role that may write to these tables can lock a row.
create table delivery_lanes (
    lane smallint primary key check (lane between 0 and 63)
);

insert into delivery_lanes select generate_series(0, 63);

create table webhook_deliveries (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    id text not null,
    event_id text not null,
    tenant_id text not null references tenants (id),
    callback smallint not null default 1,
    -- Set when the event is stored: a later change of the configuration does not redirect it.
    callback_url text not null,
    -- A hash of the callback's URL in eight bytes, since a long URL makes a large index. If two URLs of one tenant have
    -- the same hash, they share health and limits, and nothing else.
    callback_key bigint generated always as (hashtextextended(callback_url, 0)) stored,
    status text not null default 'pending' check (status in ('pending', 'delivered', 'failed')),
    attempt_count integer not null default 0,
    next_attempt_at timestamptz default now(),
    -- The number of leases given on this row so far. A worker writes the result of an attempt only while the row still has
    -- the number under which it was claimed.
    lease_no integer not null default 0,
    -- Until when a worker has the row. Null: no worker has it.
    lease_until timestamptz,
    -- Consecutive leases that ended without a result: the worker died.
    interruptions integer not null default 0,
    -- Set when workers died repeatedly while they had this row. It is not tried again until an operator asks for a redelivery.
    parked_at timestamptz,
    last_attempt_at timestamptz,
    -- How the last attempt ended, in one word: success, http_5xx, timeout, …
    last_outcome text,
    -- Why it failed, in one sentence for operators. Null after an attempt that succeeded.
    last_error text,
    last_response_code integer,
    -- At most the first kilobyte.
    last_response_body text,
    delivered_at timestamptz,
    failed_at timestamptz,
    -- Who asked for this redelivery, and why. Null: the event's first delivery.
    requested_by text,
    request_reason text,
    -- The delivery that succeeded while this one waited for its next attempt.
    settled_by text,
    created_at timestamptz not null default now(),
    primary key (lane, id),
    foreign key (lane, event_id) references webhook_events (lane, id)
) with (
    -- Rows are updated at least twice within a minute of their insert. Vacuum after a fixed number of dead rows keeps the claim
    -- fast in a large table.
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

create index webhook_deliveries_by_tenant on webhook_deliveries (lane, tenant_id, created_at desc)
    where tenant_id is not null;
-- Few deliveries are not delivered, and operators list those. Without this index a list of failed deliveries reads a tenant's
-- whole history.
create index webhook_deliveries_unfinished on webhook_deliveries (lane, tenant_id, created_at desc)
    where status <> 'delivered';
-- The index of a claim: in its lane, callback by callback, the oldest few deliveries of each.
create index webhook_deliveries_waiting_by_callback
    on webhook_deliveries (lane, tenant_id, callback, callback_key, next_attempt_at)
    where status = 'pending' and lease_until is null and parked_at is null;
create index webhook_deliveries_leased_by_lane on webhook_deliveries (lane, lease_until) where lease_until is not null;
-- Deliveries that wait for an operator, to be counted without reading the others.
create index webhook_deliveries_parked on webhook_deliveries (lane, parked_at) where parked_at is not null;
-- For the retention of answers by age.
create index webhook_deliveries_with_details on webhook_deliveries (lane, (coalesce(delivered_at, failed_at, created_at)), id)
    where status <> 'pending' and last_response_body is not null;
create index webhook_deliveries_by_event on webhook_deliveries (lane, event_id) where event_id is not null;

-- The callbacks with unfinished deliveries in these lanes, due or not, and when the first of them is due. Seeks from one callback to
-- the next instead of reading the rows between (a loose index scan), in all lanes at once, so that a backlog of one callback does
-- not slow down the others. The oldest delivery is part of the answer, because the index has it where the
-- callback begins: a second search would pass the entries of delivered ones again, which stay until vacuum.
create function callbacks_waiting_in_lanes(lanes smallint[])
    returns table (lane smallint, tenant_id text, callback smallint, callback_key bigint, next_attempt_at timestamptz)
    language sql stable parallel safe rows 100
as $$
    with recursive waiting_callback as (
        select first.lane, first.tenant_id, first.callback, first.callback_key, first.next_attempt_at
        from unnest(lanes) as wanted (lane)
        cross join lateral (
            select waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            from webhook_deliveries waiting
            where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
                and waiting.lane = wanted.lane
            order by waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            limit 1
        ) first
        union all
        select next.lane, next.tenant_id, next.callback, next.callback_key, next.next_attempt_at
        from waiting_callback
        cross join lateral (
            select waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            from webhook_deliveries waiting
            where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
                -- With `lane = waiting_callback.lane and …`, the index would be read from the beginning of the lane.
                and (waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key)
                    > (waiting_callback.lane, waiting_callback.tenant_id, waiting_callback.callback,
                        waiting_callback.callback_key)
            order by waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at
            limit 1
        ) next
        where next.lane = waiting_callback.lane
    )
    select lane, tenant_id, callback, callback_key, next_attempt_at from waiting_callback
$$;

-- In all lanes.
create view webhook_callbacks_waiting as
select waiting.tenant_id, waiting.callback_key, waiting.lane, waiting.next_attempt_at, waiting.callback
from callbacks_waiting_in_lanes(array(select generate_series(0, 63)::smallint)) waiting;

-- The id of one of the deliveries that are enqueued together: `id` for the first, with number 0, and `id` with another last letter for
-- up to 31 more.
create function nth_delivery_id(id text, nth bigint) returns text language sql immutable parallel safe as $$
    select left(id, -1) || substr(
        '0123456789ABCDEFGHJKMNPQRSTVWXYZ',
        ((strpos('0123456789ABCDEFGHJKMNPQRSTVWXYZ', right(id, 1)) - 1 + nth) % 32)::int + 1,
        1)
$$;

-- Requests to deliver many events again. Any process enqueues the next few of them.
create table webhook_redeliveries (
    lane smallint not null check (lane = tenant_lane(tenant_id)),
    id text not null,
    tenant_id text not null references tenants (id),
    -- Which events: by the status of their deliveries and by event type; null: all.
    status text check (status in ('pending', 'delivered', 'failed')),
    event_type text,
    received_from timestamptz not null,
    received_until timestamptz not null,
    -- Null: every callback for which an event matches.
    callback smallint,
    -- Only events that wait for, or failed at, another callback URL than the tenant's own one.
    previous_callback_only boolean not null default false,
    requested_by text not null,
    reason text,
    -- The last event that was examined.
    cursor_received_at timestamptz,
    cursor_event_id text,
    enqueued integer not null default 0,
    next_batch_at timestamptz not null,
    created_at timestamptz not null,
    finished_at timestamptz,
    primary key (lane, id)
);

create index webhook_redeliveries_unfinished on webhook_redeliveries (lane, next_batch_at) where finished_at is null;

-- Holds, with which a restored system sends nothing until an operator releases them. While one row is not released, no process
-- begins a delivery.
create table delivery_holds (
    id bigint generated always as identity primary key,
    held_at timestamptz not null default now(),
    -- The machine on which it was requested.
    held_by text not null,
    released_at timestamptz,
    released_by text,
    check ((released_at is null) = (released_by is null))
);

create unique index delivery_holds_one_at_a_time on delivery_holds ((true)) where released_at is null;
