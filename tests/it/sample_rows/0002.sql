-- What a database may hold when the second migration has run: beside the rows of the first.
insert into webhook_configs (tenant_id, callback_url, secret_enc)
    values ('tenant_sample', 'https://example.com/hook', '\x00');
insert into webhook_events (id, tenant_id, source, external_id, event_type, platform_event, raw_payload, decoded_payload)
    values ('evt_sample', 'tenant_sample', 'apple', 'external', 'subscription.renewed', 'apple.did_renew', '{}', '{}');
insert into webhook_deliveries (id, event_id, tenant_id, callback_url)
    values ('del_sample', 'evt_sample', 'tenant_sample', 'https://example.com/hook');
insert into validation_audit (id, tenant_id, source, identifier_hash, valid, latency_ms)
    values ('aud_sample', 'tenant_sample', 'google', '\x00', true, 1);
