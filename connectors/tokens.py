"""Access tokens of OAuth 2 (RFC 6749), kept for as long as they are good.

A process asks for a token once and uses it for all connections of a source until shortly before it
ends: authorization servers limit how often they are asked, and a refresh token may be good for one
use (RFC 9700 section 4.14.2). Whoever asks is a subclass; nothing here knows the network.
"""

import dataclasses
import hashlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from connectors import redaction
from connectors.config import Environment

#: A token is replaced when it has less than this left: a request may take a while.
_SPARE_SECONDS = 120.0
#: More than the accounts that a process has in turn, or none finds its own again. An exchanged
#: token, of some kB, has two places.
_MAX_KEPT = 5_000


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class _Kept:
    """`refresh_token`: the newest, where the one that the configuration has was exchanged."""

    token: str
    ends_at: float  # time.monotonic
    refresh_token: str


class _Cache:
    """The tokens of this process, by a hash of what they were given for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bytes, _Kept] = {}

    def get(self, key: bytes) -> _Kept | None:
        with self._lock:
            return self._kept.get(key)

    def put(self, key: bytes, kept: _Kept) -> None:
        with self._lock:
            self._kept.pop(key, None)
            while len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = kept

    def end(self, key: bytes, token: str) -> None:
        """Give a token out no more."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.token == token:
                self._kept[key] = dataclasses.replace(kept, ends_at=0.0)


_CACHE = _Cache()
#: Of many threads that find no token, one asks. By key: a slow server delays its own sources.
_ASKING = tuple(threading.Lock() for _ in range(64))


class Tokens(ABC):
    """The access tokens of one configuration. Thread-safe.

    `about` is all that a token depends on besides `refresh_token`, which is "" where there is none.
    """

    def __init__(
        self, environment: Environment, *, about: Sequence[str], refresh_token: str
    ) -> None:
        self._environment, self._given = environment, refresh_token
        self._about = "\0".join(about)

    def known(self) -> str | None:
        """Return the token that is in hand and good, if there is one."""
        kept = _CACHE.get(self._key(self._given))
        return kept.token if kept is not None and kept.ends_at > time.monotonic() else None

    def current(self) -> str:
        """Return a token. Raises NeedsReauth, Fatal, RateLimited or Unavailable."""
        if (token := self.known()) is not None:
            return token
        with _ASKING[self._key(self._given)[0] % len(_ASKING)]:
            return self.known() or self._renewed()

    def renew(self, refused: str) -> str:
        """Return another token than the one that the server refused."""
        self.forget(refused)
        return self.current()

    def forget(self, refused: str) -> None:
        """Have the next one that needs a token ask for a new one."""
        _CACHE.end(self._key(self._given), refused)

    def adopt(self, answer: Mapping[str, Any]) -> str:
        """Use the token of a server's answer, as long as it is good; return it."""
        seconds = _seconds(answer.get("expires_in"))
        ends_at = time.monotonic() + seconds - min(_SPARE_SECONDS, seconds / 2)
        newest = str(answer.get("refresh_token") or self._refresh_token())
        kept = _Kept(str(answer["access_token"]), ends_at, newest)
        redaction.remember([kept.token, newest])
        # For those with the token that was exchanged, and for those that read the new one.
        for refresh_token in {self._given, newest}:
            _CACHE.put(self._key(refresh_token), kept)
        return kept.token

    @abstractmethod
    def _ask(self, refresh_token: str) -> Mapping[str, Any]:
        """Return the server's answer (RFC 6749 section 5.1), which has an access_token.

        Raises NeedsReauth, Fatal, RateLimited or Unavailable.
        """

    def _renewed(self) -> str:
        if not self._given:
            return self.adopt(self._ask(""))
        with self._environment.exchanging() as secrets:
            # Another process may have exchanged the one that is known here: it is good no more.
            newest = secrets.get("refreshToken") or self._refresh_token()
            answer = self._ask(newest)
            # Before its access token is used: should this process die, the new one is not lost.
            newest = secrets["refreshToken"] = str(answer.get("refresh_token") or newest)
        return self.adopt({**answer, "refresh_token": newest})

    def _refresh_token(self) -> str:
        kept = _CACHE.get(self._key(self._given))
        return kept.refresh_token if kept is not None else self._given

    def _key(self, refresh_token: str) -> bytes:
        return hashlib.sha256(f"{self._about}\0{refresh_token}".encode()).digest()


def _seconds(told: Any) -> float:
    """Read expires_in, which is only recommended: without it a token is good for this use."""
    try:
        seconds = float(told or 0)
    except (TypeError, ValueError):
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
