-- The order in which a tenant reads its events back: a number that an event gets after its commit.
-- previous release: works, it leaves the new column empty, and empty values are not compared
-- tables: creates event_feeds; locks tenants; reads_all webhook_events

-- One row is a tenant that has read its events back. The lock of the row orders the numbers: they are committed in their order.
create table event_feeds (
    tenant_id text primary key references tenants (id),
    -- The number that was given last.
    last_position bigint not null default 0,
    -- Events from before the first read are numbered in batches, from the oldest on: how far that has come. Null: it is done.
    history_from timestamptz default '-infinity'
);

-- Null until the tenant reads its events back. Not given when the event is stored: events become visible in the order of their
-- commits, which no number that is drawn before the commit has.
alter table webhook_events add column feed_position bigint;

create unique index webhook_events_by_feed_position on webhook_events (tenant_id, feed_position);

-- Whether an event of the tenant has no number. Without sequential and bitmap scans, which look cheap to the planner where many
-- tenants never read their events back, and which read all events of the tenant.
create function has_unnumbered_events(of_tenant text) returns boolean
    language plpgsql stable set enable_seqscan = off set enable_bitmapscan = off
    as $$
begin
    return exists (select from webhook_events where tenant_id = of_tenant and feed_position is null);
end
$$;

-- Gives numbers to up to `at_most` events of the tenant that have none, and returns to how many. A function, so that no client can
-- leave the transaction open; each of its statements sees what was committed before the lock of the feed was granted.
create function number_events(of_tenant text, at_most bigint) returns bigint
    language plpgsql volatile set enable_seqscan = off set enable_bitmapscan = off
    as $$
declare
    feed event_feeds;
    numbered bigint;
    newest timestamptz;
begin
    if not has_unnumbered_events(of_tenant) then
        return 0;
    end if;
    insert into event_feeds (tenant_id) values (of_tenant) on conflict do nothing;
    select * into feed from event_feeds where tenant_id = of_tenant for update;
    with history as (
        select id, received_at from webhook_events
        where feed.history_from is not null and tenant_id = of_tenant and received_at >= feed.history_from
            and feed_position is null
        order by received_at
        limit at_most
    ), recent as materialized (
        select id, received_at from webhook_events
        where feed.history_from is null and tenant_id = of_tenant and feed_position is null
        limit at_most
    ), picked as (
        select id, received_at, row_number() over (order by received_at, id) as turn
        from (select * from history union all select * from recent) unnumbered
    ), updated as (
        update webhook_events event set feed_position = feed.last_position + picked.turn
        from picked where event.id = picked.id
        returning event.received_at
    )
    select count(*), max(received_at) into numbered, newest from updated;
    update event_feeds set
        last_position = feed.last_position + numbered,
        history_from = case when feed.history_from is not null and numbered = at_most then newest end
    where tenant_id = of_tenant;
    return numbered;
end
$$;
