"""Whether ARCHIVE_DIR is this installation's archive: asked before anything is written there.

A volume that is not mounted looks like an empty directory. Mail that is written beneath the mount
point is out of reach once the volume is back, and never fetched again, because it counts as
archived. So the archive has a mark, `.installation`, with an id that the database has too.
"""

import contextlib
import os
from pathlib import Path

from django.conf import settings
from django.db import transaction

from ingestion.errors import WrongArchive
from ingestion.models import Installation, Pack
from ingestion.packs.store import store

MARK = ".installation"


def require() -> None:
    """Raise WrongArchive, which says what to do, unless ARCHIVE_DIR is ours.

    The first time ever, it is made so: the directory too, where it is missing.
    """
    installation = Installation.objects.filter(pk=1).first()
    if installation is None or not installation.archive_marked:
        installation = _begin()
    mark = _mark()
    if mark is None:
        raise WrongArchive(
            f"{settings.ARCHIVE_DIR} has no mark of this installation: is its volume mounted?"
            " Nothing is written until it is. Where it is meant to be another directory from now"
            f" on, write {installation.archive_id} into {_path()}."
        )
    if mark != str(installation.archive_id):
        raise WrongArchive(
            f"{settings.ARCHIVE_DIR} is the archive of another installation ({mark}); this one's"
            f" is {installation.archive_id}. Nothing is written until ARCHIVE_DIR is right."
        )


def take_over() -> None:
    """Make the archive that is there ours, where this database never had one: the one before it
    was lost. Raises WrongArchive as `require` does where it had one."""
    mark, installation = _mark(), Installation.objects.filter(pk=1).first()
    if mark is not None and (installation is None or not installation.archive_marked):
        Installation.objects.update_or_create(
            pk=1, defaults={"archive_id": mark, "archive_marked": True}
        )
    require()


def _begin() -> Installation:
    """Make ARCHIVE_DIR ours. Whoever else is at it waits, and finds it done."""
    Installation.objects.get_or_create(pk=1)
    with transaction.atomic():
        installation = Installation.objects.select_for_update().get(pk=1)
        if not installation.archive_marked:
            mark = _mark()
            if mark != str(installation.archive_id):  # else a start was killed just now
                _refuse_what_is_not_new(mark)
                _write_mark(installation)
            installation.archive_marked = True
            installation.save(update_fields=["archive_marked"])
    return installation


def _refuse_what_is_not_new(mark: str | None) -> None:
    if mark is None:
        known = Pack.objects.order_by("created_at")
        some = [pack for pack in (known.first(), known.last()) if pack is not None]
        if some and not any(store().holds(pack.source_id, pack.pk) for pack in some):
            raise WrongArchive(
                f"{settings.ARCHIVE_DIR} has none of this installation's packs: is its volume"
                " mounted? Nothing is written until it is."
            )
    elif next(store().packs(), None) is not None:
        raise WrongArchive(
            f"{settings.ARCHIVE_DIR} holds the archive of another installation ({mark}). Set"
            " ARCHIVE_DIR to an empty directory; or, where the database of that archive is lost,"
            " take it over with manage.py rebuild_archive_index."
        )


def _write_mark(installation: Installation) -> None:
    root: Path = settings.ARCHIVE_DIR
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f"{MARK}.partial"
    with partial.open("w") as file:
        file.write(f"{installation.archive_id}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(_path())
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _path() -> Path:
    root: Path = settings.ARCHIVE_DIR
    return root / MARK


def _mark() -> str | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _path().read_text(errors="replace").strip()[:100]
    return None
