-- What a database may hold when the thirtieth migration has run: beside the rows of those before it.
insert into webhook_client_certificates (tenant_id, certificate_chain, key_enc, not_before, not_after)
    values ('tenant_sample', array['\x00'::bytea], '\x00', now(), now());
