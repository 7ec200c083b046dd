"""What may leave for a Sentry or an OpenTelemetry collector. Nothing of this is loaded where the
settings name neither.

Both get what this package puts together and nothing else: no library instruments ours, for those
tell addresses, queries, local variables and the texts of errors. What is told is constant text,
names of our own code, and fields of log lines that are in `FIELDS` and look like ids or numbers.
"""

import re
from collections.abc import Mapping
from typing import Any

#: Fields of log lines (logs.py) that are ids, counts or codes.
FIELDS = frozenset(
    "source mailbox run pack export delivery rule webhook message folder failure request_id kind"
    " row status code error attempts count messages bytes seconds".split()
)
_HARMLESS = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def allowed(fields: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return the fields that may leave: known ones, whose value can be no text and no address."""
    return {name: value for name, value in fields.items() if name in FIELDS and _harmless(value)}


def _harmless(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and _HARMLESS.fullmatch(value) is not None
    )
