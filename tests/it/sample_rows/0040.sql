-- What a database may hold when the fortieth migration has run: beside the rows of those before it.
insert into webhook_configs (tenant_id, callback, kind, callback_url, secret_enc, sources)
    values ('tenant_sample', 2, 'raw', 'https://example.com/raw', '\x00', '{apple}');
