"""Who comes in by single sign-on, and with which groups: the rules, on what the provider told.

Whom the provider named before (by `iss` and `sub`) is who they were then. Else a person that is
known here is recognised by an e-mail address that the provider vouches for; one that it doesn't
vouch for makes nobody anybody. Where OIDC_GROUPS is set, the provider decides on those groups at
each sign-in.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import Q

from ingestion import queries
from ingestion.services.audit import Actor
from ingestion.services.operations import groups, people

_ACTOR = Actor.system("single sign-on")


class Refused(Exception):
    """They don't come in; the text says why, for them. `user`: who they are here, where known."""

    def __init__(self, code: str, text: str, user: User | None = None) -> None:
        super().__init__(text)
        self.code, self.user = code, user


@dataclasses.dataclass(frozen=True, slots=True)
class Claims:
    """What the provider told of a person."""

    email: str
    is_verified: bool
    groups: frozenset[str]

    @property
    def verified_email(self) -> str:
        return self.email if self.is_verified else ""


def claims(id_token: Mapping[str, Any] | None, userinfo: Mapping[str, Any] | None) -> Claims:
    """Read what the provider told, in its two places. Raises Refused."""
    tokens, infos = id_token or {}, userinfo or {}
    # OpenID Connect Core 1.0, 5.3.2: else what it told belongs to somebody else.
    if tokens and infos and tokens.get("sub") != infos.get("sub"):
        raise Refused("two_persons", "The provider named two persons in one sign-in.")
    told = {**tokens, **infos}
    found = tokens.get(settings.OIDC_GROUPS_CLAIM, infos.get(settings.OIDC_GROUPS_CLAIM)) or []
    named = [found] if isinstance(found, str) else found
    return Claims(
        email=str(told.get("email") or ""),
        # xms_edov: what Microsoft Entra tells instead, where the application asks for it.
        is_verified=any(told.get(name) in _TRUE for name in ("email_verified", "xms_edov")),
        groups=frozenset(str(name) for name in named),
    )


_TRUE = (True, "true", "1", 1)


def admit(told: Claims, known: User | None) -> tuple[User | None, list[Group]]:
    """Return who it is, None for somebody new, and their groups. Raises Refused.

    A known person has their new groups already then. `known`: whom the provider named before.
    """
    user = known or _person(told)
    if user is not None and not user.is_active:
        raise Refused("inactive", "This account is switched off.", user)
    chosen = _groups(told, user)
    if user is not None and settings.OIDC_GROUPS:
        _set_groups(user, chosen)
    if not chosen and (user is None or settings.OIDC_GROUPS):
        raise Refused(
            "no_group",
            "You are signed in there, but in no group that may use this service. Ask an"
            " administrator to add you to one.",
            user,
        )
    return user, chosen


def made(user: User, chosen: list[Group]) -> None:
    """Give somebody new their groups. Opens its own transaction."""
    with transaction.atomic():
        user.is_staff = _is_staff(chosen)
        user.save(update_fields=["is_staff"])
        user.groups.set(chosen)
        people.rights_changed(user, verb="create", actor=_ACTOR)


def _person(told: Claims) -> User | None:
    """Return who has this address here. Raises Refused where that is not sure."""
    if not told.email:
        return None
    # PostgreSQL compares in capitals, which a dotless i shares with an i.
    alike = User.objects.filter(email__iexact=told.email)
    found = [user for user in alike if user.email.lower() == told.email.lower()]
    if not found:
        return None
    if not told.is_verified:
        raise Refused(
            "unverified_address",
            "Somebody here has your e-mail address, and the provider does not vouch that it is"
            " yours (email_verified). Ask an administrator.",
        )
    if len(found) > 1:
        raise Refused(
            "ambiguous_address",
            "Two users here have your e-mail address. Ask an administrator to mend that.",
        )
    return found[0]


def _groups(told: Claims, user: User | None) -> list[Group]:
    """Return the groups that the provider's stand for; without OIDC_GROUPS, those of here."""
    if settings.OIDC_GROUPS:
        names = {ours for theirs, ours in settings.OIDC_GROUPS.items() if theirs in told.groups}
    else:
        names = set(user.groups.values_list("name", flat=True)) if user else set()
    if names or not (user is None or settings.OIDC_GROUPS):
        return list(Group.objects.filter(name__in=names).order_by("name"))
    default = Group.objects.filter(name=settings.OIDC_DEFAULT_GROUP)
    if user is not None and not _reads_mail(user):
        default = default.exclude(
            Q(name=groups.OWNER.name) | Q(permissions__codename="view_message")
        )
    return list(default)


def _set_groups(user: User, chosen: list[Group]) -> None:
    """Exchange the groups that the provider decides on; others stay. Opens its own transaction."""
    decided = {*settings.OIDC_GROUPS.values(), settings.OIDC_DEFAULT_GROUP}
    kept = list(user.groups.exclude(name__in=decided))
    after = {*kept, *chosen}
    # Without staff status they would read the mail of all sources that they made, as owners do.
    stays = not chosen and not _reads_mail(user)
    is_staff = user.is_superuser or _is_staff(list(after)) or stays
    if after == set(user.groups.all()) and is_staff == user.is_staff:
        return
    with transaction.atomic():
        user.is_staff = is_staff
        user.save(update_fields=["is_staff"])
        user.groups.set(after)
        people.rights_changed(user, verb="update", fields=["Groups"], actor=_ACTOR)


def _reads_mail(user: User) -> bool:
    """Tell whether they read mail now: else no group that they lose may give it to them."""
    # Of another object: Django keeps with each what it may.
    return queries.reads_mail(User.objects.get(pk=user.pk))


def _is_staff(chosen: list[Group]) -> bool:
    """Tell whether any of these comes into the admin: all but owners."""
    return any(group.name != groups.OWNER.name for group in chosen)
