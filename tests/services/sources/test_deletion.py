"""A deletion leaves nothing, however often it is begun, and whoever else is at it."""

import threading
import time
import uuid
from typing import Any

import pytest
from django.db import connection

from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs import s3
from ingestion.packs.store import store
from ingestion.services.audit import Actor
from ingestion.services.engine import claims, due_work, lease
from ingestion.services.sources import deletion, verbs
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers import people
from tests.servers.command_line import CommandLine

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("tests")
TABLES = (Placement, Message, Folder, Mailbox, Pack, IngestionSource)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> IngestionSource:
    """A deleted source whose removal takes many batches."""
    monkeypatch.setattr(deletion, "_BATCH_ROWS", 3)
    source = a_source(people.user("owner"), "Alice")
    mailbox = a_mailbox(source)
    for number in range(12):
        bodies = [b"Subject: %d.%d\r\n\r\n" % (number, n) for n in range(20)]
        archived(a_folder(mailbox, f"Folder {number}"), *bodies)
    return source


def removed(source: IngestionSource) -> bool:
    """Remove it as a worker does; tell whether nothing of it is left."""
    due_work.do_now(due_work.Work("delete", source.pk))
    return not IngestionSource.objects.filter(pk=source.pk).exists()


def left() -> dict[str, int]:
    return {model.__name__: model.objects.count() for model in TABLES if model.objects.exists()}


def test_two_at_once_do_not_disturb_each_other(source: IngestionSource) -> None:
    verbs.delete(source, actor=ACTOR)
    said: list[str] = []

    def delete() -> None:
        try:
            removed(source)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test names it
            said.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=delete) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.03)
    for thread in threads:
        thread.join()
    assert said == []
    assert removed(source)
    assert left() == {}
    assert list(store().sources()) == []


def test_only_one_session_is_at_it_and_a_session_that_ends_gives_way(
    source: IngestionSource,
) -> None:
    verbs.delete(source, actor=ACTOR)
    began, end = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with claims.claimed("delete", source.pk) as mine:
                assert mine
                began.set()
                end.wait(240)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert began.wait(120)
    assert not removed(source)
    assert left()["Message"] == 240
    with connection.cursor() as cursor:  # as when its process dies
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_locks WHERE locktype = 'advisory'"
        )
    assert removed(source)
    assert left() == {}
    end.set()
    thread.join()


def test_one_under_way_is_not_handed_out_again(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due_work, "HAND_OUT_AGAIN_SECONDS", 0.5)
    verbs.delete(source, actor=ACTOR)
    assert [work.kind for work in due_work.hand_out()] == ["delete"]
    handed_out: list[str] = []
    batch = deletion._delete_batch

    def slow(*arguments: Any) -> None:
        time.sleep(0.1)  # longer than HAND_OUT_AGAIN_SECONDS in all
        batch(*arguments)
        handed_out.extend(work.kind for work in due_work.hand_out())

    monkeypatch.setattr(deletion, "_BATCH_ROWS", 30)
    monkeypatch.setattr(deletion, "_delete_batch", slow)
    assert removed(source)
    assert handed_out == []


def test_children_that_come_late_go_before_their_parents(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that deletes nothing (another session has the rows) is not the end of them."""
    verbs.delete(source, actor=ACTOR)
    batch, calls = deletion._delete_batch, [0]

    def sometimes(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] % 2:
            batch(*arguments)

    monkeypatch.setattr(deletion, "_delete_batch", sometimes)
    assert removed(source)
    assert left() == {}


class ToldToEnd:
    """SIGTERM comes when the first packs are gone."""

    def is_set(self) -> bool:
        return 0 < len(list(store().packs())) < 12


@pytest.mark.parametrize("where", ["directory", "bucket"])
def test_a_worker_that_is_told_to_end_while_packs_go_leaves_the_rest_to_another(
    where: str, settings: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "bucket":
        server: ObjectStoreServer = request.getfixturevalue("object_store")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        at = f"s3://archive/{uuid.uuid4()}?endpoint={server.endpoint}&region=us-east-1"
        settings.ARCHIVE_URL = at
        monkeypatch.setattr(s3, "_PAGE", 5)
    source: IngestionSource = request.getfixturevalue("source")
    assert len(list(store().packs())) == 12
    verbs.delete(source, actor=ACTOR)
    with monkeypatch.context() as leaving:
        leaving.setattr(lease, "leaving", ToldToEnd())
        assert not removed(source)
    assert left() == {"IngestionSource": 1}
    assert 0 < len(list(store().packs())) < 12
    assert [work.kind for work in due_work.hand_out()] == ["delete"]
    assert removed(source)
    assert list(store().packs()) == []


def test_the_command_waits_for_a_worker_that_is_at_it(
    source: IngestionSource, manage: CommandLine
) -> None:
    process = None
    with claims.claimed("delete", source.pk):
        process = manage.start("delete_source", "Alice", "--yes", "--now")
        while IngestionSource.objects.filter(deleted_at=None).exists():
            time.sleep(0.1)
        time.sleep(1)
        assert process.poll() is None
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "is gone." in stdout
    assert left() == {}
