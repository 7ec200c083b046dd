"""Requests to Microsoft Graph: tokens, pace, patience, and what the answers mean.

Every request reserves from the mailbox's and the application's budgets, which all workers share
(Environment.throttle). What Graph asks to wait is waited, to the second, by everybody. Passing
trouble is tried again a few times here; what lasts longer is Retryable, for the engine.
"""

import dataclasses
import hashlib
import json
import math
import random
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from connectors import web
from connectors.config import Environment
from connectors.errors import (
    Fatal,
    MessageRefused,
    RateLimited,
    Retryable,
    Unavailable,
)
from connectors.microsoft import refusals
from connectors.microsoft.config import MicrosoftConfig
from connectors.microsoft.refusals import OutOfOrder, Refusal
from connectors.microsoft.tokens import Tokens
from connectors.outages import MAX_IN_A_ROW
from connectors.parallel import Stopped
from connectors.throttle import Budget

#: learn.microsoft.com/graph/throttling-limits#outlook-service-limits: for each application and
#: mailbox 10,000 requests in 10 minutes, 4 at a time; for each application 130,000 in 10 seconds.
LIMITS: Mapping[str, float] = {
    "mailbox": 10_000,
    "window_seconds": 600,
    "connections": 4,
    "application": 130_000,
    "application_seconds": 10,
}
#: An idle budget lends a 60th of itself (connectors.throttle): with it, a window holds no more than
#: is allowed, and 98 % at least.
_SHARE = 0.98

_TRIES = 4
#: Refusals for too many requests pass by waiting, so there is more patience for them.
_TRIES_THROTTLED = 8
#: A longer wait is the engine's: the worker takes another mailbox meanwhile.
_LONGEST_WAIT_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.2
_BATCH = 20  # learn.microsoft.com/graph/json-batching
_MAX_JSON_BYTES = 50_000_000
_JITTER = random.SystemRandom()
#: On every request: ids that survive a move (learn.microsoft.com/graph/outlook-immutable-id).
IMMUTABLE = 'IdType="ImmutableId"'
_SAFE_ID = re.compile(r"[A-Za-z0-9_=+-]{1,600}")

#: What became of one part of a batch: its answer, or why there is none.
Part = Mapping[str, Any] | Refusal | OutOfOrder


class Graph:
    """One application at Graph. `until` (monotonic): give up rather than wait longer.

    Thread-safe; close() ends its connections.
    """

    def __init__(
        self, config: MicrosoftConfig, environment: Environment, *, until: float = math.inf
    ) -> None:
        self.limits = {**LIMITS, **environment.quotas.get("microsoft", {})}
        self._base = f"{config.where(environment).graph}/v1.0"
        self._environment, self._until = environment, until
        self._http = web.client(environment, connections=int(self.limits["connections"]) + 2)
        self.tokens = Tokens(config, environment, self._http)
        self._application = Budget(
            f"microsoft:application:{config.clientId}",
            self.limits["application"] * _SHARE,
            self.limits["application_seconds"],
        )
        # Another service, with limits of its own: that it asks to wait says nothing of mailboxes.
        self._directory = dataclasses.replace(
            self._application, name=f"microsoft:directory:{config.clientId}"
        )
        self._client_id = config.clientId
        self._is_one_person = config.signs_in

    def close(self) -> None:
        self._http.close()

    def budgets(self, mailbox_id: str) -> tuple[Budget, ...]:
        """Return what a request about a mailbox uses; the first is the mailbox's own. Its name
        tells no address, where a check has one in place of an id."""
        name = hashlib.blake2b(mailbox_id.encode(), digest_size=16).hexdigest()
        own = Budget(
            f"microsoft:mailbox:{self._client_id}:{name}",
            self.limits["mailbox"] * _SHARE,
            self.limits["window_seconds"],
        )
        return own, self._application

    def pages(self, path: str) -> Iterator[Mapping[str, Any]]:
        """Yield the pages of a listing of the directory. Raises ConnectorError or Refusal."""
        pace = Pace(self, (self._directory, self._application))
        following: str | None = path
        while following:
            page = pace.get(following)
            yield page
            following = self.relative(page.get("@odata.nextLink"))

    def get(self, path: str) -> Mapping[str, Any]:
        """GET a JSON object of the directory."""
        return Pace(self, (self._directory, self._application)).get(path)

    def relative(self, link: Any) -> str | None:
        """Return a link of Graph's as a path. Raises Fatal where it leads elsewhere: our token
        would go there."""
        if link is None:
            return None
        if not isinstance(link, str) or not link.startswith(self._base + "/"):
            raise Fatal("Microsoft Graph gave a link to another host. Check cloud.", code="link")
        return link.removeprefix(self._base)

    # -- one request -------------------------------------------------------------------------------

    def once(self, call: "Call") -> Any:
        """Send one request, and again with a new token where that one had ended.

        Raises Refusal, RateLimited, Unavailable, NeedsReauth, and what `take` raises.
        """
        token = self.tokens.current()
        try:
            return self._send(call, token)
        except refusals.TokenRefused:
            try:
                return self._send(call, self.tokens.renew(token))
            except refusals.TokenRefused as error:
                raise self.settled(error) from None

    def settled(self, error: refusals.TokenRefused) -> Exception:
        """What a 401 means where the token is fresh: of a tenant, it may be one mailbox's alone."""
        return error if error.is_of_token or self._is_one_person else error.refusal

    def _send(self, call: "Call", token: str) -> Any:
        headers = {
            "Authorization": f"Bearer {token}",
            "Prefer": ", ".join((IMMUTABLE, *call.prefer)),
        }
        url = self._base + call.path
        try:
            with self._http.stream(call.method, url, headers=headers, json=call.body) as response:
                if response.status_code == 200:
                    return call.take(response)
                answer = _json(_bounded(response))
                raise refusals.of_answer(response.status_code, response.headers, answer)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise web.problem(error, "Microsoft Graph") from error

    def seconds_left(self) -> float:
        return self._until - time.monotonic()

    @property
    def throttle(self) -> Any:
        return self._environment.throttle


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A request. `path` is below the version; `take` reads the answer; `cost` counts requests."""

    path: str
    take: Callable[[httpx.Response], Any]
    method: str = "GET"
    prefer: Sequence[str] = ()
    body: Any = None
    cost: int = 1


class Pace:
    """Requests that share budgets, a pause, and the patience for passing trouble. Thread-safe."""

    def __init__(self, graph: Graph, budgets: Sequence[Budget]) -> None:
        self._graph, self._budgets = graph, budgets
        self._paused_until = 0.0
        self._never = threading.Event()

    def get(self, path: str, *, prefer: Sequence[str] = ()) -> Mapping[str, Any]:
        """GET a JSON object."""
        answer: Mapping[str, Any] = self.ask(Call(path, json_of, prefer=prefer))
        return answer

    def follow(self, page: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """GET the page after this one; None where it is the last."""
        link = self._graph.relative(page.get("@odata.nextLink"))
        return None if link is None else self.get(link)

    def batch(self, paths: Sequence[str]) -> list[Part]:
        """GET many JSON objects, twenty in a round trip; an answer for each, in turn.

        Raises OutOfOrder where so many in a row fail that it is not about what was asked for.
        """
        answers: list[Part] = []
        in_a_row = 0
        for at in range(0, len(paths), _BATCH):
            for answer in self._batch(paths[at : at + _BATCH]):
                in_a_row = in_a_row + 1 if isinstance(answer, OutOfOrder) else 0
                if isinstance(answer, OutOfOrder) and in_a_row >= MAX_IN_A_ROW:
                    raise answer
                answers.append(answer)
        return answers

    def ask(self, call: Call, *, stop: threading.Event | None = None) -> Any:
        """Send a request when its time has come, and again after passing trouble.

        Raises Stopped once `stop` is set, Refusal, or what the trouble is where it does not pass.
        """
        failures = throttled = 0
        while True:
            self._wait(call.cost, stop or self._never)
            try:
                return self._graph.once(call)
            except RateLimited as error:
                throttled += 1
                wait = error.retry_after_seconds
                self.pause(1.0 if wait is None else wait)
                if throttled >= _TRIES_THROTTLED:
                    raise
                self._check_patience(error, wait or 1.0)
            except Unavailable as error:
                failures += 1
                if failures >= _TRIES:
                    raise
                wait = error.retry_after_seconds
                if wait is None:
                    wait = _FIRST_PAUSE_SECONDS * 2**failures * _JITTER.uniform(0.5, 1.0)
                else:
                    self.pause(wait)
                self._check_patience(error, wait)
                if (stop or self._never).wait(wait):
                    raise Stopped from None

    def pause(self, seconds: float) -> None:
        """Have nobody make requests on the first budget for so long: Graph said so."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        self._graph.throttle.pause(self._budgets[0], seconds)

    def _wait(self, cost: int, stop: threading.Event) -> None:
        wait = self._graph.throttle.reserve([(budget, cost) for budget in self._budgets])
        ready = time.monotonic() + wait
        while True:
            # Looked at again after each sleep: another thread may have been told to wait meanwhile.
            left = max(ready, self._paused_until) - time.monotonic()
            if left > self._graph.seconds_left():
                raise Unavailable("Microsoft Graph asks to wait longer than there is time.")
            if left > _LONGEST_WAIT_SECONDS:
                raise RateLimited("Microsoft asks to wait.", retry_after_seconds=left)
            if stop.is_set() or (left > 0 and stop.wait(left)):
                raise Stopped
            if left <= 0:
                return

    def _check_patience(self, error: Retryable, wait: float) -> None:
        if wait > min(_LONGEST_WAIT_SECONDS, self._graph.seconds_left()):
            raise error

    def _batch(self, paths: Sequence[str]) -> list[Part]:
        found: dict[int, Part] = {}
        failures, own_failures = 0, Counter[int]()
        while missing := [index for index in range(len(paths)) if index not in found]:
            parts = [
                {"id": str(i), "method": "GET", "url": paths[i], "headers": {"Prefer": IMMUTABLE}}
                for i in missing
            ]
            whole = Call(
                "/$batch", json_of, method="POST", body={"requests": parts}, cost=len(parts)
            )
            again = self._take_parts(self.ask(whole), missing, found)
            failures += 1
            for index, error in list(again.items()):
                if isinstance(error, OutOfOrder) and error.is_own:
                    own_failures[index] += 1
                    if own_failures[index] >= _TRIES:
                        found[index] = error
                        del again[index]
            if again:
                self._wait_for_parts(list(again.values()), failures)
        return [found[index] for index in range(len(paths))]

    def _take_parts(
        self, answer: Mapping[str, Any], asked: Sequence[int], found: dict[int, Part]
    ) -> dict[int, Retryable]:
        """Sort the parts of a batch into `found`; return why others must be asked for again."""
        again: dict[int, Retryable] = {}
        for part in answer.get("responses", ()):
            index = int(part["id"])
            if part["status"] == 200 and isinstance(part.get("body"), dict):
                found[index] = part["body"]
                continue
            headers = {
                name.lower(): str(text) for name, text in (part.get("headers") or {}).items()
            }
            error: Exception = refusals.of_answer(part["status"], headers, part.get("body"))
            if isinstance(error, refusals.TokenRefused):
                error = self._graph.settled(error)
            if isinstance(error, Refusal):
                found[index] = error
            elif isinstance(error, Retryable):
                again[index] = error
            else:
                raise error
        for index in asked:
            if index not in found and index not in again:
                again[index] = Unavailable("Microsoft Graph left a part of a batch unanswered.")
        return again

    def _wait_for_parts(self, errors: Sequence[Retryable], failures: int) -> None:
        """Wait before parts are asked for again, as long as the most patient of them says."""
        problem = max(errors, key=lambda error: error.retry_after_seconds or 0.0)
        if failures >= _TRIES_THROTTLED:
            raise problem
        wait = problem.retry_after_seconds or _FIRST_PAUSE_SECONDS * 2**failures
        self._check_patience(problem, wait)
        self.pause(wait)


# -- reading answers -----------------------------------------------------------------------------


def json_of(response: httpx.Response) -> Mapping[str, Any]:
    """Read a JSON object. Raises Unavailable where it is none."""
    value = _json(_bounded(response))
    if not isinstance(value, dict):
        raise Unavailable("Microsoft Graph answered with something that is no JSON object.")
    return value


def _bounded(response: httpx.Response) -> bytes:
    held = bytearray()
    for chunk in response.iter_bytes():
        held += chunk
        if len(held) > _MAX_JSON_BYTES:
            raise Unavailable("Microsoft Graph answered with more than a page can have.")
    return bytes(held)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def quoted(remote_id: str) -> str:
    """Return an id as part of a path. Raises MessageRefused where it can't be one of Graph's."""
    if not _SAFE_ID.fullmatch(remote_id):
        raise MessageRefused("This is no id of Microsoft Graph's.", code="foreign_id", of_item=True)
    return urllib.parse.quote(remote_id, safe="")
