"""Takes a snapshot of the public surface. Run by bin/snapshot-contract.

snapshot.py PROGRAM PSQL FOLDER     FOLDER: where the files go; it must not exist, or be empty
"""

import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import commands
import questions
from installation import Installation, Receiver, ask
from notifications import AUDIENCE, Apple, Google
from questions import APP
from recorder import Recorder

begun = time.monotonic()
# Of the tenant whose events are delivered: 32 characters and more.
SECRET = "the secret of the snapshot, 32 characters and more"


def say(what):
    print(f"    {what} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Tenant:
    """A tenant with a key, and what it is set up with."""

    id: str
    key: str
    key_id: str
    app: str = APP
    secret: str = SECRET


def make_tenant(installation, name):
    tenant = json.loads(installation.must_run("tenant", "create", "--name", name))["id"]
    key = json.loads(installation.must_run("key", "create", tenant, "--name", "backend", "--env", "test"))
    return Tenant(tenant, key["rawKey"], key["id"])


def set_apple(installation, tenant, *more):
    key = installation.control("GET", "/apple/key")
    file = installation.write("apple.p8", key["privateKey"])
    installation.must_run(
        *("apple", "set-credentials", tenant.id, "--bundle-id", tenant.app, "--key-path", file),
        *("--key-id", key["keyId"], "--issuer-id", key["issuerId"], *more),
    )


def set_google(installation, tenant, *more):
    account = installation.control("GET", "/google/service-account.json")
    file = installation.write("google.json", json.dumps(account))
    installation.must_run(
        *("google", "set-credentials", tenant.id, "--package-name", tenant.app),
        *("--service-account-path", file, *more),
    )


def make_tenants(installation, receiver):
    """Every tenant that questions need, by what is special about it."""
    names = (
        "main",
        "bare",
        "without-app-apple-id",
        "production-only",
        "without-push",
        "limited",
        "revoked",
        "inactive",
        "broken",
        "failing",
    )
    tenants = {name: make_tenant(installation, name) for name in names}
    number = ("--app-apple-id", str(installation.control("GET", f"/apple/apps/{APP}")["appAppleId"]))
    account = installation.control("GET", "/google/push")["account"]
    push = ("--pubsub-service-account", account, "--pubsub-audience", AUDIENCE)
    for name in ("main", "limited", "revoked", "inactive", "broken", "failing"):
        set_apple(installation, tenants[name], *number)
        set_google(installation, tenants[name], *push)
    tenants["without-app-apple-id"].app = "com.example.second"
    set_apple(installation, tenants["without-app-apple-id"])
    set_apple(installation, tenants["production-only"], "--environment", "production")
    set_google(installation, tenants["without-push"])
    secret = installation.write("secret", SECRET)
    for name in ("main", "failing"):
        target = ("--callback-url", f"{receiver.url}/{name}", "--secret-path", secret)
        installation.must_run("webhook", "set-config", tenants[name].id, *target)
    return tenants


def metrics(recorder, running):
    """Names, types, help and labels. Of labels with a fixed set of values, what was seen of it."""
    families, labels = [], {}
    for line in ask("GET", running.metrics).body.splitlines():
        if line.startswith("#"):
            families.append(line)
            continue
        name, found, _ = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
        seen = labels.setdefault(name, {})
        for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found or ""):
            seen.setdefault(label, []).append("<version>" if label == "version" else value)
    text = [*families, "", "# Series, and the values of their labels"]
    for name, seen in sorted(labels.items()):
        text.append(name)
        text += [f"    {label}: {', '.join(dict.fromkeys(values))}" for label, values in sorted(seen.items())]
    recorder.write("metrics.txt", "\n".join(text))


def log_lines(recorder, installation, other_files):
    """The message of every line that was logged, with its levels and the names of its fields."""
    lines, other = {}, set()
    files = [process.log for process in installation.processes if process.command[1] == "serve"]
    logged = [installation.logged, *(file.read_text() for file in [*files, *other_files])]
    for line in "\n".join(logged).splitlines():
        # A library's lines about a closed connection depend on timing.
        if not line or '"target":"sqlx' in line:
            continue
        try:
            found = json.loads(line)
        except ValueError:
            other.add(f"not JSON: {line}")
            continue
        levels, fields = lines.setdefault(found.pop("msg"), (set(), set()))
        levels.add(found.pop("level"))
        fields.update(found)
    placeholders = recorder.placeholders()
    text = []
    for message, (levels, fields) in sorted(lines.items()):
        text.append(f"{placeholders.text(message)}\n    {', '.join(sorted(levels))}: {', '.join(sorted(fields))}")
    recorder.write("log-lines.txt", "\n".join([*text, *(placeholders.text(line) for line in sorted(other))]))


def broken_credentials(recorder, running, installation, tenant):
    """Something that goes wrong inside: what is sealed in the database does not open."""
    [socket] = installation.folder.glob("data/**/.s.PGSQL.5432")
    connect = f"host={socket.parent} user=attesto dbname=postgres"

    def sql(statement):
        command = [installation.psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", connect, "-c", statement]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    where = f"where tenant_id = '{tenant.id}'"
    before = sql(f"select private_key_enc from apple_credentials {where}")
    sql(f"update apple_credentials set private_key_enc = '\\x00' {where}")
    headers = {"authorization": f"Bearer {tenant.key}"}
    file, url = "http/service/internal-error.txt", running.url + "/v1/apple/verify"
    recorder.exchange(file, "POST", url, headers, {"transactionId": "7001"})
    sql(f"update apple_credentials set private_key_enc = '{before}' {where}")


class FailingDeliveries:
    """Deliveries that are refused: one that is tried again half a minute later, and one for good."""

    def __init__(self, google, installation):
        self.google, self.installation = google, installation
        self.again = self.call("/status/500", "to-failing-callback")
        google.delivery("events/refused-with-500.txt", self.again)
        google.delivery("events/refused-with-410.txt", self.call("/status/410", "to-callback-that-is-gone"))

    def call(self, path, name):
        tenant = self.google.tenants["failing"].id
        self.installation.must_run("webhook", "set-config", tenant, "--callback-url", self.google.receiver.url + path)
        body = self.google.published({"testNotification": {"version": "1.0"}})
        return self.google.post(name, body, tenant=tenant).json()["eventId"]

    def finish(self):
        """Waits for the second attempt."""
        self.google.delivery("events/second-attempt.txt", self.again, attempt="2", secrets=[SECRET])


def several_secrets(recorder, google, receiver, installation):
    """A second secret, and what is signed by both while they overlap."""
    tenant = google.tenants["main"].id
    new = installation.write("new-secret", commands.OTHER_SECRET)
    installation.must_run("webhook", "set-config", tenant, "--secret-path", new, "--overlap", "1h")
    google.secrets = [commands.OTHER_SECRET, SECRET]
    google.deliver("signed-by-two-secrets", google.published({"testNotification": {"version": "1.0"}}))
    installation.must_run("webhook", "ping", tenant)
    _, headers, body = receiver.next("a ping", lambda _, __, body: '"attesto.ping"' in body)
    recorder.delivery("events/ping.txt", headers, body, google.secrets)


def second_service(recorder, installation, tenants, token):
    """A service that asks Apple's responders, that runs the jobs, and that cannot reach Google's keys."""
    days = {"CERTIFICATE_WARNING_DAYS": "3650", "JOBS_EXPIRY_INTERVAL_SECONDS": "1"}
    running = installation.serve("second", APPLE_OCSP="on", JOBS_DISABLED="false", **days)
    installation.control("POST", "/faults", {"at": "google/certs", "status": 503, "times": 0})
    body = {"message": {"data": "e30=", "messageId": "1"}}
    url = f"{running.url}/v1/webhooks/google/{tenants['main'].id}"
    recorder.exchange(
        "http/google-webhook/keys-unreachable.txt", "POST", url, {"authorization": f"Bearer {token}"}, body
    )
    installation.control("DELETE", "/faults")
    headers = {"authorization": f"Bearer {tenants['main'].key}"}
    signed = {"signedTransaction": installation.control("GET", "/apple/transactions/7001/jws")}
    recorder.exchange("http/apple-verify/with-ocsp.txt", "POST", running.url + "/v1/apple/verify", headers, signed)
    running.process.wait_for_line('"expiry"')
    running.process.stop()


def take(installation, recorder):
    dev = commands.Dev(installation)
    say("help")
    commands.help_of_all(recorder, installation)
    installation.start_stores()
    key = installation.must_run("encryption", "generate-key").strip()
    installation.environment |= {
        "ATTESTO_EMBEDDED_POSTGRES": "true",
        "ATTESTO_DATA_DIR": str(installation.folder / "data"),
        "ATTESTO_ENCRYPTION_KEY_FILE": installation.write("encryption-key", key),
        "ATTESTO_ENV": "test",
        "WEBHOOK_ALLOW_PRIVATE_CALLBACKS": "true",
        "ENABLE_VALIDATION_AUDIT_LOG": "true",
        "UPSTREAM_TIMEOUT_SECONDS": "3",
        # Otherwise deliveries could be waiting for another attempt while commands count them.
        "WEBHOOK_MAX_RETRIES": "1",
        "GOOGLE_PUBSUB_URL": installation.environment["GOOGLE_PLAY_URL"],
    }
    recorder.known[installation.control("GET", "/apple/key")["keyId"]] = "id of Apple's key"
    say("settings")
    commands.settings(recorder, installation)
    with Receiver() as receiver:
        say("a service")
        done = installation.run("migrate", "--output", "json")
        recorder.command("commands/json/migrate-first.txt", done, ("migrate", "--output", "json"))
        # Jobs only run on command, so that their log lines and counts are the same in every run.
        main = installation.serve("main", METRICS_ADDRESS="127.0.0.1:0", JOBS_DISABLED="true")
        tenants = make_tenants(installation, receiver)
        google = Google(recorder, main, installation, tenants, receiver)
        failing = FailingDeliveries(google, installation)
        slow = questions.SlowRequest(main, tenants["main"].key)
        say("questions about App Store transactions")
        questions.apple(recorder, main, installation, tenants)
        say("questions about Google Play purchases")
        questions.google(recorder, main, installation, tenants)
        say("other routes")
        questions.service(recorder, main, installation, tenants)
        questions.tenants_that_are_refused(recorder, main, installation, tenants)
        broken_credentials(recorder, main, installation, tenants["broken"])
        description = ask("GET", main.url + "/openapi.json").json()
        text = json.dumps(description, indent=2, ensure_ascii=False, sort_keys=True)
        recorder.write("openapi.json", recorder.constant(text))
        say("notifications of the App Store")
        apple = Apple(recorder, main, installation, tenants, receiver)
        apple.accepted()
        apple.refused()
        say("notifications of Google Play")
        google.accepted()
        google.refused()
        several_secrets(recorder, google, receiver, installation)
        say("a second attempt")
        failing.finish()
        slow.finish(recorder)
        for form in ("json", "table"):
            say(f"commands ({form})")
            commands.all_of_them(recorder, installation, main, tenants, receiver, form)
        metrics(recorder, main)
        main.process.stop()
        say("attesto dev")
        dev_log = dev.finish(recorder)
        say("services with other settings")
        second_service(recorder, installation, tenants, google.tokens["good"])
        commands.services_that_do_not_start(recorder, installation)
        commands.unavailable(recorder, installation)
    log_lines(recorder, installation, [dev_log])


def main():
    # Exit through SystemExit, so that the processes that were started are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    program, psql, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: name a folder that is, or that does not exist.")
    with Installation(program) as installation:
        installation.psql = psql
        version = installation.must_run("--version").split()[1]
        take(installation, Recorder(folder, installation, version))
    say("done")


main()
