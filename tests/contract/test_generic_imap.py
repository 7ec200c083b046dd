"""The IMAP provider keeps the contract: on a server that can everything, and on one that can't."""

from collections.abc import Iterator

import pytest

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from tests.contract.suite import SECRET, Account, ConnectorContract
from tests.servers.imap_script import MODERN, PLAIN, Client, ImapScript


class ImapAccount(Account):
    def __init__(self, server: ImapScript) -> None:
        self.server = server
        server.password = SECRET

    def connector(self, *, secret: str = SECRET) -> Connector:
        given = {
            "host": self.server.host, "port": self.server.port, "secure": False,
            "username": self.server.name, "password": secret,
        }  # fmt: skip
        return registry.build("generic_imap", given, Environment(timeout_seconds=10))

    def deliver(self, body: bytes) -> str:
        return f"{self.server.inbox.validity}:{self.server.inbox.deliver(body)}"

    def remove(self, remote_id: str) -> None:
        self.server.inbox.expunge(_uid(remote_id))

    def relabel(self, remote_id: str) -> None:
        self.server.inbox.flag(_uid(remote_id), b"\\Flagged")

    def renumber(self) -> None:
        self.server.inbox.validity += 1

    def drop_connection_at(self, remote_id: str) -> None:
        broken: list[int] = []

        def drop(client: Client, uid: int) -> None:
            if uid == _uid(remote_id) and not broken:
                broken.append(uid)
                client.send(b"* 1 FETCH (UID %d BODY[] {100}\r\nhalf" % uid)
                client.hang_up()

        self.server.before_each_mail = drop

    def requests(self) -> int:
        return len(self.server.commands)


def _uid(remote_id: str) -> int:
    return int(remote_id.partition(":")[2])


class TestImap(ConnectorContract):
    slug = "generic_imap"
    examples = ({"host": "h", "username": "u", "password": "canary"},)

    @pytest.fixture(params=[MODERN, PLAIN], ids=["modern", "plain"])
    def account(self, request: pytest.FixtureRequest) -> Iterator[ImapAccount]:
        with ImapScript(capabilities=request.param) as server:
            yield ImapAccount(server)
