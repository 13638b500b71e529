-- What a database may hold when only the first migration has run.
insert into tenants (id, name) values ('tenant_sample', 'Sample');
insert into api_keys (id, tenant_id, key_hash, key_prefix)
    values ('key_sample', 'tenant_sample', sha256('sample'), 'sample00');
insert into apple_credentials (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint)
    values ('tenant_sample', 'com.example.app', 'ABCDEFGHIJ', '00000000-0000-0000-0000-000000000000', '\x00', '00');
insert into google_credentials (tenant_id, package_name, service_account_enc, client_email, key_fingerprint)
    values ('tenant_sample', 'com.example.app', '\x00', 'robot@example.com', '00');
insert into encryption_canaries (key_id, canary_enc) values (1, '\x00');
