"""Secrets that this process has seen, so that no log line shows one. Public: remember, redact.

The net below all other care: the text of a library's exception may quote what it was given. Whoever
decrypts a credential or is given a token remembers it here; what writes logs redacts.
"""

import base64
import collections
import json
import threading
from collections.abc import Iterable, Iterator

_MOST = 1_000
#: Shorter ones are words of ordinary lines.
_MIN_CHARS = 6
_lock = threading.Lock()
_seen: collections.OrderedDict[str, tuple[str, ...]] = collections.OrderedDict()


def remember(secrets: Iterable[object]) -> None:
    """Take values to keep out of logs: the last thousand. Anything but a text is passed by."""
    with _lock:
        for secret in secrets:
            if not isinstance(secret, str) or len(secret) < _MIN_CHARS:
                continue
            if secret not in _seen:
                _seen[secret] = _spellings(secret)
            _seen.move_to_end(secret)
        while len(_seen) > _MOST:
            _seen.popitem(last=False)


def redact(text: str) -> str:
    """Return the text with *** for each secret, as it is, quoted, escaped or in base64."""
    with _lock:
        spellings = list(_seen.values())
    for spelling in (spelling for each in spellings for spelling in each):
        if spelling in text:
            text = text.replace(spelling, "***")
    return text


def _spellings(secret: str) -> tuple[str, ...]:
    quoted = secret.replace("\\", "\\\\").replace('"', '\\"')
    found = {secret, quoted, repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    found |= {
        json.dumps(spelling)[1:-1] for spelling in tuple(found)
    }  # what a JSON line makes of it
    found |= set(_in_base64(secret.encode("utf-8", "surrogatepass")))
    return tuple(sorted(found, key=len, reverse=True))


def _in_base64(secret: bytes) -> Iterator[str]:
    """Yield what base64 makes of it within any text, without the ends that its neighbours share."""
    yield base64.b64encode(secret).decode()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret).decode().rstrip("=")
        yield encoded[4 if before else 0 : -1]
