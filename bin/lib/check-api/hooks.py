"""Questions and notifications that are genuine, beside the examples of the description: schemathesis cannot sign."""

import json
import os

import schemathesis

GENUINE = json.loads(os.environ["GENUINE"])


@schemathesis.hook
def before_add_examples(context, examples):
    for body in GENUINE.get(context.operation.definition.raw["operationId"], []):
        path = {"tenantId": os.environ["ATTESTO_TENANT"]} if "{tenantId}" in context.operation.path else {}
        examples.append(context.operation.Case(path_parameters=path, body=body, media_type="application/json"))
