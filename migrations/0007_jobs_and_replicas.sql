-- Runs of periodic jobs, the running processes, and indexes by age for retention.
-- tables: creates job_runs, replicas; reads_all validation_audit, webhook_deliveries, webhook_events

-- One row for each run. A run renews its lease; when the lease has expired, its process died, and another process runs the
-- job.
create table job_runs (
    id bigint generated always as identity primary key,
    job text not null,
    -- The name of the machine.
    host text not null,
    -- How often that process runs the job. Null: an operator asked for this run, or the job runs only on request.
    interval_seconds bigint,
    started_at timestamptz not null,
    lease_until timestamptz not null,
    -- Null: it is running, or its process died.
    finished_at timestamptz,
    outcome text check (outcome in ('done', 'failed', 'stopped', 'interrupted')),
    -- What it did, with counts.
    told json,
    -- The error, if it failed.
    error text,
    check ((finished_at is null) = (outcome is null))
);

create unique index job_runs_one_at_a_time on job_runs (job) where finished_at is null;
create index job_runs_by_job on job_runs (job, id desc);

-- The processes that run `attesto serve`. One that was not seen for a minute is not running.
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

-- For the retention of rows by age.
create index webhook_events_by_age on webhook_events (received_at, id);
create index validation_audit_by_age on validation_audit (occurred_at);
create index webhook_deliveries_with_details on webhook_deliveries ((coalesce(delivered_at, failed_at, created_at)), id)
    where status <> 'pending' and last_response_body is not null;
