"""Messages that an IMAP server can't give, or describes with nonsense: each is named, the others arrive."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest

from connectors.types import Missing, RawMessage, SpooledBody, Wanted
from tests.servers.imap_connector import (
    content,
    fetched,
    fill,
    inbox_of,
    listed,
    opened,
    read,
    refs_of,
)
from tests.servers.imap_script import Client, ImapScript


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
        assert content(answer) == server.inbox.mails[1].body
