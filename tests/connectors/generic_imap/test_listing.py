"""What an IMAP server lists, through the whole engine: never "none" where it could not be read, and
never "gone" where the server only does not let it be opened."""

import datetime as dt
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.generic_imap import listing
from connectors.generic_imap.syntax import ranges
from connectors.generic_imap.uids import Uids
from connectors.types import Cursor, Page, Wanted
from ingestion.models import Folder, IngestionSource, Run
from tests.servers import imap_source
from tests.servers.imap_connector import inbox_of, listed, opened
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


@pytest.mark.parametrize("server", [PLAIN], ids=["plain"], indirect=True)
def test_a_mod_sequence_of_a_server_that_answers_nothing_by_it_is_not_believed(
    server: ImapScript, source: IngestionSource
) -> None:
    """Yahoo told one (MailKit#358)."""

    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if b"CHANGEDSINCE" in command:
            client.send(tag + b" BAD [CLIENTBUG] FETCH Command arguments invalid\r\n")
        return b"CHANGEDSINCE" in command

    for run, until in ((imported, 4), (synced, 6)):
        fill(server.inbox, until - server.inbox.next_uid)
        told = (b"UIDVALIDITY 1", b"UIDNEXT %d" % until, b"HIGHESTMODSEQ %d" % until)
        server.hooks[:] = [refuse]
        examined_as(server, b"%d EXISTS" % (until - 1), *(b"OK [" + t + b"]" for t in told))
        run(source)
        assert archived(source) == held_by(server)
    server.commands.clear()
    synced(source)
    assert not server.asked(b"EXAMINE")


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


def test_new_mail_comes_first_and_costs_no_page_of_its_own(server: ImapScript) -> None:
    """Two would be two transactions of each poll that finds mail."""
    with opened(server) as session:
        since = listed(session)[-1].cursor
    fill(server.inbox, 2)
    with opened(server) as session:
        page, *of_others = listed(session, since)
        assert not any(page.added for page in of_others)
        assert [ref.remote_id.partition(":")[2] for ref in page.added] == ["4", "5"]
        assert len(of_others) == (0 if server.has("CONDSTORE") else 1)  # all flags, then the cursor
    with opened(server) as session:
        assert listed(session, [page, *of_others][-1].cursor) == []


@pytest.fixture
def tiny_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAGE_MESSAGES", "PAGE_MESSAGES", "BARE_PAGE_MESSAGES", "FLAGS_WINDOW"):
        monkeypatch.setattr(listing, name, 2)


def page_by_page(server: ImapScript, cursor: Cursor | None) -> Iterator[Page]:
    """Yield the pages of a pass of which each slice ends after one. Fails where it never ends."""
    for _ in range(40):
        with opened(server) as session:
            session.prefer(Wanted(since=dt.date(2001, 1, 1)))  # so each is described
            page = next(iter(session.changes(inbox_of(session), cursor)), None)
        if page is None:
            return
        yield page
        cursor = json.loads(json.dumps(dict(page.cursor)))
    raise AssertionError("It goes round and round.")


def uids_of(pages: Iterable[Page]) -> list[int]:
    return [int(ref.remote_id.partition(":")[2]) for page in pages for ref in page.added]


@pytest.mark.usefixtures("tiny_pages")
def test_a_look_at_all_messages_goes_on_where_a_slice_ended(server: ImapScript) -> None:
    fill(server.inbox, 6)
    *_, end = page_by_page(server, None)
    for uid in server.inbox.mails:
        server.inbox.flag(uid, b"\\Seen")
    server.inbox.expunge(2)
    fill(server.inbox, 1)
    pages = []
    for page in page_by_page(server, {**end.cursor, "t": 0}):
        pages.append(page)
        fill(server.inbox, len(pages) == 8)
    told = [page for page in pages if page.again]
    assert uids_of(told) == [1, *range(3, 12)]
    assert uids_of(pages[:1]) == [10]
    assert uids_of(pages[8:9]) == [11]
    labels = dict(label for page in pages for label in page.relabelled)
    assert {f"1:{uid}": ("\\Seen",) for uid in (1, *range(3, 10))}.items() <= labels.items()
    presents = [page.present for page in pages if page.present is not None]
    assert presents
    assert not any("1:2" in present for present in presents)
    assert not {"a", "f"} & pages[-1].cursor.keys()


@pytest.mark.usefixtures("tiny_pages")
def test_what_came_late_below_what_was_told_again_is_told_too(server: ImapScript) -> None:
    del server.inbox.mails[1]
    fill(server.inbox, 5)
    *_, end = page_by_page(server, None)
    pages = page_by_page(server, {**end.cursor, "t": 0})
    while not next(pages).again:
        pass
    server.inbox.deliver(b"late", uid=1)
    assert 1 in uids_of(pages)


@pytest.mark.parametrize("server", [MODERN], ids=["modern"], indirect=True)
@pytest.mark.usefixtures("tiny_pages")
def test_what_comes_late_between_two_slices_is_not_taken_for_what_went(server: ImapScript) -> None:
    del server.inbox.mails[1]
    fill(server.inbox, 5)
    *_, end = page_by_page(server, None)
    server.inbox.expunge(2)
    pages = page_by_page(server, end.cursor)
    assert next(pages).removed == ["1:2"]
    server.inbox.deliver(b"late", uid=1)  # as many are there as before
    assert 1 in uids_of(pages)


@pytest.mark.parametrize("server", [MODERN], ids=["modern"], indirect=True)
@pytest.mark.usefixtures("tiny_pages")
def test_who_goes_between_two_slices_begins_no_look_at_all_messages(server: ImapScript) -> None:
    """What went then is told once more by the next poll, and is taken away from the count once."""
    fill(server.inbox, 6)
    *_, end = page_by_page(server, None)
    pages = page_by_page(server, {**end.cursor, "t": 0})
    told = [next(pages), next(pages)]
    assert told[1].again
    server.inbox.expunge(1)
    told += pages
    assert uids_of(page for page in told if page.again) == list(range(1, 10))


@pytest.mark.usefixtures("tiny_pages")
def test_flags_of_a_first_listing_go_on_where_a_slice_ended(server: ImapScript) -> None:
    fill(server.inbox, 6)
    pages = page_by_page(server, None)
    first = next(pages)
    server.inbox.flag(1, b"\\Seen")
    rest = list(pages)
    assert rest[-1].cursor["done"]
    assert uids_of([first, *rest]) == list(range(1, 10))
    assert dict(label for page in rest for label in page.relabelled)["1:1"] == ("\\Seen",)


@pytest.mark.usefixtures("tiny_pages")
def test_in_each_slice_of_a_long_look_new_mail_is_archived(
    server: ImapScript, source: IngestionSource
) -> None:
    IngestionSource.objects.update(options={"since": "2001-01-01"})
    imported(source)
    folder = Folder.objects.get()
    Folder.objects.update(cursor={**(folder.cursor or {}), "t": 0})
    run = imap_source.start(source, sync_only=True)
    for number in range(16):
        fill(server.inbox, number < 3)
        imap_source.work(source, slice_seconds=0)
        assert archived(source) == held_by(server)
    run.refresh_from_db()
    assert run.status == "completed"
