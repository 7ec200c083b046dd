"""What an account that mail is put into has already: nothing is put twice."""

import re

import pytest

from connectors.config import Environment
from connectors.errors import FolderRefused
from connectors.generic_imap import commands, putting
from connectors.generic_imap.config import ImapConfig
from tests.servers.imap_connector import expunge_at, fill
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript

YAHOO = (*PLAIN, "ENABLE", "MESSAGELIMIT=10", "UIDONLY")


def target(server: ImapScript) -> putting.Account:
    config = ImapConfig(
        host=server.host, port=server.port, secure=False,
        username=server.name, password=server.password,
    )  # fmt: skip
    return putting.Account(config, Environment(timeout_seconds=30))


def known(server: ImapScript) -> int:
    """How many of the inbox's messages are known to lie there."""
    with target(server) as account:
        inbox = account.folder(["INBOX"], "inbox")
        return sum(inbox.has(putting.Print(mail.body)) for mail in server.inbox.mails.values())


@pytest.mark.parametrize("offered", [MODERN, PLAIN, YAHOO], ids=["modern", "plain", "yahoo"])
def test_all_that_lies_there_is_known_where_search_is_capped(
    offered: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "SEQUENCE_STEP", 7)
    with ImapScript(capabilities=offered) as server:
        server.search_cap = 10
        if offered is YAHOO:
            server.view_limit = server.message_limit = 10
        fill(server.inbox, 25)
        assert known(server) == 25


def test_more_than_one_reply_can_tell_of_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_REPLY_BYTES", 3_000)
    monkeypatch.setattr(commands, "UIDS_WINDOW", 4)
    with ImapScript(capabilities=YAHOO) as server:
        server.view_limit = server.message_limit = 10
        fill(server.inbox, 25)
        assert known(server) == 25


def test_all_that_lies_there_is_known_where_nobody_tells_how_many_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = Client.send
    pattern = re.compile(rb"\* \d+ EXISTS\r\n")
    monkeypatch.setattr(Client, "send", lambda self, data: send(self, pattern.sub(b"", data)))
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 5)
        assert known(server) == 5


@pytest.mark.parametrize("goes", [0, 3])
def test_what_comes_and_what_goes_meanwhile_hides_nobody(
    goes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "SEQUENCE_STEP", 7)
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 25)

        def change(client: Client, _tag: bytes, command: bytes) -> bool:
            if command.startswith(b"FETCH 8:"):
                server.hooks.clear()
                for uid in range(1, goes + 1):  # positions move down before this window is read
                    server.inbox.expunge(uid)
                    client.send(b"* 1 EXPUNGE\r\n")
                if not goes:
                    server.inbox.deliver(b"new")
                    client.send(b"* 26 EXISTS\r\n")
            return False

        server.hooks.append(change)
        assert known(server) == len(server.inbox.mails)


@pytest.mark.parametrize("refused", [False, True], ids=["shows_few", "refuses"])
def test_a_folder_of_which_not_all_is_shown_gets_nothing_and_holds_up_no_other(
    refused: bool,
) -> None:
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 5)
        server.boxes[b"Work"] = Box()

        def show_two(client: Client, tag: bytes, command: bytes) -> bool:
            if b"FETCH" in command:
                for uid in (1, 2):
                    client.send(b"* %d FETCH (UID %d RFC822.SIZE 7)\r\n" % (uid, uid))
                client.send(tag + (b" NO not now\r\n" if refused else b" OK\r\n"))
            return b"FETCH" in command

        server.hooks.append(show_two)
        said = "not now" if refused else "2 of 5 messages in INBOX"
        with target(server) as account:
            for _ in range(2):
                with pytest.raises(FolderRefused, match=said):
                    account.folder(["INBOX"], "inbox")
            assert not account.folder(["Work"], "").has(putting.Print(b"new"))
        assert len(server.asked(b"FETCH 1:5 ")) == 1


def test_a_folder_that_is_refused_in_the_middle_forgets_nobody_who_lies_there() -> None:
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 2)
        first, second = (putting.Print(mail.body) for mail in server.inbox.mails.values())
        assert first.sizes == second.sizes
        server.boxes[b"Work"] = Box()
        with target(server) as account:
            inbox = account.folder(["INBOX"], "inbox")
            account.folder(["Work"], "")
            server.inbox.refusal = b"NO [INUSE] not now"
            with pytest.raises(FolderRefused):
                inbox.has(first)
            server.inbox.refusal = b""
            assert inbox.has(second)


def test_mail_that_comes_while_a_folder_is_looked_at_in_parts_does_not_refuse_it() -> None:
    with ImapScript(capabilities=YAHOO) as server:
        server.view_limit = server.message_limit = 10
        fill(server.inbox, 25)

        def deliver(client: Client, _tag: bytes, command: bytes) -> bool:
            if command.startswith(b"UID FETCH") and len(server.asked(b"UID FETCH")) == 2:
                server.hooks.clear()
                server.inbox.deliver(b"new")
                client.send(b"* 26 EXISTS\r\n")
            return False

        server.hooks.append(deliver)
        assert known(server) == 26


def test_who_goes_meanwhile_makes_up_for_nobody_whom_the_server_hides() -> None:
    with ImapScript(capabilities=YAHOO) as server:
        fill(server.inbox, 5)

        def hide_the_last(client: Client, tag: bytes, command: bytes) -> bool:
            if not command.startswith(b"UID FETCH"):
                return False
            if command.startswith(b"UID FETCH 1:"):
                for uid in range(1, 5):
                    client.send(b"* %d UIDFETCH (RFC822.SIZE 7)\r\n" % uid)
                client.send(b"* VANISHED 1\r\n")
            client.send(tag + b" OK\r\n")
            return True

        server.hooks.append(hide_the_last)
        with target(server) as account, pytest.raises(FolderRefused, match="4 of 5 messages"):
            account.folder(["INBOX"], "inbox")


def test_who_vanishes_before_being_told_is_not_missed() -> None:
    with ImapScript(capabilities=YAHOO) as server:
        server.view_limit = server.message_limit = 10
        fill(server.inbox, 25)
        expunge_at(server, b"UID FETCH 1:", 3, b"* VANISHED 3")
        assert known(server) == 24


def test_who_is_expunged_before_being_told_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SEQUENCE_STEP", 7)
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 25)

        def expunge(client: Client, _tag: bytes, command: bytes) -> bool:
            if command.startswith(b"FETCH 22:25 ") and 25 in server.inbox.mails:
                server.inbox.expunge(25)  # and it may not say so before UID FETCH
            elif command.startswith(b"UID FETCH"):
                server.hooks.clear()
                client.send(b"* 25 EXPUNGE\r\n")
            return False

        server.hooks.append(expunge)
        assert known(server) == 24
