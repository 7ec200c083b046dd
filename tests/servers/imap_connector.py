"""The IMAP connector on a scripted server, without database and engine.

Owns opening it and reading all that it hands out, with the checks that every test wants.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from connectors import registry
from connectors.base import Connector, MailboxSession
from connectors.config import Environment
from connectors.types import MessageRef, Missing, Page, RawMessage, RemoteFolder, SpooledBody
from tests.servers.imap_script import MODERN, Box, Client, ImapScript

CONDSTORE_ONLY = tuple(word for word in MODERN if word != "QRESYNC")


def connector(server: ImapScript, *, timeout_seconds: float = 30, **changes: Any) -> Connector:
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
        found[uid] = content(answer)
    return found


def content(answer: RawMessage | Missing) -> Any:
    """Return its bytes, or its error."""
    if isinstance(answer, Missing):
        return answer.error
    if isinstance(answer.body, SpooledBody):
        body = b"".join(answer.body.chunks())
        answer.body.close()
        return body
    return answer.body


def fill(box: Box, count: int, *, size: int = 10) -> None:
    for number in range(count):
        box.deliver(b"Subject: %d\r\n\r\n" % number + b"x" * size)


def expunge_at(server: ImapScript, command: bytes, uid: int, told: bytes) -> None:
    """Have a message of the inbox go once a command begins so, and `told` before its answer."""

    def expunge(client: Client, _tag: bytes, line: bytes) -> bool:
        if line.startswith(command):
            server.hooks.clear()
            server.inbox.expunge(uid)
            client.send(told + b"\r\n")
        return False

    server.hooks.append(expunge)
