"""Puts a selection into another mailbox by IMAP: folders, flags and dates kept, nothing twice.

The credential is given at the call and kept nowhere. Killed or run again, it goes on: what lies
there already is known by its bytes (`connectors.generic_imap.putting`).
"""

import dataclasses
from collections.abc import Callable, Iterator

from connectors.errors import FolderGone, FolderRefused
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.putting import Account, Print
from connectors.types import Body, SpooledBody
from ingestion.errors import Corrupt
from ingestion.models import Message
from ingestion.services.archive import reading, storage
from ingestion.services.archive.exports.items import Item, item
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.audit import Actor, audit
from ingestion.services.sources import credentials


@dataclasses.dataclass
class Restored:
    """How many were put, were there already, and could not be: refused, or unreadable here."""

    put: int = 0
    there: int = 0
    failed: int = 0


def restore(
    selection: Selection,
    config: ImapConfig,
    *,
    about: str,
    actor: Actor,
    on_failed: Callable[[Message, str], None],
    on_progress: Callable[[Restored], None] = lambda _: None,
) -> Restored:
    """Put what is selected into an account, each message into each folder that it lies in.

    Raises ConnectorError where the server can't be reached or is lost: run it again. `about` is the
    query, for the audit.
    """
    storage.require()
    done = Restored()
    with Account(config, credentials.deployment()) as account:
        to = f"{config.username} at {config.host}"
        audit(actor, "export.restore", None, {"query": about, "to": to})
        for messages, _ in selection.batches():
            for message in messages:
                try:
                    body = reading.opened(message)
                except Corrupt as error:
                    done.failed += 1
                    on_failed(message, str(error))
                    continue
                try:
                    for refused in _put(account, item(message), body, done):
                        done.failed += 1
                        on_failed(message, refused)
                finally:
                    if isinstance(body, SpooledBody):
                        body.close()
                on_progress(done)
    return done


def _put(account: Account, about: Item, body: Body, done: Restored) -> Iterator[str]:
    """Put a message into each of its folders; yield why it could not be put into one."""
    known = Print(body)
    for filed in about.filed:
        levels = [level for level in filed.path.split("/") if level] or ["INBOX"]
        try:
            folder = account.folder(levels, filed.role)
            if folder.has(known):
                done.there += 1
                continue
            refused = folder.put(body, known, flags=filed.flags, at=about.received_at)
        except (FolderGone, FolderRefused) as error:
            refused = str(error)
        if refused:
            yield refused
        else:
            done.put += 1
