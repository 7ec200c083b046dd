"""Downloads that break off, or are put off, time and again: no message is accused for an outage."""

import pytest

from connectors.errors import RateLimited, Unavailable
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Message, Pack
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import assert_exact, fill, finish, start, work

pytestmark = pytest.mark.django_db(transaction=True)


def down(_: object) -> None:
    raise Unavailable("The connection was lost.")


def well(_: object) -> None:
    pass


def test_an_outage_in_which_logins_work_accuses_no_message(
    server: Server, source: IngestionSource
) -> None:
    server.page_size = 1000
    fill(server, 50)
    server.before_message = down
    start(source)
    for _ in range(10):
        work()
    server.before_message = well
    run = finish(source)
    assert run.message.startswith("50 archived.")
    assert run.messages_failed == 0
    assert not FailedMessage.objects.exists()
    assert_exact(server, source)


def test_a_connection_that_breaks_after_some_messages_gets_on_after_a_death_too(
    server: Server, source: IngestionSource
) -> None:
    """Where nothing came before it breaks, the folder would be stuck, and its next message a
    suspect."""
    server.page_size = 1000
    fill(server, 20)
    server.breaking.add("INBOX/1:10")
    start(source)
    Mailbox.objects.update(worker_deaths=1)
    work()
    assert Message.objects.count() == 9
    assert Folder.objects.get().attempts == 0
    assert not FailedMessage.objects.exists()
    server.breaking.clear()
    finish(source)
    assert_exact(server, source)


def test_messages_that_break_the_connection_are_told_from_the_others(
    server: Server, source: IngestionSource
) -> None:
    server.page_size = 1000
    fill(server, 20)
    server.breaking |= {"INBOX/1:1", "INBOX/1:2", "INBOX/1:20"}
    start(source)
    run = finish(source)
    assert run.message.startswith("17 archived, 3 failed.")
    failed = FailedMessage.objects.order_by("pk").values_list("remote_id", "code", "attempts")
    assert set(failed) == {(f"1:{uid}", "breaks_connection", 1) for uid in (1, 2, 20)}


@pytest.mark.parametrize("error", [RateLimited("Busy", retry_after_seconds=1), None])
def test_trouble_that_is_no_messages_does_not_make_an_import_careful(
    server: Server, source: IngestionSource, error: Exception | None
) -> None:
    """Two requests to wait, or two listings that failed."""
    server.page_size = 1000
    fill(server, 300)

    def wait(_: object) -> None:
        assert error is not None
        raise error

    if error:
        server.before_message = wait
    else:
        server.before_changes = down
    start(source)
    work()
    work()
    server.before_message = server.before_changes = well
    finish(source)
    assert Pack.objects.count() < 10
    assert_exact(server, source)
    assert not Folder.objects.filter(failing_since__isnull=False).exists()
