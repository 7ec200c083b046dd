"""Random histories of a mailbox, with faults and crashes, against a model of the server.

Hypothesis makes up what happens: mail comes, is copied, moved, flagged and expunged; folders are made,
renamed, deleted and renumbered; a connection breaks, also inside a literal; the server changes while
it is read; the process that syncs dies by SIGKILL at any of its statements and file operations (a
process of its own, tests/servers/mortal.py). After each sync:

    always               what is archived is exact and stays; a cursor passed nothing that is not
                         archived or recorded as failed; the counters are right
    a sync without fault placements and labels are the server's, bytes are exact, what is gone is
                         marked, and a second sync downloads nothing

The examples are the same in each run (derandomize); which of a process's threads is at which step
when it dies is the kernel's choice. MODEL_EXAMPLES=2000 makes that many at random per kind of server,
makes a failure small and prints how to repeat it.
"""

import datetime as dt
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from connectors import parallel
from connectors.generic_imap import commands, download, listing
from connectors.types import SpooledBody
from ingestion import queries
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Placement,
    Run,
)
from ingestion.services.archive import housekeeping, reading
from ingestion.services.audit import Actor
from ingestion.services.engine import capture, commit, failures, looking, runs, sync
from ingestion.services.engine.placements import before_retirement
from ingestion.services.sources import configuration, credentials, discovery, verbs
from ingestion.states import RunStatus
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript, Mail
from tests.servers.mortal import MortalProcess, dies

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(0)]
ACTOR = Actor.system("model")
OBJECTID = (*MODERN, "OBJECTID")

_NAMES = (b"Sent", b"Lists/Django", b'q"\\uote', b"&AOk-t&AOk-", b"a b")
_BODIES = (
    b"",
    b"\0\xff",
    b"Subject: dot\r\n\r\n.\r\n)\r\nA1 OK done\r\n",
    b"Subject: one\r\nMessage-ID: <same@example.com>\r\n\r\n1",
    b"Subject: two\r\nMessage-ID: <same@example.com>\r\n\r\n2",
    b"no header at all\nbut {5}\r\nlines",
    b"Subject: long\r\n\r\n" + b"x" * 3_000,
)
_FLAGS = (b"\\Seen", b"\\Flagged", b"$Label1")

numbers = st.integers(0, 999)
bodies = st.sampled_from(_BODIES)
flags = st.sets(st.sampled_from(_FLAGS)).map(sorted).map(tuple)


class History(RuleBasedStateMachine):
    """The model is the scripted server itself: it knows what it holds."""

    capabilities: tuple[str, ...] = MODERN
    owner: User

    def __init__(self) -> None:
        super().__init__()
        self.server = ImapScript(capabilities=self.capabilities)
        self.server.__enter__()
        self.fresh = itertools.count(1)
        #: "validity:uid" -> the bytes that this name ever had: it never gets others.
        self.ever: dict[str, bytes] = {}
        self.labels: dict[str, set[tuple[str, ...]]] = {}
        #: (folder row, remote id) of all that was ever placed.
        self.known: set[tuple[int, str]] = set()
        self.quiet = False
        self.server.boxes = {b"INBOX": self._box()}
        self.source = configuration.create(
            owner=self.owner,
            name="Model",
            provider="generic_imap",
            provider_config={
                "host": self.server.host, "port": self.server.port, "secure": False,
                "username": self.server.name, "password": self.server.password,
            },
            actor=ACTOR,
        )  # fmt: skip
        assert credentials.check(self.source, actor=ACTOR).ok

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.sync()  # every history ends well
        finally:
            self.server.__exit__(None, None, None)

    # -- what happens at the server ----------------------------------------------------------------

    @rule(at=numbers, body=bodies, flags=flags, copies=st.integers(1, 4))
    def deliver(self, at: int, body: bytes, flags: tuple[bytes, ...], copies: int) -> None:
        _, box = self._folder(at)
        for _ in range(copies):
            self._put(box, body, flags, b"E%d" % next(self.fresh))

    @rule(at=numbers, count=st.integers(5, 9))
    def deliver_many(self, at: int, count: int) -> None:
        _, box = self._folder(at)
        for _ in range(count):
            number = next(self.fresh)
            self._put(box, b"Subject: %d\r\n\r\n%d" % (number, number), (), b"E%d" % number)

    @precondition(lambda self: self.mails)
    @rule(which=numbers, to=numbers, stays=st.booleans())
    def copy_or_move(self, which: int, to: int, stays: bool) -> None:
        box, uid = self._mail(which)
        mail = box.mails[uid]
        self._put(self._folder(to)[1], mail.body, mail.flags, mail.email_id)
        if not stays:
            box.expunge(uid)

    @precondition(lambda self: self.mails)
    @rule(which=numbers)
    def expunge(self, which: int) -> None:
        box, uid = self._mail(which)
        box.expunge(uid)

    @precondition(lambda self: self.mails)
    @rule(which=numbers, flags=flags)
    def flag(self, which: int, flags: tuple[bytes, ...]) -> None:
        box, uid = self._mail(which)
        box.flag(uid, *flags)
        self._note(box, uid)

    @precondition(lambda self: self.mails)
    @rule(which=numbers)
    def refuse(self, which: int) -> None:
        """The server can't read this message: it says NO."""
        box, uid = self._mail(which)
        box.mails[uid].refusal = b"NO [SERVERBUG] can't read it"

    @rule()
    def heal(self) -> None:
        """The server can read all of them again, and an operator says so."""
        for box in self.server.boxes.values():
            for mail in box.mails.values():
                mail.refusal = b""
        failures.retry(self.source, actor=ACTOR)

    @precondition(lambda self: self.unused)
    @rule(name=numbers)
    def make_folder(self, name: int) -> None:
        self.server.boxes[self.unused[name % len(self.unused)]] = self._box()

    @precondition(lambda self: self.unused and len(self.server.boxes) > 1)
    @rule(which=numbers, name=numbers)
    def rename_folder(self, which: int, name: int) -> None:
        new = self.unused[name % len(self.unused)]
        old = self._other(which)
        self.server.boxes[new] = self.server.boxes.pop(old)

    @precondition(lambda self: len(self.server.boxes) > 1)
    @rule(which=numbers)
    def delete_folder(self, which: int) -> None:
        del self.server.boxes[self._other(which)]

    @rule(at=numbers, first=st.sampled_from((1, 3, 40)))
    def renumber(self, at: int, first: int) -> None:
        """A new UIDVALIDITY, and UIDs that may be lower or higher than before, in another order."""
        name, old = self._folder(at)
        new = self._box()
        new.object_id, new.next_uid = old.object_id, first
        for mail in reversed(list(old.mails.values())):
            uid = self._put(new, mail.body, mail.flags, mail.email_id)
            new.mails[uid].refusal = mail.refusal
        self.server.boxes[name] = new

    # -- syncs -------------------------------------------------------------------------------------

    @rule()
    def sync(self) -> None:
        """A sync that nothing disturbs: afterwards all is as the server has it."""
        stale = self._not_looked_at()
        asked = len(self.server.asked(b"BODY"))
        run = self._until_done()
        assert (run.status, run.warning) == (RunStatus.COMPLETED, ""), run.message
        self._check_always()
        self._check_exact(stale)
        if self.quiet:
            assert len(self.server.asked(b"BODY")) == asked, "downloaded again"
        self.quiet = not self._refused()

    @rule()
    def look(self) -> None:
        """Where a look finds that nothing is to be done, all is as the server has it."""
        idle = IngestionSource.objects.filter(pk=self.source.pk, next_sync_at__isnull=False)
        if idle.update(next_sync_at=timezone.now() - dt.timedelta(seconds=1)):
            stale = self._not_looked_at()
            looking.work(self.source.pk)
            if not Run.objects.filter(source=self.source, finished_at=None).exists():
                self._check_exact(stale)
        self._check_always()

    @rule()
    def sync_one_slice(self) -> None:
        """The time slice ends after the first page."""
        self._attempt(slice_seconds=0)
        self._check_always()

    @rule()
    def a_week_passes(self) -> None:
        """The next sync tells all messages again."""
        for folder in self._folders():
            if folder.cursor is not None:
                Folder.objects.filter(pk=folder.pk).update(cursor={**folder.cursor, "t": 0})

    @rule(at=numbers, shown=st.integers(0, 3))
    def sync_while_some_are_not_shown(self, at: int, shown: int) -> None:
        """What was archived is not shown for a while: a replica lags, or a folder has a limit."""
        self.sync()
        _, box = self._folder(at)
        whole, refused = box.mails, {remote_id for _, remote_id in self._refused()}
        hidden = {uid for uid in sorted(whole)[shown:] if f"{box.validity}:{uid}" not in refused}
        box.mails = {uid: mail for uid, mail in whole.items() if uid not in hidden}
        try:
            self.sync()
        finally:
            box.mails = whole
        self.quiet = False

    @rule(command=st.integers(1, 25))
    def sync_with_a_connection_dropped_at_a_command(self, command: int) -> None:
        seen = itertools.count(1)

        def drop(client: Client, _tag: bytes, _command: bytes) -> bool:
            if next(seen) == command:
                client.hang_up()
                return True
            return False

        self._disturbed(self._attempt, hook=drop)

    @rule(mail=st.integers(1, 12), part=st.sampled_from((0.0, 0.5, 1.0)))
    def sync_with_a_connection_dropped_inside_a_message(self, mail: int, part: float) -> None:
        def drop(client: Client, uid: int) -> None:
            self._send_part(client, uid, part)
            client.hang_up()

        self._disturbed(self._attempt, at_mail=mail, before_mail=drop)

    @rule(step=st.integers(1, 120))
    def sync_in_a_process_that_dies(self, step: int) -> None:
        dies(self._attempt, at_step=step, directory=django_settings.ARCHIVE_DIR)
        self._check_always()

    @rule(mail=st.integers(1, 12), part=st.sampled_from((0.0, 0.5, 1.0)))
    def sync_in_a_process_that_is_killed_inside_a_message(self, mail: int, part: float) -> None:
        with MortalProcess(
            self._attempt, at_step=None, directory=django_settings.ARCHIVE_DIR
        ) as process:

            def kill(client: Client, uid: int) -> None:
                self._send_part(client, uid, part)
                process.kill()

            self._disturbed(process.wait, at_mail=mail, before_mail=kill)

    @rule(mail=st.integers(1, 8), which=numbers, change=st.integers(0, 4))
    def sync_while_the_server_changes(self, mail: int, which: int, change: int) -> None:
        def meddle(_client: Client, _uid: int) -> None:
            if change == 0:
                self.deliver(which, _BODIES[which % len(_BODIES)], (), 2)
            elif change == 1 and self.mails:
                self.expunge(which)
            elif change == 2 and self.mails:
                self.flag(which, (b"\\Flagged",))
            elif change == 3:
                self.renumber(which, 1)
            elif len(self.server.boxes) > 1:
                self.delete_folder(which)

        self._disturbed(self._attempt, at_mail=mail, before_mail=meddle)

    # -- what must hold ----------------------------------------------------------------------------

    def _check_always(self) -> None:
        placements = list(self._placements())
        failed = self._failed()
        for placement in placements:
            assert _content(placement) == self.ever[_given(placement)], placement.remote_id
        rows = {(p.folder_id, _given(p)) for p in placements}
        assert self.known <= rows, "what was archived once is not even marked as removed"
        self.known = rows
        placed = {(p.folder.remote_id, p.remote_id) for p in placements}
        for folder in self._folders():
            box = self.server.boxes.get(folder.remote_id.encode("latin-1"))
            if folder.cursor is None or box is None or box.validity != folder.cursor["v"]:
                continue
            passed = {
                (folder.remote_id, f"{box.validity}:{uid}")
                for uid in box.mails
                if uid < folder.cursor["n"]
            }
            assert passed <= placed | failed, "the cursor passed what is not archived"
        messages = Message.objects.filter(mailbox__source=self.source)
        sizes = list(messages.values_list("size_bytes", flat=True))
        mailbox = Mailbox.objects.filter(source=self.source)
        assert list(mailbox.values_list("message_count", "archived_bytes")) in (
            [(len(sizes), sum(sizes))],
            [],
        )

    def _check_exact(self, stale: set[str]) -> None:
        held = {
            (name.decode("latin-1"), f"{box.validity}:{uid}"): mail
            for name, box in self.server.boxes.items()
            for uid, mail in box.mails.items()
        }
        here = {
            (p.folder.remote_id, p.remote_id): p for p in self._placements() if not p.removed_at
        }
        assert self._failed() == self._refused() - here.keys()
        assert here.keys() | self._failed() == held.keys()
        for key, placement in here.items():
            labels = tuple(placement.labels)
            if key[0] in stale:  # such a server does not tell of flags: they are those of once
                assert labels in self.labels[key[1]]
            else:
                assert labels == _labels(held[key]), key
        gone = {f.remote_id for f in self._folders() if f.removed_at is not None}
        known = {f.remote_id for f in self._folders()}
        assert known - gone == {name.decode("latin-1") for name in self.server.boxes}
        self.source.refresh_from_db()
        counted = (self.source.message_count, self.source.archived_bytes)
        assert counted == Mailbox.objects.filter(source=self.source).values_list(
            "message_count", "archived_bytes"
        ).get()  # fmt: skip
        housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5))
        for placement in here.values():
            _content(placement)  # still there: no pack in use was collected

    def _not_looked_at(self) -> set[str]:
        """Folders whose flags the next sync does not read: unchanged, on a server without CONDSTORE."""
        if self.server.has("CONDSTORE"):
            return set()
        found = set()
        for folder in self._folders():
            box = self.server.boxes.get(folder.remote_id.encode("latin-1"))
            if box is None or not folder.cursor or not folder.cursor["done"]:
                continue
            now = (box.validity, box.next_uid, len(box.mails))
            if now == tuple(folder.cursor[key] for key in "vnc"):
                found.add(folder.remote_id)
        return found

    # -- helpers -----------------------------------------------------------------------------------

    @property
    def mails(self) -> list[tuple[bytes, int]]:
        return [(name, uid) for name, box in self.server.boxes.items() for uid in box.mails]

    @property
    def unused(self) -> list[bytes]:
        return [name for name in _NAMES if name not in self.server.boxes]

    def _box(self) -> Box:
        number = next(self.fresh)
        return Box(validity=number, object_id=b"F%d" % number)

    def _folder(self, at: int) -> tuple[bytes, Box]:
        self.quiet = False
        names = list(self.server.boxes)
        name = names[at % len(names)]
        return name, self.server.boxes[name]

    def _other(self, which: int) -> bytes:
        """Return a folder that is not INBOX."""
        self.quiet = False
        names = [name for name in self.server.boxes if name != b"INBOX"]
        return names[which % len(names)]

    def _mail(self, which: int) -> tuple[Box, int]:
        self.quiet = False
        name, uid = self.mails[which % len(self.mails)]
        return self.server.boxes[name], uid

    def _put(self, box: Box, body: bytes, flags: tuple[bytes, ...], email_id: bytes) -> int:
        uid = box.deliver(body, flags=flags, email_id=email_id)
        self.ever[f"{box.validity}:{uid}"] = body
        self._note(box, uid)
        return uid

    def _note(self, box: Box, uid: int) -> None:
        values = self.labels.setdefault(f"{box.validity}:{uid}", set())
        values.add(_labels(box.mails[uid]))

    def _send_part(self, client: Client, uid: int, part: float) -> None:
        assert client.box is not None
        body = client.box.mails[uid].body
        answer = b"* 1 FETCH (UID %d BODY[] {%d}\r\n%s" % (uid, len(body), body)
        client.send(answer[: int(len(answer) * part)])

    def _disturbed(
        self,
        work: Callable[[], object],
        *,
        hook: Callable[[Client, bytes, bytes], bool] = lambda *_: False,
        at_mail: int = 0,
        before_mail: Callable[[Client, int], None] = lambda *_: None,
    ) -> None:
        served = itertools.count(1)

        def before(client: Client, uid: int) -> None:
            if next(served) == at_mail:
                before_mail(client, uid)

        self.quiet = False
        self.server.hooks.append(hook)
        self.server.before_each_mail = before
        try:
            work()
        finally:
            self.server.hooks.clear()
            self.server.before_each_mail = lambda *_: None
        self._check_always()

    def _attempt(self, slice_seconds: float = 120) -> None:
        """What a worker does for the source, once; waits that an error asked for are over."""
        run = verbs.start_sync(self.source, actor=ACTOR)
        if run.discovered_at is None:
            discovery.discover(run.pk)
        mine = Mailbox.objects.filter(source=self.source)
        mine.update(not_before=timezone.now() - dt.timedelta(seconds=1))
        sync.sync_mailbox(mine.get().pk, slice_seconds=slice_seconds)
        runs.finish_if_done(run.pk)  # as the dispatcher does, where a worker died before it did

    def _until_done(self) -> Run:
        """Sync to the end. A worker that was killed just now may hold its lease for an instant."""
        deadline = time.monotonic() + 120
        for left in Run.objects.filter(source=self.source, finished_at=None):
            runs.finish_if_done(left.pk)  # all done before what happened since: not this sync
        run = verbs.start_sync(self.source, actor=ACTOR)
        Run.objects.filter(pk=run.pk).update(warning="")
        while run.finished_at is None:
            assert time.monotonic() < deadline, (run.warning, Mailbox.objects.values())
            self._attempt()
            run.refresh_from_db()
        return run

    def _placements(self) -> Iterator[Placement]:
        mine = Placement.objects.filter(mailbox__source=self.source)
        return mine.select_related("message__mailbox", "folder").iterator()

    def _folders(self) -> list[Folder]:
        return list(Folder.objects.filter(mailbox__source=self.source))

    def _failed(self) -> set[tuple[str, str]]:
        mine = FailedMessage.objects.filter(mailbox__source=self.source)
        return set(mine.values_list("folder__remote_id", "remote_id"))

    def _refused(self) -> set[tuple[str, str]]:
        return {
            (name.decode("latin-1"), f"{box.validity}:{uid}")
            for name, box in self.server.boxes.items()
            for uid, mail in box.mails.items()
            if mail.refusal or not mail.body  # no mail has no bytes
        }


def _labels(mail: Mail) -> tuple[str, ...]:
    return tuple(sorted(flag.decode() for flag in mail.flags))


def _given(placement: Placement) -> str:
    """The id that the server gave, also of what was in a folder that is there again."""
    return before_retirement(placement.remote_id)


def _content(placement: Placement) -> bytes:
    message = placement.message
    body = reading.opened(message)
    assert not isinstance(body, SpooledBody)
    return body


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, commits and commands of a few messages, so that twenty are a large folder."""
    monkeypatch.setattr(listing, "PAGE_MESSAGES", 4)
    monkeypatch.setattr(listing, "BARE_PAGE_MESSAGES", 4)
    monkeypatch.setattr(listing, "_MAX_REMOVED", 2)
    monkeypatch.setattr(listing, "FLAGS_WINDOW", 5)
    monkeypatch.setattr(commands, "SEQUENCE_STEP", 3)
    monkeypatch.setattr(commands, "UIDS_WINDOW", 3)
    monkeypatch.setattr(download, "_BATCH_MESSAGES", 2)
    monkeypatch.setattr(parallel, "_CHUNK_MESSAGES", 2)
    for module in (capture, commit):
        monkeypatch.setattr(module, "COMMIT_MESSAGES", 3)
    monkeypatch.setattr(capture, "_LOOKUP_MESSAGES", 2)
    monkeypatch.setattr(queries, "_PLACEMENT_ROWS", 3)


def _profile() -> settings:
    chosen = int(os.environ.get("MODEL_EXAMPLES") or 0)
    return settings(
        max_examples=chosen or 18,
        stateful_step_count=25,
        derandomize=not chosen,
        database=None,
        deadline=None,
        print_blob=True,
        # Making a failure small takes minutes: not in CI.
        phases=[Phase.generate, *([Phase.shrink] if chosen else [])],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.long(seconds=45)
@pytest.mark.parametrize("offered", [MODERN, PLAIN, OBJECTID], ids=["modern", "plain", "objectid"])
def test_any_history_is_archived_exactly(offered: tuple[str, ...]) -> None:
    class Machine(History):
        capabilities = offered
        owner = User.objects.create_user("model")

    run_state_machine_as_test(Machine, settings=_profile())
