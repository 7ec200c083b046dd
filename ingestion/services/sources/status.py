"""The only writer of a source's status, and of the audit.

The table of moves is `ingestion.states`.
"""

import dataclasses
import getpass
import os
from collections.abc import Mapping
from typing import Any, Self

from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.http import HttpRequest

from ingestion.addresses import client_address
from ingestion.errors import LostRace, NotAllowedNow
from ingestion.models import ApiKey, AuditEvent, IngestionSource, StatusChange
from ingestion.states import MOVES, SourceStatus


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """Who does it, for the audit: a user (by name, key and address) or a part of the service."""

    name: str
    user: User | None = None
    address: str | None = None
    key: str = ""

    @classmethod
    def system(cls, name: str) -> Self:
        return cls(name)

    @classmethod
    def command_line(cls) -> Self:
        """Whoever has the machine: the operating system's user."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = f"uid {os.getuid()}"
        return cls(f"command line ({name})")

    @classmethod
    def of_request(cls, request: HttpRequest) -> Self:
        user = request.user if isinstance(request.user, User) else None
        name = user.get_username() if user else "anonymous"
        auth = getattr(request, "auth", None)  # set by Django REST framework
        key = str(auth) if isinstance(auth, ApiKey) else ""
        return cls(name, user, client_address(request), key)


SYSTEM = Actor.system("ingestion")


def move(source: IngestionSource, to: SourceStatus, *, reason: str, actor: Actor | str) -> None:
    """Change the status, or raise NotAllowedNow or LostRace. Call inside a transaction.

    Writes WHERE status = the one in `source`, so of two movers one is told that it lost.
    """
    old = SourceStatus(source.status)
    if to not in MOVES[old]:
        raise NotAllowedNow(
            f"A source that is {old.label.lower()} can't become {to.label.lower()}."
        )
    changed = IngestionSource.objects.filter(pk=source.pk, status=old, deleted_at=None).update(
        status=to, status_message=reason, updated_at=Now()
    )
    if changed != 1:
        raise LostRace("The source was changed at the same time. Read it again.")
    StatusChange.objects.create(
        source=source,
        from_status=old,
        to_status=to,
        reason=reason,
        actor=actor if isinstance(actor, str) else actor.name,
    )
    source.status, source.status_message = to, reason


def locked(source: IngestionSource) -> IngestionSource:
    """Read the source again and lock its row. Raises LostRace where it was deleted.

    Rows that refer to it can be inserted meanwhile: a capture must not wait for us.
    """
    rows = IngestionSource.objects.select_for_update(no_key=True)
    found = rows.filter(pk=source.pk, deleted_at=None)
    try:
        return found.get()
    except IngestionSource.DoesNotExist:
        raise LostRace("The source was deleted.") from None


def audit(
    actor: Actor,
    action: str,
    source: IngestionSource | None,
    changes: Mapping[str, Any],
) -> None:
    """Record who did what. Call inside the transaction that does it. No secrets in `changes`."""
    AuditEvent.objects.create(
        actor=actor.name,
        user=actor.user,
        key=actor.key,
        address=actor.address,
        action=action,
        source_id=source.pk if source else None,
        changes=dict(changes),
    )
