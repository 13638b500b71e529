-- Rows that a database may hold when the first migration has run.
insert into tenants (id, name) values ('tenant_sample', 'Sample');
insert into api_keys (id, tenant_id, key_hash, key_prefix)
    values ('key_sample', 'tenant_sample', sha256('sample'), 'sample00');
