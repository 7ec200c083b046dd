"""Looks at accounts whose time has come, many at once, and begins a sync where one is needed.

    due --> taken --> looked at, by many threads --> nothing changed: due again in its turn
                                                 '-> anything else: a sync begins (`engine.runs`)

Most accounts have nothing new most of the time. To find that out, a sync is a run, a listing of
mailboxes, a lease and two tasks; a look is one login and one listing of folders, and any number of
looks are written down by a statement or two. It decides nothing but that there is nothing to do:
what it can't tell, or what is to be written down, is left to the sync. So it needs no lease, and
may be killed or done twice.

Only for sources that are one account (`Config.only_mailbox`): those of many list their mailboxes.
"""

import concurrent.futures
import dataclasses
import datetime as dt
import functools
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import structlog
from django.db import connection
from django.db.models import Exists, OuterRef, Prefetch, Q
from django.db.models.functions import Now

from connectors import registry
from connectors.types import RemoteMailbox
from ingestion import pace
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox
from ingestion.services.engine import folders, lease, runs
from ingestion.services.engine.places import Places
from ingestion.services.sources import credentials
from ingestion.services.sources.options import Options
from ingestion.services.transactions import in_transaction
from ingestion.states import ListAnew, MailboxState, SourceStatus

log = structlog.get_logger(__name__)

#: A source whose account is due to be looked at.
DUE = """status = 'active' AND deleted_at IS NULL AND next_sync_at <= now()
   AND provider = ANY(%(one_account)s)"""

#: How many are looked at at once: most of a look is waiting for a server.
_AT_ONCE = 32
#: And how many at one server: some bear no more from one address, and who is refused syncs instead.
_AT_ONE_SERVER = 16
#: What is done within this time is written down together.
_GATHER_SECONDS = 0.25
#: For so long new ones are begun before the thread is given back.
SLICE_SECONDS = 10.0
#: A look that gets no answer for so long leaves it to the sync, which has more patience.
_PATIENCE_SECONDS = 8.0
#: A look that was begun and not done after this time has died.
_AGAIN = dt.timedelta(seconds=30)

#: Of the threads of `control`: two that look.
_looking = Places[uuid.UUID](2, each=2)

_TAKE = f"""
UPDATE ingestion_ingestionsource SET handed_out_at = now() WHERE id = ANY(ARRAY(
    SELECT id FROM ingestion_ingestionsource
     WHERE {DUE} AND (handed_out_at IS NULL
           OR handed_out_at < now() - %(again)s OR handed_out_at > now())
     ORDER BY next_sync_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
RETURNING id, now()"""

#: Whose bell rang meanwhile (`doorbells`) is looked at again soon. Whoever missed a whole turn did
#: so in an outage, with all others: they come back spread over one.
_NOTHING_NEW = """
WITH looked AS (
    SELECT * FROM unnest(%(sources)s::uuid[], %(began)s::timestamptz[], %(paces)s::float[])
               AS l(id, began, pace)),
source AS (
    UPDATE ingestion_ingestionsource s
       SET next_sync_at = now() + make_interval(secs => CASE
               WHEN s.next_sync_at > looked.began THEN 10
               WHEN s.next_sync_at < now() - make_interval(secs => looked.pace)
               THEN looked.pace * random()
               ELSE looked.pace * (0.95 + 0.05 * random()) END),
           last_sync_started_at = looked.began, last_sync_finished_at = now(),
           last_sync_status_message = '0 archived.', handed_out_at = NULL
      FROM looked WHERE s.id = looked.id
 RETURNING s.id, looked.began)
UPDATE ingestion_mailbox m
   SET last_synced_at = greatest(last_synced_at, source.began),
       archived_up_to = greatest(archived_up_to, source.began), failing_since = NULL
  FROM source WHERE m.source_id = source.id AND m.state = 'active' AND m.run_id IS NULL"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Account:
    """A source that is one account, as it is stored. `mailbox`: None where it must be listed which
    that is. `began`: when it was taken, by the database's clock."""

    source: Any
    mailbox: Any
    options: Options
    began: dt.datetime
    server: threading.Semaphore

    def is_settled(self) -> bool:
        """Tell whether nothing is owed of which the provider would not tell."""
        mailbox = self.mailbox
        return (
            mailbox is not None
            and mailbox.last_synced_at is not None
            and not (mailbox.last_error_code or mailbox.attempts or mailbox.messages_expected)
            and not mailbox.has_due_failures
            and all(
                self._is_followed(folder)
                for folder in mailbox.folders_there
                if self.options.wants_folder(folders.as_listed(folder))
            )
        )

    def _is_followed(self, folder: Folder) -> bool:
        return (
            folder.cursor is not None
            and folder.list_anew == ListAnew.NO
            and not (folder.failing_since or folder.attempts or folder.missing_since)
            and not folders.lacks_older(folder, self.options)
        )

    def has_changed(self) -> bool:
        """Ask the provider. True also where that can't be told."""
        remote = RemoteMailbox(self.mailbox.remote_id, self.mailbox.address)
        rows = {folder.remote_id: folder for folder in self.mailbox.folders_there}
        try:
            with (
                self.server,
                credentials.connect(self.source, patience_seconds=_PATIENCE_SECONDS) as connector,
                connector.open(remote) as session,
            ):
                session.prefer(self.options.wanted)
                listed = session.folders()
                if not folders.is_as_stored(list(rows.values()), listed, self.options):
                    return True
                wanted = (one for one in listed if self.options.wants_folder(one))
                return any(
                    next(iter(session.changes(one, rows[one.remote_id].cursor)), None) is not None
                    for one in wanted
                )
        except Exception as error:  # noqa: BLE001 - the sync meets it again, and says what it is
            log.info("look_failed", source=str(self.source.pk), error=type(error).__name__)
            return True
        finally:
            connection.close()  # this thread's own, where a token was exchanged


@functools.cache
def one_account() -> list[str]:
    """Return the providers whose sources are one account each."""
    return [slug for slug, p in registry.PROVIDERS.items() if p.config.only_mailbox]


@functools.cache
def _room_at(host: str | None) -> threading.Semaphore:
    _ = host
    return threading.Semaphore(_AT_ONE_SERVER)


def work(first: uuid.UUID) -> bool | None:
    """Look at what is due for a slice of time, `first` in its turn; tell whether there is more.

    None: as many as may be are looking already, and take `first` as well.
    """
    IngestionSource.objects.filter(pk=first).update(handed_out_at=None)
    with _looking.taken(None) as free:
        return _look_around() if free else None


def _look_around() -> bool:
    until, more = time.monotonic() + SLICE_SECONDS, True
    under_way: dict[concurrent.futures.Future[bool], _Account] = {}
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="look") as pool:
        while True:
            ended = time.monotonic() >= until or lease.leaving.is_set()
            if more and not ended and len(under_way) < _AT_ONCE:
                taken = _take(2 * _AT_ONCE - len(under_way))
                more = bool(taken)
                settled = [account for account in taken if account.is_settled()]
                under_way |= {pool.submit(account.has_changed): account for account in settled}
                _sync([account for account in taken if account not in settled])
            if not under_way:
                if more and not ended:
                    continue
                return more
            done, _ = concurrent.futures.wait(under_way, timeout=_GATHER_SECONDS)
            looked = [(future.result(), under_way.pop(future)) for future in done]
            _nothing_new([account for changed, account in looked if not changed])
            _sync([account for changed, account in looked if changed])


def _take(limit: int) -> list[_Account]:
    """Take accounts that are due, those that wait longest first."""
    parameters: dict[str, Any] = {"one_account": one_account(), "again": _AGAIN, "limit": limit}
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, parameters)
        taken = dict(cursor.fetchall())
    due_failures = FailedMessage.objects.filter(mailbox=OuterRef("pk"), not_before__lte=Now())
    mailboxes = Mailbox.objects.exclude(state=MailboxState.GONE)
    there = Folder.objects.filter(removed_at=None)
    sources = IngestionSource.objects.filter(pk__in=taken).prefetch_related(
        Prefetch(
            "mailboxes",
            mailboxes.annotate(has_due_failures=Exists(due_failures), pace_seconds=pace.seconds()),
            to_attr="mailboxes_there",
        ),
        Prefetch("mailboxes_there__folders", there, to_attr="folders_there"),
    )
    return [_account(source, taken[source.pk]) for source in sources]


def _account(source: Any, began: dt.datetime) -> _Account:
    options = Options.of(source.options)
    name = source.config.get(registry.get(source.provider).config.only_mailbox)
    mailbox = None
    if len(source.mailboxes_there) == 1:
        [one] = source.mailboxes_there
        is_listed = one.state == MailboxState.ACTIVE and one.remote_id == name
        mailbox = one if is_listed and options.wants_mailbox(one.address) else None
    return _Account(source, mailbox, options, began, _room_at(source.config.get("host")))


@in_transaction
def _nothing_new(accounts: Sequence[_Account]) -> None:
    """Write down that these are archived up to when they were taken."""
    if not accounts:
        return
    mine = _still_due(accounts)
    parameters = {
        "sources": [account.source.pk for account in mine],
        "began": [account.began for account in mine],
        "paces": [account.mailbox.pace_seconds for account in mine],
    }
    with connection.cursor() as cursor:
        cursor.execute(_NOTHING_NEW, parameters)


@in_transaction
def _sync(accounts: Sequence[_Account]) -> None:
    """Begin a sync of each; of one whose mailbox is known that is not listed."""
    if not accounts:
        return
    mine = _still_due(accounts)
    known = [account.mailbox.pk for account in mine if account.mailbox is not None]
    runs.start_syncs([account.source.pk for account in mine], only_mailboxes=known)


def _still_due(accounts: Sequence[_Account]) -> list[_Account]:
    """Lock the sources; return those of which nothing was changed since they were taken.

    They are found by their ids alone: as a condition, `next_sync_at` would have all read that are
    due, of which the planner expects none until the table is analyzed in the outage.
    """
    still_due = Q(status=SourceStatus.ACTIVE, deleted_at=None, next_sync_at__lte=Now())
    locked = (
        IngestionSource.objects.filter(pk__in=[account.source.pk for account in accounts])
        .select_for_update(no_key=True, skip_locked=True)
        .annotate(still_due=still_due)
    )
    rows = locked.values_list("pk", "credentials_version", "still_due")
    versions = {pk: version for pk, version, is_due in rows if is_due}
    return [a for a in accounts if versions.get(a.source.pk) == a.source.credentials_version]
