-- What a database may hold when the thirteenth migration has run.
insert into schema_promises (version, previous_works, why) values (13, true, 'sample') on conflict do nothing;
