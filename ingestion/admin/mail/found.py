"""Pages of messages by date, until search has them."""

import dataclasses

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Exists, OuterRef

from ingestion import queries
from ingestion.admin.mail.asked import Asked
from ingestion.models import Message, Placement

SIZE = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    messages: list[Message]
    count: str
    next: str


def page(user: User | AnonymousUser, asked: Asked) -> Found:
    found = queries.visible_messages(user).filter(document__isnull=False)
    here = Placement.objects.filter(message=OuterRef("pk"), removed_at=None)
    if asked.mailbox:
        found = found.filter(document__mailbox=asked.mailbox)
    if asked.folder:
        found = found.filter(Exists(here.filter(folder=asked.folder)))
    if asked.label:
        found = found.filter(Exists(here.filter(labels__contains=[asked.label])))
    if asked.q:
        found = found.filter(subject__icontains=asked.q)
    start = int(asked.page or 0)
    order = ("document__date", "pk") if asked.sort == "oldest" else ("-document__date", "-pk")
    shown = list(
        found.order_by(*order)
        .select_related("document", "mailbox")
        .prefetch_related("placements__folder")[start : start + SIZE + 1]
    )
    counted = found[:10_001].count()
    return Found(shown[:SIZE], f"{counted:,}", str(start + SIZE) if len(shown) > SIZE else "")
