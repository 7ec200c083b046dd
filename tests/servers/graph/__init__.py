"""Microsoft Graph and its login on one TLS socket, as Microsoft documents them, with fault switches.

    with GraphServer() as server:
        user = server.tenant.add_user("alice")
        user.mailbox.deliver(b"...")
        registry.build("microsoft", server.config(), server.environment())

`server.log` has every request; `server.faults` says how it misbehaves.
"""

import contextlib
import dataclasses
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Self

from connectors.config import Environment
from tests.servers.graph import http
from tests.servers.graph.api import Graph
from tests.servers.graph.http import Request, Response
from tests.servers.graph.login import Claims, Login, Refused
from tests.servers.graph.store import Folder, Mailbox, Tenant, User
from tests.servers.graph.words import error

__all__ = ["Faults", "Folder", "GraphServer", "Mailbox", "Refused", "Request", "Response", "User"]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One request as it was answered. `user`: whose mailbox it was about, or ""."""

    at: float
    method: str
    path: str
    user: str
    status: int

    @property
    def is_download(self) -> bool:
        return self.path.endswith("/$value")


@dataclasses.dataclass
class Faults:
    """How the server misbehaves. `intercept` may answer in the server's place; `cut`: message id ->
    how many times its body is cut; `chance`: fault -> how probable it is at each request, by
    `dice` (429, 503, 504, "cut", "expire_token", "expire_delta")."""

    intercept: Callable[[Request, User | None], Response | None] = lambda _request, _user: None
    cut: Counter[str] = dataclasses.field(default_factory=Counter)
    chance: dict[int | str, float] = dataclasses.field(default_factory=dict)
    dice: random.Random = dataclasses.field(default_factory=lambda: random.Random(1))
    injected: Counter[int | str] = dataclasses.field(default_factory=Counter)


class GraphServer:
    """`limit`: (requests, seconds) that an application may make of one mailbox; more are refused
    with 429, and count. `concurrent`: how many of them at a time."""

    def __init__(self) -> None:
        self.tenant = Tenant()
        self.login = Login(self.tenant)
        self.graph = Graph(self.tenant, self.login)
        self.faults = Faults()
        self.limit: tuple[int, float] | None = None
        self.retry_after_seconds = 1
        self.concurrent = 4
        self.latency_seconds = 0.0
        self.log: list[Entry] = []
        self.most_concurrent = 0
        self._lock = threading.Lock()
        self._recent: dict[str, deque[float]] = {}
        self._busy: Counter[str] = Counter()
        self._tls = http.TlsServer(self._handle)
        self.origin = self._tls.origin
        self.graph.origin = self.login.origin = self.origin
        self.ca_file = http.ca_file()

    def __enter__(self) -> Self:
        self._tls.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._tls.__exit__()

    # -- for a client ------------------------------------------------------------------------------

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return the providerConfig of the tenant."""
        given = {
            "tenantId": self.tenant.id,
            "clientId": self.login.client_id,
            "clientSecret": self.login.client_secret,
        }
        return given | changes

    def environment(self, **changes: Any) -> Environment:
        given: dict[str, Any] = {
            "endpoints": {"microsoft.login": self.origin, "microsoft.graph": self.origin},
            "quotas": {"microsoft": {"mailbox": 1e6, "application": 1e6}},
            "extra_ca_file": self.ca_file,
            "timeout_seconds": 10.0,
        }
        return Environment(**given | changes)

    @property
    def settings(self) -> dict[str, str]:
        """What points a service here, as environment."""
        return {
            "MICROSOFT_LOGIN_URL": self.origin,
            "MICROSOFT_GRAPH_URL": self.origin,
            "EXTRA_CA_FILE": self.ca_file,
        }

    def count(self, text: str = "", *, status: int | None = None) -> int:
        """Return how many requests had `text` in their path (and this status)."""
        return sum(
            1 for e in list(self.log) if text in e.path and (status is None or e.status == status)
        )

    # -- answering ---------------------------------------------------------------------------------

    def _handle(self, request: Request) -> Response:
        if not request.path.startswith("/v1.0"):
            response = self.login.handle(request)
            self._note(request, None, response)
            return response
        claims = self.graph.authorised(request)
        if isinstance(claims, Response):
            self._note(request, None, claims)
            return claims
        if request.path == "/v1.0/$batch":
            return self._batch(request, claims)
        return self._answer(request, claims)

    def _answer(self, request: Request, claims: Claims) -> Response:
        user = self.graph.user_of(request, claims)
        about_mail = user is not None and len(request.segments) > (
            2 if request.segments[1] == "me" else 3
        )
        with self._counted(user if about_mail else None) as refusal:
            response = refusal or self._misbehave(request, user)
            if response is None:
                if self.latency_seconds:
                    time.sleep(self.latency_seconds)
                response = self.graph.handle(request, claims)
                self._maybe_cut(request, response)
        self._note(request, user, response)
        return response

    def _batch(self, request: Request, claims: Claims) -> Response:
        parts = self.graph.batch(request)
        if isinstance(parts, Response):
            self._note(request, None, parts)
            return parts
        answers = []
        for part in parts:
            path, _, query = str(part["url"]).partition("?")
            headers = {k.lower(): v for k, v in part.get("headers", {}).items()}
            asked = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
            inner = Request(part["method"], f"/v1.0{path}", asked, headers, b"")
            response = self._answer(inner, claims)
            answers.append(
                {
                    "id": part["id"],
                    "status": response.status,
                    "headers": response.headers,
                    "body": json.loads(response.body),
                }
            )
        whole = Response.json({"responses": answers})
        self._note(request, None, whole)
        return whole

    @contextlib.contextmanager
    def _counted(self, user: User | None) -> Iterator[Response | None]:
        if user is None:
            yield None
            return
        with self._lock:
            refusal = self._over_limit(user)
            self._busy[user.id] += 1
            self.most_concurrent = max(self.most_concurrent, self._busy[user.id])
            if refusal is None and self._busy[user.id] > self.concurrent:
                text = "Application is over its MailboxConcurrency limit."
                refusal = self._throttled("ApplicationThrottled", text)
        try:
            yield refusal
        finally:
            with self._lock:
                self._busy[user.id] -= 1

    def _over_limit(self, user: User) -> Response | None:
        if self.limit is None:
            return None
        most, seconds = self.limit
        recent = self._recent.setdefault(user.id, deque())
        now = time.monotonic()
        while recent and recent[0] <= now - seconds:
            recent.popleft()
        recent.append(now)
        if len(recent) <= most:
            return None
        return self._throttled("ApplicationThrottled", "Application is over its limit.")

    def _throttled(self, code: str, text: str) -> Response:
        return error(429, code, text, Retry_After=str(self.retry_after_seconds))

    def _misbehave(self, request: Request, user: User | None) -> Response | None:
        if (response := self.faults.intercept(request, user)) is not None:
            return response
        with self._lock:
            for fault, chance in self.faults.chance.items():
                if self.faults.dice.random() < chance and fault != "cut":
                    self.faults.injected[fault] += 1
                    return self._fault(fault, user)
        return None

    def _fault(self, fault: int | str, user: User | None) -> Response | None:
        if fault == 429:
            return self._throttled("TooManyRequests", "Too many requests.")
        if isinstance(fault, int):
            return error(fault, "UnknownError" if fault == 504 else "serviceNotAvailable", "Later.")
        if fault == "expire_token":
            self.login.expire_tokens()
        elif user is not None and user.mailbox is not None:
            user.mailbox.expire_state()
        return None

    def _maybe_cut(self, request: Request, response: Response) -> None:
        if not request.path.endswith("/$value") or response.status != 200:
            return
        message_id = request.segments[-2]
        with self._lock:
            by_chance = self.faults.dice.random() < self.faults.chance.get("cut", 0.0)
            if self.faults.cut[message_id] > 0:
                self.faults.cut[message_id] -= 1
            elif not by_chance:
                return
            self.faults.injected["cut"] += 1
        response.cut_after = len(response.body) // 2

    def _note(self, request: Request, user: User | None, response: Response) -> None:
        self.log.append(
            Entry(
                request.at,
                request.method,
                request.path,
                user.id if user else "",
                response.status,
            )
        )
