-- What runs periodically and when it did, which processes are there, and what it takes to find old rows.
-- tables: creates job_runs, replicas; reads_all validation_audit, webhook_deliveries, webhook_events

-- One row a run, whoever started it. A run that has the job for itself says so again and again; when it no longer does,
-- its process died, and the next one begins.
create table job_runs (
    id bigint generated always as identity primary key,
    job text not null,
    -- The machine it runs on.
    host text not null,
    -- How often that process runs the job. Null: somebody asked for this run, or the job runs only when asked for.
    interval_seconds bigint,
    started_at timestamptz not null,
    lease_until timestamptz not null,
    -- Null: it runs, or its process died.
    finished_at timestamptz,
    outcome text check (outcome in ('done', 'failed', 'stopped', 'interrupted')),
    -- What it did, in numbers and a word or two.
    told json,
    -- Why it failed.
    error text,
    check ((finished_at is null) = (outcome is null))
);

create unique index job_runs_one_at_a_time on job_runs (job) where finished_at is null;
create index job_runs_by_job on job_runs (job, id desc);

-- Every process that serves. One that has not been seen for a minute is gone.
create table replicas (
    id text primary key,
    host text not null,
    pid integer not null,
    version text not null,
    started_at timestamptz not null,
    seen_at timestamptz not null,
    -- The encryption key it seals with, and those it can open with.
    sealing_key_id smallint not null check (sealing_key_id between 1 and 255),
    opening_key_ids smallint[] not null
) with (fillfactor = 50);

-- Rows in the order of their age, for those that are kept only for a time.
create index webhook_events_by_age on webhook_events (received_at, id);
create index validation_audit_by_age on validation_audit (occurred_at);
create index webhook_deliveries_with_details on webhook_deliveries ((coalesce(delivered_at, failed_at, created_at)), id)
    where status <> 'pending' and last_response_body is not null;
