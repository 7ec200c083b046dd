"""The Microsoft provider keeps the contract: as an application of a tenant, and for a person."""

from collections.abc import Iterator

import pytest

from connectors import registry
from connectors.base import Connector
from tests.contract.suite import SECRET, Account, ConnectorContract
from tests.servers.graph import GraphServer, User


class GraphAccount(Account):
    def __init__(self, server: GraphServer, user: User) -> None:
        assert user.mailbox is not None
        self.server, self.user, self.mailbox = server, user, user.mailbox
        server.login.client_secret = SECRET

    def given(self, secret: str) -> dict[str, str]:
        return self.server.config(clientSecret=secret)

    def connector(self, *, secret: str = SECRET) -> Connector:
        return registry.build("microsoft", self.given(secret), self.server.environment())

    def deliver(self, body: bytes) -> str:
        return self.mailbox.deliver(body)

    def remove(self, remote_id: str) -> None:
        self.mailbox.remove(remote_id)

    def relabel(self, remote_id: str) -> None:
        self.mailbox.mark(remote_id, flagged=True)

    def renumber(self) -> None:
        self.mailbox.expire_state()

    def drop_connection_at(self, remote_id: str) -> None:
        self.server.faults.cut[remote_id] = 4  # the connector tries again by itself

    def requests(self) -> int:
        return len(self.server.log)


class PersonsAccount(GraphAccount):
    def given(self, secret: str) -> dict[str, str]:
        token = self.server.login.refresh_token_of(self.user)
        return self.server.config(
            clientSecret=secret, refreshToken=token, email=self.user.principal_name
        )


class _Microsoft(ConnectorContract):
    slug = "microsoft"
    examples = (
        {"tenantId": "t", "clientId": "c", "clientSecret": "canary"},
        {"clientId": "c", "email": "e", "clientSecret": "canary", "refreshToken": "canary"},
    )
    tells_new_from_changed = False
    requests_without_changes = 1

    @pytest.fixture
    def server(self) -> Iterator[GraphServer]:
        with GraphServer() as server:
            yield server


class TestMicrosoftTenant(_Microsoft):
    @pytest.fixture
    def account(self, server: GraphServer) -> GraphAccount:
        return GraphAccount(server, server.tenant.add_user("alice"))


class TestMicrosoftPerson(_Microsoft):
    @pytest.fixture
    def account(self, server: GraphServer) -> GraphAccount:
        server.tenant.add_user("bob")
        return PersonsAccount(server, server.tenant.add_user("alice"))
