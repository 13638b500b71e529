"""Asks everything that a tenant's backend can ask, so that every outcome and every error is seen."""

import json
import socket
import time
import urllib.parse

from installation import TIMEOUT, ask, ask_raw, read_raw, wait_for

APP = "com.example.app"
USER = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"
OTHER_USER = "11111111-2222-4333-8444-555555555555"
UNKNOWN_KEY = "attesto_live_" + "A" * 43


class Questions:
    """Asks with the key of `tenant`; `folder` is where the files go."""

    def __init__(self, recorder, service, control, path, key, folder):
        self.recorder, self.service, self.control = recorder, service, control
        self.path, self.key, self.folder = path, key, folder

    def ask(self, name, body, key="", **headers):
        """Asks and records. Without a `key` the tenant's own is used; `None` sends none."""
        key = self.key if key == "" else key
        sent = {} if key is None else {"authorization": f"Bearer {key}"}
        sent |= {header.replace("_", "-"): value for header, value in headers.items()}
        return self.recorder.exchange(f"{self.folder}/{name}.txt", "POST", self.service.url + self.path, sent, body)

    def with_fault(self, name, fault, body):
        """Asks while a store answers as `fault` says."""
        self.control("POST", "/faults", fault)
        self.ask(name, body)
        self.control("DELETE", "/faults")

    def refused_requests(self, valid):
        """What is refused before a store is asked. `valid` is a request that would be answered."""
        self.ask("refused-without-key", valid, key=None)
        self.ask("refused-malformed-key", valid, key="attesto_live_short")
        self.ask("refused-unknown-key", valid, key=UNKNOWN_KEY)
        self.ask("refused-other-scheme", valid, key=None, authorization="Basic YTpi")
        self.ask("refused-empty-body", b"", content_type="application/json")
        self.ask("refused-no-json", b'{"transactionId": ', content_type="application/json")
        self.ask("refused-no-object", b'["a"]', content_type="application/json")
        self.ask("refused-field-twice", b'{"a": 1, "a": 2}', content_type="application/json")
        self.ask("refused-no-utf-8", b'{"a": "\xff"}', content_type="application/json")
        self.ask("refused-content-type", json.dumps(valid).encode(), content_type="text/plain")
        self.ask("refused-no-content-type", json.dumps(valid).encode())
        self.ask("refused-content-encoding", valid, content_encoding="gzip")
        self.ask(
            "refused-body-too-large",
            json.dumps(valid | {"more": "x" * 16384}).encode(),
            content_type="application/json",
        )
        self.ask("answered-with-charset", json.dumps(valid).encode(), content_type="Application/JSON; charset=utf-8")
        self.ask("answered-with-unknown-field", valid | {"more": [1]})
        self.ask("answered-with-own-request-id", valid, x_request_id="my-request.1_a")
        self.ask("answered-with-unusable-request-id", valid, x_request_id="not usable")


def apple(recorder, service, installation, tenants):
    """`POST /v1/apple/verify`"""
    control = installation.control
    main = Questions(recorder, service, control, "/v1/apple/verify", tenants["main"].key, "http/apple-verify")

    def bought(number, **fields):
        """A purchase in production; its id."""
        control("POST", "/apple/transactions", {"transactionId": number, "environment": "production"} | fields)
        return {"transactionId": number}

    def change(number, action, **fields):
        return control("POST", f"/apple/transactions/{number}/{action}", fields)

    def signed(number):
        return {"signedTransaction": control("GET", f"/apple/transactions/{number}/jws")}

    valid = bought("7001", appAccountToken=USER)
    main.ask("active", valid)
    main.ask("active-signed", signed("7001"))
    main.ask("active-in-production", valid | {"environment": "production"})
    main.ask("active-auto", valid | {"environment": "auto"})
    main.ask("active-of-expected-user", valid | {"expectedAppUserId": USER.upper()})
    main.refused_requests(valid)

    bought("7002", type="non-consumable", price=49990, currency="EUR", storefront="DEU", storefrontId="143443")
    main.ask("active-non-consumable", {"transactionId": "7002"})
    main.ask("active-consumable", bought("7003", type="consumable", quantity=3))
    main.ask("active-non-renewing", bought("7004", type="non-renewing", period="P1Y"))
    offer = {"offerType": 2, "offerIdentifier": "spring", "offerDiscountType": "PAY_UP_FRONT", "offerPeriod": "P1M"}
    main.ask("active-with-offer", bought("7005", familyShared=True, **offer))
    main.ask("active-with-unknown-fields", bought("7006", fields={"somethingNew": {"a": 1}, "currency": None}))
    main.ask("active-fractional-dates", bought("7007", fractionalDates=True))
    main.ask("active-in-sandbox", bought("7008", environment="sandbox"))
    main.ask("active-in-sandbox-signed", signed("7008"))

    bought("7010")
    change("7010", "expire", intent=2)
    main.ask("expired", {"transactionId": "7010"})
    bought("7011")
    change("7011", "refund", reason=1)
    main.ask("refunded", {"transactionId": "7011"})
    main.ask("refunded-signed", signed("7011"))
    bought("7012")
    change("7012", "refund", reason=0, percentage=50000)
    main.ask("refunded-in-part", {"transactionId": "7012"})
    bought("7013", familyShared=True)
    change("7013", "revoke")
    main.ask("revoked", {"transactionId": "7013"})
    bought("7014")
    change("7014", "upgrade", productId=f"{APP}.pro.yearly", period="P1Y")
    main.ask("upgraded", {"transactionId": "7014"})
    for number, action in (("7015", "grace"), ("7016", "billing-retry"), ("7017", "cancel")):
        bought(number)
        change(number, action)
        main.ask(f"after-{action}", {"transactionId": number})
    bought("7018")
    renewed = change("7018", "renew")["transactionId"]
    main.ask("renewed", {"transactionId": renewed})
    main.ask("renewed-by-first-id", {"transactionId": "7018"})

    main.ask("transaction-not-found", {"transactionId": "7999"})
    main.ask("transaction-not-found-in-sandbox", valid | {"environment": "sandbox"})
    main.ask("transaction-not-found-malformed", {"transactionId": "not-a-number"})
    app_transaction = control("GET", "/apple/transactions/7001")["payload"].get("appTransactionId")
    main.ask("transaction-not-found-app-transaction", {"transactionId": app_transaction})
    bought("7020", bundleId="com.example.other")
    main.ask("transaction-not-found-of-other-app", {"transactionId": "7020"})
    main.ask("bundle-id-mismatch", signed("7020"))
    main.ask("environment-mismatch", signed("7001") | {"environment": "sandbox"})
    main.ask("environment-mismatch-production", signed("7008") | {"environment": "production"})
    bought("7021", fields={"environment": "Xcode"})
    main.ask("environment-mismatch-xcode", signed("7021"))
    main.ask("app-user-mismatch", valid | {"expectedAppUserId": OTHER_USER})
    main.ask("app-user-mismatch-none", {"transactionId": "7002", "expectedAppUserId": USER})
    main.ask("app-user-mismatch-signed", signed("7001") | {"expectedAppUserId": OTHER_USER})

    for kind in control("GET", "/apple/forge")["kinds"]:
        # How the simulator's truncated signature is refused depends on its last bits.
        if kind == "truncated":
            continue
        forged = control("GET", f"/apple/forge?kind={kind}&transactionId=7001")
        main.ask(f"forged-{kind}", {"signedTransaction": forged})
    genuine = signed("7001")["signedTransaction"]
    main.ask("signature-invalid-truncated", {"signedTransaction": genuine[:-2]})
    main.ask("signature-invalid-no-signature", {"signedTransaction": genuine.rpartition(".")[0] + "."})
    main.ask("signature-invalid-no-jws", {"signedTransaction": "a.b"})
    payload = {"bundleId": APP, "environment": "Production", "signedDate": int(time.time() * 1000)}
    main.ask("signature-invalid-no-transaction", {"signedTransaction": control("POST", "/apple/sign", payload)})
    payload |= {"transactionId": "7001", "signedDate": payload["signedDate"] + 3_600_000}
    main.ask("signature-invalid-of-the-future", {"signedTransaction": control("POST", "/apple/sign", payload)})

    main.ask("invalid-request-empty", {})
    main.ask("invalid-request-both", valid | {"signedTransaction": "a.b.c"})
    everything = {"transactionId": "", "environment": "mars", "expectedAppUserId": "me"}
    main.ask("invalid-request-everything", everything)
    types = {"transactionId": 7001, "signedTransaction": {}, "environment": 1, "expectedAppUserId": False}
    main.ask("invalid-request-types", types)
    main.ask("invalid-request-too-long", {"transactionId": "7" * 129})
    main.ask("invalid-request-null", {"transactionId": None, "environment": None})

    for name, fault in {
        "apple-unauthorized": {"status": 401},
        "apple-rate-limited": {"errorCode": 4290000, "retryAfterSeconds": 30},
        "apple-rate-limited-without-time": {"errorCode": 4290000},
        "apple-error": {"errorCode": 5000000},
        "apple-error-retryable": {"errorCode": 5000001},
        "apple-error-account-not-found-retryable": {"errorCode": 4040002},
        "apple-error-account-not-found": {"errorCode": 4040001},
        "apple-error-app-not-found": {"errorCode": 4040003},
        "apple-error-transaction-retryable": {"errorCode": 4040006},
        "apple-error-bad-request": {"errorCode": 4000002},
        "apple-error-gateway": {"status": 503},
        "apple-error-gateway-with-retry-after": {"status": 503, "retryAfter": "120"},
        "apple-unreadable": {"status": 200, "body": "{}"},
        "apple-not-json": {"status": 200, "body": "<html>"},
        "apple-redirect": {"status": 302},
        "apple-not-found-without-code": {"status": 404},
        "apple-connection-breaks": {"cut": True},
        "apple-too-slow": {"delayMs": 5000},
    }.items():
        main.with_fault(name, {"at": "apple", "times": 0} | fault, {"transactionId": "7001"})
    other = control("GET", "/apple/transactions/7002/jws")
    answer = json.dumps({"signedTransactionInfo": other})
    main.with_fault(
        "apple-answers-another-transaction", {"at": "apple", "times": 0, "status": 200, "body": answer}, valid
    )
    answer = json.dumps({"signedTransactionInfo": control("GET", "/apple/forge?kind=wrong-root&transactionId=7001")})
    main.with_fault("apple-answers-forged", {"at": "apple", "times": 0, "status": 200, "body": answer}, valid)

    main.ask("credentials-missing", valid, key=tenants["bare"].key)
    second = tenants["without-app-apple-id"]
    main.ask("credentials-missing-app-apple-id", valid | {"environment": "production"}, key=second.key)
    bought("7030", bundleId=second.app, environment="sandbox")
    main.ask("without-app-apple-id-in-sandbox", {"transactionId": "7030"}, key=second.key)
    bought("7031", bundleId=second.app)
    main.ask("without-app-apple-id-auto", {"transactionId": "7031"}, key=second.key)
    main.ask("without-app-apple-id-signed", signed("7031"), key=second.key)
    main.ask("without-app-apple-id-signed-production", signed("7031") | {"environment": "production"}, key=second.key)
    control("POST", f"/apple/apps/{APP}", {"released": False})
    main.ask("never-released-in-sandbox", {"transactionId": "7008"})
    main.ask("never-released-not-found", valid)
    main.ask("never-released-in-production", valid | {"environment": "production"})
    control("POST", f"/apple/apps/{APP}", {"released": True})


def google(recorder, service, installation, tenants):
    """`POST /v1/google/verify`"""
    control = installation.control
    main = Questions(recorder, service, control, "/v1/google/verify", tenants["main"].key, "http/google-verify")

    def subscribed(token, **fields):
        control("POST", "/google/subscriptions", {"purchaseToken": token} | fields)
        return {"packageName": APP, "purchaseToken": token, "type": "subscription"}

    def sold(token, **fields):
        control("POST", "/google/products", {"purchaseToken": token, "productId": "coins_100"} | fields)
        return {"packageName": APP, "purchaseToken": token, "type": "product", "productId": "coins_100"}

    valid = subscribed("subscription-active", obfuscatedExternalAccountId="user-1", acknowledged=True)
    main.ask("subscription-active", valid)
    main.ask("subscription-active-of-product", valid | {"productId": "pro_monthly"})
    main.ask("subscription-active-of-expected-user", valid | {"expectedAppUserId": "user-1"})
    main.refused_requests(valid)
    main.ask("subscription-active-not-acknowledged", subscribed("subscription-new"))
    main.ask("subscription-pending", subscribed("subscription-pending", pending=True))
    main.ask("subscription-prepaid", subscribed("subscription-prepaid", prepaid=True))
    main.ask("subscription-test", subscribed("subscription-test", testPurchase=True, regionCode="DE"))
    add_ons = [{"productId": "extra_storage"}, {"productId": "extra_long", "period": "P1Y"}]
    asked = subscribed("subscription-add-ons", addOns=add_ons)
    main.ask("subscription-add-ons", asked)
    main.ask("subscription-add-ons-of-product", asked | {"productId": "extra_storage"})
    main.ask("subscription-unknown-fields", subscribed("subscription-fields", fields={"somethingNew": {"a": 1}}))
    for action, fields in {
        "renew": {},
        "cancel": {"by": "user"},
        "expire": {},
        "grace": {},
        "hold": {},
        "pause": {},
        "revoke": {},
        "defer": {"days": 14},
        "acknowledge": {},
        "gone": {"how": "no-longer-valid"},
        "forget": {},
    }.items():
        asked = subscribed(f"subscription-{action}")
        control("POST", f"/google/subscriptions/subscription-{action}/{action}", fields)
        main.ask(f"subscription-after-{action}", asked)
    for how in ("no-longer-available", "expired-too-long"):
        asked = subscribed(f"subscription-{how}")
        control("POST", f"/google/subscriptions/subscription-{how}/gone", {"how": how})
        main.ask(f"subscription-gone-{how}", asked)
    asked = subscribed("subscription-declined", pending=True)
    control("POST", "/google/subscriptions/subscription-declined/decline")
    main.ask("subscription-after-decline", asked)
    asked = subscribed("subscription-replaced")
    new = {"purchaseToken": "subscription-replacement", "productId": "pro_yearly", "period": "P1Y"}
    control("POST", "/google/subscriptions/subscription-replaced/replace", new)
    main.ask("subscription-after-replace", asked)
    main.ask("subscription-replacement", asked | {"purchaseToken": "subscription-replacement"})

    product = sold("product-active", obfuscatedExternalAccountId="user-1")
    main.ask("product-active", product)
    main.ask("product-active-of-expected-user", product | {"expectedAppUserId": "user-1"})
    main.ask("product-quantity", sold("product-quantity", quantity=3))
    main.ask("product-pending", sold("product-pending", pending=True))
    for action in ("consume", "acknowledge", "refund", "gone", "forget"):
        asked = sold(f"product-{action}")
        control("POST", f"/google/products/product-{action}/{action}")
        main.ask(f"product-after-{action}", asked)

    main.ask("purchase-not-found", valid | {"purchaseToken": "unknown"})
    main.ask("purchase-not-found-product", product | {"purchaseToken": "unknown"})
    main.ask("purchase-not-found-other-type", product | {"type": "subscription"})
    main.ask("purchase-not-found-other-type-product", valid | {"type": "product", "productId": "pro_monthly"})
    main.ask("package-name-mismatch", valid | {"packageName": "com.example.other"})
    subscribed("subscription-of-other-app", packageName="com.example.other")
    main.ask("package-name-mismatch-of-token", valid | {"purchaseToken": "subscription-of-other-app"})
    main.ask("product-id-mismatch", valid | {"productId": "pro_yearly"})
    main.ask("product-id-mismatch-product", product | {"productId": "coins_500"})
    main.ask("app-user-mismatch", valid | {"expectedAppUserId": "user-2"})
    main.ask("app-user-mismatch-none", valid | {"purchaseToken": "subscription-new", "expectedAppUserId": "user-1"})
    main.ask("app-user-mismatch-product", product | {"expectedAppUserId": "user-2"})

    main.ask("invalid-request-empty", {})
    everything = {"packageName": "", "purchaseToken": "x" * 4097, "type": "gift", "productId": ""}
    main.ask("invalid-request-everything", everything | {"expectedAppUserId": ""})
    types = {"packageName": 1, "purchaseToken": [], "type": {}, "productId": True, "expectedAppUserId": 2}
    main.ask("invalid-request-types", types)
    main.ask("invalid-request-without-product", {"packageName": APP, "purchaseToken": "a", "type": "product"})

    for name, fault in {
        "google-permission-denied": {"at": "google/play", "reason": "permissionDenied"},
        "google-application-not-found": {"at": "google/play", "reason": "applicationNotFound"},
        "google-quota-exceeded": {"at": "google/play", "reason": "quotaExceeded"},
        "google-rate-limited": {"at": "google/play", "status": 429, "retryAfterSeconds": 30},
        "google-backend-error": {"at": "google/play", "reason": "backendError"},
        "google-error-gateway": {"at": "google/play", "status": 503},
        "google-error-gateway-with-retry-after": {"at": "google/play", "status": 503, "retryAfter": "120"},
        "google-unauthorized": {"at": "google/play", "status": 401},
        "google-unreadable": {"at": "google/play", "status": 200, "body": "[]"},
        "google-not-json": {"at": "google/play", "status": 200, "body": "<html>"},
        "google-connection-breaks": {"at": "google/play", "cut": True},
        "google-too-slow": {"at": "google/play", "delayMs": 5000},
    }.items():
        main.with_fault(name, {"times": 0} | fault, valid)
    for name, fault in {
        "google-token-refused": {"reason": "invalid_grant"},
        "google-token-error": {"status": 503},
        "google-token-unreadable": {"status": 200, "body": "{}"},
    }.items():
        # The service asks for a new token when Play refuses the one it has.
        control("POST", "/google/tokens/expire")
        main.with_fault(name, {"at": "google/token", "times": 0} | fault, valid)
    main.ask("credentials-missing", valid, key=tenants["bare"].key)


def service(recorder, running, installation, tenants):
    """Every other route, and what is no route."""
    folder, url = "http/service", running.url
    key = tenants["main"].key
    for path in ("/health", "/ready"):
        name = path[1:]
        recorder.exchange(f"{folder}/{name}.txt", "GET", url + path)
        recorder.exchange(f"{folder}/{name}-head.txt", "HEAD", url + path)
        recorder.exchange(f"{folder}/{name}-method-not-allowed.txt", "POST", url + path)
    recorder.exchange(f"{folder}/openapi-head.txt", "HEAD", url + "/openapi.json")
    recorder.exchange(f"{folder}/openapi-method-not-allowed.txt", "DELETE", url + "/openapi.json")
    recorder.exchange(f"{folder}/not-found.txt", "GET", url + "/v1/nowhere?token=1")
    recorder.exchange(f"{folder}/not-found-root.txt", "GET", url + "/")
    recorder.exchange(f"{folder}/not-found-slash.txt", "GET", url + "/health/")
    recorder.exchange(f"{folder}/not-found-metrics.txt", "GET", url + "/metrics")
    for store in ("apple", "google"):
        path = f"{url}/v1/{store}/verify"
        recorder.exchange(f"{folder}/{store}-verify-get.txt", "GET", path, {"authorization": f"Bearer {key}"})
        recorder.exchange(f"{folder}/{store}-verify-options.txt", "OPTIONS", path, {"origin": "https://example.com"})
        recorder.exchange(f"{folder}/{store}-webhook-get.txt", "GET", f"{url}/v1/webhooks/{store}/{tenants['main'].id}")
    for name, request in {
        "malformed-no-http": b"hello\r\n\r\n",
        "malformed-headers-too-large": b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 600_000 + b"\r\n\r\n",
        "malformed-path-too-long": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        "malformed-content-length": b"POST /v1/apple/verify HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n",
    }.items():
        answer = ask_raw(url, request)
        shown = request if len(request) < 200 else b"<%d bytes>" % len(request)
        recorder.written_exchange(f"{folder}/{name}.txt", "(bytes)", "", {}, shown, answer)
    ask_metrics(recorder, running)


def ask_metrics(recorder, running):
    """The second listener, which serves metrics and nothing else."""
    folder = "http/service"
    answer = ask_raw(running.metrics, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    recorder.written_exchange(f"{folder}/metrics-listener-not-found.txt", "GET", "/", {}, None, answer)
    answer = ask_raw(running.metrics, b"POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
    recorder.written_exchange(f"{folder}/metrics-listener-method-not-allowed.txt", "POST", "/metrics", {}, None, answer)


class SlowRequest:
    """A request whose body does not arrive. The service gives up after some seconds."""

    def __init__(self, running, key):
        parts = urllib.parse.urlsplit(running.url)
        self.connection = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT)
        self.headers = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "content-length": "100",
        }
        lines = [
            "POST /v1/apple/verify HTTP/1.1",
            "host: a",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        self.connection.sendall(("\r\n".join(lines) + '\r\n\r\n{"transactionId": ').encode())

    def finish(self, recorder):
        """Waits for the answer."""
        with self.connection:
            answer = read_raw(self.connection)
        body = b'{"transactionId": '
        recorder.written_exchange("http/service/slow-body.txt", "POST", "/v1/apple/verify", self.headers, body, answer)


def tenants_that_are_refused(recorder, running, installation, tenants):
    """Keys that were revoked, tenants that are inactive or ask too often."""
    body = json.dumps({"transactionId": "7001"}).encode()

    def ask_until(name, tenant, status):
        """A change is noticed a moment later: what is recorded is the first answer with this status."""
        headers = {"authorization": f"Bearer {tenant.key}", "content-type": "application/json"}

        def found():
            answer = ask("POST", running.url + "/v1/apple/verify", headers, body)
            return answer if answer.status == status else None

        answer = wait_for(f"{name}: an answer {status}", found)
        recorder.written_exchange(f"http/tenants/{name}.txt", "POST", "/v1/apple/verify", headers, body, answer)

    limited = tenants["limited"]
    installation.must_run("tenant", "set-limits", limited.id, "--per-second", "1", "--burst", "1")
    ask_until("rate-limited", limited, 429)
    installation.must_run("key", "revoke", tenants["revoked"].key_id)
    ask_until("revoked-key", tenants["revoked"], 401)
    installation.must_run("tenant", "deactivate", tenants["inactive"].id)
    ask_until("inactive-tenant", tenants["inactive"], 401)
