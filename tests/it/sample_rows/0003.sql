-- Rows that a database may hold when the third migration has run: beside the rows of those before it.
insert into webhook_configs (tenant_id, callback_url, secret_enc)
    values ('tenant_sample', 'https://example.com/hook', '\x00');
insert into webhook_configs (tenant_id, callback, kind, callback_url, secret_enc, sources)
    values ('tenant_sample', 2, 'raw', 'https://example.com/raw', '\x00', '{apple}');
insert into webhook_previous_secrets (tenant_id, number, secret_enc, created_at, expires_at)
    values ('tenant_sample', 1, '\x00', now(), now());
insert into webhook_client_certificates (tenant_id, certificate_chain, key_enc, not_before, not_after)
    values ('tenant_sample', array['\x00'::bytea], '\x00', now(), now());
insert into webhook_allowed_networks (tenant_id, network, port) values ('tenant_sample', '10.1.0.0/16', 443);
insert into webhook_health (lane, tenant_id, callback_url) values (tenant_lane('tenant_sample'), 'tenant_sample', 'https://example.com/hook');
insert into callback_probes (tenant_id, callback_key, probed_at, result, since)
    values ('tenant_sample', 1, now(), 'reachable', now());
