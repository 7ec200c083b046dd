"""Which folder of a mailbox comes next, and what is written down of one that can't be read.

A folder fails by itself: it gets a retry time of its own, and the others go on. Only where all of
them fail it is the mailbox's trouble. What ends the connection names no folder as the culprit; one
at which it ends three times without anything coming of it is taken for it all the same.

A mailbox of many folders gets on from slice to slice: what is done with is passed by, until the
mailbox is settled, or an hour is over, or somebody asks for what came since. One run may settle it
several times (`runs.follow_again`).
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence

import structlog
from django.db import transaction
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from connectors import errors
from connectors.types import RemoteFolder
from ingestion.models import Folder, Mailbox, Run
from ingestion.services.engine import backoff
from ingestion.services.engine.careful import BREAKS
from ingestion.services.engine.folders import READABLE
from ingestion.services.engine.lease import Lease
from ingestion.services.engine.trouble import Action, Trouble

log = structlog.get_logger(__name__)

#: So often a connection may end at a folder before the folder has to wait. The one before the last
#: is when messages begin to be fetched one by one (`engine.careful`): it may be one of them.
_BREAKS = 3
_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)
#: What is done with while others take hours is followed again meanwhile: some of it, in every
#: other slice, as each may be all that a slice has time for.
_AGAIN, _AGAIN_IN_A_SLICE = dt.timedelta(hours=1), 3


def begun(run: Run, mailbox: Mailbox) -> dt.datetime:
    """Return since when a folder must have been followed, to be passed by."""
    asked = run.asked_at or run.started_at
    return max(asked, mailbox.last_synced_at or asked)


def _turn(one: tuple[RemoteFolder, Folder]) -> tuple[int, dt.datetime]:
    _, folder = one
    return folder.attempts, folder.followed_at or _NEVER


def _again(
    followed: Sequence[tuple[RemoteFolder, Folder]], since: dt.datetime, before: dt.datetime
) -> list[tuple[RemoteFolder, Folder]]:
    """Return some of the folders that are done with, were followed before a time, and can be."""
    found = [
        one
        for one in followed
        if since <= (one[1].followed_at or _NEVER) < before and one[1].failing_since is None
    ]
    return sorted(found, key=_turn)[:_AGAIN_IN_A_SLICE]


class Turn:
    """One slice's way through the folders. Iterate; tell of each how it went. Not thread-safe."""

    def __init__(
        self,
        held: Lease,
        run: Run,
        mailbox: Mailbox,
        followed: Sequence[tuple[RemoteFolder, Folder]],
    ) -> None:
        self._held, self._followed = held, followed
        now = timezone.now()
        since = begun(run, mailbox)
        todo = [one for one in followed if (one[1].followed_at or _NEVER) < since]
        due = [(r, f) for r, f in todo if f.not_before is None or f.not_before <= now]
        # Where all have failed, the mailbox's own wait is over: none of them need wait longer.
        all_fail = all(folder.failing_since for _, folder in followed)
        #: Those at which something went wrong come last, and before them what was followed last.
        self._queue = [
            *(_again(followed, since, held.began - _AGAIN) if held.token % 2 else ()),
            *sorted(todo if all_fail else due, key=_turn),
        ]
        self.left = len(self._queue)
        self._done: list[int] = []
        self._refusal: Trouble | None = None

    def __iter__(self) -> Iterator[tuple[RemoteFolder, Folder]]:
        for one in self._queue:
            self.left -= 1
            yield one

    def done(self, folder: Folder) -> None:
        """It is followed to the end, though perhaps not yet committed."""
        self._done.append(folder.pk)
        if folder.attempts:
            self._update(folder, READABLE)
            folder.failing_since = None

    def refused(self, folder: Folder, what: Trouble) -> None:
        """The folder can't be read by itself."""
        if what.code != errors.FolderGone.code:  # that says nothing about the mailbox
            self._refusal = what
        self._note(folder, what)

    def failed(self, folder: Folder, what: Trouble, *, moved: bool, fetching: bool) -> None:
        """The connection, or the whole mailbox, failed while this folder was in hand. `moved`:
        something came of the folder before. `fetching`: it failed in a download. (Neither says
        anything of a bug, which comes back at the same place.)"""
        is_bug = what.action is Action.BUG
        if not is_bug and (what.action is not Action.RETRY or what.code == errors.RateLimited.code):
            return
        code = BREAKS if fetching and not is_bug else what.code
        if moved and not is_bug:
            if folder.attempts:
                self._update(folder, READABLE)
        elif folder.attempts + 1 >= _BREAKS:
            self._note(folder, what, code=code)
        else:
            self._update(folder, {"attempts": folder.attempts + 1, "last_error_code": code})

    def leave(self) -> None:
        """Remember for the next slice what is done with. Call once it is committed. All that came
        to these folders before the slice began is archived: of what came since nobody knows."""
        if not self._done:
            return
        with transaction.atomic():
            self._held.fence()
            Folder.objects.filter(pk__in=self._done).update(followed_at=self._held.began)

    def end(self) -> None:
        """All had their turn. Raises Unavailable where none of the folders can be read."""
        refusal = self._refusal
        if refusal is not None and all(folder.failing_since for _, folder in self._followed):
            raise errors.Unavailable(refusal.text, code=refusal.code)

    def _note(self, folder: Folder, what: Trouble, *, code: str = "") -> None:
        attempts = folder.attempts + 1
        wait = backoff.folder_delay(attempts)
        self._update(
            folder,
            {
                "attempts": attempts,
                "not_before": Now() + wait,
                "failing_since": Coalesce("failing_since", Now()),
                "last_error_code": code or what.code,
                "last_error": what.text[:2000].replace("\0", ""),
            },
        )
        folder.failing_since = folder.failing_since or timezone.now()
        log.warning("folder_unreadable", folder=folder.pk, code=what.code, attempts=attempts)

    def _update(self, folder: Folder, values: Mapping[str, object]) -> None:
        with transaction.atomic():
            self._held.fence()
            Folder.objects.filter(pk=folder.pk).update(**values)
