"""Writes generated mail into the archive's own tables (`bench.corpus`). Needs Django's settings."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from django.contrib.auth.models import User
from django.db import connection, transaction

from bench import generated
from bench.generated import Block, Mail
from ingestion import rows
from ingestion.models import INDEX_VERSION, Folder, IngestionSource, Mailbox, Message, Pack
from ingestion.packs.record import Origin, RecordHeader
from ingestion.packs.store import Extent, store
from ingestion.search import words
from ingestion.services.archive import documents, storage, threads
from ingestion.services.archive.documents import Indexed
from ingestion.services.engine import statements as sql
from ingestion.services.engine.counters import recount_source
from ingestion.states import SourceStatus

READER = "reader"
_ARCHIVED_AT = "2026-01-01T00:00:00+00:00"
#: Their indexes are built afterwards. Constraints (primary keys, identities) are kept.
_TABLES = ("ingestion_message", "ingestion_placement", "ingestion_document")


class NotEmpty(Exception):
    """There is mail in this archive; the text says what to do."""


class Place(NamedTuple):
    """A mailbox, and its folders' ids by path."""

    source: uuid.UUID
    mailbox: uuid.UUID
    folders: dict[str, int]


def prepare() -> list[Place]:
    """Make the sources, mailboxes and folders that mail is written into. Raises NotEmpty."""
    if Message.objects.exists() or IngestionSource.objects.exists():
        raise NotEmpty("This archive is not empty. Set VAR_DIR or DATABASE_URL to one that is.")
    storage.require()
    admin = User.objects.filter(is_superuser=True).earliest("pk")
    reader = User.objects.create(username=READER)
    chance = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    with transaction.atomic():
        sources = [
            IngestionSource.objects.create(
                id=uuid.uuid5(chance, f"source {number}"),
                owner=reader if number % 2 else admin,
                name=f"Generated {number}",
                provider="generic_imap",
                config={"host": "imap.archive.example", "username": f"source{number}"},
                status=SourceStatus.PAUSED,
                hold=True,
            )
            for number in range(generated.SOURCES)
        ]
        return [
            _place(sources[generated.source_of(number)], number)
            for number in range(generated.MAILBOXES)
        ]


def _place(source: IngestionSource, number: int) -> Place:
    address = generated.address_of(number)
    mailbox = Mailbox.objects.create(
        id=uuid.uuid5(source.pk, address), source=source, remote_id=address, address=address
    )
    named = [*generated.FOLDERS, *([(generated.SMALL_FOLDER, "")] if number == 0 else [])]
    folders = Folder.objects.bulk_create(
        Folder(mailbox=mailbox, remote_id=path, path=path, role=role) for path, role in named
    )
    return Place(source.pk, mailbox.pk, {folder.path: folder.pk for folder in folders})


@contextlib.contextmanager
def without_indexes() -> Iterator[None]:
    """Drop what slows COPY down, and build it in the end, whatever happens meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY(%s)"
            " AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conname = indexname)",
            [list(_TABLES)],
        )
        found = cursor.fetchall()
        for name, _ in found:
            cursor.execute(f'DROP INDEX "{name}"')
    connection.close()  # no child may have it
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET maintenance_work_mem = '512MB'")
            cursor.execute("SET statement_timeout = 0")  # on a busy machine one takes minutes
            for _, definition in found:
                cursor.execute(definition)


def write(job: tuple[Block, int, list[Place], bool]) -> int:
    """Write a block in a transaction of its own; return how many messages it has."""
    block, seed, places, packs = job
    place = places[block.mailbox]
    mails = list(generated.mails(block, seed=seed))
    headers = [_header(mail, block) for mail in mails]
    with transaction.atomic():
        if packs:
            pack, extents, size = _write_pack(place, headers, mails)
        else:
            pack = uuid.uuid5(place.mailbox, str(block.first))
            extents, size = [Extent(0, len(mail.raw)) for mail in mails], 0
        Pack.objects.create(
            id=pack,
            source_id=place.source,
            size_bytes=size,
            message_count=len(mails),
            index_version=INDEX_VERSION,
        )
        sql.copy(
            f"ingestion_message ({rows.COLUMNS})",
            (
                rows.message(
                    mail.id,
                    header,
                    extent,
                    mail.digest.headers,
                    mailbox=place.mailbox.hex,
                    pack=pack.hex,
                )
                for mail, header, extent in zip(mails, headers, extents, strict=True)
            ),
        )
        sql.copy(f"ingestion_placement ({_PLACEMENT})", (_placement(m, place) for m in mails))
        sql.copy(
            f"ingestion_document ({documents.COLUMNS})", (_document(m, place, pack) for m in mails)
        )
    return len(mails)


def _header(mail: Mail, block: Block) -> RecordHeader:
    address = generated.address_of(block.mailbox)
    origin = Origin(address, address, mail.folder, mail.folder, _ARCHIVED_AT)
    received_at = mail.date.isoformat()
    remote_id = str(mail.place)
    return RecordHeader(
        mail.sha256, len(mail.raw), origin, remote_id, "", "", received_at, mail.labels
    )


def _write_pack(
    place: Place, headers: list[RecordHeader], mails: list[Mail]
) -> tuple[uuid.UUID, list[Extent], int]:
    with store().writer(place.source) as writer:
        records = [(h.dumps(), m.raw) for h, m in zip(headers, mails, strict=True)]
        extents = writer.append(records)
        return writer.pack_id, extents, writer.commit()


_PLACEMENT = (
    "mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels, first_seen_at,"
    " removed_at"
)


def _placement(mail: Mail, place: Place) -> str:
    labels = rows.copied(rows.array_literal(mail.labels))
    removed_at = mail.removed_at.isoformat() if mail.removed_at else r"\N"
    return (
        f"{place.mailbox}\t{place.folders[mail.folder]}\t{mail.id}\t{mail.place}\t\t\t{labels}\t"
        f"{mail.date.isoformat()}\t{removed_at}\n"
    )


def _document(mail: Mail, place: Place, pack: uuid.UUID) -> str:
    headers = mail.digest.headers
    message = Message(
        id=uuid.UUID(mail.id),
        mailbox_id=place.mailbox,
        sha256=mail.sha256,
        size_bytes=len(mail.raw),
        pack_id=pack,
        received_at=mail.date,
        archived_at=mail.date,
        **headers._asdict(),
    )
    read = Indexed(
        message,
        mail.digest,
        words.vector(message, mail.digest, source=place.source, date=documents.date_of(message)),
        INDEX_VERSION,
        changed=False,
    )
    node = documents.node(read, "")
    thread = threads.message_key(mail.thread)
    assert thread is not None
    return documents.line(read, node, threads.even(thread), place.source)


def finish() -> None:
    """Count what the sources and mailboxes have, and let the planner know."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ingestion_mailbox b SET message_count = n.number, archived_bytes = n.size"
            " FROM (SELECT mailbox_id, count(*) AS number, sum(size_bytes) AS size"
            "         FROM ingestion_message GROUP BY 1) n WHERE n.mailbox_id = b.id"
        )
        for source in IngestionSource.objects.all():
            recount_source(source.pk)
        cursor.execute("VACUUM ANALYZE")
