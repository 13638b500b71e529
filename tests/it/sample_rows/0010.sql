-- What a database may hold when the tenth migration has run.
insert into delivery_holds (held_by, released_at, released_by) values ('sample', now(), 'sample');
insert into delivery_holds (held_by) values ('sample');
insert into backups (id, created_at, host, bytes) values ('backup_sample', now(), 'sample', 1);
insert into backups (id, created_at, host, bytes, verified_at, sound) values ('backup_proven', now(), 'sample', 1, now(), true);
