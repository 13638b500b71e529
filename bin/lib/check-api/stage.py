"""An Attesto of its own for a check: simulated stores, a private Postgres, a tenant, purchases. Standard library only.

Everything lives in a temporary folder and on free ports, and ends with the `with` block.
"""

import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request

APP = "com.example.app"
AUDIENCE = "check-api"
# The first start of Postgres takes longest.
PATIENCE = 60


def ask(url, body=None):
    """What a URL answers: JSON, or text where it is none. With a body it is posted."""
    data = None if body is None else json.dumps(body).encode()
    # No proxy: these are local processes.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data), timeout=PATIENCE) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


class Catcher(contextlib.AbstractContextManager):
    """Somewhere to post to; keeps what was posted and says no to it."""

    def __enter__(self):
        caught = self.caught = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                caught.append((self.headers.get("authorization"), body))
                self.send_response(503)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = "http://127.0.0.1:%d/" % self.server.server_port
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    def one(self):
        """What was posted first: its `Authorization` and its body."""
        until = time.monotonic() + PATIENCE
        while not self.caught:
            if time.monotonic() > until:
                raise SystemExit("The simulated stores did not report what happened.")
            time.sleep(0.02)
        return self.caught.pop(0)


class Stage(contextlib.AbstractContextManager):
    """`url` of the service, `key` of the tenant, `tenant`, and the purchases."""

    def __init__(self, program):
        self.program = pathlib.Path(program).resolve()

    def __enter__(self):
        # In /tmp, because a socket's path must be short. If this is run by root, Postgres runs as another user, who must be able to pass.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="attesto-check-api-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.children = []
        try:
            self.set()
        except BaseException:
            self.strike()
            raise
        return self

    def __exit__(self, *_):
        self.strike()

    def strike(self):
        """Ends everything, the service before the stores."""
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def set(self):
        passed_on = ("PATH", "HOME", "LANG", "USER", "ATTESTO_PG_BIN", "ATTESTO_PG_USER")
        self.environment = {name: os.environ[name] for name in passed_on if name in os.environ}
        stores = self.start("simulator", "simulator", "--port", "0", "--folder", str(self.folder / "stores"))
        control = self.control = json.loads(stores(lambda line: '"control"' in line))["control"].rstrip("/")
        key = self.attesto("encryption", "generate-key")
        secrets = self.folder / "secrets"
        secrets.mkdir(0o700)
        self.write(secrets / "encryption-key", key)
        self.environment |= dict(line.split("=", 1) for line in ask(control + "/settings").splitlines()) | {
            "APPLE_ROOT_CERTIFICATES": str(self.folder / "stores" / "root.pem"),
            "ATTESTO_EMBEDDED_POSTGRES": "true",
            "ATTESTO_DATA_DIR": str(self.folder / "data"),
            "ATTESTO_ENCRYPTION_KEY_FILE": str(secrets / "encryption-key"),
            "ATTESTO_ENV": "test",
            "LOG_FORMAT": "json",
            "RATE_LIMIT_PER_SECOND": "100000",
            "RATE_LIMIT_BURST": "100000",
        }
        self.attesto("migrate")
        self.tenant = json.loads(self.attesto("tenant", "create", "--name", "Checked"))["id"]
        self.key = json.loads(self.attesto("key", "create", self.tenant))["rawKey"]
        apple = ask(control + "/apple/key")
        self.write(secrets / "apple.p8", ask(control + "/apple/key.p8"))
        self.attesto(
            *("apple", "set-credentials", self.tenant, "--bundle-id", APP, "--key-path", str(secrets / "apple.p8")),
            *("--key-id", apple["keyId"], "--issuer-id", apple["issuerId"]),
            *("--app-apple-id", str(ask(f"{control}/apple/apps/{APP}")["appAppleId"])),
        )
        account = ask(control + "/google/service-account.json")
        self.write(secrets / "google.json", json.dumps(account))
        with Catcher() as catcher:
            pushes = {"endpoint": catcher.url, "audience": AUDIENCE}
            pusher = ask(f"{control}/google/push/{APP}", pushes)
            ask(f"{control}/apple/push/{APP}", {"sandbox": catcher.url, "production": catcher.url})
            self.attesto(
                *("google", "set-credentials", self.tenant, "--package-name", APP),
                *("--service-account-path", str(secrets / "google.json")),
                *("--pubsub-service-account", pusher["account"], "--pubsub-audience", AUDIENCE),
            )
            # The purchases in the description's examples exist, so that they are answered with `valid: true`.
            asked = self.examples("/v1/apple/verify")["byId"]["value"]
            user = asked["expectedAppUserId"]
            self.transaction = asked["transactionId"]
            ask(control + "/apple/transactions", {"transactionId": self.transaction, "appAccountToken": user})
            self.apple_notification = json.loads(catcher.one()[1])
            asked = self.examples("/v1/google/verify")
            self.subscription = asked["subscription"]["value"]["purchaseToken"]
            bought = {"purchaseToken": self.subscription, "obfuscatedExternalAccountId": user}
            ask(control + "/google/subscriptions", bought)
            authorization, push = catcher.one()
            self.push_token, self.google_push = authorization.split()[1], json.loads(push)
            self.product, self.product_id = (asked["product"]["value"][name] for name in ("purchaseToken", "productId"))
            # What is consumed is another one: the clients are to find the first as it was bought.
            consumed = self.examples("/v1/google/consume")["product"]["value"]
            for token, product_id in [(self.product, self.product_id), (consumed["purchaseToken"], consumed["productId"])]:
                ask(control + "/google/products", {"purchaseToken": token, "productId": product_id})
        self.signed = ask(f"{control}/apple/transactions/{self.transaction}/jws")
        serve = self.start("service", "serve", "--port", "0", "--bind-address", "127.0.0.1")
        self.url = "http://127.0.0.1:%d" % json.loads(serve(lambda line: '"listening"' in line))["port"]

    def examples(self, path):
        """The questions that the description gives as examples."""
        if not hasattr(self, "description"):
            self.description = json.loads(self.attesto("openapi"))
        return self.description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]

    def start(self, name, *arguments):
        """Starts a child. Gives a function that waits for a line of its output."""
        log = self.folder / (name + ".log")
        with log.open("wb") as output:
            child = subprocess.Popen(
                [self.program, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.children.append(child)

        def line(wanted):
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and child.poll() is None:
                for line in log.read_text().splitlines(keepends=True):
                    if line.endswith("\n") and wanted(line):
                        return line
                time.sleep(0.05)
            raise SystemExit(f"attesto {arguments[0]} does not start:\n{log.read_text()}")

        return line

    def attesto(self, *arguments):
        """Runs a command to its end. Gives its standard output."""
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        if done.returncode != 0:
            raise SystemExit(f"attesto {' '.join(arguments[:2])} failed:\n{done.stderr}")
        return done.stdout

    def requests(self):
        """What the service logged of every request so far."""
        for line in (self.folder / "service.log").read_text().splitlines():
            if '"http_request"' in line:
                yield json.loads(line)

    @staticmethod
    def write(path, text):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
