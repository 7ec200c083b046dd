"""The groups that every installation has: who may do what. `migrate` makes them, and nothing else
writes them; people may change or delete them, and what they took away stays away.

"See sources" and "read mail" are two things. A source's state is an operator's business, the mail
in it is not: `ingestion.queries.reads_mail`.
"""

from typing import NamedTuple

from django.contrib.auth.models import Group, Permission
from django.db import transaction

from ingestion.models import Installation


class ReadyGroup(NamedTuple):
    """`is_staff`: whether its members come into the admin. Owners come to their own sources."""

    name: str
    is_staff: bool


ADMINISTRATOR = ReadyGroup("Administrator", is_staff=True)
OPERATOR = ReadyGroup("Operator", is_staff=True)
AUDITOR = ReadyGroup("Auditor", is_staff=True)
OWNER = ReadyGroup("Owner", is_staff=False)
GROUPS = (ADMINISTRATOR, OPERATOR, AUDITOR, OWNER)

#: What each may do with a kind of row: v(iew), a(dd), c(hange), d(elete). Exports are one's own
#: alone, and so are webhooks and rules of alerts to change and delete. Owners need none: what is
#: theirs is theirs. A new kind of row that has a page is a new line here, and the next `migrate`
#: gives it to the groups.
TABLE: dict[str, tuple[str, str, str]] = {
    # app.model                Administrator Operator Auditor
    "ingestion.ingestionsource": ("vacd", "vacd", "v"),
    "ingestion.mailbox": ("v", "v", "v"),
    "ingestion.folder": ("v", "v", "v"),
    "ingestion.run": ("v", "v", "v"),
    "ingestion.failedmessage": ("v", "v", "v"),
    "ingestion.statuschange": ("v", "v", "v"),
    "ingestion.webhookendpoint": ("vacd", "vacd", ""),
    "ingestion.alert": ("v", "v", "v"),
    "ingestion.alertrule": ("vacd", "vacd", ""),
    # mail, and who read it
    "ingestion.message": ("v", "", "v"),
    "ingestion.export": ("vad", "", "vad"),
    "ingestion.auditevent": ("v", "", "v"),
    # people
    "ingestion.apikey": ("vad", "", "v"),
    "auth.user": ("vacd", "", "v"),
    "auth.group": ("vacd", "", "v"),
}
_VERBS = {"v": "view", "a": "add", "c": "change", "d": "delete"}


def permissions_of(group: ReadyGroup) -> set[str]:
    """Return the permissions that the table gives, such as "ingestion.view_run"."""
    if group is OWNER:
        return set()
    column = GROUPS.index(group)
    return {
        f"{kind.split('.')[0]}.{_VERBS[letter]}_{kind.split('.')[1]}"
        for kind, cells in TABLE.items()
        for letter in cells[column]
    }


def make_ready() -> None:
    """Make the groups that were never made, and give what was never given.

    A group that somebody else made under such a name is left alone, and so is one that people
    renamed or deleted. Idempotent. Opens its own transaction; permissions must exist.
    """
    with transaction.atomic():
        Installation.objects.get_or_create(pk=1)
        installation = Installation.objects.select_for_update().get(pk=1)
        for ready in GROUPS:
            _make_ready(ready, installation.groups)
        installation.save(update_fields=["groups"])


def _make_ready(ready: ReadyGroup, given: dict[str, list[str] | None]) -> None:
    """`given`: of each group what it has got so far, None for one that is not ours."""
    group = Group.objects.filter(name=ready.name).first()
    if ready.name not in given:
        if group is not None:
            given[ready.name] = None
            return
        group, given[ready.name] = Group.objects.create(name=ready.name), []
    before = given[ready.name]
    if group is None or before is None:
        return
    new = permissions_of(ready) - set(before)
    found = _permissions(new)
    group.permissions.add(*found)
    given[ready.name] = sorted({*before, *map(_name, found)})


def _permissions(names: set[str]) -> list[Permission]:
    every = Permission.objects.select_related("content_type")
    found = every.filter(codename__in=[name.partition(".")[2] for name in names])
    return [permission for permission in found if _name(permission) in names]


def _name(permission: Permission) -> str:
    return f"{permission.content_type.app_label}.{permission.codename}"
