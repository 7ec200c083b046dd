"""The provider of docs/adding-a-provider.md, installed as a package of its own, keeps the contract."""

import itertools

import pytest

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from tests.contract.suite import SECRET, Account, ConnectorContract
from tests.servers.maildir import Maildir

_NAMES = (f"contract-{number}" for number in itertools.count())


class MaildirAccount(Account):
    def __init__(self) -> None:
        self.maildir = Maildir(next(_NAMES), token=SECRET)
        self.to_fail: list[str] = []
        self.failed: dict[str, bytes] = {}

    def connector(self, *, secret: str = SECRET) -> Connector:
        for name, body in self.failed.items():
            self.maildir.mend(name, body)
        self.failed = {name: self.maildir.fail(name) for name in self.to_fail}
        self.to_fail.clear()
        config = self.maildir.config | {"token": secret}
        return registry.build("maildir", config, Environment())

    def deliver(self, body: bytes) -> str:
        return self.maildir.deliver(body)

    def remove(self, remote_id: str) -> None:
        self.maildir.file(remote_id).unlink()

    def relabel(self, remote_id: str) -> None:
        self.maildir.flag(remote_id)

    def renumber(self) -> None:
        self.maildir.restore()

    def drop_connection_at(self, remote_id: str) -> None:
        self.to_fail.append(remote_id)  # with the next connector, and no other

    def requests(self) -> int:
        return 0  # it reads files


class TestMaildir(ConnectorContract):
    slug = "maildir"
    examples = ({"directory": "example.com/alice", "token": "canary"},)
    tells_new_from_changed = False

    @pytest.fixture
    def account(self) -> MaildirAccount:
        return MaildirAccount()
