"""What an account that mail is put into has already: nothing is put twice."""

import re

import pytest

from connectors.config import Environment
from connectors.errors import Unavailable
from connectors.generic_imap import putting
from connectors.generic_imap.config import ImapConfig
from tests.servers.imap_connector import fill
from tests.servers.imap_script import MODERN, PLAIN, Client, ImapScript

YAHOO = (*PLAIN, "ENABLE", "MESSAGELIMIT=10", "UIDONLY")


def known(server: ImapScript) -> int:
    """How many of the inbox's messages are known to lie there."""
    config = ImapConfig(
        host=server.host, port=server.port, secure=False,
        username=server.name, password=server.password,
    )  # fmt: skip
    with putting.Account(config, Environment(timeout_seconds=30)) as account:
        inbox = account.folder(["INBOX"], "inbox")
        return sum(inbox.has(putting.Print(mail.body)) for mail in server.inbox.mails.values())


@pytest.mark.parametrize("offered", [MODERN, PLAIN, YAHOO], ids=["modern", "plain", "yahoo"])
def test_all_that_lies_there_is_known_where_search_is_capped(
    offered: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(putting, "_STEP", 7)
    with ImapScript(capabilities=offered) as server:
        server.search_cap = 10
        if offered is YAHOO:
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


def test_nothing_is_put_into_a_folder_of_which_not_all_is_shown() -> None:
    with ImapScript(capabilities=PLAIN) as server:
        fill(server.inbox, 5)

        def show_two(client: Client, tag: bytes, command: bytes) -> bool:
            if command.startswith(b"FETCH"):
                for uid in (1, 2):
                    client.send(b"* %d FETCH (UID %d RFC822.SIZE 7)\r\n" % (uid, uid))
                client.send(tag + b" OK\r\n")
            return command.startswith(b"FETCH")

        server.hooks.append(show_two)
        with pytest.raises(Unavailable, match="2 of 5 messages in INBOX"):
            known(server)
