"""Messages that fail: told, tried again, and forgotten when they are had or gone."""

import datetime as dt

import pytest
from django.utils import timezone

from connectors.errors import MessageRefused
from connectors.types import MessageRef
from ingestion.models import FailedMessage, Folder, IngestionSource, Placement, Run
from ingestion.services.engine import failures, statements, sync
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, due_now, fill, finish, start, synced

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_failure_is_forgotten_when_its_message_is_gone(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    fill(server, 5, "Old")
    fill(server, 5, "Renumbered")
    for name in ("1:2", "1:3"):
        server.refused[name] = MessageRefused("The server said NO to this message.")
    start(source)
    finish(source)
    assert FailedMessage.objects.count() == 6
    del server.folders["INBOX"][2]
    del server.folders["Old"]
    server.refused.clear()
    server.renumber("Renumbered")
    synced(source)
    assert FailedMessage.objects.values_list("folder__path", "remote_id").get() == ("INBOX", "1:3")


def test_a_message_that_failed_is_placed_with_the_labels_of_today(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    server.refused["1:2"] = MessageRefused("The server said NO to this message.")
    start(source)
    finish(source)
    server.folders["INBOX"][2].labels = ("\\Seen",)
    synced(source)
    server.refused.clear()
    failures.retry(source, actor=ACTOR)
    synced(source)
    assert Placement.objects.get(remote_id="1:2").labels == ["\\Seen"]


def test_a_message_that_failed_and_came_in_the_same_run_is_no_failure_of_it(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 20)
    server.refused["1:2"] = MessageRefused("The server said NO to this message.")
    server.refused["1:3"] = MessageRefused("The server said NO to this message.")
    start(source)
    assert sync.sync_mailbox(due_now().pk, slice_seconds=0)  # a page
    assert Run.objects.get().messages_failed == 2
    del server.refused["1:2"]
    FailedMessage.objects.update(not_before=timezone.now())
    run = finish(source)
    assert run.message == "19 archived, 1 failed."
    assert (run.messages_done, run.messages_failed, run.messages_total) == (19, 1, 20)


def test_a_failures_size_that_is_found_out_later_is_kept(source: IngestionSource) -> None:
    """One that is too large is downloaded once to find out, not each time."""
    start(source)
    mailbox = due_now()
    folder = Folder.objects.create(mailbox=mailbox, remote_id="INBOX", path="INBOX")
    for size_bytes in (None, 5, None):
        ref = MessageRef("1:1", size_bytes, labels=None)
        statements.upsert_failure(
            mailbox.pk, folder.pk, ref, code="x", reason="", attempts=1, wait=dt.timedelta()
        )
    assert FailedMessage.objects.get().size_bytes == 5


def test_any_number_of_failures_is_tried_again_in_batches(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_RETRY_ROWS", 2)
    fill(server, 5)
    fill(server, 4, "Other")
    for uid in range(1, 6):
        server.refused[f"1:{uid}"] = MessageRefused("The server said NO to this message.")
    start(source)
    finish(source)
    assert FailedMessage.objects.count() == 9
    del server.refused["1:2"], server.refused["1:5"]
    FailedMessage.objects.update(not_before=timezone.now())
    assert synced(source).message == "2 archived, 1 recognised."
    assert set(FailedMessage.objects.values_list("attempts", flat=True)) == {2}
    server.refused.clear()
    failures.retry(source, actor=ACTOR)
    assert synced(source).message == "3 archived, 3 recognised."
    assert_exact(server, source)
