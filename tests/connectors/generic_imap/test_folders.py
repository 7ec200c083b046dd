"""Which folders an IMAP server lists, and what they are taken for, through the whole engine."""

import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.models import Folder, IngestionSource, Mailbox, Message, Placement
from tests.servers import imap_source
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript
from tests.servers.imap_source import archived, held_by, imported, synced

pytestmark = pytest.mark.django_db(transaction=True)
GMAIL = (*PLAIN, "X-GM-EXT-1", "SPECIAL-USE")


@pytest.fixture(autouse=True)
def short(settings: Any, tmp_path: Path) -> None:
    settings.ARCHIVE_DIR = tmp_path / "archive"


@pytest.fixture(params=[MODERN, PLAIN], ids=["modern", "plain"])
def server(request: pytest.FixtureRequest) -> Iterator[ImapScript]:
    with ImapScript(capabilities=request.param) as script:
        add(script, b"INBOX")
        add(script, b"Work")
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return imap_source.create(server)


def random_name(length: int) -> bytes:
    """Return letters that no index can compress."""
    return "".join(random.Random(7).choices(string.ascii_letters, k=length)).encode()


def add(server: ImapScript, name: bytes, attributes: bytes = b"", **about: Any) -> None:
    box = server.boxes.setdefault(name, Box(attributes=attributes))
    box.deliver(b"Subject: in %s\r\n\r\nText\r\n" % name.hex().encode(), **about)


def refuse_list_with(server: ImapScript, word: bytes) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        refused = command.startswith(b"LIST") and word in command
        if refused:
            client.send(tag + b" BAD Unknown argument\r\n")
        return refused

    server.hooks.append(refuse)


def test_a_folder_of_a_very_long_name_is_archived_as_any_other(
    server: ImapScript, source: IngestionSource
) -> None:
    long = random_name(5_000)
    for name in (long + b"1", long + "2ü".encode()):
        add(server, name)
    imported(source)
    add(server, long + b"1", flags=(b"\\Seen",))
    synced(source)
    assert sorted(archived(source).values()) == sorted(held_by(server).values())
    assert all(len(folder.path) < 1_100 for folder in Folder.objects.all())
    box = server.boxes.pop(long + b"1")
    synced(source)  # it is not listed, and may be there all the same
    assert Placement.objects.filter(removed_at=None).count() == 5
    synced(source)
    assert Placement.objects.filter(removed_at=None).count() == 3
    server.boxes[long + b"1"] = box
    synced(source)
    assert sorted(archived(source).values()) == sorted(held_by(server).values())


def test_a_message_of_a_very_long_keyword_is_archived_with_its_beginning(
    server: ImapScript, source: IngestionSource
) -> None:
    word = random_name(5_000)
    add(server, b"INBOX", flags=(word,))
    imported(source)
    server.boxes[b"Work"].flag(1, word)
    synced(source)
    assert archived(source) == held_by(server)
    marked = Placement.objects.filter(labels=[word[:255].decode()])
    assert marked.count() == 1 + server.has("CONDSTORE")


@pytest.mark.parametrize("word", [b"STATUS", b"RETURN"], ids=bytes.decode)
def test_a_listing_that_is_refused_is_asked_for_with_less(word: bytes) -> None:
    with ImapScript(capabilities=(*MODERN, "LIST-EXTENDED")) as server:
        refuse_list_with(server, word)
        add(server, b"INBOX")
        source = imap_source.create(server, name="Refusing")
        assert imported(source).status == "completed"
        assert archived(source) == held_by(server)


def test_a_listing_without_any_folder_is_none(server: ImapScript, source: IngestionSource) -> None:
    imported(source)
    boxes, server.boxes = server.boxes, {}
    imap_source.start(source, sync_only=True)
    mailbox = imap_source.work(source)
    assert "no folder" in mailbox.last_error
    assert Placement.objects.filter(removed_at=None).count() == 2
    server.boxes = boxes
    imap_source.finish(source)
    assert archived(source) == held_by(server)
    assert not Mailbox.objects.get().last_error


def test_an_inbox_that_is_not_listed_is_read_all_the_same(
    server: ImapScript, source: IngestionSource
) -> None:
    def hide(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            client.send(b'* LIST () "/" Work\r\n' + tag + b" OK done\r\n")
        return command.startswith(b"LIST")

    server.hooks.append(hide)
    imported(source)
    assert archived(source) == held_by(server)
    add(server, b"INBOX")
    synced(source)
    assert archived(source) == held_by(server)


def test_an_account_without_an_inbox_is_read(server: ImapScript) -> None:
    del server.boxes[b"INBOX"]
    source = imap_source.create(server, name="Shared")
    imported(source)
    assert archived(source) == held_by(server)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (b"Spam", "junk"),
        (b"INBOX/Trash", "trash"),
        (b"Entw&APw-rfe", "drafts"),
        (b"Papierkorb", "trash"),
        (b"Corbeille", "trash"),
        (b"Clients/Spam", ""),
        (b"Projects/Drafts", ""),
        (b"INBOX/Legal/Trash", ""),
    ],
)
def test_a_folder_is_known_by_its_name_only_where_programs_put_theirs(
    server: ImapScript, source: IngestionSource, name: bytes, role: str
) -> None:
    add(server, name)
    imported(source)
    assert not Folder.objects.filter(remote_id=name.decode()).exclude(role=role)
    assert ((name.decode(), "1:1") in archived(source)) == (role == "")


def test_what_is_flagged_is_no_folder_and_what_is_called_all_is_read(
    server: ImapScript, source: IngestionSource
) -> None:
    add(server, b"Starred", b"\\Flagged")
    add(server, b"All Mail", b"\\All")
    imported(source)
    assert {folder for folder, _ in archived(source)} == {"INBOX", "Work", "All Mail"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"My Folder", b"My Folder"),
        (b"My (old)", b"My (old)"),
        (b"My (old) Folder", b"My (old) Folder"),
        (b'"5" disks"', b'5" disks'),
        (b'"a\\b"', b"a\\b"),
        (b'"Work" ("CHILDINFO" ("SUBSCRIBED"))', b"Work"),
    ],
)
def test_a_name_that_lacks_quotes_or_escapes_is_read_whole(
    server: ImapScript, source: IngestionSource, written: bytes, name: bytes
) -> None:
    server.boxes = {b"INBOX": Box()}
    add(server, name)

    def answer(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            client.send(b'* LIST () "/" INBOX\r\n* LIST () "/" ' + written + b"\r\n")
            client.send(tag + b" OK done\r\n")
        return command.startswith(b"LIST")

    server.hooks.append(answer)
    assert imported(source).status == "completed"
    assert archived(source) == held_by(server)


@pytest.mark.parametrize("drafts", [False, True])
def test_drafts_of_gmail_are_left_out_unless_they_are_wanted(drafts: bool) -> None:
    with ImapScript(capabilities=GMAIL) as server:
        server.boxes = {b"INBOX": Box()}
        add(server, b"All Mail", b"\\All", gmail_id=1)
        add(server, b"All Mail", gmail_id=2, labels=b'"\\\\Draft"')
        source = imap_source.create(server, name="Gmail")
        IngestionSource.objects.update(options={"includeDrafts": drafts})
        imported(source)
        assert len(archived(source)) == 1 + drafts


def test_drafts_of_gmail_that_are_wanted_later_are_fetched_then() -> None:
    with ImapScript(capabilities=GMAIL) as server:
        server.boxes = {b"INBOX": Box()}
        add(server, b"All Mail", b"\\All", gmail_id=1)
        source = imap_source.create(server, name="Gmail")
        IngestionSource.objects.update(options={"includeDrafts": True})
        imported(source)
        IngestionSource.objects.update(options={"includeDrafts": False})
        add(server, b"All Mail", gmail_id=2, labels=b'"\\\\Draft"')
        synced(source)
        assert len(archived(source)) == 1
        sent = imap_source.Sent(server)
        IngestionSource.objects.update(options={"includeDrafts": True})
        synced(source)
        assert archived(source).keys() == {("All Mail", "1:1"), ("All Mail", "1:2")}
        synced(source)
        assert sent.times == {2: 1}


def made_again(server: ImapScript, source: IngestionSource) -> Box:
    """Have the folder "Work" deleted, which a sync sees, and made again with numbers from 1 on."""
    imported(source)
    del server.boxes[b"Work"]
    synced(source)
    assert Folder.objects.get(path="Work").removed_at is not None
    return server.boxes.setdefault(b"Work", Box())


def test_a_folder_that_is_made_again_takes_no_mail_of_the_one_before(
    server: ImapScript, source: IngestionSource
) -> None:
    """Some servers give each folder the same UIDVALIDITY (DavMail: 1)."""
    work = made_again(server, source)
    work.deliver(b"Subject: another\r\n\r\n")
    synced(source)
    assert archived(source) == held_by(server)
    assert Message.objects.count() == 3


def test_a_folder_that_is_back_with_a_uidvalidity_that_is_a_time_downloads_nothing(
    server: ImapScript, source: IngestionSource
) -> None:
    """It was away for maintenance, and who makes a folder takes another moment."""
    before = server.boxes[b"Work"]
    before.validity = 1_700_000_000
    imported(source)
    del server.boxes[b"Work"]
    synced(source)
    assert Folder.objects.get(path="Work").removed_at is not None
    server.boxes[b"Work"] = before
    sent = imap_source.Sent(server)
    synced(source)
    assert archived(source) == held_by(server)
    assert sum(sent.times.values()) == 0


def test_where_messages_have_ids_of_their_own_a_folder_that_is_back_downloads_nothing() -> None:
    with ImapScript(capabilities=GMAIL) as server:
        add(server, b"INBOX", gmail_id=1)
        add(server, b"Work", gmail_id=2)
        source = imap_source.create(server, name="Gmail")
        kept = server.boxes[b"Work"].mails[1]
        work = made_again(server, source)
        add(server, b"Work", gmail_id=3)
        work.mails[2] = kept
        work.next_uid = 3
        sent = imap_source.Sent(server)
        synced(source)
        assert archived(source) == held_by(server)
        assert sent.times == {1: 1}
