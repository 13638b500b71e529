-- Each tenant's deliveries belong to one of 64 lanes, and several processes claim at the same time, each in other lanes.
-- previous release: stops, it claims in all lanes at once
-- tables: locks replicas; rewrites webhook_deliveries; unknown anything

-- The lane of a tenant: the first byte of the SHA-256 of its id, modulo 64. `tenant_lane` in src/tenants/lane.rs computes the same.
create function tenant_lane(tenant_id text) returns smallint language sql immutable strict parallel safe
    as $$ select (get_byte(sha256(convert_to(tenant_id, 'UTF8')), 0) % 64)::smallint $$;

alter table webhook_deliveries
    add column lane smallint not null generated always as (tenant_lane(tenant_id)) stored;

-- Whether the process claims deliveries. Lanes are shared among those that do.
alter table replicas add column delivers boolean not null default true;

-- The index of a claim: in its lane, callback by callback, the oldest few deliveries of each.
create index webhook_deliveries_waiting_by_lane
    on webhook_deliveries (lane, tenant_id, callback_key, next_attempt_at)
    where status = 'pending' and lease_until is null and parked_at is null;
drop index webhook_deliveries_waiting;
create index webhook_deliveries_leased_by_lane on webhook_deliveries (lane, lease_until) where lease_until is not null;
drop index webhook_deliveries_leased;

-- The callbacks with unfinished deliveries in these lanes, due or not, and when the first of them is due. As in 0004 it seeks from one
-- callback to the next, in all lanes at once. The oldest delivery is part of the answer, because the index has it where the
-- callback begins: a second search would pass the entries of delivered ones again, which stay until vacuum.
create function delivery_callbacks_waiting(lanes smallint[])
    returns table (lane smallint, tenant_id text, callback_key bigint, next_attempt_at timestamptz)
    language sql stable parallel safe rows 100
as $$
    with recursive callback as (
        select first.lane, first.tenant_id, first.callback_key, first.next_attempt_at
        from unnest(lanes) as wanted (lane)
        cross join lateral (
            select waiting.lane, waiting.tenant_id, waiting.callback_key, waiting.next_attempt_at
            from webhook_deliveries waiting
            where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
                and waiting.lane = wanted.lane
            order by waiting.tenant_id, waiting.callback_key, waiting.next_attempt_at
            limit 1
        ) first
        union all
        select next.lane, next.tenant_id, next.callback_key, next.next_attempt_at
        from callback
        cross join lateral (
            select waiting.lane, waiting.tenant_id, waiting.callback_key, waiting.next_attempt_at
            from webhook_deliveries waiting
            where waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
                -- With `lane = callback.lane and …`, the index would be read from the beginning of the lane.
                and (waiting.lane, waiting.tenant_id, waiting.callback_key)
                    > (callback.lane, callback.tenant_id, callback.callback_key)
            order by waiting.lane, waiting.tenant_id, waiting.callback_key, waiting.next_attempt_at
            limit 1
        ) next
        where next.lane = callback.lane
    )
    select lane, tenant_id, callback_key, next_attempt_at from callback
$$;

-- In all lanes.
create or replace view webhook_callbacks_waiting as
select waiting.tenant_id, waiting.callback_key, waiting.lane, waiting.next_attempt_at
from delivery_callbacks_waiting(array(select generate_series(0, 63)::smallint)) waiting;
