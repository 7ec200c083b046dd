"""A scripted Graph, and sources on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.graph import GraphServer, User

if TYPE_CHECKING:
    from ingestion.models import IngestionSource


@pytest.fixture
def server() -> Iterator[GraphServer]:
    with GraphServer() as server:
        yield server


@pytest.fixture
def alice(server: GraphServer) -> User:
    return server.tenant.add_user("alice")


@pytest.fixture
def make(
    server: GraphServer, settings: Any, tmp_path: Path, transactional_db: None
) -> Callable[..., "IngestionSource"]:
    """`make(options, **config)` creates a source of the tenant; the settings point to the server."""
    from django.contrib.auth.models import User as Owner  # when Django is ready

    from ingestion.services.sources import configuration
    from tests.servers.graph.sources import ACTOR

    settings.ARCHIVE_DIR = tmp_path / "archive"
    settings.EXTRA_CA_FILE = server.ca_file
    settings.PROVIDER_ENDPOINTS = {
        "microsoft.login": server.origin,
        "microsoft.graph": server.origin,
    }
    settings.PROVIDER_QUOTAS = {"microsoft": {"mailbox": 1e6, "application": 1e6}}

    def make(options: dict[str, Any] | None = None, **config: Any) -> "IngestionSource":
        return configuration.create(
            owner=Owner.objects.create_user("engine"),
            name="Contoso",
            provider="microsoft",
            provider_config=server.config(**config),
            options={"includeTrash": True, "includeJunk": True, **(options or {})},
            actor=ACTOR,
        )

    return make
