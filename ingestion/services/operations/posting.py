"""Telling a server whose address a person gave: webhooks, and pings of alerts.

It is asked as any server of theirs is (`connectors.web`: the address guard, no redirect, an end to
everything), and of what it answers the status alone is read.
"""

import dataclasses
from collections.abc import Mapping

import httpx
from django.conf import settings

from connectors import web
from connectors.config import Environment
from connectors.errors import ConnectorError

_MAX_URL_CHARS = 2_000
_MOST_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try, in words for people. `status`: None where nothing was answered."""

    text: str
    status: int | None = None
    wait_seconds: float | None = None

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def post(url: str, body: str, headers: Mapping[str, str]) -> Answer:
    """Send a POST request. Network, at most half a minute."""
    environment = Environment(
        timeout_seconds=min(_MOST_SECONDS, settings.NETWORK_TIMEOUT_SECONDS),
        extra_ca_file=settings.EXTRA_CA_FILE,
    )
    try:
        with (
            web.client(
                environment, forbid_private_addresses=settings.FORBID_PRIVATE_ADDRESSES
            ) as client,
            client.stream("POST", url, content=body, headers=dict(headers)) as response,
        ):
            return _answer(response)  # its body is a stranger's, and is not read
    except (httpx.HTTPError, httpx.InvalidURL, ConnectorError) as error:
        return Answer(str(web.problem(error, httpx.URL(url).host)))


def _answer(response: httpx.Response) -> Answer:
    status = response.status_code
    text = f"It answered {status}."
    if response.is_redirect:
        text = f"It answered {status}, a redirect, which is not followed. Give the new address."
    wait = web.retry_after_seconds(response.headers.get("Retry-After", ""))
    return Answer(text, status, wait)


def wrong_with(url: str) -> str | None:
    """Return what is wrong with an address that somebody gives; None where nothing is."""
    if len(url) > _MAX_URL_CHARS:
        return f"Must have at most {_MAX_URL_CHARS:,} characters."
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "Is no URL."
    if parsed.scheme not in ("https", "http") or not parsed.host:
        return "Must begin with https:// (or http://, inside a network that you trust)."
    if parsed.userinfo:
        return "Must not contain a user name or password."
    return None


def host(url: str) -> str:
    """Return the host of an address: the rest of it may have a token in it."""
    return httpx.URL(url).host
