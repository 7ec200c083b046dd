"""Random histories of a provider, an archive, a database and workers that all fail at times. When
all is well again the archive equals the provider, byte for byte, and nothing is left failing.

ENGINE_HISTORIES sets how many are run. A seed is a history: run one with -k "[17]".
"""

import errno
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError
from django.db.models import F, Sum
from django.utils import timezone

from connectors.errors import (
    ConnectorError,
    FolderGone,
    FolderRefused,
    MessageRefused,
    RateLimited,
    Unavailable,
)
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Message, Pack, Run
from ingestion.packs.store import PackWriter
from ingestion.services.engine import capture, commit, counters, sync
from ingestion.services.sources import discovery, verbs
from tests.servers.scripted_provider import Mail, Server
from tests.servers.scripted_source import ACTOR, assert_exact, body, due_now, start, synced

pytestmark = pytest.mark.django_db(transaction=True)

_STEPS = 14
_NAMES = ("INBOX", "Sent", "Projects/2024", "Old")


class History:
    """What happens to one source. All of it comes from the seed."""

    def __init__(self, seed: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.random, self.server, self.monkeypatch = random.Random(seed), server, monkeypatch
        self.names = _NAMES[: self.random.randint(1, 4)]
        self.stable = self.random.random() < 0.4
        self.number = 0
        self.breaks: dict[str, float] = {}
        server.page_size = self.random.randint(3, 30)
        batch = self.random.randint(3, 50)
        for module in (capture, commit):
            monkeypatch.setattr(module, "COMMIT_MESSAGES", batch)
        self._may_fail(PackWriter, "commit", "before", OSError(errno.ENOSPC, "No space left"))
        self._may_fail(PackWriter, "commit", "after", OSError(errno.EIO, "I/O error"))
        self._may_fail(counters, "count", "after", OperationalError("rolled back"))
        self._may_fail(counters, "recount_source", "before", OperationalError("after COMMIT"))
        server.before_message, server.before_changes = self._before_message, self._before_changes
        for name in self.names:
            self.deliver(name)

    # -- the provider --------------------------------------------------------------------------

    def mail(self) -> Mail:
        # A small choice of bytes: some mail is in several folders, and twice in one.
        self.number = self.random.randint(1, 60)
        return Mail(body(self.number), f"stable {self.number}" if self.stable else "")

    def deliver(self, name: str) -> None:
        for _ in range(self.random.randint(0, 12)):
            mail = self.mail()
            self.server.deliver(name, mail.body, stable_id=mail.stable_id)

    def happen(self) -> None:
        """One thing that people or the provider do."""
        name = self.random.choice(self.names)
        mails = self.server.folders.get(name)
        if mails is None:
            self.server.validity[name] = self.server.validity.get(name, 0) + 1
            self.server.folders[name] = {}
            self.deliver(name)
            return
        # Not the last: the scripted provider would give its id again.
        some = self.random.sample(sorted(mails)[:-1], k=max(0, len(mails) - 1) // 3)
        change: Callable[[str, dict[int, Mail], list[int]], None] = self.random.choice(
            [
                *(self._arrive, self._arrive, self._expunge, self._relabel),
                *(self._renumber, self._delete, self._restore),
            ]
        )
        change(name, mails, some)

    def _arrive(self, name: str, _mails: dict[int, Mail], _some: list[int]) -> None:
        self.deliver(name)

    def _expunge(self, _name: str, mails: dict[int, Mail], some: list[int]) -> None:
        for uid in some:
            del mails[uid]

    def _relabel(self, _name: str, mails: dict[int, Mail], some: list[int]) -> None:
        for uid in some:
            mails[uid].labels = (f"label {self.random.randint(1, 3)}",)

    def _renumber(self, name: str, _mails: dict[int, Mail], _some: list[int]) -> None:
        self.server.renumber(name)

    def _delete(self, name: str, _mails: dict[int, Mail], _some: list[int]) -> None:
        if len(self.server.folders) > 1:
            del self.server.folders[name]

    def _restore(self, name: str, mails: dict[int, Mail], some: list[int]) -> None:
        if self._is_known(name):
            self.server.restored[name] = self.server.restored.get(name, 0) + 1
            for uid in some:
                mails[uid] = self.mail()

    def _is_known(self, name: str) -> bool:
        """Whether the engine has a cursor: without one no connector can know of a restore."""
        row = Folder.objects.filter(remote_id=name, removed_at=None).first()
        return row is not None and (row.cursor or {}).get("validity") == self.server.validity[name]

    # -- the faults ----------------------------------------------------------------------------

    def fail_at_times(self) -> None:
        self.server.refused = {
            f"1:{self.random.randint(1, 12)}": MessageRefused("Damaged.")
            for _ in range(self.random.choice([0, 0, 2]))
        }
        self.server.unlisted = set()
        if self.random.random() < 0.2:  # for once, a listing lacks a folder or all
            self.server.unlisted = set(
                self.names if self.random.random() < 0.5 else [self.random.choice(self.names)]
            )
        kinds = ["drop", "steal", "folder", "limit", "before", "after"]
        self.breaks = {kind: 0.03 for kind in kinds if self.random.random() < 0.3}
        if "folder" in self.breaks:
            self.breaks["folder"] = 0.4

    def recover(self) -> None:
        self.breaks, self.server.refused, self.server.unlisted = {}, {}, set()

    def _now(self, kind: str) -> bool:
        return self.random.random() < self.breaks.get(kind, 0)

    def _before_message(self, _: int) -> None:
        if self._now("drop"):
            raise Unavailable("The server hung up.")
        if self._now("limit"):
            raise RateLimited("Slow down.")
        if self._now("steal"):
            Mailbox.objects.update(lease_token=F("lease_token") + 1, lease_expires_at=None)

    def _before_changes(self, _: str) -> None:
        if self._now("folder"):
            errors: list[ConnectorError] = [
                FolderRefused("In use."),
                FolderGone("No such folder, for once."),
                Unavailable("The server hung up."),
            ]
            # A folder that is not listed is asked for: then "gone" would be the truth.
            raise self.random.choice(errors[:: 2 if self.server.unlisted else 1])

    def _may_fail(self, owner: Any, name: str, when: str, error: Exception) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def failing(*args: Any, **kwargs: Any) -> Any:
            fails = threading.current_thread().name.startswith("commit") and self._now(when)
            if fails and when == "before":
                raise error
            result = real(*args, **kwargs)
            if fails:
                raise error
            return result

        self.monkeypatch.setattr(owner, name, failing)


def a_slice(source: IngestionSource, history: History) -> None:
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    if Mailbox.objects.filter(run__isnull=False).exists():
        Folder.objects.filter(not_before__isnull=False).update(not_before=timezone.now())
        FailedMessage.objects.update(not_before=timezone.now())
        seconds = history.random.choice([0, 60])
        sync.sync_mailbox(due_now().pk, slice_seconds=seconds, page_seconds=60)
    for run in Run.objects.all():
        assert run.messages_done <= run.messages_total


@pytest.mark.parametrize("seed", range(int(os.environ.get("ENGINE_HISTORIES", "10"))))
def test_after_any_history_the_archive_equals_the_provider(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    history = History(seed, server, monkeypatch)
    start(source)
    for _ in range(_STEPS):
        history.fail_at_times()
        if history.random.random() < 0.7:
            history.happen()
        a_slice(source, history)
    history.recover()
    FailedMessage.objects.update(not_before=timezone.now())
    for _ in range(2):  # what a listing lacked for once is looked for in the next
        synced(source)
        FailedMessage.objects.update(not_before=timezone.now())
    run = synced(source)
    assert (run.status, run.message) == ("completed", "0 archived.")
    assert_exact(server, source)
    assert not FailedMessage.objects.exists()
    assert not Folder.objects.exclude(failing_since=None).exists()
    packed = Pack.objects.aggregate(n=Sum("message_count"))["n"] or 0
    assert packed == Message.objects.count()
