-- Rows whose locks decide which process works when several could. They replace advisory locks, which every role that may connect can
-- take. Only a role that may write to these tables can lock a row.
-- previous release: stops, it takes advisory locks, which do not exclude processes that lock rows
-- tables: creates delivery_lanes, process_locks

-- The deliveries of each tenant belong to one of 64 lanes. A process claims deliveries of the lanes whose rows it has locked.
create table delivery_lanes (
    lane smallint primary key check (lane between 0 and 63)
);

insert into delivery_lanes select generate_series(0, 63);

-- One row for each other purpose. The row of a job is added by its first run.
create table process_locks (
    name text primary key
);

insert into process_locks values ('operator_audit');

-- As in 0008, with a lock of a row.
create or replace function note_operation(
    action text, object text, target text, tenant_id text, before jsonb, after jsonb
) returns void language plpgsql as $$
declare
    entry operator_audit;
    told boolean := current_setting('application_name') = nullif(current_setting('attesto.session', true), '');
begin
    perform from process_locks where name = 'operator_audit' for no key update;
    if not found then
        raise exception 'the row operator_audit is missing in the table process_locks';
    end if;
    select last.seq, last.hash into entry.seq, entry.previous_hash
        from operator_audit last order by last.seq desc limit 1;
    entry.seq := coalesce(entry.seq, 0) + 1;
    entry.previous_hash := coalesce(entry.previous_hash, decode(repeat('00', 32), 'hex'));
    entry.occurred_at := date_trunc('milliseconds', clock_timestamp());
    entry.actor := coalesce(case when told then current_setting('attesto.actor', true) end, session_user);
    entry.host := coalesce(
        case when told then current_setting('attesto.host', true) end, host(inet_client_addr()), 'local');
    entry.command := coalesce(
        case when told then current_setting('attesto.command', true) end,
        nullif(current_setting('application_name'), ''), '?');
    entry.action := note_operation.action;
    entry.object := note_operation.object;
    entry.target := note_operation.target;
    entry.tenant_id := note_operation.tenant_id;
    entry.before := note_operation.before;
    entry.after := note_operation.after;
    entry.hash := operator_audit_hash(entry);
    insert into operator_audit select entry.*;
end
$$;
