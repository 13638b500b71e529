-- What a database may hold when the third migration has run: beside the rows of the second.
insert into webhook_previous_secrets (tenant_id, number, secret_enc, created_at, expires_at)
    values ('tenant_sample', 1, '\x00', now(), now());
insert into webhook_allowed_networks (tenant_id, network, port) values ('tenant_sample', '10.1.0.0/16', 443);
