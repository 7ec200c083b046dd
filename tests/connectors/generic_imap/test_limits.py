"""IMAP servers that apply a command to so many messages at once and no more (RFC 9738), through the
whole engine: what they left out is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.models import FailedMessage, IngestionSource, Placement
from tests.servers import imap_source
from tests.servers.imap_script import MODERN, PLAIN, ImapScript
from tests.servers.imap_source import archived, held_by, imported, synced

pytestmark = pytest.mark.django_db(transaction=True)
_LIMIT = 7


@pytest.fixture(autouse=True)
def short(settings: Any, tmp_path: Path) -> None:
    settings.ARCHIVE_DIR = tmp_path / "archive"


@pytest.fixture(params=[MODERN, PLAIN, (*MODERN, "OBJECTID")], ids=["modern", "plain", "ids"])
def server(request: pytest.FixtureRequest) -> Iterator[ImapScript]:
    with ImapScript(capabilities=(*request.param, f"MESSAGELIMIT={_LIMIT}")) as script:
        script.message_limit = _LIMIT
        for _ in range(40):
            deliver(script)
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return imap_source.create(server)


def deliver(server: ImapScript) -> None:
    number = server.inbox.next_uid
    server.inbox.deliver(b"Subject: %d\r\n\r\nText\r\n" % number, email_id=b"m%d" % number)


@pytest.mark.parametrize("status", [b"OK", b"NO"], ids=bytes.decode)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "unannounced"])
def test_all_mail_is_archived_and_followed_some_messages_at_a_time(
    server: ImapScript, source: IngestionSource, status: bytes, announced: bool
) -> None:
    server.message_limit_status = status
    if not announced:
        server.capabilities.pop()
    assert imported(source).status == "completed"
    assert archived(source) == held_by(server)
    for uid in range(5, 35, 2):
        server.inbox.expunge(uid)
    for _ in range(20):
        deliver(server)
    for uid in (1, 2, 3, 4, 36):
        server.inbox.flag(uid, b"\\Seen")
    assert synced(source).status == "completed"
    assert archived(source) == held_by(server)
    assert list(Placement.objects.get(remote_id="1:2").labels) == ["\\Seen"]


@pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "said once"])
def test_all_of_a_folder_is_seen_where_only_those_see_it_who_count_in_uids(
    server: ImapScript, source: IngestionSource, repeats: bool
) -> None:
    """Yahoo: without UIDONLY (RFC 9586) no more than the newest messages exist."""
    server.capabilities += ["ENABLE", "UIDONLY"]
    server.view_limit, server.repeats_uids = _LIMIT, repeats
    assert imported(source).status == "completed"
    assert archived(source) == held_by(server)
    for uid in range(5, 35, 2):
        server.inbox.expunge(uid)
    for _ in range(20):
        deliver(server)
    server.inbox.flag(2, b"\\Seen")
    assert synced(source).status == "completed"
    assert archived(source) == held_by(server)
    assert list(Placement.objects.get(remote_id="1:2").labels) == ["\\Seen"]


def test_a_capped_search_is_completed_without_sequence_numbers(
    server: ImapScript, source: IngestionSource
) -> None:
    server.capabilities += ["ENABLE", "UIDONLY"]
    server.search_cap = 3
    assert imported(source).status == "completed"
    assert archived(source) == held_by(server)


def test_refusals_are_told_from_an_outage_without_sequence_numbers(
    server: ImapScript, source: IngestionSource
) -> None:
    server.capabilities += ["ENABLE", "UIDONLY"]
    for uid in range(2, 30):
        server.inbox.mails[uid].refusal = b"NO [SERVERBUG] can't read it"
    assert imported(source).status == "completed"
    assert len(archived(source)) == 12
    assert FailedMessage.objects.count() == 28
