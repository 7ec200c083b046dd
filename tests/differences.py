"""In what mail that is archived differs from mail that a server holds, told by ids and in few words.

Owns what a failed `assert archived == held` says (conftest.py): whole messages say nothing.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any, TypeGuard

#: Of each kind; the rest is counted.
_TOLD = 5


def are_contents(side: object) -> TypeGuard[dict[Any, bytes]]:
    """Whether it is id -> bytes."""
    return isinstance(side, dict) and all(isinstance(body, bytes) for body in side.values())


def differences(archived: Mapping[Any, bytes], held: Mapping[Any, bytes]) -> list[str]:
    """Return a line for each kind of difference, none where there is none."""
    kinds = {
        "missing": [repr(key) for key in held if key not in archived],
        "not held": [repr(key) for key in archived if key not in held],
        "altered": [
            f"{key!r} ({_altered(body, held[key])})"
            for key, body in archived.items()
            if key in held and body != held[key]
        ],
    }
    return [f"{len(ids)} {kind}: {_listed(ids)}" for kind, ids in kinds.items() if ids]


def _altered(archived: bytes, held: bytes) -> str:
    pairs = zip(archived, held, strict=False)
    shorter = min(len(archived), len(held))
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
    return f"{len(archived)} bytes of {len(held)}, other from byte {at} on"


def _listed(ids: list[str]) -> str:
    rest = len(ids) - _TOLD
    return ", ".join(islice(ids, _TOLD)) + (f" and {rest} more" if rest > 0 else "")
