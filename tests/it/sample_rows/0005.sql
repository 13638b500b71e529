-- What a database may hold when the fifth migration has run: beside the rows of those before it.
insert into purchase_links (tenant_id, token_hash, token, replaces)
    values ('tenant_sample', sha256('token'), 'token', 'earlier-token');
