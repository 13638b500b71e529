-- Rows that a database may hold when the seventh migration has run: beside the rows of those before it.
insert into job_runs (job, host, interval_seconds, started_at, lease_until, finished_at, outcome, told)
    values ('retention', 'sample', 3600, now(), now(), now(), 'done', '{}');
insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids, settings, certificates)
    values ('rep_sample', 'sample', 1, '0.1.0', now(), now(), 1, '{1}', '{"stores": "00"}',
        '{"apple_leaf": "2027-01-01T00:00:00.000Z"}');
insert into process_locks (name) values ('job sample');
insert into backups (id, created_at, host, bytes) values ('backup_sample', now(), 'sample', 1);
insert into backups (id, created_at, host, bytes, verified_at, sound) values ('backup_proven', now(), 'sample', 1, now(), true);
insert into schema_promises (version, previous_works, why) values (7, true, 'sample');
