"""The side bar: subjects in the order in which operators need them, each by its permission."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest

from ingestion.admin import display

#: Section -> (title, icon, app, model).
_SECTIONS: tuple[tuple[str, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "Ingestion",
        (
            ("Sources", "cloud_download", "ingestion", "ingestionsource"),
            ("Mailboxes", "inbox", "ingestion", "mailbox"),
            ("Folders", "folder", "ingestion", "folder"),
            ("Runs", "sync", "ingestion", "run"),
            ("Failed messages", "report", "ingestion", "failedmessage"),
            ("Alerts", "notification_important", "ingestion", "alert"),
        ),
    ),
    (
        "Archive",
        (
            ("Messages", "mail", "ingestion", "message"),
            ("Exports", "download", "ingestion", "export"),
        ),
    ),
    (
        "Records",
        (
            ("Status changes", "swap_horiz", "ingestion", "statuschange"),
            ("Audit", "policy", "ingestion", "auditevent"),
        ),
    ),
    (
        "Access",
        (
            ("API keys", "key", "ingestion", "apikey"),
            ("Alert rules", "notifications", "ingestion", "alertrule"),
            ("Webhooks", "webhook", "ingestion", "webhookendpoint"),
            ("Users", "person", "auth", "user"),
            ("Groups", "group", "auth", "group"),
        ),
    ),
)


def _may_view(app: str, model: str) -> Callable[[HttpRequest], bool]:
    def may(request: HttpRequest) -> bool:
        permissions = (f"{app}.view_{model}", f"{app}.change_{model}")
        return any(request.user.has_perm(permission) for permission in permissions)

    return may


def sections(_request: HttpRequest) -> list[dict[str, Any]]:
    """Return the side bar as UNFOLD["SIDEBAR"]["navigation"] takes it."""
    first = {"title": "Dashboard", "icon": "dashboard", "link": display.address("admin:index")}
    mail = {
        "title": "Mail",
        "icon": "stacked_email",
        "link": display.address("mail"),
        "permission": lambda request: request.user.has_perm("ingestion.view_message"),
    }
    listed: list[dict[str, Any]] = [{"items": [first, mail]}]
    for title, subjects in _SECTIONS:
        items = [
            {
                "title": name,
                "icon": icon,
                "link": display.address(f"admin:{app}_{model}_changelist"),
                "permission": _may_view(app, model),
            }
            for name, icon, app, model in subjects
        ]
        listed.append({"title": title, "items": items})
    return listed
