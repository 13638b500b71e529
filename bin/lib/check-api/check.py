"""Is the description of the API true? Asks an Attesto of its own. Run by bin/check-api, which brings the tools.

    check.py PROGRAM TOOLS     TOOLS: the folder with venv/ and node_modules/
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jsonschema
import openapi_spec_validator
from stage import APP, Stage

HERE = pathlib.Path(__file__).resolve().parent
CLIENTS = HERE.parents[2] / "docs" / "clients"
begun = time.monotonic()


def say(what):
    print(f"\n==> {what} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)


def run(*command, **options):
    """Runs a tool to its end. Gives its standard output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=240, **options)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"{pathlib.Path(command[0]).name} says no (see above).")
    return done.stdout


def judge_examples(description):
    """Every example is of the shape it is an example of, patterns and formats included."""
    count = 0
    for path, item in description["paths"].items():
        for operation in item.values():
            for answer in [operation.get("requestBody", {}), *operation["responses"].values()]:
                for content in answer.get("content", {}).values():
                    schema = content["schema"] | {"components": description["components"]}
                    judge = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
                    for name, example in content["examples"].items():
                        for error in judge.iter_errors(example["value"]):
                            raise SystemExit(f"{path}: example {name}: {error.json_path}: {error.message}")
                        count += 1
    return count


def ask_everything(stage, tools):
    """What schemathesis can think of."""
    environment = os.environ | {
        "ATTESTO_KEY": stage.key,
        "ATTESTO_TENANT": stage.tenant,
        "GOOGLE_PUSH_TOKEN": stage.push_token,
        "GENUINE": json.dumps(
            {
                "verifyApple": [{"signedTransaction": stage.signed}],
                "receiveApple": [stage.apple_notification],
                "receiveGoogle": [stage.google_push],
            }
        ),
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "127.0.0.1",
    }
    config = HERE / "schemathesis.toml"
    command = [tools / "venv/bin/st", "--config-file", config, "run", "--no-color", stage.url + "/openapi.json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, cwd=stage.folder, timeout=240)
    if done.returncode != 0:
        raise SystemExit("The service does not do what its description says (see above).")
    # A run in which every request was refused early would pass too, so check that some were answered.
    seen = {(line["path"], line["status"]) for line in stage.requests()}
    for path, statuses in {
        "/v1/apple/verify": (200, 400, 401, 405),
        "/v1/apple/app-transaction": (200, 400, 401, 405),
        "/v1/apple/consumption": (200, 400, 401, 405),
        "/v1/apple/finish": (200, 400, 401, 405),
        "/v1/apple/app-account-token": (200, 400, 401, 405),
        "/v1/apple/offers/sign": (200, 400, 401, 405),
        "/v1/google/verify": (200, 400, 401, 405),
        "/v1/google/acknowledge": (200, 400, 401, 405),
        "/v1/google/consume": (200, 400, 401, 405),
        "/v1/google/refund-review": (200, 400, 401, 405),
        f"/v1/webhooks/apple/{stage.tenant}": (200, 400, 401, 405),
        f"/v1/webhooks/google/{stage.tenant}": (200, 400, 401, 405),
    }.items():
        for status in statuses:
            if (path, status) not in seen:
                raise SystemExit(f"Nothing was asked of {path} that is answered with {status}: this proves too little.")


def typescript(stage, tools, work):
    """The client in TypeScript: generated, compiled, and what runs it."""
    shutil.copy(CLIENTS / "typescript" / "verify.ts", work)
    (work / "node_modules").symlink_to(tools / "node_modules")
    (work / "package.json").write_text('{"type": "module"}')
    programs = tools / "node_modules" / ".bin"
    run(programs / "openapi-typescript", work / "openapi.json", "--output", work / "attesto.d.ts", cwd=work)
    run(programs / "tsc", *"--strict --noUncheckedIndexedAccess --target es2022 --module nodenext verify.ts".split(), cwd=work)
    return ["node", "verify.js"]


def python(stage, tools, work):
    """The same in Python."""
    shutil.copy(CLIENTS / "python" / "verify.py", work)
    programs = tools / "venv" / "bin"
    # It formats its output with ruff, if that is found.
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    generator = [programs / "openapi-python-client", "generate", "--path", work / "openapi.json", "--meta", "none"]
    run(*generator, "--output-path", work / "attesto_client", "--fail-on-warning", cwd=work, env=os.environ | path)
    # Generated code is not checked strictly.
    run(programs / "mypy", "--strict", "--follow-imports", "silent", "verify.py", cwd=work)
    return [programs / "python", "verify.py"]


def try_client(stage, tools, make):
    """Asks the same questions through a client, and looks whether it understands the answers."""
    work = stage.folder / make.__name__
    work.mkdir()
    (work / "openapi.json").write_text(json.dumps(stage.description))
    command = make(stage, tools, work)
    questions = [
        (["apple", stage.transaction], "grant", "active"),
        (["google", stage.subscription], "grant", "active"),
        (["google", stage.product, stage.product_id], "grant", "active"),
        (["apple", "1"], "refuse", "TRANSACTION_NOT_FOUND"),
        (["google", "unknown"], "refuse", "PURCHASE_NOT_FOUND"),
        (["google", ""], "mend", "INVALID_REQUEST"),
    ]
    unknown_key = "attesto_live_" + "A" * 43
    for arguments, do, because, key in [
        *((*question, stage.key) for question in questions),
        (["apple", stage.transaction], "mend", "UNAUTHENTICATED", unknown_key),
        (["google", stage.subscription], "mend", "UNAUTHENTICATED", unknown_key),
    ]:
        environment = os.environ | {"ATTESTO_URL": stage.url, "ATTESTO_API_KEY": key, "PACKAGE_NAME": APP}
        decision = json.loads(run(*command, *arguments, cwd=work, env=environment | {"NO_PROXY": "127.0.0.1"}))
        # A product has no end; both subscriptions of the stage have one.
        has_end = (decision.get("until") is not None) == (do == "grant" and stage.product not in arguments)
        if decision["do"] != do or not decision["because"].startswith(because) or not has_end:
            raise SystemExit(f"{make.__name__}: {arguments} should be {do} ({because}), and is {decision}")
        print(f"    {make.__name__}: {arguments[0]}: {decision['do']}: {decision['because']}", file=sys.stderr)


def main():
    program, tools = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    say("Starting an Attesto with simulated stores")
    with Stage(program) as stage:
        description = stage.description
        say("OpenAPI's own validator, and every example")
        openapi_spec_validator.validate(description)
        print(f"    {judge_examples(description)} examples", file=sys.stderr)
        say("Schemathesis")
        ask_everything(stage, tools)
        for make in (typescript, python):
            say(f"A client in {make.__name__.capitalize()}")
            try_client(stage, tools, make)
    say("The description is true")


main()
