-- What the stores ask about refunds, so that an answer is given in time, and what a tenant answers where its backend does not.
-- previous release: works
-- tables: creates refund_questions; locks apple_credentials, google_credentials, tenants

-- How a purchase was used, as in the body of POST /v1/apple/consumption. Null: nothing is answered by itself.
alter table apple_credentials add column default_consumption jsonb;

-- What to do about a refund, as in the body of POST /v1/google/refund-review. Null: nothing is answered by itself.
alter table google_credentials add column default_refund_review jsonb;

-- One row is a question of a store. It is removed a week after the store takes no answer any more.
create table refund_questions (
    tenant_id text not null references tenants (id),
    source text not null check (source in ('apple', 'google')),
    -- SHA-256 of the store's id of the question: Apple's notificationUUID, Google's pendingRefundToken.
    question_hash bytea not null check (octet_length(question_hash) = 32),
    -- Apple's transaction id, or Google's order id.
    purchase_id text not null,
    -- Google's pendingRefundToken. Null for Apple.
    refund_token text,
    -- Where Apple asked. Null for Google.
    environment text check (environment in ('production', 'sandbox')),
    -- The store takes no answer after that time.
    answer_by timestamptz not null,
    -- When the answer of the tenant's settings is sent, or tried again. Null once nothing is left to do.
    next_check_at timestamptz,
    -- While a process sends that answer, the end of its lease.
    leased_until timestamptz,
    -- How often that answer was tried.
    attempt_count integer not null default 0,
    -- answered: by the backend. default_sent: by the tenant's settings. refused: the store did not take that. missed: nothing was sent
    -- in time. Null: it is open.
    outcome text check (outcome in ('answered', 'default_sent', 'refused', 'missed')),
    -- Why the answer of the tenant's settings was not taken. Null: it was, or was not tried.
    error text,
    created_at timestamptz not null default now(),
    primary key (tenant_id, source, question_hash)
);

create index refund_questions_due on refund_questions (next_check_at) where next_check_at is not null;
create index refund_questions_by_purchase on refund_questions (tenant_id, source, purchase_id);
create index refund_questions_over on refund_questions (answer_by);
