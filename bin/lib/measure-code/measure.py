"""Counts names, comments and lines of a source tree. Run by bin/measure-code.

    measure.py FOLDER     FOLDER: the root of the repository

What is counted:

- Code is src/ without test modules and without files of tests. Lines of code are neither blank nor comments.
- A type is a struct, an enum, a union or a trait. It shares its name when another type of src/ has the same one.
- A function is named by one word when its name has no underscore. Methods count, those of traits too.
- A function's length is from its `fn` to its closing brace, in lines.
- `pub` items are functions and methods, types, traits, constants and statics that are `pub` without a restriction.
- Comments are those of src/, with its tests.
- Lines of tests are all lines of tests/. Test modules within src/ are counted apart.
- A log line is named when its message is one word in snake case; anything else is a sentence.
"""

import collections
import pathlib
import re
import sys

VAGUE = re.compile(r"\b(?:whoever|somebody|nobody|anybody)\b", re.IGNORECASE)
# Comments and literals. A quote that is no literal begins a lifetime.
TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*[\s\S]*?\*/)
    |\bb?r(?P<hashes>\#*)"[\s\S]*?"(?P=hashes)
    |b?"(?:[^"\\]|\\[\s\S])*"
    |b?'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.))'""",
    re.VERBOSE,
)
TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*mod \w+ \{")
TYPE = re.compile(r"^\s*(?:pub(?:\([^)]*\))? )?(?:struct|enum|union|trait) ([A-Z]\w*)", re.MULTILINE)
PUBLIC = re.compile(
    r"^\s*pub (?:(?:const |async |unsafe )*(?:fn|struct|enum|union|trait|type)\b|(?:const|static) [A-Z])", re.MULTILINE
)
LOG_CALL = re.compile(r"\btracing::(?:error|warn|info|debug|trace)!\(")


class Source:
    """A file of src/. `plain` is its text with the same lines, without comments and with empty literals."""

    def __init__(self, path, is_test):
        self.text = path.read_text()
        self.literals, self.comments = {}, []
        pieces, position, length = [], 0, 0
        for token in TOKEN.finditer(self.text):
            before = self.text[position : token.start()]
            length += len(before)
            if token["comment"]:
                self.comments.append(token[0])
                instead = "\n" * token[0].count("\n")
            else:
                self.literals[length] = token[0]
                instead = '""' + '\n""' * token[0].count("\n")
            pieces += [before, instead]
            length += len(instead)
            position = token.end()
        self.plain = "".join([*pieces, self.text[position:]])
        self.closing = self.pairs()
        self.test_lines = 0
        self.code = [(0, 0)] if is_test else self.outside_tests()

    def pairs(self):
        """Where each bracket's counterpart is."""
        open_ones, closing = [], {}
        for found in re.finditer(r"[{}()\[\]]", self.plain):
            if found[0] in "{([":
                open_ones.append(found.start())
            elif open_ones:
                closing[open_ones.pop()] = found.start()
        return closing

    def outside_tests(self):
        """The parts that are no test modules, as pairs of positions."""
        parts, position = [], 0
        for module in TEST_MODULE.finditer(self.plain):
            if module.start() < position:
                continue
            parts.append((position, module.start()))
            position = self.closing[module.end() - 1] + 1
            self.test_lines += self.plain.count("\n", module.start(), position) + 1
        return [*parts, (position, len(self.plain))]

    def find(self, pattern):
        """What a pattern finds in the code."""
        for start, end in self.code:
            yield from pattern.finditer(self.plain, start, end)

    def lines_of_code(self):
        return sum(1 for start, end in self.code for line in self.plain[start:end].split("\n") if line.strip())

    def functions(self):
        """Name and number of lines of each function, and no number for one without a body."""
        for function in self.find(re.compile(r"\bfn (\w+)")):
            position = function.end()
            while self.plain[position] not in "{;":
                position = self.closing[position] if self.plain[position] in "([" else position
                position += 1
            if self.plain[position] == "{":
                yield function[1], self.plain.count("\n", function.start(), self.closing[position]) + 1
            else:
                yield function[1], None

    def log_messages(self):
        """The message of each call that logs: the first argument that is a literal."""
        for call in self.find(LOG_CALL):
            end = self.closing[call.end() - 1]
            position = call.end()
            while position < end:
                argument = re.compile(r"\s*").match(self.plain, position).end()
                if argument in self.literals and self.literals[argument].startswith('"'):
                    yield re.sub(r"\\\n\s*", "", self.literals[argument][1:-1])
                    break
                while position < end and self.plain[position] != ",":
                    position = self.closing.get(position, position) + 1
                position += 1


def short_docs(text):
    """How many doc comments have one or two words."""
    blocks = re.findall(r"(?:^[ \t]*///[^\n]*\n)+", text, re.MULTILINE)
    return sum(len(re.sub(r"^[ \t]*///", " ", block, flags=re.MULTILINE).split()) <= 2 for block in blocks)


def share(part, whole):
    return f"{round(100 * part / whole)} %" if whole else "-"


def main():
    root = pathlib.Path(sys.argv[1])
    sources = [
        Source(path, is_test="tests" in path.relative_to(root).parts or path.name == "tests.rs")
        for path in sorted((root / "src").rglob("*.rs"))
    ]
    types = collections.Counter(found[1] for source in sources for found in source.find(TYPE))
    functions = [function for source in sources for function in source.functions()]
    lengths = sorted(length for _, length in functions if length is not None)
    lines = [line for source in sources for comment in source.comments for line in comment.split("\n")]
    messages = {message for source in sources for message in source.log_messages()}
    names = {message for message in messages if re.fullmatch(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*", message)}
    tests = [path.read_text() for path in (root / "tests").rglob("*.rs")]
    rows = [
        (
            "types that share their name with another type",
            share(sum(count for count in types.values() if count > 1), types.total()),
            "≤ 10 %",
        ),
        (
            "functions named by one word",
            share(sum("_" not in name for name, _ in functions), len(functions)),
            "≤ 30 %",
        ),
        ("comment lines with whoever, somebody, nobody, anybody", sum(bool(VAGUE.search(line)) for line in lines), "0"),
        ("doc comments of one or two words", sum(short_docs(source.text) for source in sources), "0"),
        ("`pub` items", sum(1 for source in sources for _ in source.find(PUBLIC)), ""),
        ("lines of code", sum(source.lines_of_code() for source in sources), "≤ 36,000"),
        ("lines of tests", sum(text.count("\n") for text in tests), "≤ 25,000"),
        ("lines of test modules within src", sum(source.test_lines for source in sources), ""),
        ("nine of ten functions have at most so many lines", lengths[len(lengths) * 9 // 10] if lengths else "-", ""),
        ("log lines that are named in snake case", len(names), ""),
        ("log lines that are sentences", len(messages - names), "0"),
    ]
    print("| measured | here | goal |\n|---|---:|---:|")
    for name, count, goal in rows:
        shown = f"{count:,}" if isinstance(count, int) else count
        print(f"| {name} | {shown} | {goal} |")


main()
