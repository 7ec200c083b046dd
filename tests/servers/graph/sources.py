"""What tests of the engine do with a source of the scripted Graph: import, sync, compare."""

import concurrent.futures
import datetime as dt
import urllib.parse
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.db import connection
from django.utils import timezone

from ingestion.models import IngestionSource, Mailbox, Message, Placement, Run
from ingestion.services.archive import reading
from ingestion.services.audit import Actor
from ingestion.services.engine import sync
from ingestion.services.sources import credentials, discovery, verbs
from tests.differences import differences
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph import Mailbox as Box
from tests.servers.graph.words import error

ACTOR = Actor.system("test")


def box(user: User) -> Box:
    assert user.mailbox is not None
    return user.mailbox


def body(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <same@example.com>\r\n\r\nBody %d\r\n" % (number, number)


def fill(mailbox: Box, count: int) -> list[str]:
    return [mailbox.deliver(body(number)) for number in range(count)]


def imported(source: IngestionSource) -> Run:
    run = verbs.start_import(source, actor=ACTOR)
    verdict = credentials.check(source, actor=ACTOR)
    assert verdict.ok, verdict
    discovery.discover(run.pk)
    return finish(source)


def synced(source: IngestionSource) -> Run:
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    return finish(source)


def finish(source: IngestionSource, *, workers: int = 1, rounds: int = 200) -> Run:
    """Work as the workers do, without waiting for retry times, until the run is done."""
    run = Run.objects.filter(source=source).latest("started_at")
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for _ in range(rounds):
            run.refresh_from_db()
            if run.finished_at:
                return run
            discovery.discover(run.pk)  # where it is to list its mailboxes anew
            Mailbox.objects.filter(run=run).update(
                not_before=timezone.now() - dt.timedelta(seconds=1)
            )
            due = list(Mailbox.objects.filter(run=run).values_list("pk", flat=True))
            list(pool.map(_work, due))
    raise AssertionError(f"the run does not finish: {run.warning}")


def _work(pk: Any) -> None:
    try:
        sync.sync_mailbox(pk)
    finally:
        connection.close()


def path_of(request: Request) -> str:
    return urllib.parse.unquote(request.path)


def refuse(
    server: GraphServer, concerns: Callable[[str], bool], status: int, code: str, text: str = "x"
) -> None:
    """Have the server answer with an error wherever `concerns(path)`, and as ever elsewhere."""

    def intercept(request: Request, user: User | None) -> Response | None:
        return error(status, code, text) if concerns(path_of(request)) else None

    server.faults.intercept = intercept


def placed() -> set[str]:
    """Return the ids of the messages that are placed now."""
    return set(Placement.objects.filter(removed_at=None).values_list("remote_id", flat=True))


def archived(source: IngestionSource) -> dict[tuple[str, str, str], bytes]:
    """Read back what is placed now: (user, folder, message) -> bytes."""
    found = {}
    rows = Placement.objects.filter(removed_at=None).select_related(
        "message__mailbox", "folder__mailbox"
    )
    for placement in rows:
        message = placement.message
        content = reading.opened(message)
        assert isinstance(content, bytes)
        folder = placement.folder
        found[(folder.mailbox.remote_id, folder.remote_id, placement.remote_id)] = content
    return found


def held_by(server: GraphServer) -> dict[tuple[str, str, str], bytes]:
    return {
        (user.id, folder.id, message.id): message.body
        for user in server.tenant.users.values()
        if user.mailbox is not None
        for folder in user.mailbox.folders.values()
        for message in folder.messages.values()
    }


def assert_exact(server: GraphServer, source: IngestionSource) -> None:
    got, held = archived(source), held_by(server)
    generated = {key: content.partition(b"X-Generated:")[0] for key, content in got.items()}
    assert generated == held, differences(generated, held)
    ids = Placement.objects.values_list("stable_id", "message_id").distinct()
    assert not [key for key, count in Counter(stable for stable, _ in ids).items() if count > 1]
    assert Message.objects.count() == len({message for _, message in ids})
    source.refresh_from_db()
    assert source.message_count == Message.objects.count()


def labels_of(remote_id: str) -> list[str]:
    labels: list[str] = Placement.objects.get(remote_id=remote_id, removed_at=None).labels
    return labels


def states() -> dict[str, tuple[str, str]]:
    rows = Mailbox.objects.values_list("address", "state", "state_reason")
    return {address.partition("@")[0]: (state, reason) for address, state, reason in rows}
