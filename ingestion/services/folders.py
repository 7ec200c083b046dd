"""Keeps the folder rows of a mailbox equal to what the provider lists."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from connectors.types import RemoteFolder
from ingestion.models import FailedMessage, Folder, Mailbox, Placement, Run
from ingestion.services.lease import Lease
from ingestion.services.options import Options
from ingestion.states import RunKind


def store_listing(
    held: Lease,
    run: Run,
    mailbox: Mailbox,
    listed: Sequence[RemoteFolder],
    options: Options,
) -> list[tuple[RemoteFolder, Folder]]:
    """Store what changed of the listing; return the folders to follow, in the listing's order.

    A folder that is gone keeps its messages; they are marked as removed from it. Writes nothing
    where nothing changed. Opens its own transaction.
    """
    wanted = [remote for remote in listed if options.wants_folder(remote)]
    rows = {folder.remote_id: folder for folder in Folder.objects.filter(mailbox=mailbox)}
    _follow_renames(rows, listed)
    new, changed, added_count = [], [], 0
    for remote in wanted:
        row = rows.get(remote.remote_id)
        before = 0 if row is None else row.remote_count or 0
        if row is None:
            row = rows[remote.remote_id] = Folder(mailbox=mailbox, remote_id=remote.remote_id)
            new.append(row)
        elif _differs(row, remote):
            changed.append(row)
        if remote.message_count is not None:
            added_count += remote.message_count - before
        _copy(row, remote)
    present = {remote.remote_id for remote in listed}
    gone = [f for f in rows.values() if f.remote_id not in present and f.removed_at is None]
    if new or changed or gone:
        with transaction.atomic():
            held.fence()
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
                    "cursor",
                ],
                batch_size=500,
            )
            _mark_gone(gone)
            if run.kind == RunKind.IMPORT and mailbox.source.imported_at is None:
                Run.objects.filter(pk=run.pk).update(
                    messages_total=F("messages_total") + added_count
                )
    return [(remote, rows[remote.remote_id]) for remote in wanted]


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
    return row.removed_at is not None or (
        row.remote_id,
        row.path,
        row.role,
        row.stable_id,
        row.remote_count,
    ) != (
        remote.remote_id,
        remote.path,
        remote.role,
        remote.stable_id,
        remote.message_count,
    )


def _copy(row: Folder, remote: RemoteFolder) -> None:
    row.remote_id, row.path, row.role = remote.remote_id, remote.path, remote.role
    row.stable_id, row.remote_count = remote.stable_id, remote.message_count
    row.removed_at = None


def _mark_gone(gone: Sequence[Folder]) -> None:
    ids = [folder.pk for folder in gone]
    if not ids:
        return
    # No cursor: should a folder of this name come back, it is listed from the beginning.
    Folder.objects.filter(pk__in=ids).update(removed_at=Now(), cursor=None, remote_count=None)
    Placement.objects.filter(folder__in=ids, removed_at=None).update(removed_at=Now())
    FailedMessage.objects.filter(folder__in=ids).delete()  # nowhere to try again
