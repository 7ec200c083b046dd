"""Who did what: the actor of a change, and the record of it. Written from every room."""

import dataclasses
import getpass
import os
from collections.abc import Mapping
from typing import Any, Self

from django.contrib.auth.models import User
from django.http import HttpRequest

from ingestion.addresses import client_address
from ingestion.models import ApiKey, AuditEvent, IngestionSource


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
