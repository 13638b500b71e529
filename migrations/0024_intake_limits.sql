-- How many notifications, and how much of them, is taken in for a tenant in a minute, where it is not what the settings say.
-- previous release: works
-- tables: reads_all tenants

alter table tenants
    add column intake_events_per_minute integer check (intake_events_per_minute > 0),
    add column intake_megabytes_per_minute integer check (intake_megabytes_per_minute > 0);
