"""An archive of 30 messages, 12 of them in a second folder too, and a place for what is taken out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ingestion.models import IngestionSource
    from tests.servers.scripted_provider import Server


@pytest.fixture(autouse=True)
def export_dir(settings: Any, tmp_path: Path) -> Path:
    settings.EXPORT_DIR = tmp_path / "exports"
    return tmp_path / "exports"


@pytest.fixture
def archived(server: "Server", source: "IngestionSource") -> "IngestionSource":
    from tests.servers import scripted_source

    server.page_size = 1000
    scripted_source.fill(server, 30)
    scripted_source.fill(server, 12, folder="Old")
    scripted_source.start(source)
    scripted_source.finish(source)
    return source
