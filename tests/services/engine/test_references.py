"""The database refuses a message without its pack and a placement without its message, whoever writes
them, in whatever order two transactions come (migration 0031)."""

import threading
import uuid
from collections.abc import Callable
from functools import partial

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, IntegrityError, connection, transaction

from ingestion.models import Folder, Message, Pack, Placement
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def folder(admin_user: User) -> Folder:
    return a_folder(a_mailbox(a_source(admin_user)))


@pytest.fixture
def message(folder: Folder) -> Message:
    return archived(folder, b"Subject: one\r\n\r\n")[0]


def run(query: str, *values: str | int | uuid.UUID) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query, values)


def copied(message: Message, pack: uuid.UUID) -> None:
    """Insert a row as the message's, but for its id and hash, of a pack."""
    run(
        "INSERT INTO ingestion_message (id, mailbox_id, sha256, size_bytes, pack_id, pack_offset,"
        " pack_length, subject, sender, recipients, message_id, defects)"
        " SELECT gen_random_uuid(), mailbox_id, decode(md5(random()::text), 'hex'), 1, %s, 0, 1,"
        " '', '', '', '', '{}' FROM ingestion_message WHERE id = %s",
        pack,
        message.pk,
    )


def placed(message: uuid.UUID, folder: Folder) -> None:
    run(
        "INSERT INTO ingestion_placement (mailbox_id, folder_id, message_id, remote_id, stable_id,"
        " thread_id, labels) VALUES (%s, %s, %s, gen_random_uuid()::text, '', '', '{}')",
        folder.mailbox_id,
        folder.pk,
        message,
    )


NOBODY = uuid.UUID(int=0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda message, folder: copied(message, NOBODY),
        lambda message, folder: placed(NOBODY, folder),
        lambda message, folder: Message.objects.filter(pk=message.pk).update(pack=NOBODY),
        lambda message, folder: Placement.objects.update(message=NOBODY),
        lambda message, folder: run("DELETE FROM ingestion_pack"),
        lambda message, folder: run("DELETE FROM ingestion_message"),
    ],
    ids=["message", "placement", "other pack", "other message", "pack deleted", "message deleted"],
)
def test_what_is_named_exists(
    wrong: Callable[[Message, Folder], None], message: Message, folder: Folder
) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        wrong(message, folder)
    assert Placement.objects.get().message.pack == Pack.objects.get()


def test_what_is_not_named_may_go(message: Message, folder: Folder) -> None:
    copied(message, message.pack_id)
    placed(message.pk, folder)
    for table in ("placement", "message", "pack"):
        run(f"DELETE FROM ingestion_{table}")
    assert not Pack.objects.exists()


@pytest.mark.parametrize("named_first", [True, False])
@pytest.mark.parametrize("of", ["pack", "message"])
def test_who_names_and_who_deletes_at_once_wait_for_each_other(
    of: str, message: Message, folder: Folder, *, named_first: bool
) -> None:
    """Whichever comes first stands; the other is told."""
    Placement.objects.all().delete()
    names: Callable[[], None]
    deletes: Callable[[], None]
    if of == "pack":
        pack = archived(folder, b"Subject: two\r\n\r\n")[0].pack_id
        Placement.objects.all().delete()
        Message.objects.filter(pack=pack).delete()
        names = partial(copied, message, pack)
        deletes = partial(run, "DELETE FROM ingestion_pack WHERE id = %s", pack)
    else:
        names = partial(placed, message.pk, folder)
        deletes = partial(run, "DELETE FROM ingestion_message WHERE id = %s", message.pk)
    first, second = (names, deletes) if named_first else (deletes, names)
    told: list[Exception] = []

    def other() -> None:
        try:
            with transaction.atomic():
                second()
        except DatabaseError as error:
            told.append(error)
        finally:
            connection.close()

    with transaction.atomic():
        first()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()  # it waits
    thread.join(120)
    [error] = told
    assert isinstance(error, IntegrityError)
