"""The operators' admin: one module per subject.

It reads with querysets and writes through `ingestion.services`, like the API and the commands.
"""

from django.contrib import admin

from ingestion.admin import (
    alerts,
    exports,
    failures,
    history,
    keys,
    mailboxes,
    messages,
    runs,
    sources,
    users,
    webhooks,
)

admin.site.index_title = "Dashboard"

__all__ = [
    "alerts",
    "exports",
    "failures",
    "history",
    "keys",
    "mailboxes",
    "messages",
    "runs",
    "sources",
    "users",
    "webhooks",
]
