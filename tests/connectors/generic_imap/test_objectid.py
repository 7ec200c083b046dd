"""A server with OBJECTID: what was copied, moved or renamed is recognised and not downloaded again."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from ingestion.models import Folder, IngestionSource, Message, Placement, Run
from ingestion.services.audit import Actor
from ingestion.services.engine import due_work
from ingestion.services.sources import configuration, verbs
from tests.servers.pymap import PASSWORD, USER, Pymap

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("test")


@pytest.fixture
def server(settings: Any, tmp_path: Path) -> Iterator[Pymap]:
    settings.ARCHIVE_DIR = tmp_path / "archive"
    with Pymap() as running:
        yield running


def synced(source: IngestionSource) -> Run:
    run = verbs.start_sync(source, actor=ACTOR)
    due_work.work_until_done(source, on_progress=lambda _: None)
    run.refresh_from_db()
    assert run.status == "completed", run.message
    return run


def placed() -> dict[str, list[str]]:
    """Return the subjects that lie in each folder now."""
    found: dict[str, list[str]] = {}
    for row in Placement.objects.filter(removed_at=None, folder__removed_at=None).select_related(
        "folder", "message"
    ):
        found.setdefault(row.folder.path, []).append(row.message.subject)
    return {path: sorted(subjects) for path, subjects in found.items()}


def bodies_asked_for(server: Pymap) -> int:
    return len(re.findall(rb"BODY\.PEEK\[\]", server.said))


def test_copies_moves_and_renames_download_nothing_again(server: Pymap) -> None:
    client = server.connect()
    for number in range(6):
        client.append("INBOX", "", "", b"Subject: m%d\r\n\r\nbody %d\r\n" % (number, number))
    client.create("Work")
    source = configuration.create(
        owner=User.objects.create_user("imap"),
        name="pymap",
        provider="generic_imap",
        provider_config={
            "host": server.host,
            "port": server.port,
            "secure": False,
            "username": USER,
            "password": PASSWORD,
        },
        actor=ACTOR,
    )
    synced(source)
    assert placed() == {"INBOX": [f"m{n}" for n in range(6)]}
    assert bodies_asked_for(server) >= 1  # so that the relay sees what a download is
    assert not Placement.objects.filter(stable_id="").exists()
    assert not Folder.objects.filter(stable_id="").exists()

    server.said.clear()
    client.select("INBOX")
    client.copy("1:2", "Work")
    client.uid("MOVE", "103", "Work")
    synced(source)
    assert placed() == {"INBOX": ["m0", "m1", "m3", "m4", "m5"], "Work": ["m0", "m1", "m2"]}
    assert bodies_asked_for(server) == 0
    assert Message.objects.count() == 6

    folder = Folder.objects.get(path="Work")
    client.rename("Work", "Done")
    synced(source)
    assert placed() == {"Done": ["m0", "m1", "m2"], "INBOX": ["m0", "m1", "m3", "m4", "m5"]}
    assert bodies_asked_for(server) == 0
    assert Folder.objects.get(path="Done").pk == folder.pk

    client.append("Done", "", "", b"Subject: new\r\n\r\nnew\r\n")
    synced(source)
    assert placed()["Done"] == ["m0", "m1", "m2", "new"]
    assert bodies_asked_for(server) == 1
    client.logout()
