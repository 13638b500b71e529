-- Rows that a database may hold when the second migration has run: beside the rows of the first.
insert into encryption_canaries (key_id, canary_enc) values (1, '\x00');
insert into apple_credentials (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint)
    values ('tenant_sample', 'com.example.app', 'ABCDEFGHIJ', '00000000-0000-0000-0000-000000000000', '\x00', '00');
insert into google_credentials (tenant_id, package_name, service_account_enc, client_email, key_fingerprint)
    values ('tenant_sample', 'com.example.app', '\x00', 'robot@example.com', '00');
insert into apple_previous_credentials
    (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint, environment, replaced_at, expires_at)
    values ('tenant_sample', 'com.example.app', 'ABCDE12345', '', '\x00', '', 'auto', now(), now());
insert into google_previous_credentials
    (tenant_id, package_name, service_account_enc, client_email, key_fingerprint, replaced_at, expires_at)
    values ('tenant_sample', 'com.example.app', '\x00', '', '', now(), now());
