#!/usr/bin/env python3
"""A receiver for Attesto's events. Python 3.9 or newer, without dependencies.

    ATTESTO_WEBHOOK_SECRET=whsec_... python3 receiver.py

Settings, from the environment:
    ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
    ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
    EVENTS_DIR                       where events are stored for your own code (./events)
    STATES_DIR                       where the newest state of each purchase is kept (./states)
    HOST, PORT                       where to listen (127.0.0.1, 3000); behind your web server, which ends TLS
"""

import hashlib
import hmac
import json
import os
import re
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = "/hooks/attesto"
WINDOW_SECONDS = 300
MAX_BODY_BYTES = 4 * 1024 * 1024
EVENT_ID = re.compile(r"evt_[0-9A-Z]{26}")
STATES_LOCK = threading.Lock()


def is_from_attesto(secrets, header, body, now=None):
    """Whether one of our secrets signed these bytes, within the last five minutes."""
    timestamp, given = None, []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            timestamp = value
        elif name == "v1":
            given.append(value.encode())
    if timestamp is None or not re.fullmatch(r"[0-9]{1,12}", timestamp):
        return False
    if abs((time.time() if now is None else now) - int(timestamp)) > WINDOW_SECONDS:
        return False
    signed = timestamp.encode() + b"." + body
    fits = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        for value in given:
            fits |= hmac.compare_digest(value, expected)
    return fits


def keep(folder, event_id, body):
    """Stores an event for your own code. False if it is already stored.

    Here an event is a file that is created atomically. In your application, use a table with the event's id as its
    primary key, and `INSERT ... ON CONFLICT DO NOTHING`, in one transaction with what the event changes.
    """
    handle, draft = tempfile.mkstemp(dir=folder, prefix=".draft-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, os.path.join(folder, event_id + ".json"))
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)


def keep_state(folder, event):
    """Keeps the newest state of the event's purchase, and returns what is kept; None if nothing is known yet.

    Newest is the latest `asOf`, and of equal ones the higher `sequence`; an event without a state changes nothing. Here the
    state is a file. In your application it is a row, and all of this is one `INSERT ... ON CONFLICT DO UPDATE ... WHERE`.
    """
    subject = event.get("subject")
    if not isinstance(subject, dict):
        return None
    name = hashlib.sha256(f"{event.get('source')} {subject.get('key')}".encode()).hexdigest()
    path = os.path.join(folder, name + ".json")
    with STATES_LOCK:
        kept = None
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
        state = event.get("state")
        if state is not None:
            new = {"asOf": state["asOf"], "sequence": event["sequence"], "state": state}
            # Every time has the same form, so that their order is that of the text.
            if kept is None or (new["asOf"], new["sequence"]) > (kept["asOf"], kept["sequence"]):
                with open(path + ".draft", "w", encoding="utf-8") as file:
                    json.dump(new, file)
                os.replace(path + ".draft", path)
                kept = new
        return kept and kept["state"]


def is_entitled(state, now=None):
    """The gate: may the customer use the product now?"""
    end = state["entitledUntil"]
    now = now or datetime.now(timezone.utc)
    return state["entitled"] and (end is None or now < datetime.fromisoformat(end.replace("Z", "+00:00")))


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds, for a sender that says nothing
    secrets = []
    folder = "events"
    states = "states"

    def do_POST(self):
        if self.path.partition("?")[0] != PATH:
            return self.answer(404, {"error": "not here"}, close=True)
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length):
            return self.answer(411, {"error": "how long?"}, close=True)
        if int(length) > MAX_BODY_BYTES:
            return self.answer(413, {"error": "too long"}, close=True)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return self.answer(400, {"error": "broken off"}, close=True)

        # The exact bytes that arrived, before parsing.
        header = self.headers.get("X-Attesto-Signature", "")
        if not is_from_attesto(self.secrets, header, body):
            return self.answer(401, {"error": "not signed by Attesto"})
        try:
            event = json.loads(body)
            event_id = event["eventId"]
        except (ValueError, KeyError, TypeError):
            event_id = None
        if not isinstance(event_id, str) or not EVENT_ID.fullmatch(event_id):
            return self.answer(400, {"error": "no event"})
        try:
            is_new = keep(self.folder, event_id, body)
            state = keep_state(self.states, event)
        except OSError as problem:
            # Attesto will send it again.
            self.log_error("cannot keep %s: %s", event_id, problem)
            return self.answer(500, {"error": "cannot keep it"})
        entitled = None if state is None else is_entitled(state)
        return self.answer(200, {"eventId": event_id, "isNew": is_new, "entitled": entitled})

    def answer(self, status, content, close=False):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)


def main():
    names = ("ATTESTO_WEBHOOK_SECRET", "ATTESTO_WEBHOOK_SECRET_PREVIOUS")
    Receiver.secrets = [os.environ[name] for name in names if os.environ.get(name)]
    if not Receiver.secrets:
        sys.exit("set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed")
    Receiver.folder = os.environ.get("EVENTS_DIR", "events")
    Receiver.states = os.environ.get("STATES_DIR", "states")
    for folder in (Receiver.folder, Receiver.states):
        os.makedirs(folder, exist_ok=True)
    address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "3000")))
    with ThreadingHTTPServer(address, Receiver) as server:
        host, port = server.server_address[:2]
        print(f"listening on http://{host}:{port}{PATH}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
