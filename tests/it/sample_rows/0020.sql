-- What a database may hold when the twentieth migration has run.
insert into process_locks (name) values ('job sample');
