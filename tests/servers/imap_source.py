"""A source on a scripted IMAP server, worked on by the engine in this process.

Owns making it due, doing its work slice by slice, and reading the archive back beside what the
server holds. Nothing in between is replaced.
"""

import collections
import threading
from typing import Any, Protocol

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models.functions import Now

from connectors.types import Body, SpooledBody
from ingestion.models import IngestionSource, Mailbox, Message, Pack, Placement, Run
from ingestion.services.archive import reading
from ingestion.services.audit import Actor
from ingestion.services.engine import sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers.imap_script import Client, ImapScript

ACTOR = Actor.system("test")
Contents = dict[tuple[str, str], bytes]


class Account(Protocol):
    """Where mail is and how to get in."""

    host: str
    port: int
    name: str
    password: str


def config(server: Account, **changes: Any) -> dict[str, Any]:
    plain = {
        "host": server.host, "port": server.port, "secure": False,
        "username": server.name, "password": server.password,
    }  # fmt: skip
    return plain | changes


def create(server: Account, *, name: str = "Scripted", **changes: Any) -> IngestionSource:
    """Return a source whose credentials are proven."""
    source = configuration.create(
        owner=User.objects.get_or_create(username="scripted")[0],
        name=name,
        provider="generic_imap",
        provider_config=config(server, **changes),
        actor=ACTOR,
    )
    assert credentials.check(source, actor=ACTOR).ok
    return source


def start(source: IngestionSource, *, sync_only: bool = False) -> Run:
    """Start a run and list its mailbox, so that it is due."""
    verb = verbs.start_sync if sync_only else verbs.start_import
    run = verb(source, actor=ACTOR)
    discovery.discover(run.pk)
    return run


def work(source: IngestionSource, *, slice_seconds: float = sync.SLICE_SECONDS) -> Mailbox:
    """Give the mailbox one slice of work at once, as a worker does; return its row."""
    mailbox = Mailbox.objects.get(source=source)
    Mailbox.objects.filter(pk=mailbox.pk).update(not_before=Now())
    sync.sync_mailbox(mailbox.pk, slice_seconds=slice_seconds)
    mailbox.refresh_from_db()
    return mailbox


def finish(source: IngestionSource, *, slices: int = 30) -> Run:
    """Work until the run is finished; return it."""
    for _ in range(slices):
        run = Run.objects.filter(source=source).latest("started_at")
        if run.finished_at:
            return run
        discovery.discover(run.pk)  # where it is to list its mailboxes anew
        work(source)
    raise AssertionError(f"Not finished after {slices} slices: {Mailbox.objects.values()}")


def imported(source: IngestionSource) -> Run:
    start(source)
    return finish(source)


def synced(source: IngestionSource) -> Run:
    start(source, sync_only=True)
    return finish(source)


def held_by(server: ImapScript) -> Contents:
    """Return what the server holds: (folder, "uidvalidity:uid") -> bytes."""
    return {
        (name.decode(), f"{box.validity}:{uid}"): mail.body
        for name, box in server.boxes.items()
        for uid, mail in box.mails.items()
    }


def archived(source: IngestionSource) -> Contents:
    """Read back, through the verified path, what is placed now."""
    found = {}
    rows = Placement.objects.filter(mailbox__source=source, removed_at=None)
    for placement in rows.select_related("message__mailbox", "folder"):
        found[(placement.folder.remote_id, placement.remote_id)] = read(placement.message)
    return found


def read(message: Message) -> bytes:
    """Return a message's bytes, checked against its row."""
    body = reading.opened(message)
    return content(body)


def content(body: Body) -> bytes:
    if isinstance(body, bytes):
        return body
    assert isinstance(body, SpooledBody)
    try:
        return b"".join(body.chunks())
    finally:
        body.close()


def stray_files(source: IngestionSource) -> list[str]:
    """Return the files of the source's archive that no row tells of."""
    known = {str(pk) for pk in Pack.objects.filter(source=source).values_list("pk", flat=True)}
    directory = settings.ARCHIVE_DIR / str(source.pk)
    names = [path.name for path in directory.rglob("*.*")]
    return [name for name in names if name.removesuffix(".pack") not in known]


class Sent:
    """Counts the bodies that a server begins to send, by uid, over all folders."""

    def __init__(self, server: ImapScript) -> None:
        self.times: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()
        self._then = server.before_each_mail
        server.before_each_mail = self._count

    def _count(self, client: Client, uid: int) -> None:
        with self._lock:
            self.times[uid] += 1
        self._then(client, uid)
