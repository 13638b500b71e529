# shellcheck shell=sh
# What the scripts need on this machine. To be sourced from the root of the repository; POSIX sh.
#
# Only what is missing is installed, only from the system's packages, and never without a message.

say() {
    printf '\n==> %s\n' "$*" >&2
}

fail() {
    printf '\n%s\n' "$*" >&2
    exit 1
}

# Runs a command as root: directly, or through sudo. Without a terminal sudo must not ask for a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && [ -t 0 ]; then
        sudo "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 126
    fi
}

# apt_install PACKAGE...
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 </dev/null
}

# need_packages WHAT PACKAGE...: installs packages on Debian or Ubuntu. The package lists may be missing or old.
need_packages() {
    what=$1
    shift
    if ! command -v apt-get >/dev/null; then
        fail "$what is missing, and this is no Debian or Ubuntu: please install it and run this again."
    fi
    say "$what is missing: installing $* with apt-get"
    if ! as_root true; then
        fail "That needs root or sudo. Please run this once, and then this script again:

    sudo apt-get install $*"
    fi
    apt_install "$@" || { as_root apt-get update -qq >&2 </dev/null && apt_install "$@"; } ||
        fail "apt-get could not install $* (see above)."
}

# The folder of the newest Postgres programs, found as src/embedded_postgres/binaries.rs finds them.
postgres_programs() {
    if [ -n "${ATTESTO_PG_BIN:-}" ]; then
        echo "$ATTESTO_PG_BIN"
        return
    fi
    if command -v postgres >/dev/null; then
        # The target of the link: psql and pg_ctl are beside it.
        folder=$(dirname "$(readlink -f "$(command -v postgres)")")
        if [ -x "$folder/initdb" ]; then
            echo "$folder"
            return
        fi
    fi
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/libexec/postgresql*/bin /usr/libexec/postgresql* \
        /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin \
        /home/linuxbrew/.linuxbrew/opt/postgresql@*/bin /usr/local/pgsql/bin; do
        if [ -x "$folder/postgres" ] && [ -x "$folder/initdb" ]; then
            echo "$folder"
        fi
    done | sort -V | tail -n 1 | grep .
}

need_postgres() {
    postgres_programs >/dev/null && return
    # Debian's package would create a cluster and start it, which is not wanted here. A file of the package that it depends on
    # switches that off; it is restored afterwards, so that the machine behaves as before.
    need_packages "Postgres (the programs; no server will be started)" postgresql-common
    switch=/etc/postgresql-common/createcluster.conf
    kept=$(mktemp)
    cat "$switch" >"$kept"
    as_root sed -i -e "\$a create_main_cluster = false" "$switch"
    # In a subshell, so that the file is restored even if this fails.
    (need_packages "Postgres (the programs; no server will be started)" postgresql) && done=0 || done=1
    as_root tee "$switch" <"$kept" >/dev/null
    rm -f "$kept"
    [ "$done" = 0 ] || exit 1
    postgres_programs >/dev/null || fail "The package postgresql is installed, and its programs are not where they belong."
}

# A test runs the real program.
need_pgbouncer() {
    if command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ]; then
        return
    fi
    # Debian's package would start a service, which is not wanted here. While this link exists it cannot.
    unit=/etc/systemd/system/pgbouncer.service
    linked=0
    if [ -d /run/systemd/system ] && [ ! -e "$unit" ] && as_root ln -s /dev/null "$unit"; then
        linked=1
    fi
    # In a subshell, so that the link is removed even if this fails.
    (need_packages "PgBouncer (the program; it will not be started)" pgbouncer) && done=0 || done=1
    if [ "$linked" = 1 ]; then
        as_root rm -f "$unit"
        as_root systemctl disable --quiet pgbouncer >/dev/null 2>&1 || :
    fi
    [ "$done" = 0 ] || exit 1
}

need_rust() {
    command -v cargo >/dev/null && return
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
        return
    fi
    fail "Rust is missing. Install it from https://rustup.rs and run this again."
}

# The cryptography library is written in C.
need_c_compiler() {
    command -v cc >/dev/null && return
    need_packages "A C compiler" gcc libc6-dev
}

# Python with virtual environments, which are a separate package on Debian.
need_python() {
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    need_packages "Python 3.11 or newer" python3 python3-venv
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python is $(python3 --version), and 3.11 or newer is needed. Please install it, as python3 on the PATH."
}

need_node() {
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        need_packages "Node.js" nodejs npm
    fi
    node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' ||
        fail "Node.js is $(node --version), and 18 or newer is needed. Please install it, as node on the PATH."
}

need_curl() {
    command -v curl >/dev/null && return
    need_packages curl curl
}

need_everything() {
    need_rust
    need_c_compiler
    need_postgres
}

# cargo_tool NAME VERSION: prints how to call one of cargo's tools. If it is not installed, this version is built into the
# target folder, once.
cargo_tool() {
    if command -v "$1" >/dev/null; then
        echo "$1"
        return
    fi
    tools="${CARGO_TARGET_DIR:-target}/tools"
    if ! [ -x "$tools/bin/$1" ]; then
        say "$1 is missing: building $2 into $tools (some minutes, once)"
        cargo install --quiet --locked --root "$tools" --version "$2" "$1" >&2
    fi
    echo "$tools/bin/$1"
}

# The mirror for packages of any Debian release: on Debian, the one that this machine uses.
debian_mirror() {
    if [ -n "${ATTESTO_DEBIAN_MIRROR:-}" ]; then
        echo "$ATTESTO_DEBIAN_MIRROR"
        return
    fi
    # shellcheck disable=SC2016 # apt expands it.
    apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -m 1 '/debian/*$' ||
        fail "apt knows no mirror of Debian's packages: name one in ATTESTO_DEBIAN_MIRROR, as http://host/debian."
}
