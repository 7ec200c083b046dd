"""A source that is led to another server, or whose login name is spelled out: what is recorded of
the mailbox says nothing about the mail there, and nothing is archived twice."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from connectors.generic_imap.config import ImapConfig
from ingestion.models import IngestionSource, Mailbox, Message, Placement, Run
from ingestion.services.engine import sync
from ingestion.services.sources import configuration, credentials, discovery
from tests.servers import imap_source
from tests.servers.imap_script import Client, ImapScript
from tests.servers.imap_source import ACTOR, archived, held_by

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        for number in range(5):
            script.inbox.deliver(b"Subject: old %d\r\n\r\n" % number)
        yield script


def lead_to(source: IngestionSource, server: ImapScript, **changes: Any) -> None:
    given = {"port": server.port, "password": server.password} | changes
    configuration.update(source, changes={"providerConfig": given}, actor=ACTOR)
    assert credentials.check(source, actor=ACTOR).ok


def test_all_mail_of_another_server_is_archived_though_its_ids_look_known(
    server: ImapScript,
) -> None:
    source = imap_source.create(server)
    imap_source.imported(source)
    with ImapScript() as other:
        assert other.inbox.validity == server.inbox.validity
        other.inbox.deliver(b"Subject: old 3\r\n\r\n")  # moved along
        for number in range(7):
            other.inbox.deliver(b"Subject: new %d\r\n\r\n" % number)
        lead_to(source, other)
        assert imap_source.synced(source).messages_new == 7
        assert archived(source) == held_by(other)
    assert Mailbox.objects.count() == 1
    assert Message.objects.count() == 12  # what was archived stays
    assert Placement.objects.filter(removed_at=None).count() == 8


def test_who_reads_the_old_server_meanwhile_writes_nothing_more(server: ImapScript) -> None:
    source = imap_source.create(server)
    with ImapScript() as other:
        for number in range(7):
            other.inbox.deliver(b"Subject: new %d\r\n\r\n" % number)

        def moved(client: Client, uid: int) -> None:
            if uid == 5:
                server.before_each_mail = lambda _, __: None
                lead_to(source, other)
                connection.close()  # of the server's thread

        server.before_each_mail = moved
        imap_source.start(source)
        sync.sync_mailbox(Mailbox.objects.get().pk)
        assert Run.objects.get().finished_at is None
        imap_source.imported(source)
        assert archived(source) == held_by(other)


def test_a_login_name_that_is_spelled_out_keeps_its_mailbox(server: ImapScript) -> None:
    server.name = "anna"
    source = imap_source.create(server)
    imap_source.imported(source)
    server.name = "anna@example.com"
    lead_to(source, server, username=server.name)
    assert imap_source.synced(source).messages_new == 0
    mailbox = Mailbox.objects.get()
    assert (mailbox.remote_id, mailbox.address) == ("anna@example.com", "anna@example.com")
    assert Message.objects.count() == 5
    assert archived(source) == held_by(server)


def test_another_account_is_another_mailbox(server: ImapScript) -> None:
    server.name = "anna"
    source = imap_source.create(server)
    imap_source.imported(source)
    server.name = "bert@example.com"
    lead_to(source, server, username=server.name)
    imap_source.start(source, sync_only=True)
    assert set(Mailbox.objects.values_list("remote_id", flat=True)) == {"anna", "bert@example.com"}


def test_of_another_account_nothing_comes_into_the_mailbox_that_a_run_still_owes(
    server: ImapScript,
) -> None:
    server.name = "anna"
    source = imap_source.create(server)
    imap_source.imported(source)
    run = imap_source.start(source, sync_only=True)
    anna = Mailbox.objects.get()
    server.name = "bert"
    server.inbox.deliver(b"Subject: of Bert\r\n\r\n")
    lead_to(source, server, username="bert")
    sync.sync_mailbox(anna.pk)
    assert Placement.objects.filter(mailbox=anna, removed_at=None).count() == 5
    assert Message.objects.count() == 5
    discovery.discover(run.pk)
    bert = Mailbox.objects.get(remote_id="bert")
    sync.sync_mailbox(bert.pk)
    run.refresh_from_db()
    assert (run.status, run.messages_new) == ("completed", 6)
    assert Message.objects.filter(mailbox=anna).count() == 5
    anna.refresh_from_db()
    assert anna.state == "gone"


@pytest.mark.parametrize(
    ("change", "elsewhere"),
    [
        ({}, False),
        ({"host": "IMAP.example.com"}, False),
        ({"port": 143, "secure": False, "startTls": True}, False),
        ({"host": "imap.example.net"}, True),
        ({"port": 1993}, True),
    ],
)
def test_another_way_to_the_same_server_is_no_other_server(
    change: dict[str, Any], elsewhere: bool
) -> None:
    given = {"host": "imap.example.com", "username": "anna", "password": "x"}
    stored = {"host": "imap.example.com", "port": 993, "username": "anna"}
    assert ImapConfig.parse(given | change).is_elsewhere(stored) is elsewhere
