"""Keeps the folder rows of a mailbox equal to what the provider lists, and says which to list anew.

A folder that is not listed is gone only where the provider says so, or at the second run in a row
that does not list it: a listing that lacks folders for once must not take mail from view.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from connectors.errors import Unavailable
from connectors.types import RemoteFolder, RemoteIds
from ingestion import queries
from ingestion.models import FailedMessage, Folder, Mailbox, Placement, Run
from ingestion.services.engine import counters, placements
from ingestion.services.engine import statements as sql
from ingestion.services.engine.lease import Lease
from ingestion.services.sources.options import Options
from ingestion.services.transactions import in_transaction
from ingestion.states import ListAnew, RunKind

log = structlog.get_logger(__name__)

_MAX_COUNT = 2**63 - 1

#: What a folder's row says of its failures where there are none.
READABLE: Mapping[str, object] = {
    "not_before": None,
    "attempts": 0,
    "failing_since": None,
    "last_error_code": "",
    "last_error": "",
}


def store_listing(
    held: Lease,
    run: Run,
    mailbox: Mailbox,
    listed: Sequence[RemoteFolder],
    options: Options,
    *,
    is_gone: Callable[[RemoteFolder], bool],
) -> list[tuple[RemoteFolder, Folder]]:
    """Store what changed of the listing; return the folders to follow, in the listing's order.

    A folder that is gone keeps its messages; they are marked as removed from it. One that is there
    again may be another of the same name, with the same numbers for other mail. `is_gone` asks the
    provider whether a folder that was not listed exists no more. Writes nothing where nothing
    changed. Opens its own transaction. Raises Unavailable where no folder is listed any more.
    """
    rows = {folder.remote_id: folder for folder in Folder.objects.filter(mailbox=mailbox)}
    there = [row for row in rows.values() if row.removed_at is None]
    if there and not listed:
        raise Unavailable(
            f"The provider listed no folder; it had {len(there):,} before. It is asked again.",
            code="no_folders",
        )
    listed = [*listed, *_in_unlisted(listed, there)]
    wanted = [remote for remote in listed if options.wants_folder(remote)]
    _follow_renames(rows, listed)
    returned = _returned(rows, wanted)
    new, changed, counted = [], [], []
    for remote in wanted:
        row = rows.get(remote.remote_id)
        if row is None:
            row = rows[remote.remote_id] = Folder(mailbox=mailbox, remote_id=remote.remote_id)
            new.append(row)
        elif _differs(row, remote):
            changed.append(row)
        elif row.remote_count != _storable(remote.message_count):
            counted.append(row)
        _copy(row, remote)
    present = {remote.remote_id for remote in listed}
    missing = [row for row in there if row.remote_id not in present]
    gone = [row for row in missing if _was_missing_before(row, run) or is_gone(as_listed(row))]
    unclear = [row for row in missing if row not in gone and row.missing_since is None]
    followed = [(remote, rows[remote.remote_id]) for remote in wanted]
    chosen = {id(row) for _, row in followed}
    dropped = [row for row in there if row.failing_since and id(row) not in chosen]
    unwanted = [row for row in there if row.remote_id in present and id(row) not in chosen]
    owing = _with_failures(unwanted)
    if new or changed or counted or gone or unclear or dropped or owing:
        with transaction.atomic():
            held.fence()
            _store(new, changed, returned)
            sql.store_counts({row.pk: row.remote_count for row in counted})
            _mark_gone(gone)
            Folder.objects.filter(pk__in=[row.pk for row in unclear]).update(missing_since=Now())
            # What nobody wants any more, or nobody lists, does not fail.
            Folder.objects.filter(pk__in=[row.pk for row in dropped]).update(**READABLE)
            _let_go(owing)
    if missing:
        log.info("folders_not_listed", gone=len(gone), unclear=len(missing) - len(gone))
    if run.kind == RunKind.IMPORT:  # a sync knows only what it lists
        _expect(held, run, mailbox, [row for _, row in followed])
    return followed


def _with_failures(rows: Sequence[Folder]) -> list[Folder]:
    """Return those of which messages failed."""
    if not rows:
        return []
    failed = FailedMessage.objects.filter(folder__in=[row.pk for row in rows])
    those = set(failed.values_list("folder", flat=True).distinct())
    return [row for row in rows if row.pk in those]


def _let_go(unwanted: Sequence[Folder]) -> None:
    """Try no message again of a folder that the options leave out by now. Its cursor has passed
    them: should it be wanted once more, it is listed from the beginning."""
    if unwanted:
        FailedMessage.objects.filter(folder__in=[row.pk for row in unwanted]).delete()
        for row in unwanted:
            list_anew(row)


def _store(new: Sequence[Folder], changed: Sequence[Folder], returned: Sequence[Folder]) -> None:
    for row in returned:
        placements.retire_ids(row.pk, stable=False)
    Folder.objects.bulk_create(new)
    Folder.objects.bulk_update(
        changed,
        [
            "remote_id",
            "stable_id",
            "path",
            "role",
            "remote_count",
            "removed_at",
            "missing_since",
            "cursor",
        ],
        batch_size=500,
    )


def is_as_stored(rows: Sequence[Folder], listed: Sequence[RemoteFolder], options: Options) -> bool:
    """Tell whether a listing is what the mailbox's rows say, so that there is nothing to store."""
    there = {row.remote_id: row for row in rows if row.removed_at is None}
    wanted = [remote for remote in listed if options.wants_folder(remote)]
    return (
        bool(listed)
        and there.keys() <= {remote.remote_id for remote in listed}
        and all(
            (row := there.get(remote.remote_id)) is not None
            and not _differs(row, remote)
            and row.remote_count == _storable(remote.message_count)
            for remote in wanted
        )
    )


def _was_missing_before(row: Folder, run: Run) -> bool:
    return row.missing_since is not None and row.missing_since < run.started_at


def _in_unlisted(listed: Sequence[RemoteFolder], there: Sequence[Folder]) -> list[RemoteFolder]:
    """Return the folders that are there as far as anybody knows: recorded in a place of which the
    provider does not list the folders now."""
    present = {remote.remote_id for remote in listed}
    places = tuple(remote.path.removesuffix("*") for remote in listed if remote.unlisted)
    return [
        as_listed(row)
        for row in there
        if row.remote_id not in present and row.path.startswith(places)
    ]


def as_listed(row: Folder) -> RemoteFolder:
    return RemoteFolder(
        row.remote_id,
        row.path,
        role=row.role,
        stable_id=row.stable_id,
        message_count=row.remote_count,
    )


def _expect(held: Lease, run: Run, mailbox: Mailbox, followed: Sequence[Folder]) -> None:
    """Count in an import's total what it has yet to do here, instead of what was expected."""
    counts = sql.known_counts([row.pk for row in followed])
    left = sum(max(0, (row.remote_count or 0) - counts.get(row.pk, 0)) for row in followed)
    if left != mailbox.messages_expected:
        _expect_more(held, run, mailbox, left - mailbox.messages_expected)
        mailbox.messages_expected = left


@in_transaction
def _expect_more(held: Lease, run: Run, mailbox: Mailbox, more: int) -> None:
    held.fence()
    counters.expect(run.pk, mailbox.pk, more)


def _follow_renames(rows: dict[str, Folder], listed: Sequence[RemoteFolder]) -> None:
    """A folder with a stable id keeps its row, and so its cursor, under its new name."""
    present = {remote.remote_id for remote in listed}
    moved = {
        row.stable_id: row
        for row in rows.values()
        if row.stable_id and row.removed_at is None and row.remote_id not in present
    }
    for remote in listed:
        if remote.remote_id not in rows and remote.stable_id in moved:
            row = moved.pop(remote.stable_id)
            del rows[row.remote_id]
            rows[remote.remote_id] = row


def _differs(row: Folder, remote: RemoteFolder) -> bool:
    """Tell whether more than the count of its messages is not as stored."""
    return (row.removed_at or row.missing_since) is not None or (
        (row.remote_id, row.path, row.role, row.stable_id)
        != (remote.remote_id, remote.path, remote.role, remote.stable_id)
    )


def _returned(rows: Mapping[str, Folder], listed: Sequence[RemoteFolder]) -> list[Folder]:
    """Return the folders that were gone, unless they are for certain the same as before."""
    return [
        row
        for remote in listed
        if (row := rows.get(remote.remote_id)) is not None
        and row.removed_at is not None
        and not remote.lasting_ids
        and (not row.stable_id or row.stable_id != remote.stable_id)
    ]


def _copy(row: Folder, remote: RemoteFolder) -> None:
    row.remote_id, row.path, row.role = remote.remote_id, remote.path, remote.role
    row.stable_id, row.remote_count = remote.stable_id, _storable(remote.message_count)
    row.removed_at = row.missing_since = None


def _storable(count: int | None) -> int | None:
    """A count that can't be is as good as none."""
    return count if count is not None and 0 <= count <= _MAX_COUNT else None


def _mark_gone(gone: Sequence[Folder]) -> None:
    ids = [folder.pk for folder in gone]
    if not ids:
        return
    # No cursor: should a folder of this name come back, it is listed from the beginning.
    Folder.objects.filter(pk__in=ids).update(
        removed_at=Now(), cursor=None, remote_count=None, missing_since=None, **READABLE
    )
    Placement.objects.filter(folder__in=ids, removed_at=None).update(removed_at=Now())
    FailedMessage.objects.filter(folder__in=ids).delete()  # nowhere to try again


# -- listed anew -------------------------------------------------------------------------------


def distrust(mailboxes: QuerySet[Mailbox]) -> None:
    """Have all folders of mailboxes listed anew, and their mail recognised by its bytes alone: what
    is recorded by id may be other mail now, as behind another host. Who works on one by the old ids
    loses the lease. Costs two statements; workers do the rest at the next sync. Call inside a
    transaction that holds the source's row lock."""
    mailboxes.update(lease_token=F("lease_token") + 1, lease_expires_at=None)
    # Those that are gone too: one of the same name may come.
    Folder.objects.filter(mailbox__in=mailboxes).update(
        list_anew=ListAnew.BY_BYTES, followed_at=None
    )


def list_anew(folder: Folder) -> None:
    """Have a folder listed from the beginning at the next sync; what is archived is recognised."""
    same = Folder.objects.filter(pk=folder.pk)
    same.update(followed_at=None, not_before=None)
    same.filter(list_anew=ListAnew.NO).update(list_anew=ListAnew.BY_ID)


def lacks_older(folder: Folder, options: Options) -> bool:
    """Tell whether a folder's cursor left out mail that the options want by now."""
    since, listed_since = options.wanted.since, folder.listed_since
    if folder.cursor is None or listed_since is None:
        return False
    return since is None or since < listed_since


def forget_cursor(held: Lease, folder: Folder, *, by_bytes: bool) -> None:
    """Begin to list a folder anew. `by_bytes`: its ids are retired, so that none is recognised by
    one; what failed is fetched as any other message. Idempotent. Opens its own transaction."""
    with transaction.atomic():
        held.fence()
        if by_bytes:
            placements.retire_ids(folder.pk)
            FailedMessage.objects.filter(folder=folder).delete()
        Folder.objects.filter(pk=folder.pk).update(cursor=None, list_anew=ListAnew.NO)
    folder.cursor, folder.list_anew = None, ListAnew.NO


def sweep(held: Lease, folder: Folder, present: RemoteIds) -> bool:
    """Mark as removed what the whole listing no longer has, and forget that it failed; tell whether
    there are placements under retired ids, which are to be let go of with the listing's cursor.
    Each step is its own transaction.
    """
    failed = FailedMessage.objects.filter(folder=folder).values_list("pk", "remote_id")
    absent = [pk for pk, remote_id in failed.iterator() if remote_id not in present]
    if absent:
        with transaction.atomic():
            held.fence()
            FailedMessage.objects.filter(pk__in=absent).delete()
    retired = False
    for rows in queries.placements_of(folder):
        absent = []
        for pk, remote_id in rows:
            if placements.is_retired(remote_id):
                retired = True
            elif remote_id not in present:
                absent.append(pk)
        if absent:
            with transaction.atomic():
                held.fence()
                Placement.objects.filter(pk__in=absent).update(removed_at=Now())
    return retired
