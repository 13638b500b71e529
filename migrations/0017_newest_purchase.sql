-- The newest purchase of a subscription is found from any earlier one, and the user of a purchase is kept: Google tells whose a
-- purchase made outside the app is only until that is acknowledged.
-- previous release: works
-- tables: reads_all purchase_links

-- What an index needs: the same for the same text at any time, and bounded, which a token is not.
create function purchase_token_hash(token text) returns bytea language sql immutable strict parallel safe
    as $$ select sha256(convert_to(token, 'UTF8')) $$;

alter table purchase_links
    -- Whether it was ever paid for: one that is pending or was declined replaces nothing. Null: not known.
    add column is_paid boolean,
    -- The app's own id of the user, of this purchase or of the lapsed one that it follows.
    add column app_user_id text;

-- What replaces a token.
create index purchase_links_replaces on purchase_links (tenant_id, purchase_token_hash(replaces)) where replaces is not null;
