-- Purchases of Google Play that are not acknowledged, so that their tenants are told before Google refunds them.
-- previous release: works
-- tables: creates owed_acknowledgements; locks tenants

-- One row is a purchase that was not acknowledged when its notification was received. It is removed when Google says that nothing is
-- owed any more, or a day after the deadline.
create table owed_acknowledgements (
    tenant_id text not null references tenants (id),
    -- SHA-256 of the purchase token.
    token_hash bytea not null check (octet_length(token_hash) = 32),
    purchase_token text not null,
    subject_type text not null check (subject_type in ('subscription', 'product')),
    -- Google refunds the purchase after that time.
    acknowledge_by timestamptz not null,
    -- How often Google was asked whether it is still owed.
    attempt_count integer not null default 0,
    -- When Google is asked next. While a process asks, the end of its lease. Null once the tenant was told.
    next_check_at timestamptz,
    created_at timestamptz not null default now(),
    primary key (tenant_id, token_hash)
);

create index owed_acknowledgements_due on owed_acknowledgements (next_check_at) where next_check_at is not null;
create index owed_acknowledgements_over on owed_acknowledgements (acknowledge_by);
