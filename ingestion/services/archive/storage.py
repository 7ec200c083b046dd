"""Whether the archive is this installation's: asked before anything is written there.

A volume that is not mounted looks like an empty directory. Mail that is written beneath the mount
point is out of reach once the volume is back, and never fetched again, because it counts as
archived. So the archive has a mark, with an id that the database has too.
"""

import errno
from pathlib import Path

from django.db import transaction

from ingestion.errors import ArchiveUnavailable, WrongArchive
from ingestion.models import Installation, Pack
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import PackStore, store

_MOVED = "moved to "
_RESTORED = "being restored: "


def require() -> None:
    """Raise WrongArchive, which says what to do, unless the archive is ours.

    The first time ever, it is made so: a directory too, where it is missing.
    """
    installation = Installation.objects.filter(pk=1).first()
    if installation is None or not installation.archive_marked:
        installation = _begin()
    archive = store()
    mark = archive.mark()
    if mark is None:
        raise WrongArchive(
            f"{archive.name} has no mark of this installation: is its volume mounted?"
            " Nothing is written until it is. Where it is meant to be another directory from now"
            f" on, write {installation.archive_id} into {archive.mark_name}."
        )
    if to := moved_to(mark):
        raise WrongArchive(
            f"The archive was moved from {archive.name} to {to}: set ARCHIVE_URL to that, and"
            " restart every process. Where the move was broken off, run manage.py move_archive"
            f" again; or write {installation.archive_id} into {archive.mark_name}."
        )
    _refuse_half_restored(archive, mark)
    if mark != str(installation.archive_id):
        raise WrongArchive(
            f"{archive.name} is the archive of another installation ({mark}); this one's"
            f" is {installation.archive_id}. Nothing is written until {archive.setting} is right."
        )


def require_writable() -> None:
    """Raise ArchiveUnavailable, which says what to do, unless the archive is ours and takes a
    write. A full disk is no reason: what is archived can still be read, and imports wait."""
    require()
    archive = store()
    try:
        archive.try_out()
    except ArchiveUnavailable:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise ArchiveUnavailable(
                f"{archive.name} can't be written ({error.strerror}). Make it writable for the"
                f" service's user, mount it, or correct {archive.setting}."
            ) from error


def claim(directory: Path, setting: str) -> None:
    """Make a directory of working files ours, whose housekeeping removes what no row knows. Raises
    WrongArchive where it is another installation's: each would remove the other's."""
    ours, place = str(Installation.objects.get_or_create(pk=1)[0]), DirectoryStore(directory)
    mark = place.mark()
    if mark is None:
        place.write_mark(ours)
    elif mark != ours:
        raise WrongArchive(
            f"{directory} is in use by another installation ({mark}); this one is {ours}. Two can't"
            f" share it: set {setting}, or VAR_DIR, to a directory of this one's own. Where the"
            f" other is no more, remove {place.mark_name}."
        )


def moved_to(mark: str) -> str:
    """Return where an archive was moved to, as its mark tells; "" where it tells of no move."""
    return mark.removeprefix(_MOVED) if mark.startswith(_MOVED) else ""


def being_restored(what: str) -> str:
    """Return the mark of an archive while it is put back: nobody writes to it."""
    return f"{_RESTORED}{what}"


def is_being_restored(mark: str) -> bool:
    return mark.startswith(_RESTORED)


def _refuse_half_restored(archive: PackStore, mark: str | None) -> None:
    if mark is not None and is_being_restored(mark):
        raise WrongArchive(
            f"{archive.name} is being restored from a backup. Nothing is written until that is"
            " done: run manage.py restore again where it was broken off."
        )


def retire(archive: PackStore, to: PackStore) -> None:
    """Have nobody write to a store any more: the archive is moved to another."""
    archive.write_mark(f"{_MOVED}{to.name}")


def take_over() -> None:
    """Make the archive that is there ours, where this database never had one: the one before it
    was lost. Raises WrongArchive as `require` does where it had one."""
    mark, installation = store().mark(), Installation.objects.filter(pk=1).first()
    _refuse_half_restored(store(), mark)
    new = installation is None or not installation.archive_marked
    if mark is not None and not moved_to(mark) and new:
        Installation.objects.update_or_create(
            pk=1, defaults={"archive_id": mark, "archive_marked": True}
        )
    require()


def _begin() -> Installation:
    """Make the archive ours. Whoever else is at it waits, and finds it done."""
    Installation.objects.get_or_create(pk=1)
    with transaction.atomic():
        installation = Installation.objects.select_for_update().get(pk=1)
        if not installation.archive_marked:
            archive = store()
            mark = archive.mark()
            if mark != str(installation.archive_id):  # else a start was killed just now
                _refuse_what_is_not_new(archive, mark)
                archive.write_mark(str(installation.archive_id))
            installation.archive_marked = True
            installation.save(update_fields=["archive_marked"])
    return installation


def _refuse_what_is_not_new(archive: PackStore, mark: str | None) -> None:
    _refuse_half_restored(archive, mark)
    if mark is None:
        known = Pack.objects.order_by("created_at")
        some = [pack for pack in (known.first(), known.last()) if pack is not None]
        if some and not any(archive.holds(pack.source_id, pack.pk) for pack in some):
            raise WrongArchive(
                f"{archive.name} has none of this installation's packs: is its volume"
                " mounted? Nothing is written until it is."
            )
    elif next(archive.packs(), None) is not None:
        raise WrongArchive(
            f"{archive.name} holds the archive of another installation ({mark}). Set"
            f" {archive.setting} to an empty place; or, where the database of that archive is lost,"
            " take it over with manage.py rebuild_archive_index."
        )
