"""Proves the archive: reads every archived message back and compares it with its SHA-256, and each
row with the pack's own record of it.

Reports rows whose pack is missing or damaged, rows that are missing, and packs that have no row.
Changes nothing but to have it announced, and the verdict kept (Proof); a restored backup or
`archive.rebuild` does.
"""

import dataclasses
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from django.db import transaction
from django.utils import timezone

from connectors.types import SpooledBody
from ingestion.errors import Corrupt
from ingestion.models import (
    AlertKind,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
    ProofKind,
)
from ingestion.models.webhook import Event
from ingestion.packs.record import RecordHeader
from ingestion.packs.store import Extent, PackFile, PackStore, store
from ingestion.services import alerts
from ingestion.services.alerts import Trouble
from ingestion.services.archive import compaction, orphans, proofs, storage
from ingestion.services.archive.housekeeping import ORPHAN_AGE
from ingestion.services.engine import placements
from ingestion.services.events import announce

Kind = Literal[
    "missing_pack",
    "unreadable_pack",
    "corrupt_message",
    "corrupt_pack",
    "missing_rows",
    "orphan_pack",
]

_BATCH_PACKS = 500


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `messages`: how many messages it concerns; `text` is for people.

    missing_pack, unreadable_pack  a pack that has a row is not there, or this user may not read it
    corrupt_message                its bytes are not those that were archived
    corrupt_pack                   `messages` of it can be read, and a rebuild would not find them
    missing_rows                   `messages` that were archived in it have no row any more
    orphan_pack                    a pack without a row; `messages` of it no row has in another that
                                   is there
    """

    kind: Kind
    source_id: uuid.UUID
    pack_id: uuid.UUID
    messages: int
    text: str
    message_id: uuid.UUID | None = None


@dataclasses.dataclass(slots=True)
class Verification:
    """What was checked so far, and how many problems of each kind there are."""

    packs: int = 0
    messages: int = 0
    size_bytes: int = 0
    found: Counter[Kind] = dataclasses.field(default_factory=Counter)
    found_in: dict[uuid.UUID, Counter[Kind]] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.found


def verify_archive(
    sources: Iterable[IngestionSource] | None = None,
    *,
    on_problem: Callable[[Problem], None],
    on_progress: Callable[[Verification], None] = lambda _: None,
) -> Verification:
    """Check the given sources' archives, or the whole of it. Memory does not grow with its size.

    Raises ArchiveUnavailable where the archive is away, or another's, OSError where this machine is
    in trouble: that says nothing of a message.

    Calls `on_problem` for each problem as it is found, `on_progress` after each pack. What is found
    in a source is announced behind it, also where this is broken off. May run beside working
    workers. Packs of sources that the database does not know are only looked for when the whole
    archive is checked.
    """
    storage.require()
    archive, result = store().fresh(), Verification()
    chosen = IngestionSource.objects.filter(deleted_at=None) if sources is None else sources

    def tell(source_id: uuid.UUID, problems: Iterable[Problem]) -> None:
        try:
            with compaction.held_off(source_id):  # else mail moves to where this has looked already
                for problem in problems:
                    result.found[problem.kind] += 1
                    result.found_in.setdefault(source_id, Counter())[problem.kind] += 1
                    on_problem(problem)
        finally:  # else an outage in each night would hide what each night finds
            if kinds := result.found_in.get(source_id):
                _announce(source_id, kinds)

    checked: set[uuid.UUID] = set()
    for source in chosen:
        before = result.messages
        tell(source.pk, _problems(archive, source, result, on_progress))
        checked.add(source.pk)
        problems = result.found_in.get(source.pk, Counter()).total()
        messages = result.messages - before
        proofs.remember(ProofKind.VERIFICATION, source.pk, messages=messages, problems=problems)
        if not problems:
            _end_alert(source.pk)
    if sources is None:
        for source_id in archive.sources():
            if source_id not in checked:
                tell(source_id, _orphans(archive, source_id))
        problems = result.found.total()
        proofs.remember(ProofKind.VERIFICATION, None, messages=result.messages, problems=problems)
        if checked.issuperset(result.found_in):
            _end_alert(None)
    return result


def _problems(
    archive: PackStore,
    source: IngestionSource,
    result: Verification,
    on_progress: Callable[[Verification], None],
) -> Iterator[Problem]:
    for pack in _packs(source):
        yield from _check_pack(archive, pack, result)
        result.packs += 1
        on_progress(result)
    yield from _orphans(archive, source.pk)


def _end_alert(source_id: uuid.UUID | None) -> None:
    """What is sound now needs nobody any more."""
    with transaction.atomic():
        alerts.end(AlertKind.ARCHIVE_CORRUPT, {source_id}, "A verification found all of it.")


def _announce(source_id: uuid.UUID, kinds: Counter[Kind]) -> None:
    source = IngestionSource.objects.filter(pk=source_id, deleted_at=None).first()
    about = {"problems": dict(kinds), "message": "A verification found what is damaged or missing."}
    with transaction.atomic():
        announce(Event.ARCHIVE_CORRUPT, source, {"sourceId": str(source_id)} | about)
        alerts.begin([Trouble(AlertKind.ARCHIVE_CORRUPT, source, _words(kinds))])


def _words(kinds: Counter[Kind]) -> str:
    named = ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in kinds.items())
    return f"A verification found what is damaged or missing ({named}): verify_archive --refetch."


def _packs(source: IngestionSource) -> Iterator[Pack]:
    after = uuid.UUID(int=0)
    packs = Pack.objects.filter(source=source, replaced_at=None).order_by("pk")
    while batch := list(packs.filter(pk__gt=after)[:_BATCH_PACKS]):
        yield from batch
        after = batch[-1].pk


def _check_pack(archive: PackStore, pack: Pack, result: Verification) -> Iterator[Problem]:
    """Check one pack: that it is there, each message in it, and its own record headers."""
    try:
        records = _Records(archive, pack)
    except (Corrupt, PermissionError) as error:
        if _still_there(pack):
            yield _out_of_reach(pack, error)
        return
    rows = broken = unknown = 0
    for row in Message.objects.filter(pack=pack).order_by("pack_offset").iterator(2_000):
        rows += 1
        try:
            body = archive.open(
                pack.source_id,
                pack.pk,
                Extent(row.pack_offset, row.pack_length),
                sha256=bytes(row.sha256),
                size=row.size_bytes,
            )
        except Corrupt as error:
            if not _still_there(pack):
                return
            broken += 1
            yield Problem("corrupt_message", pack.source_id, pack.pk, 1, str(error), row.pk)
        else:
            result.messages += 1
            result.size_bytes += row.size_bytes
            if isinstance(body, SpooledBody):
                body.close()
            unknown += not records.tell_of(row)
    if unknown or (records.damage and not broken):
        text = (
            f"{records.damage or _DIFFERENT.format(pack.pk)} Its messages can be read;"
            f" a database rebuilt from it would lack {unknown:,} of them, or know them wrongly."
        )
        yield Problem("corrupt_pack", pack.source_id, pack.pk, unknown, text)
    if rows < pack.message_count and (lost := _message_count(pack) - rows) > 0:
        text = (
            f"pack {pack.pk}: {rows + lost:,} messages were archived in it, and the database"
            f" knows {rows:,}. rebuild_archive_index takes in what the pack still tells of."
        )
        yield Problem("missing_rows", pack.source_id, pack.pk, lost, text)


def _out_of_reach(pack: Pack, error: Corrupt | PermissionError) -> Problem:
    count = Message.objects.filter(pack=pack).count()
    if _is_missing(error):
        return Problem("missing_pack", pack.source_id, pack.pk, count, str(error))
    text = f"pack {pack.pk}: {_may_not_read(error)}"
    return Problem("unreadable_pack", pack.source_id, pack.pk, count, text)


_DIFFERENT = "pack {}: its records say something else than the database. Restore it from a backup."


class _Records:
    """What the records of a pack say: for a rebuild, they are all there is."""

    def __init__(self, archive: PackStore, pack: Pack) -> None:
        """Read them. Raises Corrupt where the pack is missing, PermissionError where this user may
        not read it."""
        self.damage: Corrupt | ValueError | None = None  # the first
        self._said: dict[int, tuple[Extent, bytes, int]] = {}
        self._unsealed: dict[int, str] = {}
        for entry in archive.scan(pack.source_id, pack.pk, on_damage=self._note):
            try:
                header = RecordHeader.parse(entry.header)
            except ValueError as error:
                self._note(ValueError(f"pack {pack.pk}: a record has {error}."))
                continue
            offset = entry.extent.offset
            self._said[offset] = entry.extent, header.sha256, header.size
            if not entry.sealed:
                self._unsealed[offset] = header.remote_id
        self._places = _placed_ids(pack) if self._unsealed else {}

    def tell_of(self, row: Message) -> bool:
        """Whether a record says of a message what its row says."""
        extent = Extent(row.pack_offset, row.pack_length)
        if self._said.get(extent.offset) != (extent, bytes(row.sha256), row.size_bytes):
            return False
        told, placed = self._unsealed.get(extent.offset), self._places.get(row.pk)
        return told is None or placed is None or told in placed

    def _note(self, error: Corrupt | ValueError) -> None:
        self.damage = self.damage or error


def _placed_ids(pack: Pack) -> dict[uuid.UUID, set[str]]:
    """Return by which ids the provider knew each message of a pack: no checksum proves the one in
    a record of the first format."""
    ids: dict[uuid.UUID, set[str]] = {}
    rows = Placement.objects.filter(message__pack=pack).values_list("message_id", "remote_id")
    for message_id, remote_id in rows:
        ids.setdefault(message_id, set()).add(placements.before_retirement(remote_id))
    return ids


def _is_missing(error: BaseException) -> bool:
    return isinstance(error.__cause__, FileNotFoundError)


def _may_not_read(error: BaseException) -> str:
    return f"this user may not read it ({error}). Run this as the service's user."


def _still_there(pack: Pack) -> bool:
    """Whether the pack's source was not deleted while we looked."""
    return Pack.objects.filter(pk=pack.pk, source__deleted_at=None).exists()


def _message_count(pack: Pack) -> int:
    """Return how many messages should be in a pack now: a refetch beside this moves them to
    another, with their rows."""
    there = Pack.objects.filter(pk=pack.pk, source__deleted_at=None)
    return there.values_list("message_count", flat=True).first() or 0


def _orphans(archive: PackStore, source_id: uuid.UUID) -> Iterator[Problem]:
    if IngestionSource.objects.filter(pk=source_id, deleted_at__isnull=False).exists():
        return  # being deleted: its packs go next
    batch: list[PackFile] = []
    for pack in archive.packs(source_id):
        if not pack.partial:
            batch.append(pack)
        if len(batch) >= _BATCH_PACKS:
            yield from _without_row(archive, batch)
            batch = []
    yield from _without_row(archive, batch)


def _without_row(archive: PackStore, batch: list[PackFile]) -> Iterator[Problem]:
    known = set(Pack.objects.filter(pk__in=[p.pack_id for p in batch]).values_list("pk", flat=True))
    for pack in batch:
        if pack.pack_id in known or _in_flight(pack):
            continue
        damage: list[Corrupt] = []
        count = 0
        try:
            unknown = orphans.unknown_records(
                archive, pack.source_id, pack.pack_id, on_damage=damage.append
            )
            held = Counter(one.row for one in unknown)
            count = held.total()
            if count and _deleted(pack.source_id):
                continue  # since this began, or a worker was late: it is removed by itself
            what = _what_an_orphan_holds(pack.source_id, unknown=held[False], lost=held[True])
            if damage:
                rest = f"The rest of it {what}" if count else _NOT_NEEDED
                what = f"is damaged: {damage[0]} {rest}"
        except PermissionError as error:
            what = _may_not_read(error)
        except Corrupt as error:
            if _is_missing(error):
                continue  # collected meanwhile
            what = f"is damaged: {error} {_NOT_NEEDED}"
        text = f"pack {pack.pack_id} has no row and {what}"
        yield Problem("orphan_pack", pack.source_id, pack.pack_id, count, text)


_NOT_NEEDED = "Where there is none, move the file away: no row needs it."


def _deleted(source_id: uuid.UUID) -> bool:
    there = IngestionSource.objects.filter(pk=source_id, deleted_at=None).exists()
    return not there and orphans.was_deleted(source_id)


def _what_an_orphan_holds(source_id: uuid.UUID, *, unknown: int, lost: int) -> str:
    """`unknown`: messages without a row; `lost`: such as have one that names a pack which is not
    there. Small packs are merged into new ones (`compaction`), and a dump may be of before that."""
    if not unknown and not lost:
        return "holds only messages that are archived elsewhere too. It is removed by itself."
    parts = [f"{unknown:,} messages that the database does not know"] if unknown else []
    if lost:
        parts.append(f"{lost:,} messages that the database looks for in packs that are gone")
    mail = f"holds {' and '.join(parts)}."
    if IngestionSource.objects.filter(pk=source_id).exists():
        return f"{mail} rebuild_archive_index has it know them here."
    return (
        f"{mail} Nor does it know their source: is this the right database? "
        f"rebuild_archive_index --recover {source_id} makes a source of them."
    )


def _in_flight(pack: PackFile) -> bool:
    """Whether a worker that is busy with the source may be about to commit this pack's row."""
    if abs(timezone.now() - pack.modified_at) > ORPHAN_AGE:  # ahead by a clock that was wrong
        return False
    busy = Mailbox.objects.filter(source_id=pack.source_id, lease_expires_at__gt=timezone.now())
    return busy.exists() or Pack.objects.filter(pk=pack.pack_id).exists()
