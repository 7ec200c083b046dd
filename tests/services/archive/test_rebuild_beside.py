"""A rebuild beside others that change the same rows: it begins again, or ends with a sentence."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction
from django.db.models import F

from ingestion.errors import LostRace, NotAllowedNow
from ingestion.models import IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs.store import store
from ingestion.services.archive import rebuild, verify
from ingestion.services.sources import deletion, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, fill, finish, start, synced
from tests.services.test_deadlocks import MAILBOX, ONCE_SOMEBODY_WAITS, crossing

pytestmark = pytest.mark.django_db(transaction=True)

FOLDER = "SELECT 1 FROM ingestion_folder FOR NO KEY UPDATE"
PACK = "SELECT 1 FROM ingestion_pack FOR NO KEY UPDATE"
MESSAGE = "SELECT 1 FROM ingestion_message FOR NO KEY UPDATE"


@pytest.fixture
def source(server: Server, source: IngestionSource) -> IngestionSource:
    """Ten messages in two packs."""
    fill(server, 5)
    start(source)
    finish(source)
    fill(server, 5, "Work")
    server.deliver("Work", b"Subject: other\r\n\r\n")
    synced(source)
    assert Pack.objects.count() == 2
    return source


def rebuilt(
    source: IngestionSource, *, during: Callable[[], None] = lambda: None
) -> rebuild.Rebuilt:
    return rebuild.rebuild(
        source,
        actor=ACTOR,
        on_damage=lambda it: pytest.fail(it.text),
        on_progress=lambda done: during() if done.packs == 1 else None,
    )


def problems() -> list[verify.Problem]:
    found: list[verify.Problem] = []
    verify.verify_archive(on_problem=found.append)
    return found


def rows() -> list[object]:
    return [*Message.objects.order_by("pk").values_list("pk", "pack")]


def lose_messages(_: IngestionSource) -> None:
    Placement.objects.all().delete()
    Message.objects.all().delete()


def look_elsewhere(source: IngestionSource) -> None:
    """The rows name packs that are not there, as those of a database that is older than the archive
    may (`archive.compaction`)."""
    for pack in list(Pack.objects.all()):
        gone = Pack.objects.create(
            pk=uuid.uuid4(), source=source, size_bytes=1, message_count=pack.message_count
        )
        Message.objects.filter(pack=pack).update(pack=gone)
        pack.delete()


def test_rows_that_are_added_are_added_in_a_second_try(
    server: Server, source: IngestionSource
) -> None:
    lose_messages(source)
    with crossing(FOLDER, MAILBOX):
        done = rebuilt(source)
    assert (done.messages_added, done.placements_added) == (6, 6)
    synced(source)
    assert_exact(server, source)
    assert problems() == []


def test_rows_that_are_led_elsewhere_are_in_a_second_try(
    server: Server, source: IngestionSource
) -> None:
    look_elsewhere(source)
    with crossing(PACK, MESSAGE):
        done = rebuilt(source)
    assert done.messages_moved == 6
    assert_exact(server, source)
    assert problems() == []


@pytest.mark.parametrize("removed", [False, True], ids=["deleted", "removed"])
@pytest.mark.parametrize("lose", [lose_messages, look_elsewhere])
def test_of_a_source_that_is_deleted_meanwhile_no_row_comes_back(
    source: IngestionSource, lose: Callable[[IngestionSource], None], removed: bool
) -> None:
    lose(source)
    known: list[list[object]] = []

    def delete() -> None:
        verbs.delete(source, actor=ACTOR)
        if removed:
            deletion.delete_source(source.pk)
        known.append(rows())

    with pytest.raises(LostRace, match="deleted meanwhile"):
        rebuilt(source, during=delete)
    assert known == [rows()]
    deletion.delete_source(source.pk)
    assert not IngestionSource.objects.exists()
    assert list(store().packs()) == []


@pytest.mark.parametrize("lose", [lose_messages, look_elsewhere])
def test_two_at_once_give_back_what_one_does(
    server: Server, source: IngestionSource, lose: Callable[[IngestionSource], None]
) -> None:
    lose(source)
    with ThreadPoolExecutor(2) as both:
        for each in [both.submit(_rebuild, source) for _ in range(2)]:
            each.result()
    Mailbox.objects.update(lease_token=F("lease_token") + 1)
    synced(source)
    assert_exact(server, source)
    assert problems() == []


def test_who_recovers_a_source_while_another_does_is_told_that_it_exists(
    source: IngestionSource,
) -> None:
    def recover() -> IngestionSource:
        return rebuild.recover(
            source.pk, owner=source.owner, name="A", provider="generic_imap", actor=ACTOR
        )

    def recover_beside() -> None:
        try:
            recover()
        finally:
            connection.close()

    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE ingestion_ingestionsource CASCADE")
        with ThreadPoolExecutor(1) as other:
            with transaction.atomic():
                recover()
                second = other.submit(recover_beside)
                cursor.execute(ONCE_SOMEBODY_WAITS.format("SELECT 1"))
            with pytest.raises(NotAllowedNow, match="exists: rebuild it, without --recover"):
                second.result()
    assert IngestionSource.objects.get().status == "error"


def _rebuild(source: IngestionSource) -> None:
    try:
        rebuilt(source)
    finally:
        connection.close()
