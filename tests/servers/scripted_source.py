"""A source of the scripted provider, worked on by the engine in this process.

Owns making it due, doing its work slice by slice, and reading the archive back beside what the
provider holds. Nothing in between is replaced.
"""

import datetime as dt

from django.contrib.auth.models import User
from django.utils import timezone

from connectors.types import Body
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Placement, Run
from ingestion.services.archive import reading
from ingestion.services.audit import Actor
from ingestion.services.engine import lease, sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers import scripted_provider
from tests.servers.scripted_provider import Server
from tests.servers.stack import wait_for

ACTOR = Actor.system("test")


def create() -> IngestionSource:
    return configuration.create(
        owner=User.objects.create_user("engine"),
        name="Scripted",
        provider=scripted_provider.SLUG,
        provider_config={"password": "secret"},
        actor=ACTOR,
    )


def body(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <same@example.com>\r\n\r\nBody %d\r\n" % (number, number)


def start(source: IngestionSource) -> Run:
    """Start an import and do its check and listing, so that the mailbox is due."""
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)
    discovery.discover(run.pk)
    return run


def due_now() -> Mailbox:
    """Return the mailbox, with its wait over."""
    Mailbox.objects.update(not_before=timezone.now() - dt.timedelta(seconds=1))
    return Mailbox.objects.get()


def work() -> None:
    """Give the mailbox one slice of work, as a worker does."""
    sync.sync_mailbox(due_now().pk)


def work_as_soon_as_it_is_free() -> None:
    """PostgreSQL may not have missed the last worker yet."""
    before = Mailbox.objects.get().lease_token

    def began() -> bool:
        work()
        return Mailbox.objects.get().lease_token > before

    wait_for(began)


def begun(source: IngestionSource) -> tuple[Run, Mailbox, Folder, lease.Lease]:
    """Return what a worker has in hand when it comes to an empty folder."""
    run = start(source)
    mailbox = due_now()
    folder = Folder.objects.create(mailbox=mailbox, remote_id="INBOX", path="INBOX")
    held = lease.acquire(mailbox.pk)
    assert held is not None
    return run, mailbox, folder, held


def finish(source: IngestionSource) -> Run:
    for _ in range(60):
        work()
        run = Run.objects.filter(source=source).latest("started_at")
        if run.finished_at:
            return run
        discovery.discover(run.pk)  # where it is to list its mailboxes anew
    raise AssertionError("the run does not finish")


def synced(source: IngestionSource) -> Run:
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    return finish(source)


def archived(source: IngestionSource) -> dict[tuple[str, str], Body]:
    """Read back, through the verified path, what is placed now: (folder, remote id) -> bytes."""
    found: dict[tuple[str, str], Body] = {}
    for placement in Placement.objects.filter(removed_at=None).select_related(
        "message__mailbox", "folder"
    ):
        message = placement.message
        found[(placement.folder.remote_id, placement.remote_id)] = reading.opened(message)
    return found


def held_by(server: Server) -> dict[tuple[str, str], Body]:
    return {
        (name, f"{server.validity[name]}:{uid}"): mail.body
        for name, mails in server.folders.items()
        for uid, mail in mails.items()
    }


def assert_exact(server: Server, source: IngestionSource) -> None:
    assert archived(source) == held_by(server)
    source.refresh_from_db()
    assert source.message_count == Message.objects.count()
    assert source.archived_bytes == sum(Message.objects.values_list("size_bytes", flat=True))


def fill(server: Server, count: int = 40, folder: str = "INBOX") -> None:
    for number in range(count):
        server.deliver(folder, body(number))
