-- Rows that a database may hold when the eighth migration has run: beside the rows of those before it. The change of a
-- tenant writes the row of operator_audit.
insert into validation_audit (lane, id, tenant_id, source, identifier_hash, valid, latency_ms)
    values (tenant_lane('tenant_sample'), 'aud_sample', 'tenant_sample', 'google', '\x00', true, 1);
insert into validation_audit_keys (number, key_enc) values (1, '\x00');
update tenants set name = 'Changed' where id = 'tenant_sample';
