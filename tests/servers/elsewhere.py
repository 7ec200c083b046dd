"""Another machine, as far as a restore can tell: an empty database and an empty archive, for this
process, while `with` lasts."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from django.db import connection

from ingestion.services.engine import commit


@contextlib.contextmanager
def another_machine(settings: Any, root: Path) -> Iterator[None]:
    host, here = connection.settings_dict["HOST"], connection.settings_dict["NAME"]
    name, archive = f"other_{uuid.uuid4().hex}", settings.ARCHIVE_DIR
    with psycopg.connect(
        host=host, user="postgres", dbname="postgres", autocommit=True
    ) as administrator:
        administrator.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        _use(name)
        settings.ARCHIVE_DIR = root / name
        try:
            yield
        finally:
            _use(here)
            settings.ARCHIVE_DIR = archive
            administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _use(database: str) -> None:
    commit.close_idle()
    connection.close()
    connection.settings_dict["NAME"] = database
