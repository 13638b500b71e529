"""Writes the files of a snapshot."""

import base64
import hmac
import json
import pathlib
import re
import socket

from installation import ask
from placeholders import Placeholders

# Headers that are not part of the contract. Whether a connection is closed depends on how much of a request had arrived.
UNINTERESTING = {"date", "content-length", "host", "accept", "connection"}
# Of longer request bodies, only the length is written.
LONGEST_BODY = 6000
# Fields whose value differs from run to run, and that cannot be recognised by their format.
FIELDS = {
    "latencyMs": "milliseconds",
    "durationMs": "milliseconds",
    "restoredInMs": "milliseconds",
    "after": "duration",
    "ageSeconds": "seconds",
    "pid": "number of the process",
    "bytes": "size",
    "rows": "count",
    "keyPrefix": "start of the key",
    "identifierHash": "hash",
    "actor": "user",
    "host": "host",
    "fingerprint": "fingerprint",
    "keyFingerprint": "fingerprint",
}


class Recorder:
    """A folder for the files of a snapshot, and what is known of the installation."""

    def __init__(self, folder, installation, version):
        self.folder = pathlib.Path(folder)
        self.version = version
        self.known = {
            str(installation.folder): "folder",
            socket.gethostname(): "host",
            version: "version",
        }

    def placeholders(self):
        return Placeholders(self.known, FIELDS)

    def constant(self, text):
        """A text that is the same in every run of a program, but for its version."""
        return re.sub(rf"(?<![\d.]){re.escape(self.version)}(?![\d.])", "<version>", text)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise SystemExit(f"{name} would be written twice.")
        path.write_text(text.rstrip("\n") + "\n")

    def exchange(self, name, method, url, headers=None, body=None):
        """Asks, writes question and answer to a file, returns the answer. A body that is not bytes is sent as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("content-type", "application/json")
        answer = ask(method, url, headers, body)
        path = "/" + url.split("/", 3)[3]
        self.written_exchange(name, method, path, headers, body, answer)
        return answer

    def written_exchange(self, name, method, path, headers, body, answer):
        placeholders = self.placeholders()
        lines = [placeholders.text(f"{method} {path}")]
        lines += [placeholders.text(f"{header}: {value}") for header, value in headers.items()]
        if body:
            lines += ["", self.shown(placeholders, body)]
        lines += ["", "=> " + str(answer.status), *self.headers(placeholders, answer.headers)]
        if answer.body:
            lines += ["", placeholders.any(answer.body)]
        self.write(name, "\n".join(lines))

    @staticmethod
    def shown(placeholders, body):
        text = body.decode(errors="backslashreplace")
        if len(body) > LONGEST_BODY and "eyJ" not in text:
            return f"<{len(body)} bytes>"
        return placeholders.any(text)

    @staticmethod
    def headers(placeholders, headers):
        """Headers in the order of their names."""
        return sorted(
            placeholders.text(f"{name.lower()}: {value}")
            for name, value in headers
            if name.lower() not in UNINTERESTING
        )

    def delivery(self, name, headers, body, secrets):
        """What a callback received, with its signatures checked by the secrets that should have signed, newest first."""
        values = {header.lower(): value for header, value in headers}
        moment = values.get("x-attesto-timestamp", "")
        signed = [hmac.new(secret.encode(), f"{moment}.{body}".encode(), "sha256").hexdigest() for secret in secrets]
        expected = ",".join([f"t={moment}", *(f"v1={value}" for value in signed)])
        identity = values.get("webhook-id", "")
        standard = " ".join(
            "v1,"
            + base64.b64encode(hmac.digest(secret.encode(), f"{identity}.{moment}.{body}".encode(), "sha256")).decode()
            for secret in secrets
        )
        placeholders = self.placeholders()
        lines = []
        for header, value in sorted(values.items()):
            if header in UNINTERESTING:
                continue
            if header == "x-attesto-signature" and value == expected:
                value = "t=<seconds>" + "".join(f",v1=<signature by secret {n + 1}>" for n in range(len(secrets)))
            if header == "webhook-signature" and value == standard:
                value = " ".join(f"v1,<signature by secret {n + 1}>" for n in range(len(secrets)))
            lines.append(f"{header}: {placeholders.text(value)}")
        self.write(name, "\n".join([*lines, "", placeholders.any(body)]))

    def command(self, name, done, arguments, is_table=False):
        """What a command printed, and its exit code."""
        placeholders = self.placeholders()
        shown = placeholders.table if is_table else placeholders.any
        parts = [placeholders.text("$ attesto " + " ".join(arguments)) + f"\n=> exit code {done.returncode}"]
        # A library's lines about a closed connection depend on timing.
        lines = [line for line in done.stdout.splitlines() if '"target":"sqlx' not in line]
        if lines:
            parts.append(shown("\n".join(lines)))
        if done.stderr:
            parts.append("On standard error:\n\n" + placeholders.table(done.stderr))
        self.write(name, "\n\n".join(parts))
