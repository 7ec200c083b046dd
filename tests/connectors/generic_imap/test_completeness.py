"""The IMAP connector against servers that say too little, or something else than before: nothing is
passed over, and nothing that is there is taken for gone."""

import contextlib
import gc
import re
import threading

import pytest

from connectors.errors import CursorExpired, Retryable, Unavailable
from connectors.generic_imap import commands, listing, wire
from connectors.types import RawMessage, RemoteFolder
from tests.servers.imap_connector import (
    CONDSTORE_ONLY,
    content,
    expunge_at,
    fill,
    inbox_of,
    listed,
    opened,
    read,
    refs_of,
)
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript, Mail

YAHOO = (*PLAIN, "ENABLE", "MESSAGELIMIT=10", "UIDONLY")


@pytest.mark.parametrize("capabilities", [PLAIN, MODERN], ids=["plain", "modern"])
def test_a_server_that_caps_search_hides_no_new_mail(capabilities: tuple[str, ...]) -> None:
    with ImapScript(capabilities=capabilities) as server:
        server.search_cap = 10
        fill(server.inbox, 25)
        with opened(server) as session:
            pages = listed(session)
            assert len(refs_of(pages)) == 25
            cursor = pages[-1].cursor
        fill(server.inbox, 30)
        with opened(server) as session:
            assert len(refs_of(listed(session, cursor))) == 30


def test_more_new_mail_than_one_reply_can_tell_of_is_listed(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where all mail of an account is moved to another folder."""
    assert commands.UIDS_WINDOW * 200 < wire.MAX_REPLY_BYTES
    for module in (wire, commands):
        monkeypatch.setattr(module, "MAX_REPLY_BYTES", 1_000_000)
    monkeypatch.setattr(commands, "UIDS_WINDOW", 3_000)
    with opened(server) as session:
        cursor = listed(session)[-1].cursor
    fill(server.inbox, 10_000, size=0)
    with opened(server) as session:
        assert sum(len(page.added) for page in listed(session, cursor)) == 10_000


@pytest.mark.parametrize("told", [True, False], ids=["exists", "exists_not_told"])
@pytest.mark.parametrize("cap", [None, 3], ids=["search", "capped_search"])
def test_new_mail_that_is_asked_for_in_windows_is_listed_whole(
    monkeypatch: pytest.MonkeyPatch, cap: int | None, told: bool
) -> None:
    monkeypatch.setattr(commands, "UIDS_WINDOW", 4)
    if not told:
        _tells_no_exists(monkeypatch)
    with ImapScript(capabilities=MODERN) as server:
        server.search_cap = cap
        with opened(server) as session:
            cursor = listed(session)[-1].cursor
        assert len(server.asked(b"UID SEARCH")) == 1
        for count in (25, 12):
            fill(server.inbox, count)
            with opened(server) as session:
                pages = listed(session, cursor)
            cursor = pages[-1].cursor
            new = [page for page in pages if not page.again]
            assert len({ref.remote_id for ref in refs_of(new)}) == count


def _tells_no_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Client.send
    pattern = re.compile(rb"\* \d+ EXISTS\r\n")
    monkeypatch.setattr(Client, "send", lambda self, data: send(self, pattern.sub(b"", data)))


def test_a_server_that_answers_in_parts_without_end_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "MAX_REPLY_BYTES", 1_500)
    with ImapScript(capabilities=(*PLAIN, "MESSAGELIMIT=2")) as server:
        server.message_limit = 2
        fill(server.inbox, 25)
        with opened(server) as session, pytest.raises(Unavailable, match="without end"):
            listed(session)


@pytest.mark.parametrize("capabilities", [PLAIN, CONDSTORE_ONLY], ids=["plain", "condstore"])
def test_a_server_that_caps_search_removes_nothing(capabilities: tuple[str, ...]) -> None:
    with ImapScript(capabilities=capabilities) as server:
        server.search_cap = 10
        fill(server.inbox, 25)
        with opened(server) as session:
            cursor = listed(session)[-1].cursor
        server.inbox.flag(3, b"\\Seen")
        server.inbox.expunge(25)
        with opened(server) as session:
            pages = listed(session, cursor)
        present = [page.present for page in pages if page.present is not None]
        removed = {r for page in pages for r in page.removed}
        gone = removed | {f"1:{u}" for u in range(1, 26) for p in present if f"1:{u}" not in p}
        assert gone == {"1:25"}


def test_a_server_that_shows_less_than_it_counts_removes_nothing() -> None:
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 25)
        with opened(server) as session:
            cursor = listed(session)[-1].cursor
        server.inbox.expunge(25)
        server.search_cap = 10

        def show_ten(client: Client, tag: bytes, command: bytes) -> bool:
            if not command.startswith(b"FETCH"):
                return False
            for uid in range(1, 11):
                client.send(b"* %d FETCH (UID %d)\r\n" % (uid, uid))
            client.send(tag + b" OK\r\n")
            return True

        server.hooks.append(show_ten)
        with opened(server) as session:
            pages = listed(session, cursor)
            assert all(page.present is None and not page.removed for page in pages)
            server.hooks.clear()
            server.search_cap = None
        with opened(server) as session:  # nothing else happened, and still it looks again
            pages = listed(session, pages[-1].cursor)
        assert [p.present for p in pages if p.present is not None and "1:25" not in p.present]


@pytest.mark.parametrize("capped", [False, True], ids=["search", "capped_search"])
def test_who_goes_meanwhile_makes_up_for_nobody_whom_the_server_hides(capped: bool) -> None:
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 10)

        def hide_one(client: Client, tag: bytes, command: bytes) -> bool:
            told = [uid for uid in server.inbox.mails if uid != 10]
            if command.startswith(b"UID SEARCH"):
                shown = b" ".join(b"%d" % uid for uid in told[: 3 if capped else None])
                client.send(b"* SEARCH " + shown + b"\r\n")
            elif command.startswith(b"FETCH"):
                for uid in told:
                    client.send(b"* %d FETCH (UID %d)\r\n" % (uid, uid))
            else:
                return False
            if 1 in server.inbox.mails and command.startswith(b"FETCH" if capped else b"UID"):
                server.inbox.expunge(1)
                client.send(b"* 1 EXPUNGE\r\n")
            client.send(tag + b" OK\r\n")
            return True

        server.hooks.append(hide_one)
        with opened(server) as session:
            pages = listed(session)
        assert 1 not in server.inbox.mails
        assert all(page.present is None for page in pages)
        assert pages[-1].cursor["c"] is None  # so that the next pass looks again


def test_who_is_expunged_before_being_told_is_missed_by_no_listing() -> None:
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 10)
        expunge_at(server, b"UID SEARCH", 3, b"* 3 EXPUNGE")
        with opened(server) as session:
            last = listed(session)[-1]
        assert last.present is not None
        assert "1:3" not in last.present
        assert last.cursor["c"] is not None


@pytest.mark.parametrize("hidden", [False, True], ids=["all_shown", "one_hidden"])
@pytest.mark.parametrize("gone", [3, 20], ids=["not_told", "told"])
def test_who_vanishes_meanwhile_stands_for_nobody_and_is_missed_by_no_listing(
    gone: int, hidden: bool
) -> None:
    with ImapScript(capabilities=YAHOO) as server:
        server.view_limit = server.message_limit = 10
        server.search_cap = 2
        fill(server.inbox, 25)

        def vanish(client: Client, _tag: bytes, command: bytes) -> bool:
            if command.startswith(b"UID FETCH 1:15 "):  # 16 and above were told before
                server.hooks.clear()
                server.inbox.expunge(gone)
                client.send(b"* VANISHED %d\r\n" % gone)
                if hidden:
                    del server.inbox.mails[4]  # and it is still counted
            return False

        server.hooks.append(vanish)
        with opened(server) as session:
            last = listed(session)[-1]
        assert gone not in server.inbox.mails
        assert (last.present is None) == (last.cursor["c"] is None) == hidden
        if last.present is not None:
            assert "1:4" in last.present
            assert ("1:3" in last.present) == (gone != 3)


def test_a_removal_is_seen_where_the_mod_sequence_does_not_tell() -> None:
    with ImapScript(capabilities=CONDSTORE_ONLY) as server:
        fill(server.inbox, 5)
        with opened(server) as session:
            cursor = listed(session)[-1].cursor
        server.inbox.expunge(2, silent=True)
        with opened(server) as session:
            pages = listed(session, cursor)
        present = [page.present for page in pages if page.present is not None]
        assert present
        assert "1:2" not in present[-1]
        assert "1:3" in present[-1]


def test_an_expunge_while_listing_by_sequence_numbers_hides_nobody() -> None:
    with ImapScript(capabilities=PLAIN) as server:
        server.search_cap = 3
        fill(server.inbox, 12_000, size=0)
        dropped: list[int] = []

        def shift(client: Client, _tag: bytes, command: bytes) -> bool:
            if command.startswith(b"FETCH") and server.commands.count(command) == 1 and not dropped:
                dropped.append(1)
            elif command.startswith(b"FETCH") and len(dropped) == 1:
                for uid in range(1, 11):  # positions move down by ten before this window is read
                    server.inbox.expunge(uid)
                    client.send(b"* 1 EXPUNGE\r\n")
                dropped.append(2)
            return False

        server.hooks.append(shift)
        with opened(server) as session:
            seen = {int(ref.remote_id.partition(":")[2]) for ref in refs_of(listed(session))}
        assert set(range(11, 12_001)) <= seen


def test_a_folder_made_again_under_a_second_connection_gives_no_wrong_bytes(
    server: ImapScript,
) -> None:
    fill(server.inbox, 1_500, size=3_000)
    old = server.inbox
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))

        made_again = threading.Event()

        def recreate(client: Client, _tag: bytes, command: bytes) -> bool:
            if command.startswith(b"EXAMINE"):
                server.boxes[b"INBOX"] = Box(validity=2)
                for number in range(1_500):
                    server.inbox.deliver(b"Another message %d" % number)
            elif client.box is not old and b"BODY" in command:
                made_again.set()
            return False

        waited: list[int] = []

        def wait_for_the_second_connection(client: Client, uid: int) -> None:
            if client.box is old and not waited:
                waited.append(uid)
                made_again.wait(2)

        server.hooks.append(recreate)
        server.before_each_mail = wait_for_the_second_connection
        got = {}
        with contextlib.suppress(Retryable):
            for answer in session.fetch(RemoteFolder("INBOX", "INBOX"), refs):
                got[int(answer.ref.remote_id[2:])] = content(answer)
    assert server.inbox is not old
    wrong = [u for u, body in got.items() if isinstance(body, bytes) and body != old.mails[u].body]
    assert not wrong


@pytest.mark.parametrize(
    "capabilities", [PLAIN, CONDSTORE_ONLY, MODERN], ids=["plain", "condstore", "modern"]
)
def test_a_listing_that_was_interrupted_ends_with_the_flags_of_today(
    capabilities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BARE_PAGE_MESSAGES", 4)
    with ImapScript(capabilities=capabilities) as server:
        fill(server.inbox, 10)
        with opened(server) as session:
            first = next(iter(session.changes(inbox_of(session), None)))
        server.inbox.flag(2, b"\\Seen")
        with opened(server) as session:
            pages = listed(session, first.cursor)
        assert dict(c for page in pages for c in page.relabelled)["1:2"] == ("\\Seen",)
        assert [page.cursor["n"] for page in pages] == sorted(page.cursor["n"] for page in pages)
        with opened(server) as session:
            assert not refs_of(listed(session, pages[-1].cursor))


def test_a_renumbering_that_only_examine_tells_of_expires_the_cursor(server: ImapScript) -> None:
    fill(server.inbox, 5)
    with opened(server) as session:
        cursor = listed(session)[-1].cursor
    server.boxes[b"INBOX"] = Box(validity=2, status_refusal=b"NO not now")
    fill(server.inbox, 9)
    with opened(server) as session, pytest.raises(CursorExpired):
        listed(session, cursor)


_LONG = b"9" * 5_000


@pytest.mark.parametrize(
    "line",
    [
        b"* SEARCH 1 " + _LONG,
        b'* ESEARCH (TAG "x") UID ALL 1:' + _LONG,
        b"* VANISHED " + _LONG,
        b"* " + _LONG + b" EXISTS",
        b"* " + _LONG + b" FETCH (UID " + _LONG + b")",
        b"* STATUS INBOX {" + _LONG + b"}",
    ],
    ids=["search", "esearch", "vanished", "exists", "fetch", "literal"],
)
@pytest.mark.parametrize("before", [b"UID SEARCH", b"UID FETCH"], ids=bytes.decode)
def test_a_number_of_thousands_of_digits_is_none(
    server: ImapScript, line: bytes, before: bytes
) -> None:
    fill(server.inbox, 3)

    def say(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(before):
            client.send(line + b"\r\n")
        return False

    server.hooks.append(say)
    with opened(server) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == 3


def test_a_connection_that_ends_after_the_login_is_closed(server: ImapScript) -> None:
    def drop(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"ENABLE"):
            client.hang_up()
        return command.startswith(b"ENABLE")

    server.hooks.append(drop)
    with pytest.raises(Unavailable), opened(server) as session:
        session.folders()
    gc.collect()  # no ResourceWarning, which would be an error


def test_hostile_folder_names_are_harmless_and_reversible(server: ImapScript) -> None:
    names = [
        b"..", b"../../etc/passwd", b"a\rb\nc", b"nul\x00nul", b"\xff\xfe", "Entwürfe".encode(),
        b"Entw&APw-rfe", b"&broken", b'q"\\', b"{3}", b"NIL", b"(", b"* BYE",
    ]  # fmt: skip
    for number, name in enumerate(names):
        server.boxes[name] = Box(validity=number + 5)
        server.boxes[name].deliver(b"in " + name)
    with opened(server) as session:
        folders = [f for f in session.folders() if f.role != "inbox"]
        assert len(folders) == len(names)
        assert len({f.remote_id for f in folders}) == len(names)
        for folder in folders:
            assert folder.path.isprintable()
            assert "\0" not in folder.remote_id
            refs = refs_of(list(session.changes(folder, None)))
            [answer] = session.fetch(folder, refs)
            assert isinstance(answer, RawMessage)
    assert {"Entwürfe"} == {f.path for f in folders if "rfe" in f.path}


def test_folders_that_hold_no_mail_are_left_out(server: ImapScript) -> None:
    server.boxes[b"Shelf"] = Box(attributes=b"\\Noselect \\HasChildren")
    server.boxes[b"Ghost"] = Box(attributes=b"\\NonExistent")
    with opened(server) as session:
        assert [f.path for f in session.folders()] == ["INBOX"]


def test_a_folder_whose_status_fails_is_still_read(server: ImapScript) -> None:
    server.boxes[b"Odd"] = Box(status_refusal=b"NO [SERVERBUG] no status")
    server.boxes[b"Odd"].deliver(b"x")
    for capabilities in (MODERN, PLAIN):
        server.capabilities[:] = capabilities
        with opened(server) as session:
            odd = next(f for f in session.folders() if f.path == "Odd")
            assert len(refs_of(list(session.changes(odd, None)))) == 1


def test_gmail_reads_all_mail_once_with_its_labels(server: ImapScript) -> None:
    server.capabilities.append("X-GM-EXT-1")
    for name, attributes in ((b"All", b"\\All"), (b"Bin", b"\\Trash"), (b"Work/Client", b"")):
        server.boxes[name] = Box(attributes=attributes)
    server.boxes[b"All"].deliver(
        b"x", gmail_id=77, labels=b'"Work/Client" "\\\\Important" "Entw&APw-rfe"'
    )
    with opened(server) as session:
        folders = {f.role: f for f in session.folders()}
        assert set(folders) == {"all", "trash"}
        [ref] = refs_of(list(session.changes(folders["all"], None)))
    assert ref.stable_id == "77"
    assert ref.labels == ("Entwürfe", "Work/Client", "\\Important")


def test_a_folder_of_half_a_million_messages_is_listed_page_by_page(server: ImapScript) -> None:
    count = 500_000
    server.inbox.mails = dict.fromkeys(range(1, count + 1), Mail(b"all the same"))
    server.inbox.next_uid = count + 1

    seen, largest, last = 0, 0, None
    with opened(server) as session:
        for page in session.changes(inbox_of(session), None):
            assert all(ref.remote_id == f"1:{seen + n}" for n, ref in enumerate(page.added, 1))
            seen += len(page.added)
            largest, last = max(largest, len(page.added)), page
    assert seen == count
    assert largest <= listing.BARE_PAGE_MESSAGES
    assert last is not None
    assert last.present is not None
    assert f"1:{count}" in last.present
    assert len(server.commands) < 15
    with opened(server) as session:
        assert list(session.changes(inbox_of(session), last.cursor)) == []
