"""Gets access tokens for refresh tokens (RFC 6749 section 6) at the server that a source names."""

import json
from collections.abc import Mapping
from typing import Any

import httpx

from connectors import web
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, NeedsReauth, RateLimited, Unavailable
from connectors.tokens import Tokens

_MAX_ANSWER_BYTES = 1_000_000
#: Longer ones could not be stored.
MAX_TOKEN_CHARS = 20_000
#: RFC 6749 section 5.2: the grant is of no use any more, or never was.
_STOP_ERRORS = frozenset(
    {"invalid_grant", "invalid_client", "unauthorized_client", "invalid_scope"}
)


class RefreshedTokens(Tokens):
    """The access tokens that a refresh token gets."""

    def __init__(
        self,
        token_url: str,
        *,
        refresh_token: str,
        client_id: str,
        client_secret: str,
        environment: Environment,
    ) -> None:
        about = ("oauth", token_url, client_id, client_secret)
        super().__init__(environment, about=about, refresh_token=refresh_token)
        self._url, self._client_id, self._client_secret = token_url, client_id, client_secret

    def _ask(self, refresh_token: str) -> Mapping[str, Any]:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": self._client_id,
        }
        if self._client_secret:
            form["client_secret"] = self._client_secret
        status, headers, answer = self._post(form)
        if status == 200 and _is_token(answer.get("access_token")):
            newest = answer.get("refresh_token")
            return answer if _is_token(newest) else {**answer, "refresh_token": None}
        raise _refusal(status, headers, answer)

    def _post(self, form: Mapping[str, str]) -> tuple[int, httpx.Headers, Mapping[str, Any]]:
        forbid = self._environment.forbid_private_addresses
        accept = {"Accept": "application/json"}
        try:
            with (
                web.client(self._environment, forbid_private_addresses=forbid) as http,
                http.stream("POST", self._url, data=form, headers=accept) as response,
            ):
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise Unavailable("The authorization server's answer has no end.")
                return response.status_code, response.headers, _json_object(body)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise web.problem(error, "the authorization server") from error


def _refusal(status: int, headers: Mapping[str, str], answer: Mapping[str, Any]) -> ConnectorError:
    error = str(answer.get("error", ""))[:60]
    if error in _STOP_ERRORS:
        return NeedsReauth(
            f"The authorization server refused the refresh token ({error}). Connect the account"
            " again."
        )
    if status == 429 or error in ("slow_down", "rate_limit_exceeded"):
        return RateLimited(
            "The authorization server asks to wait.",
            retry_after_seconds=web.retry_after_seconds(headers.get("Retry-After", "")),
        )
    if status >= 500 or status == 408:
        return Unavailable(f"The authorization server is out of order (HTTP {status}).")
    if status == 200:
        return Fatal("What answers at tokenUrl gives no access token. Check tokenUrl.")
    return Fatal(f"The authorization server refused (HTTP {status}). Check tokenUrl and clientId.")


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TOKEN_CHARS and value.isprintable()


def _json_object(body: bytes | bytearray) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
