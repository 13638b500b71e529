# shellcheck shell=sh
# A temporary Postgres for a script. To be sourced after machine.sh; POSIX sh.
#
# start_postgres sets POSTGRES to its folder and POSTGRES_URL to a database in it with every migration applied.
# stop_postgres ends it and removes the folder; call it from a trap.

POSTGRES=

# Runs a command as a user that Postgres accepts: the current one, or for root the one named by ATTESTO_PG_USER or that of
# Debian's package.
as_unprivileged() {
    if [ "$(id -u)" != 0 ]; then
        "$@"
    elif command -v setpriv >/dev/null; then
        setpriv --reuid "$POSTGRES_USER" --regid "$(id -g "$POSTGRES_USER")" --clear-groups "$@"
    else
        runuser -u "$POSTGRES_USER" -- "$@"
    fi
}

start_postgres() {
    programs=$(postgres_programs)
    POSTGRES=$(mktemp -d /tmp/attesto-scratch-XXXXXX)
    POSTGRES_USER=$(id -un)
    if [ "$(id -u)" = 0 ]; then
        for POSTGRES_USER in "${ATTESTO_PG_USER:-}" attesto postgres ''; do
            [ -n "$POSTGRES_USER" ] && id "$POSTGRES_USER" >/dev/null 2>&1 && break
        done
        [ -n "$POSTGRES_USER" ] || fail "Postgres refuses to run as root. Create a user for it: useradd --system attesto"
        chown "$POSTGRES_USER" "$POSTGRES"
    fi
    (
        cd /
        as_unprivileged "$programs/initdb" -D "$POSTGRES/pg" -U attesto -E UTF8 --locale=C --auth=trust --no-sync
        as_unprivileged "$programs/pg_ctl" start -w -D "$POSTGRES/pg" -l "$POSTGRES/log" \
            -o "-c listen_addresses= -c unix_socket_directories=$POSTGRES -c fsync=off"
    ) >"$(scratch_log)" 2>&1 </dev/null || {
        cat "$(scratch_log)" >&2
        fail "The temporary Postgres does not start (see above)."
    }
    POSTGRES_URL="postgres:///postgres?host=$POSTGRES&user=attesto&sslmode=disable"
    for migration in migrations/*.sql; do
        "$programs/psql" -X -q -v ON_ERROR_STOP=1 --single-transaction -d "$POSTGRES_URL" <"$migration" >&2 ||
            fail "$migration does not apply."
    done
}

# Beside the folder, which belongs to another user if this is run by root.
scratch_log() {
    echo "$POSTGRES.log"
}

stop_postgres() {
    [ -n "$POSTGRES" ] || return 0
    (cd / && as_unprivileged "$programs/pg_ctl" stop -m immediate -D "$POSTGRES/pg") >/dev/null 2>&1 || :
    rm -rf "$POSTGRES" "$(scratch_log)"
    POSTGRES=
}
