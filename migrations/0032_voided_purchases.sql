-- Which refunds of Google Play are known, so that those whose notification did not arrive can be fetched, and none is told twice.
-- previous release: works
-- tables: creates google_voided_reads, voided_purchases; locks tenants

-- One row is a refund of an order that a notification, or Google's list of refunds, has told.
create table voided_purchases (
    tenant_id text not null references tenants (id),
    -- SHA-256 of the purchase token, the order id and the refund type, joined by line feeds.
    refund_hash bytea not null check (octet_length(refund_hash) = 32),
    -- The external id of its event.
    external_id text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, refund_hash)
);

create index voided_purchases_by_age on voided_purchases (created_at);

insert into voided_purchases (tenant_id, refund_hash, external_id, created_at)
select event.tenant_id,
    sha256(convert_to(
        (event.voided ->> 'purchaseToken') || E'\n' || coalesce(event.voided ->> 'orderId', '') || E'\n'
            || coalesce(event.voided ->> 'refundType', ''),
        'UTF8'
    )),
    min(event.external_id), min(event.received_at)
from (
    select tenant_id, external_id, received_at, decoded_payload -> 'voidedPurchaseNotification' as voided
    from webhook_events
    where source = 'google' and platform_event = 'google.voided'
) event
where event.voided ->> 'purchaseToken' is not null
group by 1, 2;

-- How far Google's list of refunds was read for a tenant.
create table google_voided_reads (
    tenant_id text primary key references tenants (id),
    -- What was refunded before is known.
    read_until timestamptz not null,
    -- When it was last read to its end. Null: not yet.
    last_success_at timestamptz,
    -- When it is read next.
    next_read_at timestamptz not null,
    -- Why the last reading failed. Null: it did not.
    error text,
    -- How many refunds were recovered, of all readings.
    recovered bigint not null default 0
);
