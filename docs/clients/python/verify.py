"""Asks Attesto about one purchase, with a client generated from its own description:

    pip install openapi-python-client==0.29.1 httpx attrs
    attesto openapi >openapi.json
    openapi-python-client generate --path openapi.json --meta none --output-path attesto_client
    ATTESTO_URL=https://attesto.internal ATTESTO_API_KEY=attesto_live_… python verify.py apple 2000000123456789

It prints what your backend should do, as a line of JSON. Copy `understand` and the two functions below it.
"""

import json
import os
import sys
from datetime import datetime, timezone

import httpx

from attesto_client.api.verify import verify_apple, verify_google
from attesto_client.client import AuthenticatedClient
from attesto_client.models import (
    AppleRefused,
    AppleVerified,
    AppleVerifyById,
    ErrorBody,
    GoogleRefused,
    GoogleVerified,
    GoogleVerifyRequest,
    PurchaseState,
)
from attesto_client.types import UNSET, Response

Verified = AppleVerified | GoogleVerified
Refused = AppleRefused | GoogleRefused
Answer = Response[AppleVerified | AppleRefused | ErrorBody] | Response[GoogleVerified | GoogleRefused | ErrorBody]
# What to do now: "grant" the purchase or "refuse" it; or change nothing, and "ask again" or "mend" the setup.
Decision = dict[str, str | int | None]


def understand(answer: Answer) -> Decision:
    if isinstance(answer.parsed, AppleVerified | GoogleVerified | AppleRefused | GoogleRefused):
        return decide(answer.parsed)
    # No verdict: do not change what the user has.
    error = answer.parsed
    because = f"{error.error}: {error.message}" if error else f"{answer.status_code}: no answer of Attesto's"
    if answer.status_code not in (429, 500, 502, 503):
        return {"do": "mend", "because": because}
    return {"do": "ask again", "because": because, "afterSeconds": int(answer.headers.get("retry-after", "5"))}


def decide(answer: Verified | Refused) -> Decision:
    if isinstance(answer, AppleRefused | GoogleRefused):
        return {"do": "refuse", "because": f"{answer.error}: {answer.message}"}
    state = answer.state
    if not isinstance(state, PurchaseState):
        # Genuine, and what it is worth is not known: do not change what the user has.
        return {"do": "ask again", "because": str(answer.state_error or "no state"), "afterSeconds": 60}
    # Your backend stores the state too, by the same statement as those of events: the newest `as_of` wins.
    if not is_entitled(state):
        return {"do": "refuse", "because": str(state.status), "user": answer.app_user_id}
    until = state.entitled_until.isoformat() if state.entitled_until else None
    return {"do": "grant", "because": str(state.status), "until": until, "user": answer.app_user_id}


def is_entitled(state: PurchaseState) -> bool:
    """The gate: may the customer use the product now?"""
    end = state.entitled_until
    return state.entitled and (end is None or datetime.now(timezone.utc) < end)


def main() -> None:
    client = AuthenticatedClient(
        base_url=os.environ.get("ATTESTO_URL", "http://127.0.0.1:8080"),
        token=os.environ["ATTESTO_API_KEY"],
        # Attesto waits ten seconds for a store.
        timeout=httpx.Timeout(15),
    )
    store, identifier, *product = sys.argv[1:]
    package = os.environ.get("PACKAGE_NAME", "com.example.app")
    if store == "apple":
        question = AppleVerifyById(transaction_id=identifier)
        decision = understand(verify_apple.sync_detailed(client=client, body=question))
    else:
        bought = GoogleVerifyRequest(package, identifier, product_id=product[0] if product else UNSET)
        decision = understand(verify_google.sync_detailed(client=client, body=bought))
    print(json.dumps(decision))


if __name__ == "__main__":
    main()
