-- The key of the validation log's hashes, the log of what operators changed, and what counting needs.
-- tables: creates operator_audit, validation_audit_keys; locks api_keys, apple_credentials, google_credentials, tenants, webhook_allowed_networks, webhook_configs, webhook_previous_secrets, webhook_redeliveries; reads_all webhook_deliveries

-- Identifiers in validation_audit are hashed with a key that is made once and never changes, so that hashes of this
-- year and of the next can be compared. The key is random and sealed: rotating the encryption key seals it anew and
-- leaves it what it is.
create table validation_audit_keys (
    number integer primary key check (number = 1),
    key_enc bytea not null,
    created_at timestamptz not null default now()
);

-- One row a change, whoever made it and by whichever door: the triggers below write it in the change's own
-- transaction. Each row holds the hash of the one before it, so that a row which was edited or taken away is missed:
-- `attesto audit verify`.
create table operator_audit (
    -- 1, 2, 3 and so on, without a gap.
    seq bigint primary key check (seq > 0),
    occurred_at timestamptz not null,
    -- The user of the operating system; without Attesto between, the database's.
    actor text not null,
    host text not null,
    -- Which command: `key revoke`; without Attesto between, the program's own name for itself.
    command text not null,
    -- insert, update or delete; or a word of a job's own.
    action text not null,
    -- The table, and which of its rows.
    object text not null,
    target text not null,
    tenant_id text,
    -- Of an update only what changed. Secrets are there as fingerprints. json and not jsonb: the text is hashed.
    before json,
    after json,
    previous_hash bytea not null check (octet_length(previous_hash) = 32),
    hash bytea not null check (octet_length(hash) = 32)
);

create index operator_audit_by_tenant on operator_audit (tenant_id, seq desc);

-- What a row's hash is made of: the hash before it, then each field as `length:text`, `-` where there is none, with
-- commas between. src/audit/operators.rs makes the same.
create function operator_audit_hash(entry operator_audit) returns bytea language sql stable as $$
    select sha256(entry.previous_hash || convert_to(
        string_agg(coalesce(octet_length(convert_to(field, 'UTF8')) || ':' || field, '-'), ',' order by position),
        'UTF8'))
    from unnest(array[
        entry.seq::text,
        (extract(epoch from entry.occurred_at) * 1000)::bigint::text,
        entry.actor, entry.host, entry.command, entry.action, entry.object, entry.target, entry.tenant_id,
        entry.before::text, entry.after::text
    ]) with ordinality as fields (field, position)
$$;

-- Adds a row to the chain. Whoever adds one waits for whoever is adding one.
--
-- Who it is stands in settings of the session, together with the name that the connection has. Behind a pooler that
-- shares connections the settings may be somebody else's; the name is not, so that where the two differ, nobody's
-- change is put down to another.
create function note_operation(
    action text, object text, target text, tenant_id text, before jsonb, after jsonb
) returns void language plpgsql as $$
declare
    entry operator_audit;
    told boolean := current_setting('application_name') = nullif(current_setting('attesto.session', true), '');
begin
    perform pg_advisory_xact_lock(hashtextextended('attesto operator_audit', 0));
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

-- A row as it may be shown: what is sealed or hashed by its fingerprint, addresses without their query, and without
-- what changes by itself.
create function auditable(line jsonb) returns jsonb language sql immutable as $$
    select coalesce(jsonb_object_agg(key, case
        when value = 'null' then value
        when key like '%\_enc' then to_jsonb('sealed:' || left(encode(sha256(convert_to(value #>> '{}', 'UTF8')), 'hex'), 16))
        when key like '%\_hash' then to_jsonb('hash:' || substr(value #>> '{}', 3, 16))
        when key like '%\_url' then to_jsonb(regexp_replace(value #>> '{}', '[?#].*$', '?…'))
        else value
    end), '{}')
    from jsonb_each(line)
    where key not in ('last_used_at', 'callback_key')
$$;

-- Its arguments are the columns that say which row it is.
create function audit_change() returns trigger language plpgsql
    set bytea_output = 'hex' set timezone = 'UTC' as $$
declare
    line jsonb := coalesce(to_jsonb(new), to_jsonb(old));
    was jsonb := auditable(to_jsonb(old));
    is_now jsonb := auditable(to_jsonb(new));
    changed text[];
begin
    if tg_op = 'UPDATE' then
        select coalesce(array_agg(key), '{}') into changed
            from jsonb_each(is_now) where value is distinct from was -> key;
        -- Sealed anew with another key, and nothing else: that is nobody's change.
        if not exists (select from unnest(changed) as name where name not like '%\_enc') then
            return null;
        end if;
        select jsonb_object_agg(key, value) into was from jsonb_each(was) where key = any (changed);
        select jsonb_object_agg(key, value) into is_now from jsonb_each(is_now) where key = any (changed);
    end if;
    perform note_operation(
        lower(tg_op), tg_table_name,
        (select string_agg(line ->> name, ' ' order by position)
            from unnest(tg_argv) with ordinality as names (name, position)),
        case when tg_table_name = 'tenants' then line ->> 'id' else line ->> 'tenant_id' end,
        case when tg_op <> 'INSERT' then was end,
        case when tg_op <> 'DELETE' then is_now end);
    return null;
end
$$;

create trigger audit_change after insert or delete or update on tenants
    for each row execute function audit_change('id');
-- Not on last_used_at, which is no operator's doing.
create trigger audit_change
    after insert or delete or update of tenant_id, key_hash, name, environment, revoked_at on api_keys
    for each row execute function audit_change('id');
create trigger audit_change after insert or delete or update on apple_credentials
    for each row execute function audit_change('tenant_id');
create trigger audit_change after insert or delete or update on google_credentials
    for each row execute function audit_change('tenant_id');
create trigger audit_change after insert or delete or update on webhook_configs
    for each row execute function audit_change('tenant_id');
create trigger audit_change after insert or delete or update on webhook_previous_secrets
    for each row execute function audit_change('tenant_id', 'number');
create trigger audit_change after insert or delete or update on webhook_allowed_networks
    for each row execute function audit_change('tenant_id', 'network', 'port');
-- The rest of its life is the dispatcher's.
create trigger audit_change after insert or delete on webhook_redeliveries
    for each row execute function audit_change('id');
-- One delivery that an operator asked for. Those that a request for many brings are the request's.
create trigger audit_change after insert on webhook_deliveries
    for each row
    when (new.requested_by is not null and coalesce(current_setting('attesto.session', true), '') <> '')
    execute function audit_change('id');

-- The few deliveries that wait for a person, to be counted without looking at the others.
create index webhook_deliveries_parked on webhook_deliveries (parked_at) where parked_at is not null;
