"""The archive of this deployment, and what its users need to know of stores."""

from django.conf import settings

from ingestion.packs.base import PackFile, PackStore, PackWriter
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.format import Entry, Extent

__all__ = ["Entry", "Extent", "PackFile", "PackStore", "PackWriter", "store"]


def store() -> PackStore:
    """The archive of this deployment (settings.ARCHIVE_DIR)."""
    return DirectoryStore(settings.ARCHIVE_DIR)
