-- What a database may hold when the nineteenth migration has run.
insert into body_dictionaries (content_hash, content) values (sha256('content'), 'content');
