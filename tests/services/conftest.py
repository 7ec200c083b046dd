"""What the tests of the services ask for: a source of the scripted provider, an archive of their own.

Models are imported where they are used: pytest may read this file before Django is set up.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ingestion.models import IngestionSource
    from tests.servers.scripted_provider import Server


@pytest.fixture(autouse=True)
def _archive_of_its_own(request: pytest.FixtureRequest) -> None:
    """Not where the service's processes write theirs."""
    if "service" not in request.fixturenames:
        request.getfixturevalue("archive_dir")


@pytest.fixture
def server() -> Iterator["Server"]:
    """The scripted provider, the test's own."""
    from tests.servers import scripted_provider

    with scripted_provider.installed() as installed:
        yield installed


@pytest.fixture
def source(server: "Server") -> "IngestionSource":
    """A source of the scripted provider whose credentials nobody checked yet."""
    from tests.servers import scripted_source

    return scripted_source.create()
