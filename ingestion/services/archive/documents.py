"""Writes what reading says of messages: their documents, and header fields read better than before.

All documents of a mailbox are written under its lock, so that threads are assigned by one at a
time and a message read twice has one document: it is replaced, not updated, because its words are
new either way.
"""

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ingestion import rows
from ingestion.mail.digest import Digest
from ingestion.mail.headers import Headers
from ingestion.models import INDEX_VERSION, Document, Message
from ingestion.search import words
from ingestion.services.archive import threads
from ingestion.services.engine import statements as sql
from ingestion.services.transactions import in_transaction

#: RFC 822 is of 1982, and mail that is dated later than it came was written on a wrong clock.
_FIRST_DATE = dt.datetime(1982, 1, 1, tzinfo=dt.UTC)
_CLOCKS_DIFFER = dt.timedelta(days=2)


class Indexed(NamedTuple):
    """A message, what reading it said, and its words. `version` is 0 where its bytes can't be read:
    then its old document stays, if it has one. `changed`: its row has other header fields."""

    message: Message
    digest: Digest
    words: words.Vector
    version: int
    changed: bool


def made(message: Message, digest: Digest, *, source_id: uuid.UUID) -> Indexed:
    """Bring together what is written of a message that was read."""
    changed = False
    for name, value in _columns(digest.headers).items():
        changed = changed or getattr(message, name) != value
        setattr(message, name, value)
    vector = words.vector(message, digest, source=source_id, date=date_of(message))
    return Indexed(message, digest, vector, INDEX_VERSION, changed)


def made_of_its_row(
    message: Message, why: str, *, source_id: uuid.UUID, version: int = INDEX_VERSION
) -> Indexed:
    """Bring together what is written of a message that can't be read: what its row says."""
    digest = Digest(defects=(why,))
    vector = words.vector(message, digest, source=source_id, date=date_of(message))
    return Indexed(message, digest, vector, version, changed=False)


@in_transaction
def write(pack_id: uuid.UUID, source_id: uuid.UUID, batch: Sequence[Indexed]) -> bool:
    """Store documents of messages of a pack, in its order, and how far it is read. Idempotent.

    Returns False, having written nothing, where the source is deleted. Raises DataError where a
    text is nothing that the database takes.
    """
    if not sql.hold_source(source_id):
        return False
    by_mailbox: dict[uuid.UUID, list[Indexed]] = {}
    for one in batch:
        by_mailbox.setdefault(one.message.mailbox_id, []).append(one)
    for mailbox_id, those in sorted(by_mailbox.items()):
        sql.run(_LOCK, {"mailbox": mailbox_id})
        _write_of_mailbox(source_id, mailbox_id, those)
    sql.run(_READ_UP_TO, {"pack": pack_id, "offset": batch[-1].message.pack_offset})
    return True


def _write_of_mailbox(
    source_id: uuid.UUID, mailbox_id: uuid.UUID, batch: Sequence[Indexed]
) -> None:
    ids = [one.message.pk for one in batch]
    versions = sql.pairs(_VERSIONS, {"ids": ids})
    for one in batch:
        if not one.version and 0 < versions.get(one.message.pk, 0) < INDEX_VERSION:
            _number(one.message.pk)
    batch = [one for one in batch if one.version or not versions.get(one.message.pk)]
    provider = sql.pairs(_PROVIDERS_THREADS, {"ids": ids})
    nodes = [node(one, provider.get(one.message.pk, "")) for one in batch]
    labels = threads.assign(mailbox_id, nodes)
    if versions:
        sql.run(_DROP, {"ids": [one.message.pk for one in batch]})
    lines = [
        line(one, node, thread, source_id)
        for one, node, thread in zip(batch, nodes, labels, strict=True)
    ]
    sql.copy(f"ingestion_document ({COLUMNS})", lines)
    _update_messages(batch)


def _number(pk: uuid.UUID) -> None:
    """Give a document that stays, because its bytes can't be read now, the numbers that one has
    which is made today."""
    date = Document.objects.values_list("date", flat=True).get(pk=pk)
    found = sql.pairs(_PLACES, {"id": pk})
    places = {place: word for word, positions in found.items() for place in positions or ()}
    pairs = {words.pair(w, places[p + 1]) for p, w in places.items() if p + 1 in places}
    numbers = [*words.date_numbers(date), *pairs]
    Document.objects.filter(pk=pk).update(numbers=numbers)


def node(one: Indexed, provider: str) -> threads.Node:
    return threads.Node(
        provider=provider,
        own=threads.message_key(one.message.message_id),
        refers_to=threads.references(one.digest.fields),
        otherwise=one.message.sha256_hex,
    )


# -- a document's row --------------------------------------------------------------------------


#: What `line` writes.
COLUMNS = (
    "message_id, source_id, mailbox_id, version, date, words, numbers, sender_address, message_key,"
    " thread, preview, fields, attachments, defects"
)


def line(one: Indexed, node: threads.Node, thread: int, source_id: uuid.UUID) -> str:
    """Write a row in COPY's text format."""
    message, digest = one.message, one.digest
    senders = [address for role, address, _ in digest.participants if role == "from"]
    values = (
        str(message.pk),
        str(source_id),
        str(message.mailbox_id),
        str(one.version),
        date_of(message).isoformat(),
        rows.copied(one.words.literal),
        f"{{{','.join(map(str, one.words.numbers))}}}",
        rows.copied(senders[0] if senders else ""),
        r"\N" if node.own is None else str(node.own),
        str(thread),
        rows.copied(digest.preview),
        rows.copied(_json(digest.fields)),
        rows.copied(_json([file._asdict() for file in digest.attachments])),
        rows.copied(rows.array_literal((*digest.defects, *one.words.defects))),
    )
    return "\t".join(values) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def date_of(message: Message) -> dt.datetime:
    """Return when it was received, else sent, else archived."""
    sent_at, archived_at = message.sent_at, message.archived_at
    if sent_at is not None and not _FIRST_DATE <= sent_at <= archived_at + _CLOCKS_DIFFER:
        sent_at = None
    return message.received_at or sent_at or archived_at


# -- a message's own columns -------------------------------------------------------------------


def _columns(headers: Headers) -> dict[str, Any]:
    return headers._asdict() | {"defects": list(headers.defects)}


def _update_messages(batch: Iterable[Indexed]) -> None:
    given = [{"id": one.message.pk, **_columns(one.digest.headers)} for one in batch if one.changed]
    if given:
        sql.run(_UPDATE_MESSAGES, {"given": json.dumps(given, default=str)})


_LOCK = "SELECT pg_advisory_xact_lock(hashtext('documents'), hashtext(%(mailbox)s::text))"
_VERSIONS = """SELECT found.* FROM unnest(%(ids)s::uuid[]) AS key CROSS JOIN LATERAL
    (SELECT message_id, version FROM ingestion_document WHERE message_id = key OFFSET 0) AS found"""
#: OFFSET 0 as `statements.ONE_BY_ONE` says: in the order of ids all placements might be read for
#: each message, and are where no message is in a thread of the provider's.
_PROVIDERS_THREADS = """SELECT key, found.* FROM unnest(%(ids)s::uuid[]) AS key CROSS JOIN LATERAL
    (SELECT thread_id FROM
        (SELECT id, thread_id FROM ingestion_placement
          WHERE message_id = key AND thread_id <> '' OFFSET 0) AS placement
      ORDER BY id LIMIT 1) AS found"""
_DROP = "DELETE FROM ingestion_document WHERE message_id = ANY(%(ids)s::uuid[])"
_PLACES = """SELECT w.lexeme, w.positions FROM ingestion_document d, unnest(d.words) w
    WHERE d.message_id = %(id)s"""
_READ_UP_TO = """UPDATE ingestion_pack SET index_offset = greatest(index_offset, %(offset)s)
    WHERE id = %(pack)s"""
_UPDATE_MESSAGES = """UPDATE ingestion_message m
      SET subject = n.subject, sender = n.sender, recipients = n.recipients, sent_at = n.sent_at,
          message_id = n.message_id, defects = n.defects
     FROM jsonb_to_recordset(%(given)s::jsonb) AS n(id uuid, subject text, sender text,
          recipients text, sent_at timestamptz, message_id text, defects text[])
    WHERE m.id = n.id"""
