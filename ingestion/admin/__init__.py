"""The operators' admin: one module per subject.

It reads with querysets and writes through `ingestion.services`, like the API and the commands.
"""

from ingestion.admin import (
    failures,
    history,
    keys,
    mailboxes,
    messages,
    runs,
    sources,
    users,
)

__all__ = [
    "failures",
    "history",
    "keys",
    "mailboxes",
    "messages",
    "runs",
    "sources",
    "users",
]
