"""The IMAP connector against servers that misbehave: each way that mail could be lost or blocked."""

import contextlib
import datetime as dt
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from connectors import parallel, registry
from connectors.base import Connector, MailboxSession
from connectors.config import Environment
from connectors.errors import (
    ConnectorError,
    CursorExpired,
    Fatal,
    MessageGone,
    NeedsReauth,
    RateLimited,
    Retryable,
    Unavailable,
)
from connectors.generic_imap import listing, replies
from connectors.types import (
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    SpooledBody,
    Wanted,
)
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript, Mail

CONDSTORE_ONLY = tuple(word for word in MODERN if word != "QRESYNC")


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        yield script


def connector(server: ImapScript, *, timeout_seconds: float = 5, **changes: Any) -> Connector:
    given = {
        "host": server.host, "port": server.port, "secure": False,
        "username": server.name, "password": server.password,
    }  # fmt: skip
    environment = {
        key: changes.pop(key)
        for key in ("connections_per_account", "max_message_bytes")
        if key in changes
    }
    return registry.build(
        "generic_imap", given | changes, Environment(timeout_seconds=timeout_seconds, **environment)
    )


@contextlib.contextmanager
def opened(server: ImapScript, **changes: Any) -> Iterator[MailboxSession]:
    with connector(server, **changes) as c, c.open(next(iter(c.mailboxes()))) as session:
        yield session


def inbox_of(session: MailboxSession) -> RemoteFolder:
    return next(folder for folder in session.folders() if folder.role == "inbox")


def listed(session: MailboxSession, since: Any = None) -> list[Page]:
    return list(session.changes(inbox_of(session), since))


def refs_of(pages: list[Page]) -> list[MessageRef]:
    return [ref for page in pages for ref in page.added]


def fetched(session: MailboxSession, refs: list[MessageRef]) -> Iterator[RawMessage | Missing]:
    return session.fetch(inbox_of(session), refs)


def read(session: MailboxSession, refs: list[MessageRef]) -> dict[int, Any]:
    """Fetch; return uid -> bytes, or the error of a Missing. Fails where one is answered twice."""
    found: dict[int, Any] = {}
    for answer in fetched(session, refs):
        uid = int(answer.ref.remote_id.partition(":")[2])
        assert uid not in found, f"{uid} was answered twice"
        found[uid] = _content(answer)
    return found


def _content(answer: RawMessage | Missing) -> Any:
    if isinstance(answer, Missing):
        return answer.error
    if isinstance(answer.body, SpooledBody):
        content = b"".join(answer.body.chunks())
        answer.body.close()
        return content
    return answer.body


def fill(box: Box, count: int, *, size: int = 10) -> None:
    for number in range(count):
        box.deliver(b"Subject: %d\r\n\r\n" % number + b"x" * size)


# -- nothing is passed over ------------------------------------------------------------------------


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
                got[int(answer.ref.remote_id[2:])] = _content(answer)
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


def test_a_connection_that_ends_after_the_login_is_closed(server: ImapScript) -> None:
    def drop(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"ENABLE"):
            client.hang_up()
        return command.startswith(b"ENABLE")

    server.hooks.append(drop)
    with pytest.raises(Unavailable), opened(server) as session:
        session.folders()
    gc.collect()  # no ResourceWarning, which would be an error


# -- one bad message -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        b"NO [SERVERBUG] Internal error",
        b"NO [UNAVAILABLE] Storage of this message is off",
        b"NO [CORRUPTION] index",
        b"NO can't read it",
        b"BAD can't read it",
    ],
)
def test_a_message_that_is_refused_is_named_and_the_others_arrive(
    server: ImapScript, refusal: bytes
) -> None:
    fill(server.inbox, 30)
    server.inbox.mails[17].refusal = refusal
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert len(got) == 30
    assert got[17].code == "message_refused"
    assert all(isinstance(body, bytes) for uid, body in got.items() if uid != 17)


def test_one_refusal_among_many_costs_one_command_for_each_and_loses_none(
    server: ImapScript,
) -> None:
    """Also where SEARCH is capped: what it leaves out is not gone."""
    fill(server.inbox, 100)
    server.inbox.mails[1].refusal = b"NO [SERVERBUG] can't read it"
    with opened(server) as session:
        refs = refs_of(listed(session))
        server.commands.clear()
        server.search_cap = 10
        got = read(session, refs)
    assert [uid for uid, body in got.items() if not isinstance(body, bytes)] == [1]
    assert len(got) == 100
    assert len(server.commands) < 110


def test_a_message_that_cannot_even_be_listed_does_not_block_its_folder(server: ImapScript) -> None:
    fill(server.inbox, 30)
    server.inbox.mails[17].unlisted = b"NO [SERVERBUG] can't tell its size"
    server.inbox.mails[17].refusal = b"NO [SERVERBUG] can't read it"
    with opened(server) as session:
        refs = refs_of(listed(session))
        assert len(refs) == 30
        got = read(session, refs)
    assert got[17].code == "message_refused"
    assert len(got) == 30


@pytest.mark.parametrize("answer", [b"NIL", b"{0}\r\n"], ids=["nil", "empty"])
def test_a_body_that_is_missing_is_recorded_and_not_archived_empty(
    server: ImapScript, answer: bytes
) -> None:
    fill(server.inbox, 3)
    server.inbox.mails[2].answer = answer
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert got[2].code == "message_refused"
    assert isinstance(got[1], bytes)
    assert isinstance(got[3], bytes)


def test_a_short_body_as_a_quoted_string_is_exact(server: ImapScript) -> None:
    fill(server.inbox, 1)
    server.inbox.mails[1].answer = b'"a \\"quoted\\" \\\\ body"'
    with opened(server) as session:
        assert read(session, refs_of(listed(session))) == {1: b'a "quoted" \\ body'}


def test_a_wrong_size_changes_nothing(server: ImapScript) -> None:
    fill(server.inbox, 3)
    server.inbox.mails[2].size = 4
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert got == {uid: mail.body for uid, mail in server.inbox.mails.items()}


def test_bytes_that_mail_should_not_have_are_exact(server: ImapScript) -> None:
    server.inbox.deliver(
        b"a\nb\nc\x00\xff\xfe\r)\r\n* 1 FETCH (UID 1 BODY[] {1}\r\nx)\r\nq1 OK\r\n"
    )
    with opened(server) as session:
        assert read(session, refs_of(listed(session))) == {1: server.inbox.mails[1].body}


def test_a_message_deleted_meanwhile_is_gone(server: ImapScript) -> None:
    fill(server.inbox, 5)
    with opened(server) as session:
        refs = refs_of(listed(session))
        server.inbox.expunge(4)
        got = read(session, refs)
    assert got[4].code == "message_gone"
    assert len(got) == 5


def test_flags_and_expunges_in_the_middle_of_a_fetch_are_passed_by(server: ImapScript) -> None:
    fill(server.inbox, 20)

    def noise(client: Client, uid: int) -> None:
        client.send(b"* 3 FETCH (FLAGS (\\Seen))\r\n* %d FETCH (UID 7 FLAGS ())\r\n" % uid)
        client.send(b"* VANISHED 900\r\n* 40 EXISTS\r\n* OK still here {5}\r\n")

    server.before_each_mail = noise
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert got == {uid: mail.body for uid, mail in server.inbox.mails.items()}


def test_a_message_over_the_limit_is_asked_for_at_most_once(server: ImapScript) -> None:
    fill(server.inbox, 2)
    server.inbox.deliver(b"x" * 50_000)
    fill(server.inbox, 2)
    with opened(server, max_message_bytes=20_000, connections_per_account=1) as session:
        answers = {a.ref.remote_id: a for a in fetched(session, refs_of(listed(session)))}
        assert [type(answers[f"1:{uid}"]) for uid in (1, 2, 4, 5)] == [RawMessage] * 4
        refused = answers["1:3"]
        assert isinstance(refused, Missing)
        assert (refused.error.code, refused.ref.size_bytes) == ("too_large", 50_000)  # type: ignore[attr-defined] # a ConnectorError
        server.commands.clear()
        [again] = fetched(session, [refused.ref])
    assert isinstance(again, Missing)
    assert not server.asked(b"BODY")
    assert server.logins == 1


def reversed_items(items: Sequence[bytes]) -> Sequence[bytes]:
    return items[::-1]


def flags_first(items: Sequence[bytes]) -> Sequence[bytes]:
    return sorted(items, key=lambda item: item != b"FLAGS")


def body_in_the_middle(items: Sequence[bytes]) -> Sequence[bytes]:
    body, *others = items[::-1]
    return [*others[:2], body, *others[2:]]


@pytest.mark.parametrize("arranged", [reversed_items, body_in_the_middle, tuple])
@pytest.mark.parametrize("quoted", [False, True])
def test_what_a_server_says_of_a_message_comes_with_its_body_in_any_order(
    server: ImapScript, arranged: Any, quoted: bool
) -> None:
    server.arranged = arranged
    server.inbox.deliver(b"short", flags=(b"\\Seen", b"$Work"))
    if quoted:
        server.inbox.mails[1].answer = b'"short"'
    with opened(server) as session:
        [ref] = refs_of(listed(session))
        [answer] = fetched(session, [ref])
        described = session.describe(inbox_of(session), [ref])
    assert answer.body == b"short"  # type: ignore[union-attr] # it came
    assert answer.ref.received_at == dt.datetime(2024, 7, 17, 9, 44, 25, tzinfo=dt.UTC)
    assert [ref.labels for ref in described] == [answer.ref.labels] == [("$Work", "\\Seen")]
    assert answer.ref.labels == ("$Work", "\\Seen")
    assert answer.ref.received_at == dt.datetime(2024, 7, 17, 9, 44, 25, tzinfo=dt.UTC)


@pytest.mark.parametrize("arranged", [reversed_items, flags_first])
def test_a_flag_called_uid_names_no_other_message(server: ImapScript, arranged: Any) -> None:
    server.arranged = arranged
    for number in (1, 2, 3):
        server.inbox.deliver(b"%d" % number, flags=(b"UID", b"3"))
    with opened(server) as session:
        assert read(session, refs_of(listed(session))) == {1: b"1", 2: b"2", 3: b"3"}


def test_a_flag_called_uid_moves_no_cursor(server: ImapScript) -> None:
    fill(server.inbox, 3)
    with opened(server) as session:
        cursor = listed(session)[-1].cursor
    fill(server.inbox, 1)

    def tell(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"UID FETCH 4:*"):
            client.send(b"* 1 FETCH (FLAGS (UID 4000000000) UID 1)\r\n")
        return False

    server.hooks.append(tell)
    with opened(server) as session:
        pages = listed(session, cursor)
    assert [ref.remote_id for ref in refs_of(pages)] == ["1:4"]
    assert pages[-1].cursor["n"] == 5


def test_a_body_without_a_word_about_it_is_a_message(server: ImapScript) -> None:
    fill(server.inbox, 3)
    server.arranged = lambda items: [item for item in items if item in (b"UID", b"BODY.PEEK[]")]
    with opened(server) as session:
        answers = list(fetched(session, refs_of(listed(session))))
    assert [a.ref.labels for a in answers] == [None] * 3
    assert {type(a) for a in answers} == {RawMessage}


@pytest.mark.parametrize(
    "said",
    [
        b"RFC822.SIZE 99999999999999999999999",
        b"RFC822.SIZE (1 2)",
        b"FLAGS 7",
        b"FLAGS ((\\Seen) {",
        b"INTERNALDATE (1)",
        b'INTERNALDATE "32-Foo-99999"',
        b"NONSENSE",
        b'X "(" FLAGS',
    ],
)
def test_nonsense_about_a_message_loses_no_message(server: ImapScript, said: bytes) -> None:
    fill(server.inbox, 3)
    body = server.inbox.mails[2].body

    def answer(client: Client, tag: bytes, command: bytes) -> bool:
        if b"BODY" not in command:
            return False
        for uid, mail in server.inbox.mails.items():
            about = said if uid == 2 else b"FLAGS ()"
            line = b"* %d FETCH (UID %d %s BODY[] {%d}\r\n" % (uid, uid, about, len(mail.body))
            client.send(line + mail.body + b")\r\n")
        client.send(tag + b" OK done\r\n")
        return True

    server.hooks.append(answer)
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert got[2] == body
    assert len(got) == 3


def test_what_describes_a_message_can_be_refused_and_its_bytes_had(server: ImapScript) -> None:
    fill(server.inbox, 5)
    server.inbox.mails[3].unlisted = b"NO [SERVERBUG] can't stat"
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert got == {uid: mail.body for uid, mail in server.inbox.mails.items()}


def test_a_date_to_begin_with_is_known_before_the_download(server: ImapScript) -> None:
    fill(server.inbox, 2)
    with opened(server) as session:
        session.prefer(Wanted(since=dt.date(2024, 1, 1)))
        refs = refs_of(listed(session))
    assert {ref.received_at for ref in refs} == {dt.datetime(2024, 7, 17, 9, 44, 25, tzinfo=dt.UTC)}


def test_a_message_of_150_mb_is_spooled_and_exact(server: ImapScript) -> None:
    server.inbox.deliver(bytes(range(256)) * 600_000)
    with opened(server, timeout_seconds=30) as session:
        [ref] = refs_of(listed(session))
        [answer] = session.fetch(inbox_of(session), [ref])
        assert isinstance(answer, RawMessage)
        assert isinstance(answer.body, SpooledBody)
        assert _content(answer) == server.inbox.mails[1].body


# -- connections that break ------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["drop", "bye", "silence"])
def test_what_arrived_whole_is_kept_and_the_rest_is_tried_again(
    server: ImapScript, end: str
) -> None:
    server.capabilities.append("AUTH=PLAIN")  # by IMAPClient, which takes the time limit off
    fill(server.inbox, 20)

    def fail(client: Client, uid: int) -> None:
        if uid == 10:
            if end == "drop":
                client.send(b"* 10 FETCH (UID 10 BODY[] {500}\r\nonly a part")
                client.hang_up()
            elif end == "bye":
                client.send(b"* BYE [UNAVAILABLE] restarting\r\n")
                client.hang_up()
            else:
                time.sleep(3)

    server.before_each_mail = fail
    got: list[int] = []
    with opened(server, timeout_seconds=0.6) as session:
        refs = refs_of(listed(session))
        with pytest.raises(Retryable):
            for answer in session.fetch(RemoteFolder("INBOX", "INBOX"), refs):
                assert isinstance(answer, RawMessage)
                got.append(int(answer.ref.remote_id.partition(":")[2]))
    assert got == list(range(1, 10))


def test_a_giant_literal_is_refused_before_any_memory_is_taken(server: ImapScript) -> None:
    fill(server.inbox, 3)
    server.inbox.mails[2].answer = b"{4294967295}\r\nx"
    with opened(server) as session:
        refs = refs_of(listed(session))
        answers: list[Any] = []
        with pytest.raises(Retryable):
            answers.extend(session.fetch(RemoteFolder("INBOX", "INBOX"), refs))
    assert all(not isinstance(a, RawMessage) or a.ref.remote_id == "1:1" for a in answers)


def slow(_client: Client, uid: int) -> None:
    if uid % 10 == 0:
        time.sleep(0.01)


def test_a_second_connection_that_is_refused_is_done_without(server: ImapScript) -> None:
    server.max_connections = 1
    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        assert len(read(session, refs_of(listed(session)))) == 1_500
    assert server.turned_away == 1


def test_further_connections_are_opened_for_a_slow_server_alone(server: ImapScript) -> None:
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        for number, _ in enumerate(fetched(session, refs)):
            if number % 10 == 0:
                time.sleep(0.01)  # the archive is what takes the time
        assert server.logins == 1
        server.before_each_mail = slow
        assert len(read(session, refs)) == 1_500
        assert server.logins == 2
        assert len(read(session, refs)) == 1_500
        assert server.logins == 2  # those there are serve again


def test_large_messages_of_unknown_size_get_a_further_connection_too(server: ImapScript) -> None:
    server.before_each_mail = slow
    fill(server.inbox, 300, size=200_000)
    with opened(server, connections_per_account=2) as session:
        assert len(read(session, refs_of(listed(session)))) == 300
    assert server.logins == 2


@pytest.mark.parametrize("abandoned", [False, True])
def test_nobody_waits_for_a_further_login_that_hangs(server: ImapScript, abandoned: bool) -> None:
    def hang(_client: Client, _tag: bytes, command: bytes) -> bool:
        return command.startswith(b"LOGIN") and server.logins == 1

    server.hooks.append(hang)
    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, timeout_seconds=30, connections_per_account=2) as session:
        answers = fetched(session, refs_of(listed(session)))
        for _ in range(1_000 if abandoned else 1_500):
            next(answers)
        since = time.monotonic()
        if abandoned:
            answers.close()  # type: ignore[attr-defined] # a generator
        assert next(answers, None) is None
        assert time.monotonic() - since < 5
    assert len(server.asked(b"LOGIN")) == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "imap"]


def test_an_idle_connection_that_the_server_ended_does_no_harm(server: ImapScript) -> None:
    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == 1_500
        server.end_all_but_the_first()
        assert len(read(session, refs)) == 1_500
    assert server.logins == 2


def test_a_connection_is_used_again_whose_thread_takes_its_time_to_end(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parallel.Pool._run

    def run_and_dawdle(self: parallel.Pool, worker: parallel.Worker) -> None:
        run(self, worker)
        time.sleep(0.05)

    monkeypatch.setattr(parallel.Pool, "_run", run_and_dawdle)
    fill(server.inbox, 3)
    with opened(server) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == len(read(session, refs)) == 3
    assert server.logins == 1


def test_where_one_connection_is_told_to_wait_no_other_asks_on(server: ImapScript) -> None:
    fill(server.inbox, 5_000, size=3_000)
    server.before_each_mail = slow

    first: list[Client] = []

    def throttle(client: Client, tag: bytes, command: bytes) -> bool:
        first.append(client)
        if b"BODY" in command and client is not first[0]:
            client.send(tag + b" NO [LIMIT] Too many requests\r\n")
            return True
        return False

    server.hooks.append(throttle)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        with pytest.raises(RateLimited):
            read(session, refs)
    assert len(server.asked(b"BODY")) <= 15, "of 27 that there are"


def test_a_download_that_is_left_within_a_chunk_frees_its_large_bodies(server: ImapScript) -> None:
    server.inbox.deliver(b"small")
    server.inbox.deliver(b"x" * 4_500_000)

    def at_once(client: Client, tag: bytes, command: bytes) -> bool:
        if b"BODY" in command:
            said = [
                b"* %d FETCH (UID %d BODY[] {%d}\r\n%s)\r\n" % (uid, uid, len(m.body), m.body)
                for uid, m in server.inbox.mails.items()
            ]
            client.send(b"".join(said) + tag + b" OK\r\n")
        return b"BODY" in command

    server.hooks.append(at_once)
    with opened(server) as session:
        answers = fetched(session, refs_of(listed(session)))
        assert _content(next(answers)) == b"small"
        answers.close()  # type: ignore[attr-defined] # a generator
        del answers
        gc.collect()  # no ResourceWarning, which would be an error


def test_bodies_that_nobody_asked_for_end_some_time(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_MAX_UNASKED", 1_000)
    fill(server.inbox, 1)

    def flood(client: Client, _tag: bytes, command: bytes) -> bool:
        while b"BODY" in command:
            client.send(b"* 1 FETCH (UID 7 FLAGS () BODY[] {1}\r\nx)\r\n" * 100)
        return False

    server.hooks.append(flood)
    with opened(server, timeout_seconds=30) as session:
        refs = refs_of(listed(session))
        with pytest.raises(Unavailable, match="nobody asked for"):
            read(session, refs)


def test_long_sparse_sets_fit_the_command_lines_of_strict_servers(server: ImapScript) -> None:
    for number in range(1_500):
        server.inbox.deliver(b"x", uid=2_000_000_001 + 2 * number)
    with opened(server) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == 1_500


def test_removed_messages_cost_one_look_up_and_not_one_each(server: ImapScript) -> None:
    fill(server.inbox, 50)

    def vanish(_client: Client, _tag: bytes, command: bytes) -> bool:
        if b"BODY" in command:
            for uid in range(10, 40):
                server.inbox.mails.pop(uid, None)
        return False

    server.hooks.append(vanish)
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert len(got) == 50
    assert {uid for uid in got if isinstance(got[uid], MessageGone)} == set(range(10, 40))
    assert len(server.asked(b"SEARCH")) == 2


# -- the way in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"BAD Unknown command", b"NO not now"])
def test_a_server_that_refuses_qresync_is_not_asked_for_what_vanished(
    server: ImapScript, answer: bytes
) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"ENABLE"):
            client.send(tag + b" " + answer + b"\r\n")
        return command.startswith(b"ENABLE")

    server.hooks.append(refuse)
    fill(server.inbox, 5)
    with opened(server) as session:
        cursor = listed(session)[-1].cursor
    server.inbox.expunge(3)
    with opened(server) as session:
        [page] = [page for page in listed(session, cursor) if page.present is not None]
    assert page.present is not None
    assert [uid for uid in range(1, 6) if f"1:{uid}" not in page.present] == [3]
    assert not server.asked(b"VANISHED")


@pytest.mark.parametrize("answer", [b"BAD Unknown command", b"NO not now", b"OK done"])
def test_nobody_waits_for_the_answers_to_id_and_enable(server: ImapScript, answer: bytes) -> None:
    """They come together with the next one, and may say anything."""
    server.capabilities.append("ID")
    kept: list[bytes] = []

    def answer_late(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith((b"ID ", b"ENABLE")):
            kept.append(tag + b" " + answer + b"\r\n")
            return True
        client.send(b"".join(kept))
        kept.clear()
        return False

    server.hooks.append(answer_late)
    fill(server.inbox, 3)
    with opened(server) as session:
        assert len(read(session, refs_of(listed(session)))) == 3
    assert [len(server.asked(word)) for word in (b"ID (", b"ENABLE")] == [1, 1]


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (b"* BYE Too many connections, try later\r\n", Retryable),
        (b"* BYE [UNAVAILABLE] maintenance\r\n", Unavailable),
        (b"220 mail.example.com ESMTP\r\n", Fatal),
    ],
)
def test_a_greeting_that_turns_us_away_stops_no_source(
    server: ImapScript, greeting: bytes, error: type[ConnectorError]
) -> None:
    server.greeting = greeting
    with pytest.raises(error):
        connector(server).check()


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (b"NO [UNAVAILABLE] Temporary authentication failure", Unavailable),
        (b"NO Temporary authentication failure, try again", Retryable),
        (b"NO Request is throttled. Suggested Backoff Time: 12000 milliseconds", RateLimited),
        (b"NO User is authenticated but not connected", Unavailable),
        (b"NO [AUTHENTICATIONFAILED] bad", NeedsReauth),
        (b"NO go away", NeedsReauth),
    ],
)
def test_a_refused_login_is_what_the_server_means(
    server: ImapScript, refusal: bytes, error: type[ConnectorError]
) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LOGIN"):
            client.send(tag + b" " + refusal + b"\r\n")
        return command.startswith(b"LOGIN")

    server.hooks.append(refuse)
    with pytest.raises(error) as caught:
        connector(server).check()
    if b"12000" in refusal:
        assert isinstance(caught.value, RateLimited)
        assert caught.value.retry_after_seconds == 12.0


def test_a_refused_list_is_tried_again(server: ImapScript) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            client.send(tag + b" NO not now\r\n")
        return command.startswith(b"LIST")

    server.hooks.append(refuse)
    with pytest.raises(Retryable), opened(server) as session:
        session.folders()


@pytest.mark.parametrize("mechanism", ["LOGIN", "AUTH=PLAIN"])
@pytest.mark.parametrize(
    ("name", "password"),
    [("two words", 'qu"o\\te'), ("me@example.com", "pässwörd €"), ("ünï@example.com", "x y")],
)
def test_any_name_and_password_gets_in(
    server: ImapScript, mechanism: str, name: str, password: str
) -> None:
    server.name, server.password = name, password
    if mechanism != "LOGIN":
        server.capabilities.append(mechanism)
    assert connector(server).check().account == name


def test_the_error_document_of_xoauth2_is_answered_with_an_empty_line(server: ImapScript) -> None:
    server.capabilities.append("AUTH=XOAUTH2")
    with pytest.raises(NeedsReauth, match="SASL failed"):
        connector(server, password="", accessToken="wrong-canary").check()


def test_a_server_that_echoes_the_password_finds_it_nowhere(server: ImapScript) -> None:
    import base64

    secret = server.password
    encoded = base64.b64encode(f"\0{server.name}\0{secret}".encode()).decode()
    server.inbox.refusal = f"NO [SERVERBUG] {secret} {encoded}".encode()
    with pytest.raises(ConnectorError) as caught:
        connector(server).check()
    assert secret not in str(caught.value)
    assert encoded not in str(caught.value)


def test_a_check_of_a_dripping_server_ends_within_fifteen_seconds(server: ImapScript) -> None:
    def drip(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            for _ in range(300):
                client.send(b"* OK wait\r\n")
                time.sleep(0.1)
        return False

    server.hooks.append(drip)
    started = time.monotonic()
    with pytest.raises(Retryable):
        connector(server, timeout_seconds=30).check()
    assert time.monotonic() - started < 15.5


# -- folders and labels ----------------------------------------------------------------------------


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
