"""Compares what the provider lists with what the archive has, folder by folder, by id.

The provider's own full listing is the truth, not our cursors, and its own count where it has one
that is exact: a listing may be cut. Lists and counts, and downloads nothing; `repair` only has the
next sync list anew what lacks mail. A page of the listing is compared at a time, so memory does not
grow with the folder beyond the connector's own notion of which ids exist (ranges, for IMAP).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from django.db import connection
from django.db.models import Q

from connectors import errors
from connectors.base import Connector, MailboxSession
from connectors.types import MessageRef, Page, RemoteFolder, RemoteMailbox
from ingestion import queries
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Placement, ProofKind
from ingestion.services.archive import proofs
from ingestion.services.engine import folders
from ingestion.services.sources import credentials
from ingestion.services.sources.options import Options

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class FolderReport:
    """One folder, compared. Every listed message is counted once in present, failed, missing or
    excluded. The lists of ids stop at the caller's limit, the counts don't."""

    mailbox: str
    path: str
    remote_id: str
    wanted: bool = True
    listed: int = 0
    present: int = 0
    missing: int = 0
    failed: int = 0
    excluded: int = 0  # older than the option `since`, or junk, trash or a draft
    unlisted: int = 0  # in the provider's own count, and not in its listing
    kept: int = 0  # archived, still placed here, no longer listed: the next sync marks them
    missing_ids: list[str] = dataclasses.field(default_factory=list)
    failed_ids: list[str] = dataclasses.field(default_factory=list)
    error: str = ""  # why it could not be compared

    @property
    def problems(self) -> int:
        """How many messages are not archived that should be; a folder that can't be read is one."""
        return self.missing + self.failed + self.unlisted + bool(self.error)

    @property
    def ok(self) -> bool:
        return not self.problems


def reconcile(
    source: IngestionSource, *, max_ids: int = 1_000, repair: bool = False
) -> Iterator[FolderReport]:
    """Yield a report for every folder of every mailbox that the provider lists.

    Folders and mailboxes that the options leave out come with `wanted` False and the provider's
    count. `max_ids` bounds each list of ids. Raises ConnectorError where the provider can't be
    asked at all; one mailbox or folder that can't be read is a report with `error`.

    `repair`: folders that lack mail are listed from the beginning at the next sync, which fetches
    what is missing also where no cursor would lead to it.

    Once all is compared, the verdict is kept (Proof).
    """
    messages = problems = 0
    for report, folder in _reports(source, max_ids):
        if repair and folder is not None and report.missing:
            folders.list_anew(folder)
        messages += report.listed if report.wanted else 0
        problems += report.problems
        yield report
    proofs.remember(ProofKind.RECONCILIATION, source.pk, messages=messages, problems=problems)


def _reports(source: IngestionSource, max_ids: int) -> Iterator[tuple[FolderReport, Folder | None]]:
    options = Options.of(source.options)
    with credentials.connect(source) as connector:
        # All before the first is compared: that may take hours, and a page's token end meanwhile.
        for remote in list(_unhurried(connector.mailboxes())):
            if not options.wants_mailbox(remote.address):
                yield FolderReport(remote.address, "", "", wanted=False), None
            elif remote.unavailable:
                yield FolderReport(remote.address, "", "", error=remote.unavailable), None
            else:
                yield from _mailbox(source, connector, remote, options, max_ids)


def _unhurried(told: Iterable[T]) -> Iterator[T]:
    """Yield what a provider may take hours to tell. The database's session would idle for as long,
    and may be ended: the next query has one of its own, also where a token was renewed meanwhile.
    """
    connection.close()
    for one in told:
        connection.close()
        yield one
        connection.close()


def _mailbox(
    source: IngestionSource,
    connector: Connector,
    remote: RemoteMailbox,
    options: Options,
    max_ids: int,
) -> Iterator[tuple[FolderReport, Folder | None]]:
    row = Mailbox.objects.filter(source=source, remote_id=remote.remote_id).first()
    try:
        with connector.open(remote) as session:
            session.prefer(options.wanted)
            for folder in _unhurried(session.folders()):
                report, found = FolderReport(remote.address, folder.path, folder.remote_id), None
                if not options.wants_folder(folder):
                    report.wanted, report.listed = False, folder.message_count or 0
                else:
                    found = _folder_row(row, folder)
                    _compare(session, folder, found, report, options=options, max_ids=max_ids)
                yield report, found
    except (errors.MailboxUnavailable, errors.Retryable) as error:
        yield FolderReport(remote.address, "", "", error=str(error)), None


def _folder_row(mailbox: Mailbox | None, remote: RemoteFolder) -> Folder | None:
    """Find the folder's row by its name, or by its stable id where it was renamed since."""
    same = Q(remote_id=remote.remote_id)
    if remote.stable_id:
        same |= Q(stable_id=remote.stable_id)
    return Folder.objects.filter(same, mailbox=mailbox).first() if mailbox else None


def _compare(
    session: MailboxSession,
    remote: RemoteFolder,
    folder: Folder | None,
    report: FolderReport,
    *,
    options: Options,
    max_ids: int,
) -> None:
    try:
        for page in _unhurried(session.changes(remote, None)):
            report.listed += len(page.added)
            wanted = [ref for ref in page.added if options.wants_message(ref)]
            report.excluded += len(page.added) - len(wanted)
            _count(folder, wanted, report, max_ids)
            if page.present is not None:  # it is listed to its end: what follows came meanwhile
                report.kept = _no_longer_listed(folder, page) if folder is not None else 0
                break
    except (errors.Skippable, errors.Retryable, errors.CursorExpired) as error:
        report.error = str(error)  # where that ended the connection, each of the others says so
        return
    if remote.exact_count and remote.message_count is not None:
        report.unlisted = max(0, remote.message_count - report.listed)


def _count(
    folder: Folder | None, refs: Sequence[MessageRef], report: FolderReport, max_ids: int
) -> None:
    ids = [ref.remote_id for ref in refs]
    rows = {"folder": folder, "remote_id__in": ids}
    placed = failed = frozenset[str]()
    if folder is not None:
        placed = frozenset(
            Placement.objects.filter(**rows, removed_at=None).values_list("remote_id", flat=True)
        )
        failed = frozenset(FailedMessage.objects.filter(**rows).values_list("remote_id", flat=True))
    for remote_id in ids:
        if remote_id in placed:
            report.present += 1
        elif remote_id in failed:
            report.failed += 1
            if len(report.failed_ids) < max_ids:
                report.failed_ids.append(remote_id)
        else:
            report.missing += 1
            if len(report.missing_ids) < max_ids:
                report.missing_ids.append(remote_id)


def _no_longer_listed(folder: Folder, page: Page) -> int:
    assert page.present is not None
    return sum(
        remote_id not in page.present
        for rows in queries.placements_of(folder)
        for _, remote_id in rows
    )
