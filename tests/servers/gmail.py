"""A scripted Google on a socket: tokens, directory, Gmail, batch, quotas, and faults on demand.

It behaves as Google documents it; what its API's requests and answers may hold is checked against
the discovery documents inside google-api-python-client (tests.servers.gmail_discovery).

    with Gmail() as google:
        alice = google.add("alice@example.com")
        alice.deliver(b"Subject: hi\\r\\n\\r\\n", {"INBOX", "UNREAD"})
        ... point GOOGLE_GMAIL_URL and the others at google.endpoints ...
"""

import collections
import dataclasses
import email.parser
import email.policy
import gzip
import json
import random
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tests.servers import gmail_discovery
from tests.servers.gmail_http import HttpServer, Request, Response
from tests.servers.gmail_oauth import OAuth, Token
from tests.servers.gmail_store import Person, message
from tests.servers.pubsub import GMAIL, PubSub

MAIL_SCOPE = "https://www.googleapis.com/auth/gmail.readonly"
USERS_SCOPE = "https://www.googleapis.com/auth/admin.directory.user.readonly"
#: developers.google.com/workspace/gmail/api/reference/quota, of projects made since May 2026.
COSTS = {"messages.list": 5, "messages.get": 20, "history.list": 2, "getProfile": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One call of the API, a part of a batch too. `status`: what was answered."""

    method: str  # "messages.get"
    user: str
    name: str  # the message's id, where it has one
    status: int
    at: float


@dataclasses.dataclass(slots=True)
class Faults:
    """How often what goes wrong; every random choice comes from `seed`."""

    seed: int = 1
    too_many: float = 0.0  # share of calls answered 429
    server_error: float = 0.0  # share answered 500
    dropped: float = 0.0  # share of downloads cut off in the middle
    dropped_once: set[str] = dataclasses.field(default_factory=set)  # message ids
    broken: set[str] = dataclasses.field(default_factory=set)  # messages always answered 500
    broken_people: set[str] = dataclasses.field(default_factory=set)  # always answered 500
    odd_people: set[str] = dataclasses.field(default_factory=set)  # always answered 400
    retry_after: str | None = "0"
    too_many_text: str = ""  # "  Retry after 2026-11-25T09:00:00.000Z"
    disabled: set[str] = dataclasses.field(default_factory=set)  # {"gmail", "admin"}
    latency_seconds: float = 0.0
    history_tells_labels: bool = True


class Gmail:
    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.people: dict[str, Person] = {}
        self.oauth = OAuth(self.people)
        self.oauth.delegated = {MAIL_SCOPE, USERS_SCOPE}
        self.faults = Faults()
        self.quota_per_user = self.quota_per_project = float("inf")
        self.quota_seconds = 60.0
        self.gzip = True
        self.page_size = 500  # Google may answer with fewer than maxResults
        self.costs = dict(COSTS)
        self.pubsub = PubSub()
        self.watched: dict[str, str] = {}  # address -> the topic that is told
        self.calls: list[Call] = []
        self.requests: list[str] = []  # every HTTP request's path
        self.before_call: Callable[[str, str, str], None] = lambda *_: None
        self._spent: dict[str, collections.deque[tuple[float, float]]] = {}
        self._random = random.Random(self.faults.seed)
        self._lock = threading.Lock()
        self._http = HttpServer(self._answer, tls=tls)
        self.url = self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._http.stop()

    @property
    def endpoints(self) -> dict[str, str]:
        return {
            "google.gmail": self.url,
            "google.directory": self.url,
            "google.pubsub": self.url,
            "google.auth": f"{self.url}/o/oauth2/v2/auth",
            "google.token": f"{self.url}/token",
        }

    @property
    def settings(self) -> dict[str, str]:
        """The settings that point a service here."""
        names = {"google.gmail": "GMAIL", "google.directory": "DIRECTORY"}
        names |= {"google.auth": "AUTH", "google.token": "TOKEN", "google.pubsub": "PUBSUB"}
        return {f"GOOGLE_{names[part]}_URL": url for part, url in self.endpoints.items()}

    def add(self, address: str) -> Person:
        person = self.people[address] = Person(address, len(self.people) + 1)
        return person

    def reseed(self, seed: int) -> None:
        self.faults.seed = seed
        self._random = random.Random(seed)

    def count(self, method: str, *, user: str = "", status: int = 0) -> int:
        return sum(
            call.method == method and user in {"", call.user} and status in {0, call.status}
            for call in list(self.calls)
        )

    # -- HTTP ------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        self.requests.append(request.path)
        if request.path == "/token":
            return self.oauth.token(request)
        if request.path == "/o/oauth2/v2/auth":
            return self.oauth.page(request)
        if request.path.startswith("/v1/projects/"):
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            return self.pubsub.answer(request, self.oauth.holder(bearer))
        if request.path.startswith("/batch"):
            return self._batch(request)
        response = self._call(request)
        if self.faults.latency_seconds:
            time.sleep(self.faults.latency_seconds)
        wants_gzip = self.gzip and "gzip" in request.headers.get("accept-encoding", "")
        if wants_gzip and "gzip" in request.headers.get("user-agent", ""):
            response.body = gzip.compress(response.body, 1)
            response.headers["Content-Encoding"] = "gzip"
        return response

    def _batch(self, request: Request) -> Response:
        """developers.google.com/workspace/gmail/api/guides/batch: each part has its own status."""
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        whole = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
        parts = list(whole.iter_parts())
        if len(parts) > 100:
            return _refusal(400, "invalidArgument", "The batch has more than 100 calls.")
        bodies: list[bytes] = []
        for part in parts:
            inner = part.get_payload(decode=True)
            assert isinstance(inner, bytes)
            top, _, rest = inner.replace(b"\r\n", b"\n").partition(b"\n\n")
            first, *lines = top.decode().split("\n")
            verb, target, _ = first.split(" ", 2)
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            headers.setdefault("authorization", request.headers.get("authorization", ""))
            answer = self._call(Request(verb, target, headers, rest))
            answer.cut = False
            wire = answer.wire()
            about = f"--part\r\nContent-Type: application/http\r\nContent-ID: <response-{str(part['Content-ID']).strip('<>')}>\r\n\r\n"
            bodies.append(about.encode() + wire + b"\r\n")
        headers = {"Content-Type": "multipart/mixed; boundary=part"}
        return Response(200, b"".join(bodies) + b"--part--\r\n", headers)

    # -- one call --------------------------------------------------------------------------------

    def _call(self, request: Request) -> Response:
        admin = request.path.startswith("/admin/")
        api = gmail_discovery.directory() if admin else gmail_discovery.gmail()
        found = api.find(request.method, request.path)
        if found is None:
            return _refusal(404, "notFound", "Not Found")
        method, path = found
        short = method["id"].removeprefix("gmail.users.").removeprefix("directory.")
        token = self.oauth.holder(request.headers.get("authorization", "").removeprefix("Bearer "))
        user = token.subject if token else ""
        self.before_call(short, user, path.get("id", ""))
        response = self._decided(api, method, short, path, request, token)
        call = Call(short, user, path.get("id", ""), response.status, time.monotonic())
        self.calls.append(call)
        return response

    def _decided(
        self, api: gmail_discovery.Api, method: dict[str, Any], short: str,
        path: dict[str, str], request: Request, token: Token | None,
    ) -> Response:  # fmt: skip
        query = request.query
        if problem := api.problem(method, query):
            return _refusal(400, "badRequest", problem, status="INVALID_ARGUMENT")
        if token is None:
            return _refusal(401, "authError", "Invalid Credentials", status="UNAUTHENTICATED")
        if refusal := self._not_permitted(short, path, token):
            return refusal
        fault = self._fault(path, token)
        if refusal := fault or self._over_quota(short, token):
            return refusal
        one = {name: values[-1] for name, values in query.items()}
        person = self.people[token.subject]
        if short in {"watch", "stop"}:
            return self._told(short, json.loads(request.body or b"{}"), person)
        answer = self._done(short, path, one, query, person)
        if isinstance(answer, Response):
            return answer
        try:
            answer = api.masked(method, answer, one.get("fields"))
        except ValueError as error:
            return _refusal(400, "invalidParameter", str(error), status="INVALID_ARGUMENT")
        response = _json(200, answer)
        response.cut = short == "messages.get" and self._cuts(path["id"])
        return response

    def _not_permitted(self, short: str, path: dict[str, str], token: Token) -> Response | None:
        service = "admin" if short == "users.list" else "gmail"
        if service in self.faults.disabled:
            name = "Admin SDK API" if service == "admin" else "Gmail API"
            text = f"{name} has not been used in project 123456 before or it is disabled."
            detail = {"reason": "SERVICE_DISABLED", "domain": "googleapis.com"}
            return _refusal(403, "accessNotConfigured", text, detail=detail)
        if (USERS_SCOPE if service == "admin" else MAIL_SCOPE) not in token.scopes:
            detail = {"reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT", "domain": "googleapis.com"}
            text = "Request had insufficient authentication scopes."
            return _refusal(403, "insufficientPermissions", text, detail=detail)
        person = self.people.get(token.subject)
        if person is None:
            return _refusal(401, "authError", "Invalid Credentials", status="UNAUTHENTICATED")
        if service == "admin":
            text = "Not Authorized to access this resource/api"
            return None if person.is_admin else _refusal(403, "forbidden", text)
        if path["userId"] not in {"me", token.subject}:
            return _refusal(403, "forbidden", f"Delegation denied for {token.subject}")
        if not person.licensed or not person.mailbox_setup:
            text = "Mail service not enabled"
            return _refusal(400, "failedPrecondition", text, status="FAILED_PRECONDITION")
        return None

    def _fault(self, path: dict[str, str], token: Token) -> Response | None:
        bad = path.get("id") in self.faults.broken
        if bad or token.subject in self.faults.broken_people:
            return _refusal(500, "backendError", "Backend Error", status="INTERNAL")
        if token.subject in self.faults.odd_people:
            return _refusal(400, "somethingNew", "Nobody has documented this.")
        with self._lock:
            luck = self._random.random()
        if luck < self.faults.too_many:
            return self._too_many("user")
        if luck < self.faults.too_many + self.faults.server_error:
            return _refusal(500, "backendError", "Backend Error", status="INTERNAL")
        return None

    def _cuts(self, name: str) -> bool:
        with self._lock:
            if name in self.faults.dropped_once:
                self.faults.dropped_once.discard(name)
                return True
            return self._random.random() < self.faults.dropped

    def _over_quota(self, short: str, token: Token) -> Response | None:
        cost, now = self.costs.get(short, 1), time.monotonic()
        limits = (
            ("user", f"{token.project}/{token.subject}", self.quota_per_user),
            ("project", token.project, self.quota_per_project),
        )
        with self._lock:
            for whose, key, limit in limits:
                spent = self._spent.setdefault(key, collections.deque())
                while spent and spent[0][0] <= now - self.quota_seconds:
                    spent.popleft()
                if sum(units for _, units in spent) + cost > limit:
                    return self._too_many(whose)
            for _, key, limit in limits:
                if limit != float("inf"):
                    self._spent[key].append((now, cost))
        return None

    def _too_many(self, whose: str) -> Response:
        """developers.google.com/workspace/gmail/api/guides/handle-errors: 403 or 429."""
        wait = self.faults.retry_after
        if whose == "user":
            text = f"User-rate limit exceeded.{self.faults.too_many_text}"
            response = _refusal(429, "rateLimitExceeded", text, status="RESOURCE_EXHAUSTED")
        else:
            text = "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute'"
            detail = {"reason": "RATE_LIMIT_EXCEEDED", "domain": "googleapis.com"}
            response = _refusal(403, "rateLimitExceeded", text, detail=detail)
        if wait is not None:
            response.headers["Retry-After"] = wait
        return response

    def _done(
        self, short: str, path: dict[str, str], one: dict[str, str],
        query: dict[str, list[str]], person: Person,
    ) -> Any:  # fmt: skip
        if short == "users.list":
            return self._users(one)
        if short == "getProfile":
            return person.profile()
        if short == "labels.list":
            return {"labels": person.label_list()}
        if short == "messages.get":
            found = person.mail.get(path["id"])
            how = one.get("format", "full")
            if found is None:
                return _refusal(404, "notFound", "Requested entity was not found.")
            return message(found, how)
        if short == "messages.list":
            return self._messages(one, query, person)
        if short == "history.list":
            return self._history(one, query, person)
        return _refusal(501, "notImplemented", f"The scripted Google has no {short}.")

    def _told(self, short: str, asked: Any, person: Person) -> Response:
        """users.watch and users.stop: what is published is as in workspace/gmail/api/guides/push.

        What is refused is worded as people report it, of the message that is published on trial.
        """
        if short == "stop":
            self.watched.pop(person.address, None)
            return Response(204)
        topic = asked["topicName"]
        said = f"Error sending test message to Cloud PubSub {topic} : "
        if not topic.startswith("projects/project-1/topics/"):
            text = "Invalid topicName does not match projects/project-1/topics/*"
            return _refusal(400, "invalidArgument", text)
        if topic not in self.pubsub.topics:
            return _refusal(404, "notFound", f"{said}Resource not found (resource=x).")
        if GMAIL not in self.pubsub.topics[topic]:
            return _refusal(403, "forbidden", f"{said}User not authorized to perform this action.")
        if self.watched.get(person.address, topic) != topic:
            text = "Only one user push notification client allowed per developer"
            return _refusal(400, "failedPrecondition", text, status="FAILED_PRECONDITION")
        self.watched[person.address] = topic
        person.changed = lambda: self._publish(person)
        person.changed()
        week = int((time.time() + 7 * 86_400) * 1000)
        return _json(200, {"historyId": str(person.history_id), "expiration": str(week)})

    def _publish(self, person: Person) -> None:
        if topic := self.watched.get(person.address):
            told = {"emailAddress": person.address, "historyId": str(person.history_id)}
            self.pubsub.publish(topic, json.dumps(told).encode())

    def _messages(self, one: dict[str, str], query: dict[str, list[str]], person: Person) -> Any:
        words = one.get("q", "").split()
        if any(not word.startswith("after:") for word in words):
            return _refusal(501, "notImplemented", "The scripted Google knows only after:.")
        known = {label["id"] for label in person.label_list()}
        if not known.issuperset(query.get("labelIds", ())):
            return _refusal(400, "invalidArgument", "Invalid label", status="INVALID_ARGUMENT")
        try:
            return person.listed(
                labels=query.get("labelIds", ()),
                spam_and_trash=one.get("includeSpamTrash") == "true",
                after_s=max((int(word[6:]) + 1 for word in words), default=0),
                token=one.get("pageToken", ""),
                size=min(self.page_size, int(one.get("maxResults", "100"))),
            )
        except ValueError:
            return _refusal(400, "invalidArgument", "Invalid pageToken", status="INVALID_ARGUMENT")

    def _history(self, one: dict[str, str], query: dict[str, list[str]], person: Person) -> Any:
        if not one.get("startHistoryId", "").isdigit():
            return _refusal(400, "invalidArgument", "Missing startHistoryId")
        kinds = {_KINDS[kind] for kind in query.get("historyTypes", ())}
        answer = person.history(
            start=int(one["startHistoryId"]),
            kinds=kinds,
            token=one.get("pageToken", ""),
            size=min(self.page_size, int(one.get("maxResults", "100"))),
            tell_labels=self.faults.history_tells_labels,
        )
        return answer or _refusal(404, "notFound", "Requested entity was not found.")

    def _users(self, one: dict[str, str]) -> Any:
        if "customer" not in one and "domain" not in one:
            return _refusal(400, "badRequest", "Bad Request")
        people = sorted(self.people.values(), key=lambda person: person.address)
        start = int(one.get("pageToken", "0"))
        size = min(self.page_size, int(one.get("maxResults", "100")))
        page = [_user(person) for person in people[start : start + size]]
        answer: dict[str, Any] = {"kind": "admin#directory#users"}
        if page:
            answer["users"] = page
        if start + size < len(people):
            answer["nextPageToken"] = str(start + size)
        return answer


_KINDS = {
    "messageAdded": "messagesAdded",
    "messageDeleted": "messagesDeleted",
    "labelAdded": "labelsAdded",
    "labelRemoved": "labelsRemoved",
}


def _user(person: Person) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": "admin#directory#user",
        "id": person.id,
        "primaryEmail": person.address,
        "isAdmin": person.is_admin,
        "suspended": person.suspended,
        "archived": person.archived,
        "isMailboxSetup": person.mailbox_setup,
    }
    return found | ({"suspensionReason": "ADMIN"} if person.suspended else {})


def _json(status: int, answer: Any) -> Response:
    headers = {"Content-Type": "application/json; charset=UTF-8", "Vary": "Origin"}
    return Response(status, json.dumps(answer).encode(), headers)


def _refusal(
    code: int, reason: str, text: str, *, status: str = "", detail: dict[str, str] | None = None
) -> Response:
    error: dict[str, Any] = {
        "code": code,
        "message": text,
        "errors": [{"message": text, "domain": "global", "reason": reason}],
    }
    names = {403: "PERMISSION_DENIED", 404: "NOT_FOUND", 400: "INVALID_ARGUMENT"}
    if status or code in names:
        error["status"] = status or names[code]
    if detail:
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **detail}]
    return _json(code, {"error": error})
