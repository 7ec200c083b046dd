"""IMAP servers that apply a command to so many messages at once and no more (RFC 9738), through the
whole engine: what they left out is asked for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.models import FailedMessage, IngestionSource, Placement
from ingestion.services.archive.reconcile import reconcile
from tests.servers import imap_source
from tests.servers.imap_script import MODERN, PLAIN, Client, ImapScript
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
    if announced:  # else some are left out of each answer, and asked for singly
        assert len(server.asked(b"BODY.PEEK[]")) == 6
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


def test_a_comparison_sees_all_of_a_folder_and_what_the_archive_lacks_of_it(
    server: ImapScript, source: IngestionSource
) -> None:
    imported(source)
    lost = ["1:3", "1:20", "1:40"]
    Placement.objects.filter(remote_id__in=lost).delete()
    [report] = reconcile(source)
    assert (report.listed, report.present, report.missing) == (40, 37, 3)
    assert sorted(report.missing_ids) == sorted(lost)
    assert (report.unlisted, report.kept, report.error) == (0, 0, "")


def test_a_comparison_with_a_part_of_a_folder_does_not_agree(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server leaves out the rest and says no word of it."""
    imported(source)
    server.capabilities.pop()
    send, said = Client.send, re.compile(rb" \[MESSAGELIMIT \d+ \d+\]")
    monkeypatch.setattr(Client, "send", lambda self, data: send(self, said.sub(b"", data)))
    [report] = reconcile(source)
    assert (report.listed, report.unlisted, report.missing) == (_LIMIT, 40 - _LIMIT, 0)
    assert report.kept == 0
    assert not report.ok


@pytest.mark.parametrize("uid_only", [True, False], ids=["uids", "sequence numbers"])
def test_a_capped_search_is_completed(
    server: ImapScript, source: IngestionSource, uid_only: bool
) -> None:
    if uid_only:
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
    imap_source.start(source)
    assert imap_source.finish(source, slices=2).status == "completed"  # at the first try
    assert len(archived(source)) == 12
    assert FailedMessage.objects.count() == 28
