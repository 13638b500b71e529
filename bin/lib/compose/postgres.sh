#!/bin/sh
# The entry point of the replacement for the Postgres image, which does the same as that image: a server that answers on
# its socket only initialises the cluster, once; then the real one is started.
set -eu

bin=$(echo /usr/lib/postgresql/*/bin)
if [ "$(id -u)" = 0 ]; then
    chown postgres: "$PGDATA"
    chmod 700 "$PGDATA"
    # Read as root, so that other users need no permission.
    if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
        POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
        export POSTGRES_PASSWORD
    fi
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [ "$method" != trust ] && [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo "POSTGRES_PASSWORD_FILE is missing." >&2
        exit 1
    fi
    password=$(mktemp)
    echo "${POSTGRES_PASSWORD:-none}" >"$password"
    "$bin/initdb" --username="$user" --pwfile="$password" --auth-local=trust --auth-host="$method" \
        --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    rm "$password"
    echo "host all all all $method" >>"$PGDATA/pg_hba.conf"
    "$bin/pg_ctl" start --silent --wait --options="-c listen_addresses=''"
    if [ "$user" != postgres ]; then
        "$bin/createdb" --username="$user" "$user"
    fi
    for file in /docker-entrypoint-initdb.d/*.sh; do
        # shellcheck source=/dev/null
        [ ! -f "$file" ] || . "$file"
    done
    "$bin/pg_ctl" stop --silent --wait --mode=fast
fi
exec "$bin/postgres" -c listen_addresses='*' "$@"
