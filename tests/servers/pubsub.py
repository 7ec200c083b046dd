"""A scripted Cloud Pub/Sub: topics, their default subscriptions, who may publish and pull.

Of cloud.google.com/pubsub/docs/reference/rest: pull waits for a time of its own, what is not
acknowledged in time is delivered again, and who may do what is told by testIamPermissions.
"""

import base64
import dataclasses
import itertools
import json
import threading
import time
from typing import Any

from tests.servers import gmail_discovery
from tests.servers.gmail_http import Request, Response
from tests.servers.gmail_oauth import Token

#: Who publishes Gmail's notifications.
GMAIL = "gmail-api-push@system.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/pubsub"


@dataclasses.dataclass(slots=True)
class _Message:
    id: str
    data: bytes
    leased_until: float = 0.0
    deliveries: int = 0


@dataclasses.dataclass(slots=True)
class Subscription:
    readers: set[str]
    messages: dict[str, _Message] = dataclasses.field(default_factory=dict)
    pulls: int = 0


class PubSub:
    def __init__(self) -> None:
        self.topics: dict[str, set[str]] = {}  # name -> who may publish
        self.subscriptions: dict[str, Subscription] = {}
        self.refusals: list[int] = []  # what the next calls are answered with
        self.retry_after = ""
        self.disabled = False
        self.pull_seconds = 0.1
        self.ack_deadline_seconds = 10.0
        self._ids = itertools.count(1)
        self._changed = threading.Condition()

    def make(self, topic: str, *, reader: str) -> Subscription:
        """Make a topic with its default subscription, as the console does, and grant the roles."""
        self.topics[topic] = {GMAIL}
        name = topic.replace("/topics/", "/subscriptions/") + "-sub"
        self.subscriptions[name] = Subscription({reader})
        return self.subscriptions[name]

    def publish(self, topic: str, data: bytes) -> None:
        name = topic.replace("/topics/", "/subscriptions/") + "-sub"
        with self._changed:
            if held := self.subscriptions.get(name):
                one = _Message(str(next(self._ids)), data)
                held.messages[one.id] = one
                self._changed.notify_all()

    # -- HTTP ------------------------------------------------------------------------------------

    def answer(self, request: Request, token: Token | None) -> Response:
        if self.refusals:
            refused = _refused(self.refusals.pop(0), "UNKNOWN", "On purpose.")
            refused.headers |= {"Retry-After": self.retry_after} if self.retry_after else {}
            return refused
        found = gmail_discovery.pubsub().find(request.method, request.path)
        if found is None:
            return _refused(404, "NOT_FOUND", "Not Found")
        if token is None:
            return _refused(401, "UNAUTHENTICATED", "Invalid Credentials")
        if SCOPE not in token.scopes:
            reason = "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
            text = "Request had insufficient authentication scopes."
            return _refused(403, "PERMISSION_DENIED", text, reason=reason)
        if self.disabled:
            text = "Cloud Pub/Sub API has not been used in project 1 before or it is disabled."
            return _refused(403, "PERMISSION_DENIED", text, reason="SERVICE_DISABLED")
        method, _ = found
        name, _, verb = request.path.removeprefix("/v1/").rpartition(":")
        held = self.subscriptions.get(name)
        if held is None:
            return _refused(404, "NOT_FOUND", "Resource not found (resource=x).")
        asked, one = json.loads(request.body), {n: v[-1] for n, v in request.query.items()}
        may = token.subject in held.readers
        if verb == "testIamPermissions":
            told = {"permissions": asked["permissions"]} if may else {}
        elif not may:
            text = "User not authorized to perform this action."
            return _refused(403, "PERMISSION_DENIED", text)
        elif verb == "pull":
            told = self._pulled(held, asked)
        else:
            assert verb == "acknowledge", verb
            self._acknowledge(held, asked["ackIds"])
            told = {}
        answer = gmail_discovery.pubsub().masked(method, told, one.get("fields"))
        return _json(200, answer)

    def _pulled(self, held: Subscription, asked: Any) -> dict[str, Any]:
        wait = 0.0 if asked.get("returnImmediately") else self.pull_seconds
        until = time.monotonic() + wait
        with self._changed:
            held.pulls += 1
            while not (ready := self._ready(held)) and time.monotonic() < until:
                self._changed.wait(max(0.0, until - time.monotonic()))
            for one in ready[: asked["maxMessages"]]:
                one.leased_until = time.monotonic() + self.ack_deadline_seconds
                one.deliveries += 1
        received = [
            {
                "ackId": f"{one.id}:{one.deliveries}",
                "message": {
                    "data": base64.b64encode(one.data).decode(),
                    "messageId": one.id,
                    "publishTime": "2026-11-28T21:00:00.000Z",
                },
            }
            for one in ready[: asked["maxMessages"]]
        ]
        return {"receivedMessages": received} if received else {}

    def _ready(self, held: Subscription) -> list[_Message]:
        return [one for one in held.messages.values() if one.leased_until <= time.monotonic()]

    def _acknowledge(self, held: Subscription, ids: list[str]) -> None:
        with self._changed:
            for name in ids:
                held.messages.pop(name.partition(":")[0], None)


def _json(status: int, answer: Any) -> Response:
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    return Response(status, json.dumps(answer).encode(), headers)


def _refused(code: int, status: str, text: str, *, reason: str = "") -> Response:
    error: dict[str, Any] = {"code": code, "message": text, "status": status}
    if reason:
        detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
        error["details"] = [detail]
    return _json(code, {"error": error})
