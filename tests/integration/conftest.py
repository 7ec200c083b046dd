"""What the tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.command_line import CommandLine


@pytest.fixture(autouse=True)
def no_idle_connections() -> Iterator[None]:
    """Close what a worker keeps for its next mailbox: pytest-django drops the database, and restarts
    of it are tested."""
    yield
    from ingestion.services.engine import commit

    commit.close_idle()


@pytest.fixture
def archive_dir(settings: Any, tmp_path: Path) -> Path:
    """An archive of the test's own."""
    settings.ARCHIVE_DIR = tmp_path / "archive"
    return tmp_path / "archive"


@pytest.fixture
def manage(transactional_db: None, archive_dir: Path) -> CommandLine:
    """`manage("source_status", "--json")` runs manage.py as a process."""
    return CommandLine(archive_dir)
