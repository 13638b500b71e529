"""Records the help of every command, and what commands print in both forms."""

import hmac
import json
import re
import shlex
import signal
import time

from installation import ask, wait_for
from questions import APP

UNKNOWN = {
    "tenant": "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
    "key": "key_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
    "event": "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
    "redelivery": "red_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
}
OTHER_SECRET = "another secret of the snapshot, 32 characters and more"
PASSPHRASE = "a passphrase of the snapshot"


def help_of_all(recorder, installation):
    """The whole tree, as the help of each command lists what is below it."""
    waiting = [()]
    while waiting:
        words = waiting.pop(0)
        text = installation.must_run(*words, "--help")
        recorder.write(f"help/{'-'.join(('attesto', *words))}.txt", recorder.constant(text))
        listed = re.search(r"^Commands:\n((?:.+\n)*)", text, re.MULTILINE)
        below = re.findall(r"^  ([a-z][\w-]*)", listed[1], re.MULTILINE) if listed else []
        waiting += [(*words, word) for word in below if word != "help"]


class Commands:
    """Runs commands with one form of output and records what they print."""

    def __init__(self, recorder, installation, form):
        self.recorder, self.installation, self.form = recorder, installation, form

    def run(self, name, *arguments, environment=None, stdin=b""):
        """Runs and records. Returns the finished process."""
        used = (*arguments, "--output", self.form)
        done = self.installation.run(*used, environment=environment, stdin=stdin)
        is_table = self.form == "table"
        self.recorder.command(f"commands/{self.form}/{name}.txt", done, used, is_table=is_table)
        return done


def settings(recorder, installation):
    """`attesto config check` with nothing set, with good settings and with bad ones, and `serve` with the bad ones."""
    nothing = {name: value for name, value in installation.base.items() if not name.startswith("ATTESTO_")}
    bad = nothing | {
        "PORT": "99999",
        "BIND_ADDRESS": "everywhere",
        "DATABASE_URL": "mysql://localhost/a",
        "ATTESTO_ENCRYPTION_KEY": "c2hvcnQ=",
        "ATTESTO_ENCRYPTION_KEYS_RETIRED": "300:AAAA",
        "ATTESTO_ENV": "staging",
        "LOG_LEVEL": "loud",
        "LOG_FORMAT": "xml",
        "RATE_LIMIT_PER_SECOND": "0",
        "RATE_LIMIT_BURST": "-1",
        "CREDENTIAL_CACHE_TTL_SECONDS": "soon",
        "WEBHOOK_DISPATCHER_DISABLED": "maybe",
        "WEBHOOK_DISPATCH_CONCURRENCY": "0",
        "WEBHOOK_TIMEOUT_SECONDS": "0",
        "WEBHOOK_MAX_RETRIES": "many",
        "RETENTION_EVENTS_DAYS": "-1",
        "SHUTDOWN_GRACE_SECONDS": "100000",
        "METRICS_ADDRESS": "9090",
        "APPLE_PRODUCTION_URL": "ftp://example.com",
        "APPLE_ROOT_CERTIFICATES": "/nowhere",
        "APPLE_OCSP": "sometimes",
        "GOOGLE_PLAY_URL": "nowhere",
        "UPSTREAM_TIMEOUT_SECONDS": "0",
        "TLS_CERT_PATH": "/nowhere/certificate.pem",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector",
        "OTEL_TRACES_SAMPLER_ARG": "2",
    }
    production = installation.environment | {"ATTESTO_ENV": "production"}
    for name, environment in {
        "nothing-set": nothing,
        "good": installation.environment,
        "bad": bad,
        "not-for-production": production,
    }.items():
        for form, ending in (("json", "json"), ("table", "txt")):
            arguments = ("config", "check", "--output", form)
            done = installation.run(*arguments, environment=environment)
            recorder.command(f"config-check/{name}.{ending}", done, arguments, is_table=form == "table")
    for name, environment in {
        "without-database": nothing,
        "with-bad-settings": bad,
        "not-for-production": production,
        "without-key": nothing | {"DATABASE_URL": "postgres://attesto@127.0.0.1:1/attesto"},
    }.items():
        recorder.command(f"serve/{name}.txt", installation.run("serve", environment=environment), ("serve",))
    for name, arguments in {
        "unknown-command": ("nonsense",),
        "unknown-second-word": ("tenant", "nonsense"),
        "missing-argument": ("tenant", "create"),
        "malformed-id": ("key", "list", "tenant_1"),
        "colon-form": ("tenant:create", "--help"),
        "bad-output": ("tenant", "list", "--output", "xml"),
        "which-database": ("tenant", "list"),
        "version": ("--version",),
        "openapi": ("openapi",),
    }.items():
        done = installation.run(*arguments, environment=nothing)
        if name == "openapi":
            description = json.dumps(json.loads(done.stdout), indent=2, ensure_ascii=False, sort_keys=True)
            recorder.write("openapi-command.json", recorder.constant(description))
        else:
            recorder.command(f"commands/usage/{name}.txt", done, arguments)


def all_of_them(recorder, installation, main, tenants, receiver, form):
    """Commands on the installation, with tenants of their own where something is changed."""
    commands = Commands(recorder, installation, form)
    run, must_run, control = commands.run, installation.must_run, installation.control
    write = installation.write
    tenant = tenants["main"]

    def wait_for_deliveries():
        pending = ("webhook", "list-deliveries", tenant.id, "--status", "pending", "--output", "json")
        wait_for("every delivery", lambda: not must_run(*pending))

    wait_for_deliveries()

    # Tenants and keys.
    run("tenant-create", "tenant", "create", "--name", "A name, with 'quotes'")
    new = json.loads(must_run("tenant", "create", "--name", f"Another ({form})"))["id"]
    run("tenant-create-bad-name", "tenant", "create", "--name", "")
    run("tenant-rename", "tenant", "rename", new, f"Renamed ({form})")
    run("tenant-deactivate", "tenant", "deactivate", new)
    run("tenant-deactivate-again", "tenant", "deactivate", new)
    run("tenant-activate", "tenant", "activate", new)
    run("tenant-activate-again", "tenant", "activate", new)
    run("tenant-unknown", "tenant", "deactivate", UNKNOWN["tenant"])
    run("tenant-set-limits", "tenant", "set-limits", new, "--per-second", "7", "--burst", "9")
    run("tenant-set-limits-show", "tenant", "set-limits", new)
    run("tenant-set-limits-default", "tenant", "set-limits", new, "--per-second", "default")
    run("tenant-list", "tenant", "list")
    run("key-create", "key", "create", new, "--name", "backend")
    created = json.loads(must_run("key", "create", new, "--env", "test"))
    key = created["id"]
    recorder.known[created["keyPrefix"]] = "start of the key"
    run("key-create-of-unknown", "key", "create", UNKNOWN["tenant"])
    run("key-revoke", "key", "revoke", key)
    run("key-revoke-again", "key", "revoke", key)
    run("key-revoke-colon-form", "key:revoke", UNKNOWN["key"])
    run("key-list", "key", "list", new)
    run("key-list-limited", "key", "list", new, "--limit", "1", "--offset", "1")
    run("key-list-empty", "key", "list", UNKNOWN["tenant"])
    run("key-revoke-all", "key", "revoke", "--all", "--tenant", new)

    # Credentials.
    run("apple-get-credentials-none", "apple", "get-credentials", new)
    run("apple-get-credentials-unknown", "apple", "get-credentials", UNKNOWN["tenant"])
    file, issuer = str(installation.folder / "apple.p8"), control("GET", "/apple/key")
    apple = ("--bundle-id", APP, "--issuer-id", issuer["issuerId"], "--key-id", issuer["keyId"], "--key-path")
    run("apple-set-credentials-warning", "apple", "set-credentials", new, *apple, file)
    run(
        "apple-set-credentials",
        "apple",
        "set-credentials",
        new,
        *apple,
        file,
        "--app-apple-id",
        "1234567890",
        "--check",
    )
    garbage = write("garbage", "no key")
    run("apple-set-credentials-no-key", "apple", "set-credentials", new, *apple, garbage)
    run("apple-set-credentials-no-file", "apple", "set-credentials", new, *apple, "/nowhere")
    bad = ("--bundle-id", "", "--issuer-id", "me", "--key-id", "short", "--key-path", file)
    run("apple-set-credentials-bad", "apple", "set-credentials", new, *bad)
    run("apple-get-credentials", "apple", "get-credentials", new)
    run("apple-rollback-credentials", "apple", "rollback-credentials", new)
    run("apple-rollback-credentials-none", "apple", "rollback-credentials", tenant.id)
    push = {"production": f"{main.url}/v1/webhooks/apple/{tenant.id}", "sandbox": "http://127.0.0.1:9/"}
    control("POST", f"/apple/push/{APP}", push)
    run("apple-request-test-notification", "apple", "request-test-notification", tenant.id)
    run("apple-request-test-notification-failing", "apple", "request-test-notification", tenant.id, "--env", "sandbox")
    control("POST", f"/apple/push/{APP}", {"production": "http://127.0.0.1:9/", "manual": True})
    file = str(installation.folder / "google.json")
    google = ("--package-name", APP, "--service-account-path")
    run("google-get-credentials-none", "google", "get-credentials", new)
    run("google-set-credentials", "google", "set-credentials", new, *google, file)
    more = ("--pubsub-audience", "me", "--pubsub-service-account", "a@example.iam.gserviceaccount.com")
    topic = ("--pubsub-topic", "projects/example/topics/play")
    run("google-set-credentials-push", "google", "set-credentials", new, *google, file, *more, *topic)
    run("google-set-credentials-no-key", "google", "set-credentials", new, *google, garbage)
    run("google-get-credentials", "google", "get-credentials", new)
    run("google-rollback-credentials", "google", "rollback-credentials", new)

    # Callbacks.
    run("webhook-get-none", "webhook", "get", new)
    run("webhook-set-config", "webhook", "set-config", new, "--callback-url", f"{receiver.url}/{form}")
    secret = write("other-secret", OTHER_SECRET)
    run("webhook-set-config-overlap", "webhook", "set-config", new, "--secret-path", secret, "--overlap", "1h")
    run("webhook-set-config-short-secret", "webhook", "set-config", new, "--secret", "short")
    run("webhook-set-config-bad-url", "webhook", "set-config", new, "--callback-url", "ftp://example.com")
    run("webhook-set-config-inactive", "webhook", "set-config", new, "--is-active", "false")
    run("webhook-get", "webhook", "get", new)
    run("webhook-retire-secret", "webhook", "retire-secret", new)
    run("webhook-allow", "webhook", "allow", new, "10.1.0.0/16:443")
    run("webhook-allow-list", "webhook", "allow", new)
    run("webhook-disallow", "webhook", "disallow", new, "10.1.0.0/16:443")
    run("webhook-allow-bad", "webhook", "allow", new, "everything")
    run("webhook-ping", "webhook", "ping", new)
    for status in (204, 302, 410, 500):
        must_run("webhook", "set-config", new, "--callback-url", f"{receiver.url}/status/{status}")
        run(f"webhook-ping-{status}", "webhook", "ping", new)
    must_run("webhook", "set-config", new, "--callback-url", "http://127.0.0.1:9/")
    run("webhook-ping-refused", "webhook", "ping", new)
    run("webhook-ping-unknown", "webhook", "ping", UNKNOWN["tenant"])
    now = str(int(time.time()))
    for name, moment, value in (
        (
            "webhook-verify-signature",
            now,
            hmac.new(OTHER_SECRET.encode(), f"{now}.{{}}".encode(), "sha256").hexdigest(),
        ),
        ("webhook-verify-signature-wrong", "1775830930", "0" * 64),
    ):
        signed = ("--secret-path", secret, "--body-path", write("body", "{}"), "--signature", f"t={moment},v1={value}")
        run(name, "webhook", "verify-signature", *signed)
    run("webhook-list-events", "webhook", "list-events", tenant.id, "--limit", "3")
    run("webhook-list-events-pending", "webhook", "list-events", tenant.id, "--status", "pending")
    run("webhook-list-events-empty", "webhook", "list-events", new)
    run("webhook-list-deliveries", "webhook", "list-deliveries", tenant.id, "--limit", "3")
    run("webhook-list-deliveries-failed", "webhook", "list-deliveries", tenant.id, "--status", "failed")
    event = json.loads(must_run("webhook", "list-events", tenant.id, "--limit", "1"))["id"]
    received = len(receiver.received)
    run("webhook-redeliver", "webhook", "redeliver", event, "--reason", "snapshot")
    run("webhook-redeliver-unknown", "webhook", "redeliver", UNKNOWN["event"])
    several = ("webhook", "redeliver", "--tenant", tenant.id, "--event-type", "product.refunded", "--since", "24h")
    run("webhook-redeliver-dry-run", *several, "--dry-run")
    run("webhook-redeliver-several", *several)
    # They are queued one after the other by the service.
    count = 1 + json.loads(must_run(*several, "--dry-run"))["count"]
    wait_for("every redelivery", lambda: len(receiver.received) >= received + count)
    wait_for_deliveries()
    run("webhook-redeliver-bad-type", "webhook", "redeliver", "--tenant", tenant.id, "--event-type", "nonsense")
    run("webhook-stop-redelivery-unknown", "webhook", "stop-redelivery", UNKNOWN["redelivery"])
    run("deliveries-hold", "deliveries", "hold")
    run("deliveries-hold-again", "deliveries", "hold")
    run("deliveries-status-held", "deliveries", "status")
    run("deliveries-release", "deliveries", "release")
    run("deliveries-release-again", "deliveries", "release")
    run("deliveries-status", "deliveries", "status")

    # Questions.
    run("verify-apple", "verify", "apple", tenant.id, "--transaction-id", "7001")
    run("verify-apple-not-found", "verify", "apple", tenant.id, "--transaction-id", "7999")
    run("verify-apple-without-credentials", "verify", "apple", tenants["bare"].id, "--transaction-id", "7001")
    for kind in ("subscription", "product"):
        file = write("purchase-token", f"{kind}-active")
        product = ("--product-id", "coins_100") if kind == "product" else ()
        run(
            f"verify-google-{kind}",
            "verify",
            "google",
            tenant.id,
            "--purchase-token-path",
            file,
            "--type",
            kind,
            *product,
        )
    signed = write("signed", control("GET", "/apple/transactions/7001/jws"))
    forged = write("forged", control("GET", "/apple/forge?kind=wrong-root&transactionId=7001"))
    run("verify-apple-signed", "verify", "apple", tenant.id, "--signed-transaction-path", signed)
    run("verify-apple-forged", "verify", "apple", tenant.id, "--signed-transaction-path", forged)
    run("inspect", "inspect", signed, "--bundle-id", APP)
    run("inspect-forged", "inspect", forged)
    run("inspect-other-app", "inspect", signed, "--bundle-id", "com.example.other")
    run("inspect-garbage", "inspect", garbage)

    # Operation.
    run("health", "health", "--url", main.url)
    run("health-ready", "health", "--ready", "--url", main.url)
    run("health-away", "health", "--url", "http://127.0.0.1:9")
    run("audit-list", "audit", "list", tenant.id, "--limit", "3")
    run("audit-list-of-purchase", "audit", "list", tenant.id, "--limit", "1", "--identifier-path", write("id", "7002"))
    run("audit-operators-list", "audit", "operators", "list", "--limit", "5")
    run("audit-verify", "audit", "verify")
    run("tail", "tail", "--tenant", tenant.id, "--no-follow", "--last", "5")
    run("encryption-status", "encryption", "status")
    run("encryption-rotate-dry-run", "encryption", "rotate", "--dry-run")
    run("encryption-rotate", "encryption", "rotate")
    run("encryption-generate-key", "encryption", "generate-key")
    identity = str(installation.folder / f"identity-{form}")
    run("encryption-generate-identity", "encryption", "generate-identity", "--file", identity)
    run("migrate-dry-run", "migrate", "--dry-run")
    run("migrate", "migrate")
    run("prune-dry-run", "prune", "--dry-run")
    run("prune", "prune")
    run("db-grant-readonly", "db", "grant-readonly", "--user", "reader")
    run("jobs-list-before", "jobs", "list")
    for job in json_lines(must_run("jobs", "list")):
        run(f"jobs-run-{job['name']}", "jobs", "run", job["name"])
    run("jobs-run-unknown", "jobs", "run", "nonsense")
    run("jobs-list", "jobs", "list")
    packed, passphrase = str(installation.folder / f"{form}.export"), write("passphrase", PASSPHRASE)
    sealed = ("--file", packed, "--passphrase-file", passphrase)
    run("tenant-export", "tenant", "export", new, *sealed)
    run("tenant-export-again", "tenant", "export", new, *sealed)
    run("tenant-import-there-already", "tenant", "import", *sealed)
    run("tenant-import-replace-dry-run", "tenant", "import", *sealed, "--replace", "--dry-run")
    run("tenant-import-replace", "tenant", "import", *sealed, "--replace")
    wrong = write("wrong-passphrase", "another passphrase")
    run("tenant-import-wrong-passphrase", "tenant", "import", "--file", packed, "--passphrase-file", wrong)
    dump = str(installation.folder / f"{form}.dump")
    run("backup-create", "backup", "create", "--file", dump)
    run("backup-verify", "backup", "verify", dump)
    run("backup-restore-not-empty", "backup", "restore", dump)
    run("doctor-with-findings", "doctor")


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


class Dev:
    """A running `attesto dev`: what it prints, and what `doctor` says of the healthy installation that it is."""

    def __init__(self, installation):
        self.installation = installation
        self.data = installation.folder / "dev"
        ports = ("--port", "0", "--simulator-port", "0", "--callback-port", "0")
        own = installation.base | {"ATTESTO_DATA_DIR": str(self.data)}
        self.process = installation.start("dev", "dev", *ports, environment=own)
        self.begun = time.monotonic()

    def finish(self, recorder):
        """Records and ends it. Returns where it logged."""
        self.process.wait_for_line("Ctrl-C stops everything")
        environment = self.environment()
        # A process updates its row in `replicas` every ten seconds.
        time.sleep(max(0.0, self.begun + 15 - time.monotonic()))

        def all_jobs_ran():
            jobs = json_lines(self.installation.must_run("jobs", "list", environment=environment))
            return all(job["outcome"] == "done" for job in jobs)

        wait_for("every job has run", all_jobs_ran)
        recorder.known[str(self.data)] = "folder"
        for form, ending in (("json", "json"), ("table", "txt")):
            for name, arguments in {
                "doctor": ("doctor", "--output", form),
                "doctor-offline": ("doctor", "--offline", "--output", form),
                "config-check/dev": ("config", "check", "--output", form),
            }.items():
                done = self.installation.run(*arguments, environment=environment)
                recorder.command(f"{name}.{ending}", done, arguments, is_table=form == "table")
        code = self.process.stop(signal.SIGINT)
        text = recorder.placeholders().table(self.process.output())
        recorder.write("dev.txt", f"$ attesto dev\n\n{text}\n\n=> exit code {code}")
        return self.data / "dev" / "attesto.log"

    def environment(self):
        """The variables that it prints for the command line, and those of its stores: no other may be asked."""
        printed = self.process.output()
        words = [shlex.split(line) for line in printed.splitlines() if line.startswith("export ")]
        exports = dict(word.split("=", 1) for line in words for word in line[1:])
        control = re.search(r"http://\S+/control\b", printed)[0]
        stores = dict(line.split("=", 1) for line in ask("GET", control + "/settings").body.splitlines())
        roots = {"APPLE_ROOT_CERTIFICATES": str(self.data / "dev" / "simulator-root.pem")}
        pubsub = {"GOOGLE_PUBSUB_URL": stores["GOOGLE_PLAY_URL"]}
        return self.installation.base | exports | stores | roots | pubsub


def services_that_do_not_start(recorder, installation):
    """`attesto serve` on a database that is sealed with another key, and on a port that is taken."""
    wrong = installation.write("wrong-key", installation.must_run("encryption", "generate-key"))
    environment = installation.environment | {"ATTESTO_ENCRYPTION_KEY_FILE": wrong}
    done = installation.run("serve", "--port", "0", environment=environment)
    recorder.command("serve/with-wrong-key.txt", done, ("serve",))
    taken = installation.control_url.split(":")[2].split("/")[0]
    arguments = ("serve", "--bind-address", "127.0.0.1", "--port", taken)
    recorder.known[taken] = "port"
    recorder.command("serve/on-a-taken-port.txt", installation.run(*arguments), arguments)


def unavailable(recorder, installation):
    """What is answered while the database is away."""
    url = "postgres://attesto@127.0.0.1:1/attesto?connect_timeout=1"
    begun = time.monotonic()
    running = installation.serve("away", DATABASE_URL=url, ATTESTO_EMBEDDED_POSTGRES="false")
    body = {"transactionId": "7001"}
    key = {"authorization": "Bearer attesto_live_" + "A" * 43}
    for name, method, path, sent in (
        ("health", "GET", "/health", None),
        ("ready", "GET", "/ready", None),
        ("apple-verify", "POST", "/v1/apple/verify", body),
        (
            "google-verify",
            "POST",
            "/v1/google/verify",
            {"packageName": APP, "purchaseToken": "a", "type": "subscription"},
        ),
        ("apple-webhook", "POST", f"/v1/webhooks/apple/{UNKNOWN['tenant']}", {"signedPayload": "a.b.c"}),
    ):
        headers = key if name.endswith("verify") else {}
        recorder.exchange(f"http/database-away/{name}.txt", method, running.url + path, headers, sent)
    for form in ("json", "table"):
        away = installation.environment | {"DATABASE_URL": url}
        Commands(recorder, installation, form).run("doctor-database-away", "doctor", environment=away)
        Commands(recorder, installation, form).run("tenant-list-database-away", "tenant", "list", environment=away)
        Commands(recorder, installation, form).run("health-ready-degraded", "health", "--ready", "--url", running.url)
    # Every component that uses the database logs within this time that it is unreachable.
    time.sleep(max(0.0, begun + 12 - time.monotonic()))
    running.process.stop()
