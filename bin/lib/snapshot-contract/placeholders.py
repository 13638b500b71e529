"""Replaces what differs from run to run by typed placeholders: ids, dates, tokens, signatures, ports, versions.

Each file of a snapshot has an instance of its own, so that the numbers of repeated ids begin anew: the second event id
of a file is `<event id 2>`, and the same id has the same number in the whole file.
"""

import json
import re

ULID = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
IDS = {
    "tenant": "tenant id",
    "key": "key id",
    "evt": "event id",
    "del": "delivery id",
    "req": "request id",
    "aud": "audit id",
    "red": "redelivery id",
    "rep": "process id",
}
# The first rule that matches at a position is used.
RULES = {
    "jws": r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*",
    "pem": r"-----BEGIN [A-Z ]+-----[\s\S]+?-----END [A-Z ]+-----",
    "api_key": r"attesto_(?P<kind>live|test)_[\w-]{43}",
    "secret": r"whsec_[A-Za-z0-9+/=_-]{20,}",
    "id": rf"\b(?P<prefix>[a-z]+)_{ULID}\b",
    "date": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?P<fraction>\.\d+)?(?P<zone>Z|[+-]\d\d:\d\d)",
    "day": r"\b20\d\d-\d\d-\d\d\b",
    "uuid": r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",
    "order_id": r"\bGPA\.\d{4}-\d{4}-\d{4}-\d{5}\b",
    "serial_number": r"\b(?:[0-9A-F]{2}:){7,}[0-9A-F]{2}\b",
    "key_fingerprint": r"\b\d{1,3}:[0-9a-f]{16}\b",
    "hex": r"\b[0-9a-f]{32,}\b",
    "fingerprint": r"\b(?=[0-9]*[a-f])[0-9a-f]{16}\b",
    "base64": r"(?<![\w/+=])[A-Za-z0-9+/_-]{43,}={0,2}(?![\w/+=])",
    "long_number": r"(?<![\w.-])\d{15,20}(?![\w.-])",
    "milliseconds_with_fraction": r"(?<![\w.-])1[6-9]\d{11}\.\d+",
    "milliseconds": r"(?<![\w.-])1[6-9]\d{11}(?![\w.-])",
    "seconds": r"(?<![\w.-])1[6-9]\d{8}(?![\w.-])",
    # Ports that the system chose.
    "port": r"(?P<host>127\.0\.0\.1|localhost|\[::1?\]):\d{5}\b",
    "size": r"\b\d+(?:\.\d+)? GiB of \d+(?:\.\d+)?\b",
    "connections": r"\b\d+ of the server's \d+ connections\b",
    "quantity": r"\(\d+ (?P<of>bytes|characters)\)",
    "time_since": r"\b\d+ s (?P<since>ago|since)\b",
    "duration": r"\b\d+(?:\.\d+)? ?(?P<unit>ms|µs)\b",
}
PATTERN = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in RULES.items()))
NUMBERED = {"uuid", "long_number", "order_id"}
# Fields that hold what a store sent. The simulated ones leave out milliseconds that are zero.
OF_STORES = {"rawResponse", "data", "raw"}


class Placeholders:
    """`known` are texts of this run and what stands for them; `fields` are fields of JSON whose values have no form."""

    def __init__(self, known, fields):
        self.known = sorted(known.items(), key=lambda item: -len(item[0]))
        self.fields = fields
        self.in_text = re.compile(rf'"({"|".join(fields)})":\s?(?:"[^"]*"|\d[\d.]*)')
        # A heading of a table is its field's name: `LATENCY MS` is `latencyMs`.
        self.headings = {re.sub("([A-Z])", r" \1", name).upper(): name for name in fields}
        self.numbers = {}

    def text(self, text):
        """A text with placeholders."""
        for value, name in self.known:
            # Not inside of a longer word or number.
            text = re.sub(rf"(?<![\w.]){re.escape(value)}(?![\w]|\.\d)", lambda _, name=name: f"<{name}>", text)
        text = self.in_text.sub(lambda match: f'"{match[1]}":<{self.fields[match[1]]}>', text)
        return PATTERN.sub(self.replace, text)

    def replace(self, match):
        rule = next(name for name in RULES if match[name] is not None)
        if rule == "id":
            return self.numbered(IDS.get(match["prefix"], f"{match['prefix']} id"), match[0])
        if rule == "api_key":
            return f"<{match['kind']} api key>"
        if rule == "date":
            # Postgres leaves out zeros at the end of a fraction.
            decimals = len(match["fraction"] or ".") - 1 if match["zone"] == "Z" else "any"
            return "<date>" if decimals == 3 else f"<date with {decimals} decimals>"
        if rule == "port":
            return f"{match['host']}:<port>"
        if rule == "quantity":
            return f"(<number> {match['of']})"
        if rule == "time_since":
            return f"<number> s {match['since']}"
        if rule == "duration":
            return f"<duration> {match['unit']}"
        # A long name of lower-case letters is no base64.
        if rule == "base64" and not (re.search("[0-9]", match[0]) and re.search("[A-Z]", match[0])):
            return match[0]
        name = rule.replace("_", " ")
        return self.numbered(name, match[0]) if rule in NUMBERED else f"<{name}>"

    def numbered(self, name, value):
        known = self.numbers.setdefault(name, {})
        number = known.setdefault(value, len(known) + 1)
        return f"<{name}>" if number == 1 else f"<{name} {number}>"

    def json(self, value, name=""):
        """A JSON value with placeholders. A number's placeholder says that it was a number."""
        if name in OF_STORES and isinstance(value, dict):
            replaced = json.dumps(self.json(value))
            return json.loads(replaced.replace("<date with 0 decimals>", "<date>"))
        if isinstance(value, dict):
            replaced = {self.text(key): self.json(below, key) for key, below in value.items()}
            if "<size>" in str(replaced.get("message")):
                # Whether there is enough free space on the disk depends on the machine.
                replaced["status"] = "<status>"
                replaced.pop("advice", None)
            return replaced
        if isinstance(value, list):
            return [self.json(below, name) for below in value]
        if isinstance(value, bool) or value is None:
            return value
        if name in self.fields:
            placeholder = self.fields[name]
            return f"<{placeholder}>" if isinstance(value, str) else f"<number: {placeholder}>"
        if isinstance(value, str):
            return self.text(value)
        text = json.dumps(value)
        replaced = self.text(text)
        return value if replaced == text else f"<number: {replaced.strip('<>')}>"

    def pretty(self, value):
        """A JSON value with placeholders as text. The order of the keys is kept: it is part of the contract."""
        return json.dumps(self.json(value), indent=2, ensure_ascii=False)

    def any(self, text):
        """A text that may be JSON, or JSON lines."""
        try:
            return self.pretty(json.loads(text))
        except ValueError:
            pass
        try:
            lines = [json.loads(line) for line in text.splitlines()]
        except ValueError:
            return self.text(text).rstrip("\n")
        return "\n".join(self.pretty(line) for line in lines)

    def table(self, text):
        """A table. Its columns are as wide as what is in them, which differs: two blanks stand for any number of them."""
        text = re.sub(r"(?<=\S) {2,}", "  ", re.sub(r"[─═-]{3,}", "---", self.text(text)))
        text = re.sub(r"^( *)\w+(  <size>.*\n)(?: *→.*\n)?", r"\1<status>\2", text, flags=re.MULTILINE)
        columns, lines = [], []
        for line in text.splitlines():
            cells = line.split("  ")
            if len(cells) == 2 and cells[0] in self.headings:
                cells[1] = f"<{self.fields[self.headings[cells[0]]]}>"
            elif any(cell in self.headings for cell in cells):
                columns = [self.headings.get(cell) for cell in cells]
            elif len(cells) == len(columns):
                cells = [
                    cell if name is None or cell == "-" else f"<{self.fields[name]}>"
                    for cell, name in zip(cells, columns)
                ]
            else:
                columns = []
            lines.append("  ".join(cells))
        return "\n".join(lines)
