"""Copies one mailbox: lists its folders' changes, drops what is archived, captures the rest.

    lease --> folders() --> per folder: changes() page -> drop known -> fetch() -> batch.commit()
                                             ^                                         |
                                             +----- next page, until nothing is new ---+

The work ends when all folders are followed (the mailbox owes its run nothing more), at the end of
the time slice (with a page, unless that takes too long; the row is due again at once), when the
source is paused or deleted or the lease is lost (`engine.lease` notices within RENEW_SECONDS; then
at the next message or page), or with an error: `engine.trouble` says what it means,
`engine.outcomes` what that does to the rows. A session opened here never outlives the lease;
nothing here runs inside a transaction but what a batch commits.
"""

import dataclasses
import time
import uuid
from collections.abc import Generator, Sequence

import structlog
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from django.db.models.functions import Now

from connectors import errors
from connectors.base import MailboxSession
from connectors.outages import MAX_IN_A_ROW
from connectors.types import MessageRef, Page, RemoteFolder, RemoteMailbox
from ingestion.errors import LeaseLost, LostRace
from ingestion.models import Folder, Mailbox, Run
from ingestion.packs.store import store
from ingestion.services.engine import (
    careful,
    counters,
    failures,
    folder_turns,
    folders,
    lease,
    outcomes,
    placements,
    runs,
    trouble,
)
from ingestion.services.engine import statements as sql
from ingestion.services.engine.capture import Capture, OpenBatch
from ingestion.services.engine.lease import Lease
from ingestion.services.engine.trouble import Action
from ingestion.services.sources import credentials
from ingestion.services.sources.options import Options
from ingestion.services.transactions import others_went_first, raise_if_interrupted
from ingestion.states import ListAnew, RunKind

log = structlog.get_logger(__name__)

_Followed = Sequence[tuple[RemoteFolder, Folder]]

#: After this long the worker takes the next mailbox in line; this one goes on in its turn.
SLICE_SECONDS = 120
#: And after so much more in the middle of a page, which then has to be listed again: from a server
#: that gives 1 MB/s a page of 20,000 messages may take an hour.
PAGE_SECONDS = 240
#: Fewer are there before anybody has read that they are awaited.
_WORTH_EXPECTING = 100
#: After so many failures of a folder without progress, one message may be what breaks it.
_STUCK_ATTEMPTS = 2


def sync_mailbox(
    mailbox_id: uuid.UUID,
    *,
    slice_seconds: float = SLICE_SECONDS,
    page_seconds: float = PAGE_SECONDS,
) -> bool:
    """Work on a mailbox that is due, for one time slice; tell whether it has more to do at once.

    Does nothing where the mailbox is not due or another worker has it. Raises nothing that an
    operator could mend: that is in the mailbox's row.
    """
    held = lease.acquire(mailbox_id)
    if held is None:
        return False
    mailbox = Mailbox.objects.select_related("source", "run").get(pk=mailbox_id)
    run = mailbox.run
    if run is None:  # it was ended since the lease was taken
        held.give_back()
        return False
    with structlog.contextvars.bound_contextvars(
        source=str(mailbox.source_id), mailbox=str(mailbox.pk), run=str(run.pk)
    ):
        until = time.monotonic() + slice_seconds
        return _sync_under_lease(held, mailbox, run, _Until(until, until + page_seconds))


@dataclasses.dataclass(frozen=True, slots=True)
class _Until:
    """When the slice ends, by time.monotonic(): between two pages, and within one."""

    page: float
    message: float


def _sync_under_lease(held: Lease, mailbox: Mailbox, run: Run, until: _Until) -> bool:
    finished = False
    with held:
        try:
            finished = _attempt(held, mailbox, run, until)
        except LeaseLost:
            log.warning("lease_lost")
            return False
        except (OperationalError, InterfaceError, LostRace) as error:
            if not others_went_first(error):
                # Nobody can be told in rows: the dispatcher finds the mailbox again.
                log.warning("database_unavailable", error=type(error).__name__)
                connection.close()
                return False
            log.info("others_went_first")  # the mailbox is due as it was
    if finished or Mailbox.objects.filter(pk=mailbox.pk, run=None).exists():
        runs.finish_if_done(run.pk)
        return False
    return (
        not held.stopping.is_set()
        and Mailbox.objects.filter(pk=mailbox.pk, run__isnull=False, not_before__lte=Now()).exists()
    )


def _attempt(held: Lease, mailbox: Mailbox, run: Run, until: _Until) -> bool:
    """Work, and write down how it ended; tell whether the mailbox owes the run nothing more.

    Raises LeaseLost and database errors: then nothing can be written.
    """
    try:
        if held.deaths > outcomes.DEATHS_AT_ONCE:
            outcomes.defer_before(held, mailbox, run)
        finished = _Mailbox(held, mailbox, run, until).work() and outcomes.settle(
            held, mailbox, run
        )
        if not finished:
            outcomes.yield_turn(held)
        return finished
    except Exception as error:  # noqa: BLE001 - logs what is a bug, raises what it can't write down
        raise_if_interrupted(error)
        outcomes.act_on(error, held, mailbox, run)
        return False


class _Mailbox:
    """One slice of work on one mailbox, under its lease."""

    def __init__(self, held: Lease, mailbox: Mailbox, run: Run, until: _Until) -> None:
        self.held, self.mailbox, self.run, self.until = held, mailbox, run, until
        self.options = Options.of(mailbox.source.options)
        #: Of what slices before had listed, how much is not listed again yet.
        self.expected = mailbox.messages_expected
        #: Whether anything came of the folder in hand, in this slice.
        self.moved = False
        #: Whether a download is under way.
        self.fetching = False
        #: Whether some messages are to be tried again alone, when all others had their turn.
        self.put_off = False
        #: Folders of which nothing was known: what is there now came with this listing.
        self.fresh: set[int] = set()
        self.capture = Capture(held, store=store(), run=run, mailbox=mailbox)
        self.careful = careful.CarefulFetch(
            held,
            self.capture,
            run,
            mailbox,
            stuck=mailbox.attempts >= _STUCK_ATTEMPTS
            and mailbox.last_error_code != errors.RateLimited.code,
        )

    def work(self) -> bool:
        """Return whether every folder that can be read now is followed to the end."""
        remote = RemoteMailbox(self.mailbox.remote_id, self.mailbox.address)
        with (
            credentials.connect(self.mailbox.source) as connector,
            connector.open(remote) as session,
            self.capture,
        ):
            session.prefer(
                dataclasses.replace(self.options.wanted, has_mail=not self.capture.began_empty)
            )
            followed = folders.store_listing(
                self.held,
                self.run,
                self.mailbox,
                session.folders(),
                self.options,
                is_gone=lambda missing: _is_gone(session, missing),
            )
            turn = folder_turns.Turn(self.held, self.run, self.mailbox, followed)
            finished = False
            try:
                finished = (
                    self._retry_failures(session, followed)
                    and self._follow_all(session, turn)
                    and self._retry_alone(session, followed)
                )
            except errors.ConnectorError:
                self._leave(turn)
                raise
            if not finished:
                self._leave(turn)
            return finished

    def _leave(self, turn: folder_turns.Turn) -> None:
        self.capture.wait()  # what is done with is durable, or it is not done with
        turn.leave()

    def _must_stop(self) -> bool:
        return self.held.stopping.is_set() or time.monotonic() >= self.until.page

    def _must_stop_within_page(self) -> bool:
        return self.held.stopping.is_set() or time.monotonic() >= self.until.message

    def _follow_all(self, session: MailboxSession, turn: folder_turns.Turn) -> bool:
        for remote, folder in turn:
            self.moved = self.fetching = False
            self.careful.stuck = (
                folder.attempts >= _STUCK_ATTEMPTS and folder.last_error_code == careful.BREAKS
            )
            try:
                ended = self._follow(session, remote, folder)
            except (LeaseLost, DatabaseError, OSError):
                raise  # nobody's here
            except Exception as error:
                what = trouble.of(error)
                if what.action is not Action.FOLDER:
                    turn.failed(
                        folder,
                        what,
                        moved=self.moved or self.careful.blamed,
                        fetching=self.fetching,
                    )
                    raise
                turn.refused(folder, what)  # by itself; the session goes on
                ended = True
            else:
                if ended:
                    turn.done(folder)
            if not ended or (turn.left and self._must_stop()):
                return False
        turn.end()
        return True

    def _follow(self, session: MailboxSession, remote: RemoteFolder, folder: Folder) -> bool:
        if folder.list_anew or folders.lacks_older(folder, self.options):
            self._begin_anew(folder, by_bytes=folder.list_anew == ListAnew.BY_BYTES)
        if folder.cursor is None and not sql.has_any(folder.pk):
            self.fresh.add(folder.pk)
        try:
            return self._pages(session, remote, folder)
        except errors.CursorExpired as error:
            log.info("cursor_expired", folder=folder.pk, code=error.code)
            self._begin_anew(folder, by_bytes=isinstance(error, errors.IdsReused))
        try:
            return self._pages(session, remote, folder)
        except errors.CursorExpired as error:
            raise errors.FolderRefused(
                "The provider has this folder listed from the beginning over and over."
                f" It is tried again. ({error})",
                code=error.code,
            ) from error

    def _begin_anew(self, folder: Folder, *, by_bytes: bool) -> None:
        self.capture.wait()  # the sweep must see what came of the listing before
        self.fresh.discard(folder.pk)
        folders.forget_cursor(self.held, folder, by_bytes=by_bytes)

    def _pages(self, session: MailboxSession, remote: RemoteFolder, folder: Folder) -> bool:
        for page in session.changes(remote, folder.cursor):
            if not self._capture_page(session, remote, folder, page):
                return False
            self.moved = self.moved or bool(page.added)
            if self.held.stopping.is_set() or (self._must_stop() and not page.more):
                return page.last
        return True

    def _capture_page(
        self, session: MailboxSession, remote: RemoteFolder, folder: Folder, page: Page
    ) -> bool:
        """Return False where the work had to stop within the page: then the cursor stays."""
        wanted = [ref for ref in page.added if self.options.wants_message(ref)]
        if any(ref.stable_id for ref in wanted):
            self.capture.wait()  # what it is about to show may be the same messages
        if page.again:  # as it was, but for what came late or was not shown for a while
            there = placements.there(folder.pk, [ref.remote_id for ref in wanted])
            wanted = [ref for ref in wanted if ref.remote_id not in there]
        known, unknown = self._split(folder, wanted)
        if self.run.kind == RunKind.SYNC:
            self._expect(len(unknown))
        placed = self._described(session, remote, known)
        rest = self._fetch_carefully(session, remote, folder, unknown)
        if rest is None:
            return False
        with self.capture.batch(folder, fresh=folder.pk in self.fresh) as batch:
            batch.place(placed)
            if not self._fetch_into(batch, session, remote, rest):
                return False  # what came is kept
            retired = False
            if page.present is not None and folder.pk not in self.fresh:
                retired = folders.sweep(self.held, folder, page.present)
            batch.commit(
                cursor=page.cursor,
                removed=page.removed,
                relabelled=page.relabelled,
                listed=page.present is not None,
                retired=retired,
            )
        folder.cursor = dict(page.cursor)
        return True

    def _expect(self, listed: int) -> None:
        """Let the run's total count what a sync has listed, and a slice before had not."""
        more, self.expected = max(0, listed - self.expected), max(0, self.expected - listed)
        if more >= _WORTH_EXPECTING:
            counters.expect(self.run.pk, self.mailbox.pk, more)

    def _fetch_carefully(
        self,
        session: MailboxSession,
        remote: RemoteFolder,
        folder: Folder,
        refs: Sequence[MessageRef],
    ) -> Sequence[MessageRef] | None:
        """Fetch message by message while that is needed; return the rest. None: it had to stop."""
        if not (refs and self.careful.needed):
            return refs
        self.fetching, before = True, self.careful.messages
        try:
            rest = self.careful.fetch_while_needed(
                session, remote, folder, refs, must_stop=self._must_stop
            )
        finally:
            self.moved = self.moved or self.careful.messages > before
        self.fetching = False
        return rest

    def _fetch_into(
        self,
        batch: OpenBatch,
        session: MailboxSession,
        remote: RemoteFolder,
        refs: Sequence[MessageRef],
    ) -> bool:
        """Fetch all of `refs`, committing as it goes; what arrived before an error is kept.

        Returns False where the work had to stop before the last. Leaves the rest uncommitted, for
        the caller to commit together with the cursor.
        """
        if not refs:
            return True
        asked = {ref.remote_id for ref in refs}
        self.fetching = True
        try:
            answers = session.fetch(remote, refs)
            try:
                for answer in answers:
                    self.moved = True
                    asked.discard(answer.ref.remote_id)
                    batch.add(answer)
                    if batch.full:
                        batch.commit()
                    if asked and self._must_stop_within_page():
                        batch.commit()
                        return False
            finally:
                if isinstance(answers, Generator):
                    answers.close()  # its threads end here, not when it is collected
            if asked:
                raise errors.Unavailable(
                    f"The server left {len(asked)} of {len(refs)} messages unanswered.",
                    code="short_reply",
                )
        except errors.ConnectorError:
            if not batch.empty:
                batch.commit()
            raise
        self.fetching = False
        return True

    def _split(
        self, folder: Folder, refs: Sequence[MessageRef]
    ) -> tuple[list[tuple[MessageRef, str]], list[MessageRef]]:
        """Part the references into those whose bytes are archived (and by which message id), and
        those to fetch. A message that failed is fetched when its own time has come, not before."""
        stable_ids = {ref.stable_id for ref in refs} - {""}
        if folder.pk in self.fresh and not stable_ids:
            return [], list({ref.remote_id: ref for ref in refs}.values())
        ids = [ref.remote_id for ref in refs]
        placed, failed = placements.placed(folder.pk, ids), sql.failed(folder.pk, ids)
        stable = placements.stable(self.mailbox.pk, stable_ids)
        known, unknown = [], {}
        for ref in refs:
            message_id = placed.get(ref.remote_id) or stable.get(ref.stable_id)
            if message_id is not None:
                known.append((ref, message_id))
            elif ref.remote_id not in failed:
                unknown[ref.remote_id] = ref  # once, also where a provider repeats itself
        return known, list(unknown.values())

    def _described(
        self,
        session: MailboxSession,
        remote: RemoteFolder,
        known: Sequence[tuple[MessageRef, str]],
    ) -> Sequence[tuple[MessageRef, str]]:
        """Ask for the labels of what is archived, where the listing did not tell them."""
        bare = [ref for ref, _ in known if ref.labels is None]
        if not bare:
            return known
        told = {ref.remote_id: ref for ref in session.describe(remote, bare)}
        return [(told.get(ref.remote_id, ref), message_id) for ref, message_id in known]

    def _retry_failures(self, session: MailboxSession, followed: _Followed) -> bool:
        """Fetch again what failed before and is due, but what is only ever fetched alone. Returns
        False where the work had to stop."""
        remote_of = {folder.pk: (remote, folder) for remote, folder in followed}
        for rows in failures.batches(self.mailbox):
            by_folder: dict[int, list[MessageRef]] = {}
            for row in rows:
                if row.code in careful.ALONE:
                    self.put_off = True  # who becomes one in this slice ends it
                elif row.folder_id in remote_of:
                    by_folder.setdefault(row.folder_id, []).append(failures.reference(row))
            for folder_id, refs in by_folder.items():
                try:
                    if not self._retry_folder(session, *remote_of[folder_id], refs):
                        return False
                except errors.Skippable:
                    continue  # the folder: following it says so
        return True

    def _retry_folder(
        self,
        session: MailboxSession,
        remote: RemoteFolder,
        folder: Folder,
        refs: Sequence[MessageRef],
        *,
        alone: bool = False,
    ) -> bool:
        # One that was moved may have been archived from its new folder meanwhile.
        self.capture.wait()
        archived = placements.stable(self.mailbox.pk, {ref.stable_id for ref in refs} - {""})
        missing = [ref for ref in refs if ref.stable_id not in archived]
        rest: Sequence[MessageRef] | None = []
        if alone:
            for ref in missing:
                self.careful.fetch_alone(session, remote, folder, ref)
        else:
            rest = self._fetch_carefully(session, remote, folder, missing)
        if rest is None:
            return False
        with self.capture.batch(folder, fresh=folder.pk in self.fresh) as batch:
            batch.place([(r, archived[r.stable_id]) for r in refs if r.stable_id in archived])
            if not self._fetch_into(batch, session, remote, rest):
                return False
            batch.commit()
        return True

    def _retry_alone(self, session: MailboxSession, followed: _Followed) -> bool:
        """Fetch again what killed workers or broke connections and is due (`engine.careful`), one
        by one, and at least one, until ten in a row break. Returns False where there was no time
        for all suspects: they come first. What was recorded already holds up nobody, and the next
        sync goes on with it.
        """
        if not self.put_off:
            return True
        remote_of = {folder.pk: (remote, folder) for remote, folder in followed}
        due = failures.due(self.mailbox).filter(code__in=careful.ALONE, folder__in=remote_of)
        rows = list(due.defer("reason").order_by("not_before", "pk"))
        rows.sort(key=careful.is_suspect, reverse=True)
        in_a_row = 0
        for number, row in enumerate(rows):
            if self.held.stopping.is_set() or (number and self._must_stop()):
                return not any(map(careful.is_suspect, rows[number:]))
            try:
                self._retry_folder(
                    session, *remote_of[row.folder_id], [failures.reference(row)], alone=True
                )
            except errors.Skippable:
                pass  # the folder: following it says so
            except errors.Unavailable:
                in_a_row += 1
                # An outage looks the same: it is known of none of these.
                if careful.is_suspect(row):
                    raise
                if in_a_row >= MAX_IN_A_ROW:
                    return True
            else:
                in_a_row = 0
        return True


def _is_gone(session: MailboxSession, missing: RemoteFolder) -> bool:
    """Ask for a folder that was not listed: whether the provider says that it exists no more."""
    try:
        next(iter(session.changes(missing, None)), None)
    except errors.FolderGone:
        return True
    except (errors.Skippable, errors.CursorExpired):
        return False
    return False
