"""The left pane: sources and their mailboxes; of the opened one, its folders and labels."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Exists, OuterRef
from django.urls import reverse

from ingestion import queries
from ingestion.admin import display
from ingestion.admin.base import MAX_COUNTED_ROWS, capped_count
from ingestion.admin.mail.asked import Asked
from ingestion.models import Folder, Mailbox, Placement, SavedSearch
from ingestion.states import FolderRole

#: A domain has thousands of mailboxes: the others are found by the start of their address.
MAX_MAILBOXES = 50
#: The counts of a pane together read about as many rows at most.
_MAX_COUNTED = 100_000
_MAX_LABELS = 200
_MAX_DEPTH = 6
_ICONS: dict[str, str] = {
    FolderRole.INBOX: "inbox",
    FolderRole.FLAGGED: "flag",
    FolderRole.SENT: "send",
    FolderRole.DRAFTS: "draft",
    FolderRole.ARCHIVE: "archive",
    FolderRole.ALL: "all_inbox",
    FolderRole.JUNK: "report",
    FolderRole.TRASH: "delete",
}
_RANKS = {role: rank for rank, role in enumerate(_ICONS)}
_NO_RANK = len(_RANKS)
#: What Gmail keeps among the labels to say how a message stands.
_STATES = {"UNREAD", "STARRED", "IMPORTANT"}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A line of the pane. Without an address it names a level of the tree that is no folder."""

    name: str
    url: str = ""
    icon: str = "folder"
    count: str = ""
    depth: int = 0
    current: bool = False


def context(user: User | AnonymousUser, asked: Asked, starting_with: str) -> dict[str, Any]:
    """Return the context of `mail/places.html`. Six queries, however much mail there is."""
    mailboxes = _mailboxes(user, starting_with)
    opened = _opened(user, asked, mailboxes)
    shown = mailboxes[:MAX_MAILBOXES]
    if opened is not None and opened not in shown:
        shown.insert(0, opened)
    folders = list(Folder.objects.filter(mailbox=opened)) if opened else []
    return {
        "saved": list(_saved(user, asked)),
        "here": asked.url(),
        "all_mail": Place(
            "All mail", Asked().url(), "stacked_email", current=asked.is_list_of(Asked())
        ),
        "sources": [
            (name, [(mailbox, Asked(mailbox=mailbox.pk).url()) for mailbox in ours])
            for name, ours in itertools.groupby(shown, lambda mailbox: mailbox.source.name)
        ],
        "opened": opened,
        "is_whole_mailbox": asked.mailbox and not asked.folder and not asked.label,
        "folders": _tree(folders, asked),
        "labels": _labels(folders, asked),
        "starting_with": starting_with,
        "mailboxes_shown": MAX_MAILBOXES,
        "more_mailboxes": len(mailboxes) > MAX_MAILBOXES,
    }


def _saved(user: User | AnonymousUser, asked: Asked) -> Iterator[tuple[Any, ...]]:
    """Yield saved searches: each with its address, whether it is shown, and where it is renamed and
    forgotten. These two are looked up once, of a search that there is not."""
    rename, forget = (reverse(f"mail_search_{verb}", args=[0]) for verb in ("rename", "forget"))
    for saved in SavedSearch.objects.filter(owner=user.pk):
        kept, its = Asked.of_query(saved.query), f"/{saved.pk}/"
        shown = asked.is_list_of(kept)
        yield saved, kept.url(), shown, rename.replace("/0/", its), forget.replace("/0/", its)


def _mailboxes(user: User | AnonymousUser, starting_with: str) -> list[Mailbox]:
    """Return the first of them, by source: they are of the first sources that have any."""
    most = MAX_MAILBOXES + 1
    found = Mailbox.objects.all()
    if starting_with := starting_with.replace("\0", ""):
        found = found.filter(address__istartswith=starting_with)
    sources = queries.sources_of_mail(user).filter(Exists(found.filter(source=OuterRef("pk"))))
    found = found.filter(source__in=sources.order_by("name", "pk").values("pk")[:most])
    ordered = found.select_related("source").order_by("source__name", "source", "address", "pk")
    return list(ordered[:most])


def _opened(user: User | AnonymousUser, asked: Asked, mailboxes: list[Mailbox]) -> Mailbox | None:
    """Return the mailbox whose folders are shown: the one asked for, or the only one."""
    if asked.mailbox is None:
        return mailboxes[0] if len(mailboxes) == 1 else None
    listed = next((mailbox for mailbox in mailboxes if mailbox.pk == asked.mailbox), None)
    readable = Mailbox.objects.filter(source__in=queries.sources_of_mail(user))
    return listed or readable.select_related("source").filter(pk=asked.mailbox).first()


# -- folders and labels --------------------------------------------------------------------------


def _tree(folders: list[Folder], asked: Asked) -> list[Place]:
    """Return folders as lines of a tree: those with a role first, each with what is below it."""
    there = [folder for folder in folders if folder.removed_at is None]
    ranks = {folder.path: _RANKS.get(folder.role, _NO_RANK) for folder in there}

    def order(folder: Folder) -> tuple[int, list[str]]:
        root = folder.path.split("/")[0]
        rank = ranks[folder.path] if folder.role else ranks.get(root, _NO_RANK)
        return rank, [level.casefold() for level in folder.path.split("/")]

    cap = min(MAX_COUNTED_ROWS, max(100, _MAX_COUNTED // max(len(there), 1)))
    counts = _counts(there, cap=cap)
    lines: list[Place] = []
    above: list[str] = []
    for folder in sorted(there, key=order):
        levels = folder.path.split("/")
        if folder.role and len(levels) > 1:  # "[Gmail]/Sent Mail" is "Sent Mail"
            levels = levels[-1:]
        lines += _missing(levels, above)
        above = levels
        lines.append(
            Place(
                levels[-1],
                asked.at(folder.mailbox_id, folder=folder.pk),
                _ICONS.get(folder.role, "folder"),
                display.count(counts[folder.pk], cap=cap),
                min(len(levels) - 1, _MAX_DEPTH),
                current=asked.folder == folder.pk,
            )
        )
    return lines


def _missing(levels: list[str], above: list[str]) -> Iterator[Place]:
    """Yield the levels over a folder that the line above it is not within."""
    pairs = zip(levels, above, strict=False)
    known = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    for depth in range(known, len(levels) - 1):
        yield Place(levels[depth], depth=min(depth, _MAX_DEPTH))


def _counts(folders: list[Folder], *, cap: int) -> dict[int, int]:
    """Return how many messages lie in each folder now, counted up to `cap`."""
    if not folders:
        return {}
    here = Placement.objects.filter(folder=OuterRef("pk"), removed_at=None)
    counted = Folder.objects.filter(pk__in=[folder.pk for folder in folders])
    return dict(counted.values_list("pk", capped_count(here, cap=cap)))


def _labels(folders: list[Folder], asked: Asked) -> list[Place]:
    if not folders:
        return []
    found = queries.labels_with_counts(folders, rows=_MAX_COUNTED)
    return [
        Place(
            label,
            asked.at(folders[0].mailbox_id, label=label),
            "label",
            f"{count:,}",
            current=asked.label == label,
        )
        for label, count in found
        if is_place(label)
    ][:_MAX_LABELS]


def is_place(label: str) -> bool:
    """Tell whether a label says where a message belongs, not how it stands ("\\Seen", "UNREAD")."""
    return not label.startswith(("\\", "$")) and label not in _STATES
