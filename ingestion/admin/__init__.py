"""The operators' admin: one module per subject.

It reads with querysets and writes through `ingestion.services`, like the API and the commands.
"""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

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
_of_app = admin.site.get_app_list


def _app_list(request: HttpRequest, app_label: str | None = None) -> list[Any]:
    """List the app of a page that is of one: no other page shows any, and each would ask."""
    return _of_app(request, app_label) if app_label else []


admin.site.get_app_list = _app_list  # type: ignore[method-assign] # unfold made it

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
