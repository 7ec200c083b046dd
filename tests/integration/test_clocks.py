"""Workers whose clocks are wrong: only the database's clock decides what is due."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestion.models import IngestionSource, Message
from tests.servers import imap_source
from tests.servers.command_line import CommandLine
from tests.servers.imap_script import Client, ImapScript
from tests.servers.imap_source import archived, held_by

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        for number in range(40):
            script.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
        yield script


@pytest.fixture
def faketime() -> str:
    """What goes before the other libraries, so that a process sees another time."""
    found = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.fail("This test needs libfaketime: apt-get install faketime", pytrace=False)
    return str(found[0])


@pytest.mark.parametrize("off", ["+1h", "-1h"])
def test_a_worker_whose_clock_is_an_hour_off(
    manage: CommandLine, server: ImapScript, faketime: str, off: str
) -> None:
    """What it has to wait for after a drop is as long as it should be. By its own clock that would
    be an hour, or nothing."""
    source = imap_source.create(server)
    drops = [20]

    def drop(client: Client, uid: int) -> None:
        if uid in drops:
            drops.remove(uid)
            client.hang_up()

    server.before_each_mail = drop
    started = time.monotonic()
    done = manage("import_source", str(source.pk), "--now", LD_PRELOAD=faketime, FAKETIME=off)
    assert done.code == 0, done.stderr
    assert 1.5 < time.monotonic() - started < 30
    assert not drops
    assert archived(source) == held_by(server)
    assert Message.objects.count() == 40
    source = IngestionSource.objects.get()
    assert source.next_sync_at is not None
    assert source.last_sync_finished_at is not None
    waits = source.next_sync_at - source.last_sync_finished_at
    assert abs(waits.total_seconds() - 300) < 5
