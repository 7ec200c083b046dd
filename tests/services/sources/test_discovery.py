"""What a listing of mailboxes says that can't be, and what it says no more."""

import pytest

from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import sync
from ingestion.services.sources import discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, fill, start

pytestmark = pytest.mark.django_db(transaction=True)


def listed_again(server: Server, source: IngestionSource, *accounts: str) -> Run:
    """Have the provider list others than it did, and all that are due followed."""
    server.accounts = accounts
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    for mailbox in Mailbox.objects.filter(run=run):
        sync.sync_mailbox(mailbox.pk)
    run.refresh_from_db()
    return run


@pytest.fixture
def five(server: Server, source: IngestionSource) -> None:
    """Five mailboxes that are followed."""
    fill(server, 1)
    server.accounts = tuple("abcde")
    start(source)
    for mailbox in Mailbox.objects.all():
        sync.sync_mailbox(mailbox.pk)


@pytest.mark.usefixtures("five")
def test_a_listing_of_no_mailbox_is_not_believed(server: Server, source: IngestionSource) -> None:
    """A directory that answers {} says nothing of who is there."""
    run = listed_again(server, source)
    assert (run.finished_at, run.last_error_code) == (None, "no_mailboxes")
    assert "it had 5" in run.warning
    assert set(Mailbox.objects.values_list("state", flat=True)) == {"active"}
    Run.objects.update(not_before=run.started_at)
    run = listed_again(server, source, *"abcde")
    assert (run.status, run.message) == ("completed", "0 archived.")


@pytest.mark.usefixtures("five")
def test_mailboxes_that_are_listed_no_more_are_named_by_the_run(
    server: Server, source: IngestionSource
) -> None:
    """Somebody may have taken them out of the service's reach."""
    assert listed_again(server, source, *"abcd").message == (
        "0 archived. 1 mailbox is no longer listed by the provider: e@example.com."
        " What was archived stays."
    )
    assert "4" not in listed_again(server, source, *"abcd").message  # told once
    Mailbox.objects.update(address="x\n" * 100)
    message = listed_again(server, source).warning
    assert "it had 4" in message
    said = listed_again(server, source, "new").message
    assert "4 mailboxes are no longer listed by the provider: " in said
    assert "and 1 more" in said
    assert "\n" not in said


@pytest.mark.usefixtures("five")
def test_a_mailbox_on_two_pages_of_a_listing_is_one(
    server: Server, source: IngestionSource
) -> None:
    """As where it was renamed between them."""
    assert listed_again(server, source, *"abcdea").status == "completed"
    assert Mailbox.objects.count() == 5
