"""The audit of people: who came and went, whose rights changed, whose mail was read."""

from collections.abc import Mapping
from typing import Any

import structlog
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import (
    authentication_failed,
    authenticator_added,
    authenticator_removed,
    authenticator_reset,
)
from django.contrib.auth.models import Group, User
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.http import HttpRequest

from ingestion.addresses import client_address
from ingestion.models import Message
from ingestion.services.audit import Actor, audit


@receiver(user_logged_in)
def _signed_in(request: HttpRequest, user: User, **_: Any) -> None:
    """`how`: the steps, such as ["password", "totp"]."""
    steps = request.session.get("account_authentication_methods", [])
    how = [step.get("type", step["method"]) for step in steps]
    actor = Actor(user.get_username(), user, client_address(request))
    audit(actor, "session.begin", None, {"how": how} if how else {})


@receiver(user_logged_out)
def _signed_out(request: HttpRequest, user: User | None, **_: Any) -> None:
    if user is not None:
        audit(Actor(user.get_username(), user, client_address(request)), "session.end", None, {})


@receiver(user_login_failed)
def _refused(credentials: Mapping[str, Any], request: HttpRequest | None, **_: Any) -> None:
    """Name a user that there is alone: people type passwords into the wrong field."""
    user = User.objects.filter(username=str(credentials.get("username", ""))[:150]).first()
    refused(request, user=user, how="password")


@receiver(authentication_failed)
def _code_refused(request: HttpRequest, user: User, authenticator: Authenticator, **_: Any) -> None:
    refused(request, user=user, how=authenticator.type)


@receiver([authenticator_added, authenticator_removed, authenticator_reset])
def _second_step_changed(
    request: HttpRequest, user: User, authenticator: Authenticator, signal: Any, **_: Any
) -> None:
    done = {authenticator_added: "added", authenticator_removed: "removed"}.get(signal, "reset")
    fields = [f"Second step: {authenticator.type} {done}"]
    rights_changed(user, verb="update", fields=fields, actor=Actor.of_request(request))


def refused(
    request: HttpRequest | None, *, user: User | None, how: str, why: str | None = None
) -> None:
    """Record that somebody did not come in, by which step and why."""
    address = client_address(request) if request else None
    tried = user.get_username() if user else "no user of this service"
    about = {"user": tried, "how": how} | ({"why": why} if why else {})
    audit(Actor("anonymous", None, address), "session.refused", None, about)


@receiver(post_save, sender=User)
def _saved(instance: User, *, created: bool, raw: bool, **_: Any) -> None:
    """Record whom Django's own commands make (createsuperuser), and whose password they set.

    A request has an actor, and its page records more than a row shows: groups and permissions.
    """
    if raw or "request_id" in structlog.contextvars.get_contextvars():
        return
    if created:
        rights_changed(instance, verb="create", actor=Actor.command_line())
    elif instance._password is not None:  # type: ignore[attr-defined] # noqa: SLF001 - set until it is saved
        rights_changed(instance, verb="update", fields=["Password"], actor=Actor.command_line())


def rights_changed(
    who: User | Group, *, verb: str, fields: list[str] | None = None, actor: Actor
) -> None:
    """Record that a user or group was added, changed or removed, and what they may do now."""
    if isinstance(who, Group):
        about: dict[str, Any] = {"name": who.name}
        kind, permissions = "group", who.permissions.all()
    else:
        about = {
            "name": who.get_username(),
            "active": who.is_active,
            "staff": who.is_staff,
            "superuser": who.is_superuser,
            "groups": sorted(who.groups.values_list("name", flat=True)),
        }
        kind, permissions = "user", who.user_permissions.all()
    names = permissions.values_list("content_type__app_label", "codename").order_by("pk")
    about["permissions"] = [".".join(name) for name in names]
    if fields is not None:
        about["changed"] = fields
    audit(actor, f"{kind}.{verb}", None, about)


def reset_second_step(user: User, *, actor: Actor) -> int:
    """Take away what somebody proves themselves with after the password; return how many it were.

    For who lost phone and recovery codes: the password alone lets them in then, to set up anew.
    """
    with transaction.atomic():
        removed = int(Authenticator.objects.filter(user=user).delete()[0])
        if removed:
            rights_changed(user, verb="update", fields=["Second step: reset"], actor=actor)
    return removed


def mail_read(message: Message, *, how: str, actor: Actor, query: str = "") -> None:
    """Record that somebody looks at a message (`how`: "page") or takes it out ("raw").

    `query`: of the list that is shown beside it.
    """
    about = {"message": str(message.pk), "how": how} | ({"query": query} if query else {})
    audit(actor, "message.read", message.mailbox.source, about)


def mail_listed(*, query: str, how: str, shown: int, actor: Actor) -> None:
    """Record a search, or a list that showed subjects and previews: one event, however many.

    An empty list that nobody searched tells nothing, and is not recorded: a program asks for
    changes each second.
    """
    if query or shown:
        audit(actor, "message.list", None, {"query": query, "how": how, "shown": shown})
