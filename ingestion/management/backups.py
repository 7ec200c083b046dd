"""Where `backup` and `restore` are told that backups are."""

from pathlib import Path

from ingestion.management.base import UsageError
from ingestion.packs.store import at
from ingestion.services.operations.backup.place import Place


def place(directory: Path, packs: str | None) -> Place:
    """Return a place of backups. Raises UsageError where the packs' URL is none."""
    try:
        return Place(directory.expanduser().resolve(), at(packs).fresh() if packs else None)
    except ValueError as error:
        raise UsageError(f"--packs: {error}.") from None
