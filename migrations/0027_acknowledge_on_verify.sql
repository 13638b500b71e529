-- Whether a tenant's Google purchases are acknowledged when they are verified, and which of them have still to be.
-- previous release: works
-- tables: locks owed_acknowledgements; reads_all google_credentials

-- never: the tenant does it. verify: Attesto does, after the first successful verification.
alter table google_credentials
    add column acknowledge text not null default 'never' check (acknowledge in ('never', 'verify'));

-- Whether an acknowledgement was tried, and is tried again.
alter table owed_acknowledgements add column is_wanted boolean not null default false;
