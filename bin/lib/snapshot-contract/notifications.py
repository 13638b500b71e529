"""Posts what the stores post, and waits for the events that come of it."""

import base64
import json

from installation import Receiver
from questions import APP, USER

AUDIENCE = "snapshot"


def altered(signature):
    """Another signature of the same length."""
    return ("A" if signature[0] != "A" else "B") + signature[1:]


class Notifications:
    """Posts notifications of one store to the service, records the answers and the deliveries that follow."""

    def __init__(self, recorder, running, installation, tenants, receiver, store):
        self.recorder, self.running, self.installation = recorder, running, installation
        self.control = installation.control
        self.tenants, self.receiver, self.store = tenants, receiver, store
        self.secrets = [tenants["main"].secret]
        self.headers = {"content-type": "application/json"}

    def url(self, tenant):
        return f"{self.running.url}/v1/webhooks/{self.store}/{tenant}"

    def post(self, name, body, tenant=None, headers=None):
        """Posts and records the answer."""
        tenant = self.tenants["main"].id if tenant is None else tenant
        headers = self.headers if headers is None else headers
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        folder = f"http/{self.store}-webhook"
        return self.recorder.exchange(f"{folder}/{name}.txt", "POST", self.url(tenant), headers, body)

    def deliver(self, name, body):
        """Posts what is accepted, and records the delivery that comes of it. Returns the event's id."""
        event = self.post(name, body).json()["eventId"]
        self.delivery(f"events/{self.store}/{name}.txt", event)
        return event

    def delivery(self, file, event, attempt="1", secrets=None):
        """Waits for an attempt at the delivery of an event, and records it."""

        def wanted(_, headers, body):
            values = {header.lower(): value for header, value in headers}
            return values["x-attesto-event-id"] == event and values["x-attesto-attempt"] == attempt

        _, headers, body = self.receiver.next(f"the delivery of {event}", wanted)
        self.recorder.delivery(file, headers, body, secrets or self.secrets)


class Apple(Notifications):
    """What the App Store posts."""

    def __init__(self, *arguments):
        super().__init__(*arguments, "apple")
        nowhere = "http://127.0.0.1:9/"
        for app in (APP, "com.example.other", self.tenants["without-app-apple-id"].app):
            pushed = {"production": nowhere, "sandbox": nowhere, "manual": True}
            self.control("POST", f"/apple/push/{app}", pushed)
        self.seen = 0

    def newest(self):
        """The notification that came of the last change: what the App Store would post."""
        known = self.control("GET", "/apple/notifications")["notifications"]
        new, self.seen = known[self.seen :], len(known)
        if len(new) != 1:
            raise SystemExit(f"one notification was expected, and there are {len(new)}")
        return {"signedPayload": new[0]["signedPayload"]}

    def skip(self):
        """Nothing that happened so far is wanted."""
        self.seen = len(self.control("GET", "/apple/notifications")["notifications"])

    def buy(self, number, **fields):
        self.control("POST", "/apple/transactions", {"transactionId": number, "environment": "production"} | fields)

    def change(self, number, action, **fields):
        return self.control("POST", f"/apple/transactions/{number}/{action}", fields)

    def notify(self, kind, subtype=None, app=APP, **fields):
        """Any notification of this kind."""
        self.skip()
        body = {"notificationType": kind, "environment": "production"} | ({"subtype": subtype} if subtype else {})
        self.control("POST", f"/apple/notifications/{app}", body | fields)
        return self.newest()

    def accepted(self):
        """One event for everything that can happen to a purchase, and for every kind of notification there is."""
        self.skip()
        self.buy("8001", appAccountToken=USER)
        first = self.newest()
        self.deliver("subscribed", first)
        self.post("duplicate", first)
        for number, kind, fields in (
            ("8002", "one-time-charge", {"type": "consumable", "quantity": 2}),
            ("8003", "one-time-charge-non-consumable", {"type": "non-consumable"}),
            ("8004", "subscribed-in-sandbox", {"environment": "sandbox"}),
            (
                "8005",
                "subscribed-with-offer",
                {"offerType": 1, "offerDiscountType": "FREE_TRIAL", "offerPeriod": "P7D"},
            ),
        ):
            self.buy(number, **fields)
            self.deliver(kind, self.newest())
        for number, (name, steps) in enumerate(
            {
                "did-renew": [("renew", {})],
                "auto-renew-disabled": [("cancel", {})],
                "auto-renew-enabled": [("cancel", {}), ("resume", {})],
                "expired-voluntary": [("expire", {"intent": 1})],
                "expired-billing-retry": [("expire", {"intent": 2})],
                "resubscribe": [("expire", {"intent": 1}), ("renew", {})],
                "did-fail-to-renew": [("billing-retry", {})],
                "grace-period": [("grace", {})],
                "grace-period-expired": [("grace", {}), ("billing-retry", {})],
                "billing-recovery": [("billing-retry", {}), ("renew", {})],
                "refund": [("refund", {"reason": 1})],
                "refund-in-part": [("refund", {"reason": 0, "percentage": 50000})],
                "refund-reversed": [("refund", {}), ("reverse-refund", {})],
                "revoke": [("revoke", {})],
                "upgrade": [("upgrade", {"productId": f"{APP}.pro.yearly", "period": "P1Y"})],
                "downgrade": [("downgrade", {"productId": f"{APP}.lite.monthly"})],
                "renewal-extended": [("extend", {"days": 30})],
            }.items(),
            start=8101,
        ):
            self.buy(str(number))
            for action, fields in steps:
                self.skip()
                self.change(str(number), action, **fields)
            self.deliver(name, self.newest())
        self.buy("8006", type="consumable")
        self.skip()
        self.change("8006", "refund", reason=0)
        self.deliver("refund-of-product", self.newest())
        of = {"transactionId": "8001"}
        for name, kind, subtype, fields in (
            ("test", "TEST", None, {}),
            ("price-increase-pending", "PRICE_INCREASE", "PENDING", of),
            ("price-increase-accepted", "PRICE_INCREASE", "ACCEPTED", of),
            ("price-change", "PRICE_CHANGE", None, of),
            ("offer-redeemed", "OFFER_REDEEMED", "UPGRADE", of),
            ("refund-declined", "REFUND_DECLINED", None, of),
            ("consumption-request", "CONSUMPTION_REQUEST", None, of | {"block": {"consumptionRequestReason": "LEGAL"}}),
            ("renewal-extension-summary", "RENEWAL_EXTENSION", "SUMMARY", {}),
            ("renewal-extension-failure", "RENEWAL_EXTENSION", "FAILURE", of),
            ("external-purchase-token", "EXTERNAL_PURCHASE_TOKEN", "UNREPORTED", {}),
            ("rescind-consent", "RESCIND_CONSENT", None, {}),
            ("metadata-update", "METADATA_UPDATE", None, of),
            ("migration", "MIGRATION", None, of),
            ("unknown-type", "SOMETHING_NEW", "OF_SOME_KIND", of),
            ("unknown-fields", "DID_RENEW", None, of | {"fields": {"somethingNew": {"a": 1}}}),
        ):
            self.deliver(name, self.notify(kind, subtype, **fields))

    def refused(self):
        """Everything that is not accepted."""
        good = self.notify("TEST")
        unknown = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"
        self.post("refused-malformed-tenant", good, tenant="tenant_1")
        self.post("refused-unknown-tenant", good, tenant=unknown)
        self.post("refused-inactive-tenant", good, tenant=self.tenants["inactive"].id)
        self.post("refused-without-credentials", good, tenant=self.tenants["bare"].id)
        self.post("refused-without-app-apple-id", good, tenant=self.tenants["production-only"].id)
        self.post("refused-empty", b"")
        self.post("refused-no-json", b"{")
        self.post("refused-without-payload", {})
        self.post("refused-payload-no-text", {"signedPayload": 1})
        self.post("refused-body-too-large", json.dumps({"signedPayload": "x" * (1024 * 1024)}).encode())
        self.post("accepted-without-content-type", self.notify("TEST"), headers={})
        self.post("refused-no-jws", {"signedPayload": "a.b.c"})
        header, payload, signature = good["signedPayload"].split(".")
        self.post("refused-altered", {"signedPayload": f"{header}.{payload}.{altered(signature)}"})
        self.post("refused-other-app", self.notify("TEST", app="com.example.other"))
        wrong = self.notify("TEST", block={"appAppleId": 1})
        self.post("refused-other-app-apple-id", wrong)
        self.post("refused-other-environment", self.notify("TEST", block={"environment": "Xcode"}))
        self.post("refused-without-environment", self.notify("TEST", block={"environment": None}))
        self.post("refused-no-notification", self.notify("TEST", fields={"data": None}))
        self.post("refused-without-uuid", self.notify("TEST", fields={"notificationUUID": None}))
        self.post("refused-long-uuid", self.notify("TEST", fields={"notificationUUID": "x" * 257}))
        forged = self.control("GET", "/apple/forge?kind=wrong-root&transactionId=8001")
        of = {"transactionId": "8001"}
        part = self.notify("DID_RENEW", **of, block={"signedTransactionInfo": forged})
        self.post("refused-forged-part", part)
        renewal = self.control("POST", "/apple/sign", {"originalTransactionId": "8001", "environment": "Production"})
        part = self.notify("DID_RENEW", **of, block={"signedTransactionInfo": renewal})
        self.post("refused-other-part", part)
        self.buy("8007", bundleId="com.example.other")
        other = self.control("GET", "/apple/transactions/8007/jws")
        part = self.notify("DID_RENEW", **of, block={"signedTransactionInfo": other})
        self.post("refused-misplaced-part", part)


class Google(Notifications):
    """What Play publishes and Pub/Sub pushes."""

    def __init__(self, *arguments):
        super().__init__(*arguments, "google")
        self.messages = 0
        self.tokens = {}
        for name, push in {
            "good": {"audience": AUDIENCE},
            "other audience": {"audience": "another"},
            "other account": {"audience": AUDIENCE, "account": "another@example.iam.gserviceaccount.com"},
        }.items():
            self.tokens[name] = self.token(push)
        self.headers |= {"authorization": f"Bearer {self.tokens['good']}"}
        self.control("POST", f"/google/push/{APP}", {"endpoint": "http://127.0.0.1:9/", "manual": True})
        self.skip()

    def token(self, push):
        """The token of a push, which is made by having something pushed to a receiver of our own."""
        with Receiver() as receiver:
            self.control("POST", f"/google/push/{APP}", push | {"endpoint": receiver.url + "/"})
            self.control("POST", f"/google/messages/{APP}/test")
            _, headers, _ = receiver.next("a push", lambda *_: True)
            return dict((name.lower(), value) for name, value in headers)["authorization"].split()[1]

    def skip(self):
        self.messages = len(self.control("GET", "/google/messages")["messages"])

    def new(self):
        """What was published since the last time, each as the body of a push."""
        known = self.control("GET", "/google/messages")["messages"]
        new, self.messages = known[self.messages :], len(known)
        return [self.push(message["data"], message["messageId"], message["publishTime"]) for message in new]

    @staticmethod
    def push(data, number, time):
        message = {"data": data, "messageId": number, "message_id": number, "publishTime": time, "publish_time": time}
        return {"message": message, "subscription": "projects/simulator/subscriptions/attesto"}

    def published(self, notification):
        """A push of this notification, which nothing happened for."""
        self.skip()
        self.control("POST", f"/google/messages/{APP}", notification)
        return self.new()[0]

    def deliver_all(self, name):
        """Delivers what was published, in its order; there is mostly one."""
        for number, body in enumerate(self.new()):
            self.deliver(name if number == 0 else f"{name}-{number + 1}", body)

    def subscribe(self, token, **fields):
        self.control("POST", "/google/subscriptions", {"purchaseToken": token} | fields)

    def sell(self, token, **fields):
        self.control("POST", "/google/products", {"purchaseToken": token, "productId": "coins_100"} | fields)

    def accepted(self):
        """One event for everything that can happen to a purchase, and for every kind of notification there is."""
        self.skip()
        self.subscribe("bought-1", obfuscatedExternalAccountId="user-1")
        body = self.new()[0]
        self.deliver("subscription-purchased", body)
        self.post("duplicate", body)
        self.subscribe("bought-by-tester", testPurchase=True)
        self.deliver_all("subscription-purchased-by-tester")
        for name, steps in {
            "subscription-renewed": [("renew", {})],
            "subscription-canceled": [("cancel", {})],
            "subscription-restarted": [("cancel", {}), ("restore", {})],
            "subscription-expired": [("expire", {})],
            "subscription-expired-after-cancel": [("cancel", {"by": "user"}), ("expire", {})],
            "subscription-in-grace-period": [("grace", {})],
            "subscription-on-hold": [("hold", {})],
            "subscription-recovered": [("hold", {}), ("renew", {})],
            "subscription-paused": [("pause", {})],
            "subscription-resumed": [("pause", {}), ("resume", {})],
            "subscription-revoked": [("revoke", {})],
            "subscription-deferred": [("defer", {"days": 14})],
        }.items():
            self.subscribe(f"token-{name}")
            for action, fields in steps:
                self.skip()
                self.control("POST", f"/google/subscriptions/token-{name}/{action}", fields)
            self.deliver_all(name)
        for action in ("complete", "decline"):
            self.subscribe(f"pending-{action}", pending=True)
            self.skip()
            self.control("POST", f"/google/subscriptions/pending-{action}/{action}")
            self.deliver_all(f"subscription-pending-{action}")
        self.subscribe("to-replace")
        self.skip()
        new = {"purchaseToken": "replacement", "productId": "pro_yearly", "period": "P1Y"}
        self.control("POST", "/google/subscriptions/to-replace/replace", new)
        self.deliver_all("subscription-upgraded")
        self.sell("sold-one", obfuscatedExternalAccountId="user-1")
        self.deliver_all("product-purchased")
        self.control("POST", "/google/products/sold-one/refund")
        self.deliver_all("product-refunded")
        for action in ("complete", "refund"):
            self.sell(f"pending-product-{action}", pending=True)
            self.skip()
            self.control("POST", f"/google/products/pending-product-{action}/{action}")
            self.deliver_all(f"product-pending-{action}")
        for number in (8, 11, 17, 18, 19, 22, 99):
            block = {"version": "1.0", "notificationType": number, "purchaseToken": "bought-1"}
            self.deliver(f"subscription-{number}", self.published({"subscriptionNotification": block}))
        for name, notification in {
            "test": {"testNotification": {"version": "1.0"}},
            "voided-in-part": {
                "voidedPurchaseNotification": {
                    "purchaseToken": "bought-1",
                    "orderId": "a",
                    "productType": 1,
                    "refundType": 2,
                }
            },
            "refund-review": {
                "pendingRefundReviewNotification": {"purchaseToken": "bought-1", "obfuscatedAccountId": "user-1"}
            },
            "of-unknown-purchase": {
                "subscriptionNotification": {"version": "1.0", "notificationType": 2, "purchaseToken": "unknown"}
            },
            "unknown-kind": {"somethingNew": {"a": 1}},
        }.items():
            self.deliver(name, self.published(notification))
        body = self.published({"testNotification": {"version": "1.0"}})
        body["message"]["data"] = base64.b64encode(b"not JSON").decode()
        self.deliver("unreadable-data", body)
        self.control("POST", "/faults", {"at": "google/play", "status": 503, "times": 0})
        block = {"version": "1.0", "notificationType": 2, "purchaseToken": "token-subscription-paused"}
        self.deliver("while-google-is-away", self.published({"subscriptionNotification": block}))
        self.control("DELETE", "/faults")

    def refused(self):
        """Everything that is not accepted."""
        good = self.published({"testNotification": {"version": "1.0"}})
        unknown = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"
        plain = {"content-type": "application/json"}

        def with_token(token):
            return plain | {"authorization": f"Bearer {token}"}

        self.post("refused-malformed-tenant", good, tenant="tenant_1")
        self.post("refused-without-token", good, headers=plain)
        self.post("refused-no-token", good, headers=with_token("nonsense"))
        self.post("refused-other-scheme", good, headers=plain | {"authorization": "Basic YTpi"})
        self.post("refused-other-audience", good, headers=with_token(self.tokens["other audience"]))
        self.post("refused-other-account", good, headers=with_token(self.tokens["other account"]))
        header, claims, signature = self.tokens["good"].split(".")
        self.post("refused-altered", good, headers=with_token(f"{header}.{claims}.{altered(signature)}"))
        unsigned = base64.urlsafe_b64encode(b'{"alg":"none","kid":"1"}').decode().rstrip("=")
        self.post("refused-unsigned", good, headers=with_token(f"{unsigned}.{claims}."))
        self.post("refused-unknown-tenant", good, tenant=unknown)
        self.post("refused-inactive-tenant", good, tenant=self.tenants["inactive"].id)
        self.post("refused-without-credentials", good, tenant=self.tenants["bare"].id)
        self.post("refused-without-account", good, tenant=self.tenants["without-push"].id)
        self.post("refused-empty", b"")
        self.post("refused-no-json", b"{")
        self.post("refused-without-message", {})
        self.post("refused-without-id", {"message": {"data": "e30="}})
        self.post("refused-message-no-object", {"message": 1})
        self.post("refused-body-too-large", json.dumps({"message": {"data": "x" * (1024 * 1024)}}).encode())
        notification = {"version": "1.0", "packageName": "com.example.other", "testNotification": {"version": "1.0"}}
        other = dict(good["message"], data=base64.b64encode(json.dumps(notification).encode()).decode())
        self.post("refused-other-package", {"message": other})
        self.post("accepted-without-content-type", good, headers={"authorization": self.headers["authorization"]})
        self.control("POST", "/google/keys/rotate", {"dropOld": True})
        self.post("refused-unknown-key", good, headers=with_token(self.token({"audience": AUDIENCE})))
