"""What an IMAP server lists, through the whole engine: never "none" where it could not be read, and
never "gone" where the server only does not let it be opened."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.generic_imap import listing
from connectors.generic_imap.syntax import ranges
from connectors.generic_imap.uids import Uids
from ingestion.models import Folder, IngestionSource, Run
from tests.servers import imap_source
from tests.servers.imap_connector import listed, opened
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript
from tests.servers.imap_source import archived, held_by, imported, synced

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def short(settings: Any, tmp_path: Path) -> None:
    settings.ARCHIVE_DIR = tmp_path / "archive"


@pytest.fixture(params=[MODERN, PLAIN], ids=["modern", "plain"])
def server(request: pytest.FixtureRequest) -> Iterator[ImapScript]:
    with ImapScript(capabilities=request.param) as script:
        fill(script.inbox, 3)
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return imap_source.create(server)


def fill(box: Box, count: int) -> None:
    for _ in range(count):
        number = box.next_uid
        box.deliver(b"Subject: %d\r\n\r\nBody %d of %d\r\n" % (number, number, id(box)))


def examined_as(server: ImapScript, *said: bytes) -> None:
    """Have EXAMINE of the inbox tell this, between its other responses and its end."""

    def answer(client: Client, tag: bytes, command: bytes) -> bool:
        if not command.startswith(b"EXAMINE") or b"INBOX" not in command:
            return False
        client.box = client.server.inbox
        client.send(b"".join(b"* " + line + b"\r\n" for line in said) + tag + b" OK done\r\n")
        return True

    server.hooks.append(answer)


@pytest.mark.parametrize(
    "refusal",
    [
        b"NO Server Unavailable. 15",
        b"NO [NOPERM] Permission denied",
        b"NO [SERVERBUG] Internal error",
        b"NO [INUSE] Locked",
        b"NO System I/O error",
        b"BAD Command Error. 12",
        b"NO [NOPERM] It doesn't exist or you may not see it: the mailbox does not exist for you",
    ],
    ids=bytes.decode,
)
def test_a_folder_that_is_refused_is_told_and_read_once_it_opens(
    server: ImapScript, source: IngestionSource, refusal: bytes
) -> None:
    work = server.boxes[b"Work"] = Box(refusal=refusal)
    fill(work, 5)
    run = imported(source)
    assert run.status == "incomplete"
    folder = Folder.objects.get(remote_id="Work")
    assert folder.last_error_code == "folder_refused"
    assert refusal.decode()[3:] in folder.last_error
    work.refusal = b""
    Folder.objects.update(not_before=None)
    assert synced(source).status == "completed"
    assert archived(source) == held_by(server)


@pytest.mark.parametrize(
    "refusal",
    [
        b"NO [NONEXISTENT] Unknown Mailbox: Work (Failure)",
        b"NO Mailbox does not exist",
        b"NO no such mailbox",
        b"NO Folder not found",
    ],
    ids=bytes.decode,
)
def test_a_folder_that_the_server_says_is_no_more_is_gone(
    server: ImapScript, source: IngestionSource, refusal: bytes
) -> None:
    server.boxes[b"Work"] = Box(refusal=refusal)
    imported(source)
    assert Folder.objects.get(remote_id="Work").last_error_code == "folder_gone"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ([b" 3 EXISTS"], 3),
        ([b"3   EXISTS"], 3),
        ([b"0 EXISTS", b"3 EXISTS"], 3),
        ([b"0 EXISTS", b"OK [UIDVALIDITY 9] old", b"OK [CLOSED] before this", b"3 EXISTS"], 3),
        ([b"3 EXISTS", b"OK [CLOSED] before this"], None),
        ([b"0 EXISTS"], 0),
        ([], None),
    ],
    ids=repr,
)
def test_the_number_of_messages_that_opening_tells_is_read_and_never_hides_any(
    server: ImapScript, source: IngestionSource, said: list[bytes], read: int | None
) -> None:
    examined_as(server, *said, b"OK [UIDVALIDITY 1]", b"OK [UIDNEXT 4]", b"OK [HIGHESTMODSEQ 4]")
    imported(source)
    assert archived(source) == held_by(server)
    cursor = Folder.objects.get().cursor
    assert cursor is not None
    assert cursor["c"] == read
    fill(server.inbox, 2)
    server.hooks.clear()
    examined_as(server, *said, b"OK [UIDVALIDITY 1]", b"OK [UIDNEXT 6]", b"OK [HIGHESTMODSEQ 6]")
    synced(source)
    assert archived(source) == held_by(server)


def test_an_empty_folder_in_which_nothing_may_be_looked_for_is_empty(
    server: ImapScript, source: IngestionSource
) -> None:
    server.boxes = {b"INBOX": Box()}

    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"UID "):
            client.send(tag + b" BAD No messages\r\n")
        return command.startswith(b"UID ")

    server.hooks.append(refuse)
    assert imported(source).status == "completed"
    server.hooks.clear()
    fill(server.inbox, 1)
    synced(source)
    assert archived(source) == held_by(server)
    assert Run.objects.count() == 2


def test_a_page_is_what_a_slow_server_describes_in_time(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that takes longer than a slice of work would be asked for anew in each."""
    monkeypatch.setattr(listing, "_DESCRIBING_SECONDS", 0.1)
    monkeypatch.setattr(listing, "_FEWEST_PAGE_MESSAGES", 2)
    monkeypatch.setattr(listing, "_FIRST_PAGE_MESSAGES", 10)
    fill(server.inbox, 37)
    IngestionSource.objects.update(options={"since": "2001-01-01"})  # so each is described
    pages: list[int] = []

    def take_20_ms_each(_client: Client, _tag: bytes, command: bytes) -> bool:
        if b"INTERNALDATE" in command and b"BODY" not in command:
            pages.append(len(Uids(ranges(command.split()[2]))))
            time.sleep(0.02 * pages[-1])
        return False

    server.hooks.append(take_20_ms_each)
    assert imported(source).status == "completed"
    assert archived(source) == held_by(server)
    assert pages[0] == 10
    assert max(pages[1:]) <= 5


def test_new_mail_comes_with_the_cursor_behind_it_on_one_page(server: ImapScript) -> None:
    """Two would be two transactions of each poll that finds mail."""
    with opened(server) as session:
        since = listed(session)[-1].cursor
    fill(server.inbox, 2)
    with opened(server) as session:
        *of_others, page = listed(session, since)
        assert not any(page.added for page in of_others)
        assert [ref.remote_id.partition(":")[2] for ref in page.added] == ["4", "5"]
    with opened(server) as session:
        assert listed(session, page.cursor) == []
