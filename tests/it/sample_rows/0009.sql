-- What a database may hold when the ninth migration has run: beside the rows of those before it.
insert into apple_previous_credentials
    (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint, environment, replaced_at, expires_at)
    values ('tenant_sample', 'com.example.app', 'ABCDE12345', '', '\x00', '', 'auto', now(), now());
insert into google_previous_credentials
    (tenant_id, package_name, service_account_enc, client_email, key_fingerprint, replaced_at, expires_at)
    values ('tenant_sample', 'com.example.app', '\x00', '', '', now(), now());
