-- What a database may hold when the eleventh migration has run.
insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids, settings, certificates)
    values ('rep_watched', 'sample', 2, '0.1.0', now(), now(), 1, '{1}', '{"stores": "00"}',
        '{"apple_leaf": "2027-01-01T00:00:00.000Z"}');
insert into apple_test_notifications (tenant_id, environment, asked_at, result)
    select id, 'production', now(), 'SUCCESS' from tenants limit 1;
insert into callback_probes (tenant_id, callback_key, probed_at, result, since)
    select id, 1, now(), 'reachable', now() from tenants limit 1;
