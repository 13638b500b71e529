-- What a process that serves does not do: `attesto doctor` reads it in another process.
-- previous release: works
-- tables: locks replicas

-- An object: see src/replicas/replica.rs.
alter table replicas add column notices jsonb not null default '{}';
