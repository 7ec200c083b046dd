"""Archived mail gets documents, each once, whatever happens meanwhile."""

from pathlib import Path

import pytest

from ingestion.models import INDEX_VERSION, Document, IngestionSource, Message, Pack
from ingestion.packs.store import store
from ingestion.services.archive import indexing
from tests.servers.command_line import CommandLine
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import fill, finish, start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pack(server: Server, source: IngestionSource) -> Pack:
    """A pack of nine imported messages."""
    server.page_size = 1000
    fill(server, 9)
    start(source)
    finish(source)
    return Pack.objects.get()


def path_of(pack: Pack) -> Path:
    return store().root / str(pack.source_id) / f"{pack.pk}.pack"


def index_all() -> None:
    while (due := indexing.next_due()) is not None:
        indexing.index_pack(due)


def test_each_message_gets_a_document_and_the_pack_is_done(pack: Pack) -> None:
    assert indexing.index_pack(pack.pk) == 9
    pack.refresh_from_db()
    assert (pack.index_version, pack.index_defects) == (INDEX_VERSION, 0)
    for message in Message.objects.all():
        document = message.document
        assert document.version == INDEX_VERSION
        assert f"'{message.subject}':" in document.words
        assert document.date == message.archived_at
    assert Document.objects.count() == 9
    assert indexing.next_due() is None
    assert indexing.index_pack(pack.pk) == 0


def test_the_command_indexes_here_or_says_what_waits(
    manage: CommandLine, pack: Pack, source: IngestionSource
) -> None:
    said = manage.here("reindex", source.name, "--json")
    assert said.code == 0
    assert said.json() == {
        "packsDue": 1,
        "indexedMessages": 0,
        "unindexedMessages": 9,
        "indexDefects": 0,
        "unreadablePacks": 0,
    }
    assert "9 of 9 indexed" in manage.here("reindex", "--now").stdout
    before = Document.objects.get(message__subject="3").words
    assert manage.here("reindex", "--json").json()["packsDue"] == 0
    Document.objects.update(words="")
    assert "0 of 9 indexed" in manage.here("reindex", "--all").stdout
    assert manage("reindex", "--now", "--json").json()["indexedMessages"] == 9
    assert Document.objects.get(message__subject="3").words == before
