"""An installation to take a snapshot of: simulated stores, a private Postgres, services, a receiver of events.

Everything is in a temporary folder and on free ports of this machine, and ends with the `with` block. Standard library
only. Nothing here uses the source tree: the program may be the one of another commit.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse

# Starting a Postgres for the first time takes longest.
TIMEOUT = 90
PASSED_ON = ("PATH", "HOME", "USER", "ATTESTO_PG_BIN", "ATTESTO_PG_USER")


def wait_for(what, found):
    """Calls `found` until it returns something, and returns that."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        result = found()
        if result:
            return result
        time.sleep(0.02)
    raise SystemExit(f"{what}: not within {TIMEOUT} s.")


class Answer:
    """An HTTP answer: `status`, `headers` as a list of pairs, `body` as text."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


def ask(method, url, headers=None, body=None):
    """One HTTP request, with no header that is not needed or given."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.putrequest(method, path or "/", skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        try:
            connection.endheaders(body)
        except (BrokenPipeError, ConnectionResetError):
            # A body that is too large is answered before all of it was sent.
            pass
        answer = connection.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read().decode())


def ask_raw(url, request):
    """Sends bytes that need not be HTTP. Returns what comes back."""
    parts = urllib.parse.urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT) as connection:
        connection.sendall(request)
        return read_raw(connection)


def read_raw(connection):
    """One HTTP answer from a connection, which may stay open after it."""
    received = b""
    while True:
        piece = connection.recv(65536)
        received += piece
        head, separator, body = received.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not piece or (separator and length and len(body) >= int(length[0].split(b":")[1])):
            break
    status, *lines = head.decode().split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return Answer(int(status.split()[1]), headers, body.decode())


class Receiver(contextlib.AbstractContextManager):
    """Takes what is posted to it. The path says how it answers: `/status/500` with 500, anything else with 200."""

    def __enter__(self):
        received = self.received = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                received.append((self.path, list(self.headers.items()), body))
                _, first, *rest = self.path.split("/")
                self.send_response(int(rest[0]) if first == "status" else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def next(self, what, wanted):
        """Waits for a request and takes it out. `wanted` is asked with path, headers and body."""

        def found():
            for request in self.received:
                if wanted(*request):
                    self.received.remove(request)
                    return request
            return None

        return wait_for(what, found)


class Process:
    """A child whose output goes into a file."""

    def __init__(self, command, environment, log):
        self.command, self.log = command, log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def output(self):
        return self.log.read_text()

    def lines(self):
        """The lines of the log so far, of which the last may not be complete."""
        return [line for line in self.output().splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_line(self, part):
        def found():
            if self.child.poll() is not None:
                raise SystemExit(f"{' '.join(map(str, self.command[1:]))} ended:\n{self.output()}")
            return next((line for line in self.lines() if part in line), None)

        return wait_for(f"{self.command[1]}: a line with {part}", found)

    def stop(self, how=signal.SIGTERM):
        """Ends it. Returns its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(how)
        try:
            return self.child.wait(40)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


class Service:
    """A running `attesto serve`: `url`, and `metrics` where it serves them."""

    def __init__(self, process):
        self.process = process
        listening = json.loads(process.wait_for_line('"listening"'))
        self.url = f"http://127.0.0.1:{listening['port']}"
        self.metrics = f"http://{listening['metrics']}/metrics" if "metrics" in listening else None


class Installation(contextlib.AbstractContextManager):
    """The folder, the environment of commands, and every process that was started."""

    def __init__(self, program):
        self.given = pathlib.Path(program).resolve()

    def __enter__(self):
        # In /tmp, because a socket's path must be short. If root runs this, Postgres runs as another user, who must be able to enter.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="attesto-snapshot-", dir="/tmp"))
        self.folder.chmod(0o711)
        # A link with a fixed name, because help texts begin with the program's name.
        self.program = self.folder / "attesto"
        self.program.symlink_to(self.given)
        self.processes = []
        # The log lines of services that did not start.
        self.logged = ""
        self.base = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        self.environment = dict(self.base)
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name, content):
        """A file that is only ours to read. Returns its path as text."""
        path = self.folder / name
        content = content if isinstance(content, bytes) else content.encode()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        return str(path)

    def run(self, *arguments, environment=None, stdin=b"", timeout=2 * TIMEOUT):
        """Runs a command to its end. Returns the finished process: `returncode`, `stdout`, `stderr` as text."""
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environment if environment is None else environment,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            cwd=self.folder,
        )
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        if arguments[0] == "serve" and "--help" not in arguments:
            self.logged += done.stdout
        return done

    def must_run(self, *arguments, **options):
        """Runs a command that must succeed. Returns its standard output."""
        done = self.run(*arguments, **options)
        if done.returncode != 0:
            raise SystemExit(f"attesto {' '.join(arguments[:2])} failed:\n{done.stderr}")
        return done.stdout

    def start(self, name, *arguments, environment=None):
        """Starts a process that goes on running. Its output goes to `<name>.log`."""
        used = self.environment if environment is None else environment
        process = Process([self.program, *arguments], used, self.folder / f"{name}.log")
        self.processes.append(process)
        return process

    def start_stores(self):
        """Starts the simulated stores, sets `control`, and points the environment at them."""
        stores = self.start("stores", "simulator", "--port", "0", "--folder", str(self.folder / "stores"))
        self.control_url = json.loads(stores.wait_for_line('"control"'))["control"].rstrip("/")
        settings = self.control("GET", "/settings")
        self.environment |= dict(line.split("=", 1) for line in settings.splitlines())
        self.environment["APPLE_ROOT_CERTIFICATES"] = str(self.folder / "stores" / "root.pem")

    def control(self, method, path, body=None):
        """Asks the simulated stores' control API. Returns JSON, or text where it is none."""
        data = None if body is None else json.dumps(body).encode()
        answer = ask(method, self.control_url + path, body=data)
        if answer.status >= 300:
            raise SystemExit(f"{method} /control{path}: {answer.status} {answer.body}")
        try:
            return answer.json()
        except ValueError:
            return answer.body

    def serve(self, name, **environment):
        """Starts a service with these settings beside the environment's."""
        arguments = ("serve", "--port", "0", "--bind-address", "127.0.0.1")
        return Service(self.start(name, *arguments, environment=self.environment | environment))
