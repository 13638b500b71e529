-- The installation itself: runs of periodic jobs, running processes, their locks, backups, and what migrations promise.
-- tables: creates backups, job_runs, process_locks, replicas, schema_promises

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
    opening_key_ids smallint[] not null,
    -- Whether the process claims deliveries. Lanes are shared among those that do.
    delivers boolean not null default true,
    -- A fingerprint of each group of settings that must be equal in all processes. No values, no secrets.
    settings jsonb not null default '{}',
    -- The expiry of the certificates that the process uses, by name.
    certificates jsonb not null default '{}',
    -- What the process does not do, for `attesto doctor` in another process: see src/replicas/replica.rs.
    notices jsonb not null default '{}'
) with (fillfactor = 50);

-- One row for each purpose but the lanes of deliveries: its lock decides which process works when several could. The row of a job is
-- added by its first run.
create table process_locks (
    name text primary key
);

insert into process_locks values ('operator_audit');

-- The backups of this database, and when each was last restored as a test.
create table backups (
    -- As in the backup's manifest.
    id text primary key,
    created_at timestamptz not null,
    -- The machine it was made on.
    host text not null,
    bytes bigint not null,
    verified_at timestamptz,
    -- Whether the test restore had every row of the manifest.
    sound boolean,
    check ((verified_at is null) = (sound is null))
);

create index backups_by_age on backups (created_at desc);

-- Whether each migration after those of the first release is compatible with releases that do not know it, so that an older release
-- can be started again. A release serves with migrations that it does not know if all of them have a row here that allows it. The
-- row is written with the migration.
create table schema_promises (
    version bigint primary key,
    previous_works boolean not null,
    why text,
    applied_at timestamptz not null default now()
);
