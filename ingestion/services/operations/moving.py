"""Moves the archive to another store: a directory, or a bucket.

    copy and compare all packs         (the service may be at work; begun again, it only compares)
      -> the mark here says "moved": nobody begins a pack here any more
      -> wait for those who began one before, and for who merges some
      -> copy and compare what came meanwhile
      -> the mark there: from now on that is the archive

A kill between any two leaves an archive that is whole, and a move that goes on when it is begun
again. Two are compared by the SHA-256 of all of their bytes, read from both. What came meanwhile is
what was not compared before: no clock is asked. Removes nothing.
"""

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator

from django.db import connection, transaction
from django.db.models import F, Sum
from django.utils import timezone

from ingestion.errors import NotAllowedNow
from ingestion.models import Installation, Mailbox, Pack
from ingestion.packs.store import PackStore
from ingestion.services.archive import compaction, storage
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import claims
from ingestion.services.operations import copying
from ingestion.services.operations.inventory import Inventory, Listed
from ingestion.services.transactions import in_transaction

#: A process remembers for so long whose an object store is (`packs.s3`).
_REMEMBERED_SECONDS = 61.0
_WAIT_SECONDS = 300.0


@dataclasses.dataclass(slots=True)
class Moved:
    """How far it is. A pack is counted once it is there and compared."""

    total_bytes: int = 0  # of the packs that have rows
    packs: int = 0
    size_bytes: int = 0
    copied: int = 0
    missing: int = 0  # packs that rows name and neither place has; known at the end
    waiting: bool = False


def move(
    here: PackStore,
    there: PackStore,
    *,
    actor: Actor,
    on_progress: Callable[[Moved], None] = lambda _: None,
) -> Moved:
    """Copy the archive of this installation from one store to another, and have that be it.

    Raises ArchiveUnavailable (WrongArchive among it) where one of the two can't be used, and
    NotAllowedNow where there is something else, or workers do not end what they began here. Then
    here is still the archive, or nothing is written until this is run again.
    """
    _require_two(here, there)
    moved = Moved(total_bytes=Pack.objects.aggregate(size=Sum("size_bytes"))["size"] or 0)
    with copying.told_in_words(there.name):
        before, compared = Inventory(_committed()), Inventory()
        _copy_rest(here, there, compared, moved, on_progress)
        storage.retire(here, there)
        moved.waiting = True
        on_progress(moved)
        _wait_for_writers(here)
        moved.waiting = False
        with claims.held_off(compaction.KIND, claims.EVERYTHING):
            _copy_rest(here, there, compared, moved, on_progress)
            moved.missing = _missing(here, there, before, compared)
            with transaction.atomic():
                audit(actor, "archive.move", None, {"from": here.name, "to": there.name})
                there.write_mark(str(Installation.objects.get(pk=1)))
    return moved


def _require_two(here: PackStore, there: PackStore) -> None:
    if here.name == there.name:
        raise NotAllowedNow(f"{here.name} is where the archive is already.")
    _require_here(here, there)
    mark = there.mark()
    if mark and not storage.moved_to(mark) and mark != str(Installation.objects.get(pk=1)):
        raise NotAllowedNow(
            f"{there.name} is the archive of another installation ({mark}). Name an empty place."
        )
    there.try_out()


def _require_here(here: PackStore, there: PackStore) -> None:
    """Raise WrongArchive unless here is the archive, or was until this move, which was broken off
    at its end."""
    if storage.moved_to(here.mark() or "") != there.name:
        storage.require()


def _copy_rest(
    here: PackStore,
    there: PackStore,
    compared: Inventory,
    moved: Moved,
    on_progress: Callable[[Moved], None],
) -> None:
    """Copy and compare what was not compared yet. Raises WrongArchive where here is away by its
    end: nothing is listed then, and that is not all there is."""
    rest = (pack for pack in here.packs() if pack.pack_id not in compared)
    for one in copying.copied(rest, here, there):
        if one.outcome == "differs":
            raise NotAllowedNow(
                f"pack {one.pack.pack_id} of source {one.pack.source_id} has other bytes in"
                f" {there.name} than in {here.name}. verify_archive tells whether the latter is"
                " good; remove the other, and run this again."
            )
        if one.outcome == "damaged":
            raise NotAllowedNow(
                f"pack {one.pack.pack_id} of source {one.pack.source_id} can't be read in"
                f" {here.name}. verify_archive --refetch fetches its mail again; then take the file"
                " away, and run this again."
            )
        if one.outcome == "gone":
            continue
        pack = one.pack
        compared.add([Listed(pack.source_id, pack.pack_id, pack.size_bytes, one.sha256)])
        moved.copied += one.outcome == "copied"
        moved.packs += 1
        moved.size_bytes += pack.size_bytes
        on_progress(moved)
    _require_here(here, there)


def _wait_for_writers(here: PackStore) -> None:
    """Return when nobody is left who asked whose the store is before its mark was changed. They
    have a lease, and lose or return it at the next pack that they begin."""
    connection.close()  # else it may be ended meanwhile
    if here.slow:
        time.sleep(_REMEMBERED_SECONDS)
    holders = _holders()
    ends = time.monotonic() + _WAIT_SECONDS
    while holders & _holders():
        if time.monotonic() > ends:
            raise NotAllowedNow(
                "Workers are still at work, so that a pack may yet be written here. Stop them, and"
                " run this again: until then no mail is archived."
            )
        time.sleep(0.5)


@in_transaction
def _holders() -> set[tuple[uuid.UUID, int]]:
    """Return who has a lease. One that has ended is nobody's from now on, also where its holder was
    suspended, and wakes up: none is neither returned nor ended."""
    now = timezone.now()
    Mailbox.objects.filter(lease_expires_at__lte=now).update(lease_token=F("lease_token") + 1)
    held = Mailbox.objects.filter(lease_expires_at__gt=now)
    return set(held.values_list("pk", "lease_token"))


def _committed() -> Iterator[Listed]:
    """Yield the packs that rows name now."""
    named = Pack.objects.filter(source__deleted_at=None, replaced_at=None)
    for row in named.values_list("source", "pk", "size_bytes").iterator():
        yield Listed(*row, b"")


def _missing(here: PackStore, there: PackStore, before: Inventory, compared: Inventory) -> int:
    """Return how many packs rows name that neither place has: those were lost before.

    Raises NotAllowedNow at one that was committed while all was copied, or that is here by its name
    while no listing told of it: it must be there, too.
    """
    missing = 0
    for one in _committed():
        if one.pack_id in compared:
            continue
        if one.pack_id not in before or here.holds(one.source_id, one.pack_id):
            raise NotAllowedNow(
                f"pack {one.pack_id} is not in {there.name}. Run this again; if it is missing here"
                " too, verify_archive --refetch fetches its mail again."
            )
        missing += not there.holds(one.source_id, one.pack_id)
    return missing
