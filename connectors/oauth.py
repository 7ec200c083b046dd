"""Gets access tokens for refresh tokens (RFC 6749 s6), over HTTPS and by the network's rules.

Follows no redirect and uses no proxy from the environment, so that the address that was checked is
the one that gets the secret.
"""

import http.client
import io
import json
import socket
import time
import urllib.parse
from typing import Any

from connectors import net, redaction
from connectors.config import Environment
from connectors.errors import Fatal, NeedsReauth, RateLimited, Unavailable

_MAX_ANSWER_BYTES = 1_000_000
#: RFC 6749 s5.2: the grant is of no use any more, or never was.
_STOP_ERRORS = frozenset(
    {"invalid_grant", "invalid_client", "unauthorized_client", "invalid_scope"}
)


def refreshed_access_token(
    token_url: str,
    *,
    refresh_token: str,
    client_id: str,
    client_secret: str,
    environment: Environment,
) -> str:
    """Return a new access token. Raises NeedsReauth, Fatal, RateLimited or Unavailable."""
    form = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": client_id,
    }
    if client_secret:
        form["client_secret"] = client_secret
    status, headers, body = _post_form(token_url, form, environment)
    answer = _json_object(body)
    token = answer.get("access_token")
    if status == 200 and isinstance(token, str) and token.isprintable() and token:
        redaction.remember([token])
        return token
    error = str(answer.get("error", ""))[:60]
    if error in _STOP_ERRORS:
        raise NeedsReauth(
            f"The authorization server refused the refresh token ({error}). Connect the account"
            " again."
        )
    if status == 429 or error in ("slow_down", "rate_limit_exceeded"):
        wait = headers.get("Retry-After", "")
        raise RateLimited(
            "The authorization server asks to wait.",
            retry_after_seconds=float(wait) if wait.isdigit() and len(wait) < 6 else None,
        )
    if status >= 500 or status == 408:
        raise Unavailable(f"The authorization server is out of order (HTTP {status}).")
    if status == 200:
        raise Fatal("What answers at tokenUrl gives no access token. Check tokenUrl.")
    raise Fatal(f"The authorization server refused (HTTP {status}). Check tokenUrl and clientId.")


def _post_form(
    url: str, form: dict[str, str], environment: Environment
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """POST within Environment.timeout_seconds in all. Raises Unavailable or Fatal."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    body = urllib.parse.urlencode(form).encode()
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    request = (
        f"POST {target} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nAccept: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode("ascii")
    until = time.monotonic() + environment.timeout_seconds
    raw = net.connect(
        host,
        port,
        timeout_seconds=environment.timeout_seconds,
        forbid_private_addresses=environment.forbid_private_addresses,
    )
    context = net.tls_context(verify=True, extra_ca_file=environment.extra_ca_file)
    with raw, net.start_tls(raw, host, context) as connection:
        try:
            answer = _exchange(connection, request + body, until)
            response = http.client.HTTPResponse(_Replay(answer))  # type: ignore[arg-type] # has all of a socket that is used
            response.begin()
            return response.status, response.msg, response.read()
        except (OSError, http.client.HTTPException):
            raise Unavailable("The authorization server did not answer as it should.") from None


def _exchange(connection: socket.socket, request: bytes, until: float) -> bytes:
    connection.settimeout(max(0.001, until - time.monotonic()))
    connection.sendall(request)
    answer = bytearray()
    while len(answer) < _MAX_ANSWER_BYTES:
        connection.settimeout(max(0.001, until - time.monotonic()))
        part = connection.recv(65536)
        if not part:
            return bytes(answer)
        answer += part
    raise OSError("too long")


class _Replay:
    """Bytes in the shape of the socket that HTTPResponse wants."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
