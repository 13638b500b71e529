-- What a database may hold when the seventh migration has run: beside the rows of those before it.
insert into job_runs (job, host, interval_seconds, started_at, lease_until, finished_at, outcome, told)
    values ('retention', 'sample', 3600, now(), now(), now(), 'done', '{}');
insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
    values ('rep_sample', 'sample', 1, '0.1.0', now(), now(), 1, '{1}');
