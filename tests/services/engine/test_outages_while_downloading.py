"""Downloads that break off, or are put off, time and again: no message is accused for an outage."""

from typing import Any

import pytest
from django.utils import timezone

from connectors.errors import RateLimited, Unavailable
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Message, Pack, Run
from ingestion.services.engine import lease, sync
from ingestion.services.sources import discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import (
    ACTOR,
    assert_exact,
    body,
    due_now,
    fill,
    finish,
    start,
    synced,
    work,
)

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


def test_messages_that_are_known_to_break_the_connection_hold_up_no_new_mail(
    server: Server, source: IngestionSource
) -> None:
    """Eight, as an attempt of a sync for each is more than it has."""
    server.page_size = 1000
    fill(server, 10)
    server.breaking |= {f"INBOX/1:{uid}" for uid in range(1, 9)}
    start(source)
    finish(source)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    FailedMessage.objects.update(not_before=timezone.now())
    server.deliver("INBOX", body(11))
    work()
    run.refresh_from_db()
    assert (run.status, run.message) == ("completed", "1 archived.")
    assert Mailbox.objects.get().last_error_code == ""
    assert set(FailedMessage.objects.values_list("code", "attempts")) == {("breaks_connection", 2)}
    server.breaking.clear()
    FailedMessage.objects.update(not_before=timezone.now())
    assert synced(source).message == "8 archived."
    assert_exact(server, source)


@pytest.fixture
def breaking(server: Server, source: IngestionSource) -> Run:
    """A sync of a mailbox in which thirty messages are known to break the connection."""
    server.page_size = 1000
    fill(server, 30)
    start(source)
    finish(source)
    server.breaking |= {f"INBOX/1:{uid}" for uid in range(1, 31)}
    for uid in range(1, 31):
        FailedMessage.objects.create(
            mailbox=Mailbox.objects.get(),
            folder=Folder.objects.get(),
            remote_id=f"1:{uid}",
            code="breaks_connection",
            attempts=1,
            not_before=timezone.now(),
        )
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    return run


def test_an_outage_is_not_counted_of_all_that_are_known_to_break_the_connection(
    breaking: Run,
) -> None:
    work()
    breaking.refresh_from_db()
    assert breaking.status == "completed"
    assert FailedMessage.objects.filter(attempts=2).count() == 10
    assert FailedMessage.objects.filter(attempts=1).count() == 20


def test_who_is_told_to_stop_asks_for_none_that_is_known_to_break_the_connection(
    server: Server, breaking: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[lease.Lease] = []
    acquire = lease.acquire

    def noted(*given: Any) -> lease.Lease | None:
        if (taken := acquire(*given)) is not None:
            held.append(taken)
        return taken

    monkeypatch.setattr(lease, "acquire", noted)
    server.before_changes = lambda _: held[0].stopping.set()  # paused, or a deploy
    work()
    assert not FailedMessage.objects.filter(attempts=2).exists()


def test_where_suspects_have_no_time_left_the_folders_are_not_followed_again(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 1)
    start(source)
    finish(source)
    fill(server, 2)
    for remote_id in ("1:2", "1:3"):
        FailedMessage.objects.create(
            mailbox=Mailbox.objects.get(),
            folder=Folder.objects.get(),
            remote_id=remote_id,
            code="worker_died",
            not_before=timezone.now(),
        )
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    for _ in range(2):  # a page, and what comes after it
        sync.sync_mailbox(due_now().pk, slice_seconds=0)
    assert Folder.objects.get().followed_at
    assert FailedMessage.objects.get().remote_id == "1:3"
    finish(source)
    assert_exact(server, source)


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
