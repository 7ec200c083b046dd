"""Calls of Google's APIs: the clients of google-api-python-client, paced, with tokens and retries.

A Caller is one thread's: it has its own connections. The pace and the tokens are shared.
"""

import dataclasses
import functools
import hashlib
import http.client
import random
import threading
import zlib
from collections.abc import Callable
from typing import Any

import httplib2
from googleapiclient.discovery import build_from_document
from googleapiclient.discovery_cache import get_static_doc
from googleapiclient.errors import HttpError

from connectors.config import Environment
from connectors.errors import RateLimited, Unavailable
from connectors.google import refusals
from connectors.google.refusals import Asker, OutOfOrder, Refused
from connectors.google.tokens import Access
from connectors.google.transport import Http
from connectors.throttle import Budget, Throttle

#: Of the quota, so much is used: the rest is for the burst of an idle budget, and for clocks that
#: differ from Google's. Measured: 98 % of a quota in use, none refused (test_google_throughput).
_SHARE = 0.97
#: Who must wait longer than this gives the worker back; the mailbox is due again by then.
_LONG_SECONDS = 20.0
_TRIES = 4
_FIRST_WAIT_SECONDS = 0.5
_MAX_WAIT_SECONDS = 8.0


class Api:
    """The clients of one API, made of the discovery document in the package: no network, and no
    address but `url`. Making them takes 30 ms, so they are kept; their requests are executed with
    a Caller's own connections."""

    def __init__(self, name: str, version: str, url: str) -> None:
        document = get_static_doc(name, version)
        assert document is not None, "google-api-python-client comes with this document"
        options = {"api_endpoint": url}
        made = build_from_document(document, http=httplib2.Http(), client_options=options)
        if name == "pubsub":
            self.subscriptions: Any = made.projects().subscriptions()
            return
        self.users: Any = made.users()
        if name == "gmail":
            self.messages: Any = self.users.messages()
            self.history: Any = self.users.history()
            self.labels: Any = self.users.labels()


@functools.lru_cache(maxsize=4)
def gmail(url: str) -> Api:
    return Api("gmail", "v1", url)


@functools.lru_cache(maxsize=4)
def directory(url: str) -> Api:
    return Api("admin", "directory_v1", url)


@functools.lru_cache(maxsize=4)
def pubsub(url: str) -> Api:
    return Api("pubsub", "v1", url)


class Pace:
    """What Google allows to one person and to the project, shared by all workers."""

    def __init__(self, environment: Environment, *, project: str, person: str) -> None:
        self._throttle: Throttle = environment.throttle
        self._costs = environment.quotas["google"]
        seconds = self._costs.get("per_seconds", 60.0)
        whose = hashlib.sha256(f"{project}:{person}".encode()).hexdigest()[:24]  # no address
        self._budgets = {
            "user": Budget(f"google:user:{whose}", self._costs["user"] * _SHARE, seconds),
            "project": Budget(
                f"google:project:{project}", self._costs["project"] * _SHARE, seconds
            ),
        }

    def wait(self, kind: str, stop: threading.Event) -> None:
        """Sleep until a call of this kind is allowed. Raises RateLimited where that is long."""
        cost = self._costs.get(kind, 1)
        seconds = self._throttle.reserve([(budget, cost) for budget in self._budgets.values()])
        if seconds > _LONG_SECONDS:
            raise RateLimited(
                "Google's quota is used up for now. Nothing is lost: it goes on by itself.",
                retry_after_seconds=seconds,
            )
        if stop.wait(seconds):
            raise Unavailable("Google takes too long.")

    def refused(self, refusal: Refused, attempt: int) -> None:
        seconds = refusal.retry_after_seconds
        self._throttle.pause(
            self._budgets[refusal.whose], _backoff(attempt, 1.0) if seconds is None else seconds
        )


class Unpaced(Pace):
    """For the directory and Pub/Sub, whose quotas are their own and far away."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def wait(self, kind: str, stop: threading.Event) -> None:  # noqa: ARG002 - all cost the same
        """Wait as long as the last refusal said."""
        seconds, self._seconds = self._seconds, 0.0
        if stop.wait(seconds):
            raise Unavailable("Google takes too long.")

    def refused(self, refusal: Refused, attempt: int) -> None:
        seconds = refusal.retry_after_seconds or _backoff(attempt, 1.0)
        if seconds > _LONG_SECONDS:
            raise refusal
        self._seconds = seconds


@dataclasses.dataclass(slots=True)
class Caller:
    """One thread's way to one API, as one person."""

    http: Http
    access: Access
    asker: Asker
    pace: Pace
    api: str  # "gmail", "admin" or "pubsub"
    stop: threading.Event

    def call(
        self, request: Any, *, kind: str = "", reader: Callable[[Any], Any] | None = None
    ) -> Any:
        """Execute a request of the API's client; return its answer, read by `reader` if given.

        Refusals for too much, errors of the server and expired tokens are tried again here; what
        remains is raised: ConnectorError, Absent, BadRequest. A broken connection is Unavailable at
        once. What was refused for too much in between is no proof that the server fails at this
        request (a message would be set aside for it): that is raised as RateLimited. `kind` names
        the cost in units.
        """
        if reader is not None:
            request.postproc = _as_it_came
        problem: Exception = Unavailable("Nothing was tried.")
        for attempt in range(_TRIES):
            self.pace.wait(kind, self.stop)
            try:
                return self._once(request, reader)
            except Refused as refusal:
                problem = refusal
                self.pace.refused(refusal, attempt)
            except OutOfOrder as error:
                problem = problem if isinstance(problem, Refused) else error
                if attempt < _TRIES - 1:
                    self.stop.wait(_backoff(attempt, _FIRST_WAIT_SECONDS))
        raise problem

    def _once(self, request: Any, reader: Callable[[Any], Any] | None) -> Any:
        """Execute a request, and again with a new token where that one had ended: no try less."""
        token = self.access.token(self.http, self.asker)
        try:
            return self._execute(request, reader, token)
        except _Unauthorized:
            self.access.forget(token)
        try:
            return self._execute(request, reader, self.access.token(self.http, self.asker))
        except _Unauthorized as refusal:
            raise refusal.meaning from None

    def _execute(self, request: Any, reader: Callable[[Any], Any] | None, token: str) -> Any:
        request.headers["authorization"] = f"Bearer {token}"
        try:
            answer = self._sent(request)
            if reader is not None:
                return reader(answer)
            if answer and not isinstance(answer, dict):  # the client lets pass what is no JSON
                raise refusals.no_json()
            return answer
        finally:
            self.http.settle()

    def _sent(self, request: Any) -> Any:
        try:
            return request.execute(http=self.http)
        except HttpError as error:
            meaning = refusals.of_answer(error, self.asker, api=self.api)
            raise (_Unauthorized(meaning) if error.resp.status == 401 else meaning) from None
        except (OSError, httplib2.HttpLib2Error, http.client.HTTPException, zlib.error) as error:
            raise refusals.of_connection(error) from None
        except UnicodeDecodeError:
            raise refusals.no_json() from None


def _as_it_came(_: Any, content: Any) -> Any:
    return content


class _Unauthorized(Exception):
    """401: the token has expired or was revoked; `meaning` where a new one does not help."""

    def __init__(self, meaning: Exception) -> None:
        super().__init__(meaning)
        self.meaning = meaning


def _backoff(attempt: int, first: float) -> float:
    wait = min(_MAX_WAIT_SECONDS, first * 2.0**attempt)
    return float(wait * random.uniform(0.75, 1.25))  # noqa: S311 - only to spread the load
