"""What tests of the connector alone do: build it, open a mailbox, fetch everything in a folder."""

from typing import Any

import pytest

from connectors import registry
from connectors.base import Connector, MailboxSession
from connectors.errors import ConnectorError
from connectors.types import RemoteFolder
from tests.servers.graph import GraphServer, Mailbox, User


def box(user: User) -> Mailbox:
    assert user.mailbox is not None
    return user.mailbox


def build(server: GraphServer, *, environment: Any = None, **config: Any) -> Connector:
    given = {name: value for name, value in server.config(**config).items() if value is not None}
    return registry.build("microsoft", given, server.environment(**(environment or {})))


def problem_of(server: GraphServer, **config: Any) -> ConnectorError:
    with build(server, **config) as connector, pytest.raises(ConnectorError) as caught:
        connector.check()
    return caught.value


def opened(connector: Connector, user: User) -> MailboxSession:
    [mailbox] = [m for m in connector.mailboxes() if m.remote_id == user.id]
    return connector.open(mailbox)


def fetched(session: MailboxSession, folder: RemoteFolder | None = None) -> dict[str, Any]:
    folder = folder or session.folders()[0]
    refs = [ref for page in session.changes(folder, None) for ref in page.added]
    return {answer.ref.remote_id: answer for answer in session.fetch(folder, refs)}
