"""Exact through every fault, and a tenant of many users."""

from collections.abc import Callable

import pytest

from ingestion.models import (
    FailedMessage,
    IngestionSource,
    Mailbox,
    Message,
)
from ingestion.services.sources import credentials, discovery, verbs
from tests.servers.graph import GraphServer, Request, User
from tests.servers.graph import Mailbox as Box
from tests.servers.graph.sources import (
    ACTOR,
    archived,
    assert_exact,
    body,
    box,
    finish,
    held_by,
    synced,
)

Make = Callable[..., IngestionSource]


@pytest.mark.long(seconds=20)
def test_two_thousand_messages_through_every_fault_are_archived_exactly_once(
    server: GraphServer, make: Make
) -> None:
    users = [server.tenant.add_user(f"user{number}") for number in range(20)]
    for number, user in enumerate(users):
        mailbox = box(user)
        mailbox.regenerates = True  # a second download would be a second message
        for index in range(100):
            folder = mailbox.by_name["archive"] if index % 3 == 0 else mailbox.inbox
            mailbox.deliver(body(number * 1_000 + index), folder)
    server.graph.deltas.largest_page = 25
    server.graph.deltas.replay = 5
    source = make()
    run = verbs.start_import(source, actor=ACTOR)
    assert credentials.check(source, actor=ACTOR).ok
    discovery.discover(run.pk)
    doomed = {box(user).deliver(b"to be deleted") for user in users}
    server.faults.intercept = delete_when_asked_for(doomed)
    server.faults.chance = {
        429: 0.01,
        503: 0.015,
        504: 0.015,
        "cut": 0.025,
        "expire_token": 0.0025,
        "expire_delta": 0.01,
    }
    finish(source, workers=6)
    server.faults.chance = {}
    run.refresh_from_db()
    assert run.messages_gone == len(doomed)
    assert all(server.faults.injected[fault] for fault in (429, 503, 504, "cut", "expire_delta"))
    assert not FailedMessage.objects.exists()
    assert Message.objects.count() == 2_000
    synced(source)
    assert_exact(server, source)


def delete_when_asked_for(doomed: set[str]) -> Callable[[Request, User | None], None]:
    """Delete these messages between their listing and their download."""

    def intercept(request: Request, user: User | None) -> None:
        wanted = request.segments[-2] if request.segments[-1] == "$value" else ""
        if user is not None and wanted in doomed and wanted in box(user).messages:
            box(user).remove(wanted)

    return intercept


def test_a_tenant_of_two_thousand_users_is_listed_and_what_is_wanted_of_it_imported(
    server: GraphServer, make: Make
) -> None:
    """All 2,000 would take most of a minute; the cost of each is the same."""
    for number in range(2_000):
        name = f"staff{number}" if number % 8 == 0 else f"student{number}"
        user = server.tenant.add_user(name, mailbox=Box(well_known=("inbox",)))
        box(user).deliver(body(number))
    source = make({"includeMailboxes": ["staff*"]})
    run = verbs.start_import(source, actor=ACTOR)
    assert credentials.check(source, actor=ACTOR).ok
    server.log.clear()
    discovery.discover(run.pk)
    assert [entry.path for entry in server.log] == ["/v1.0/users"] * 3
    assert finish(source, workers=4).message == "250 archived."
    assert Mailbox.objects.filter(state="active").count() == 250
    assert Mailbox.objects.filter(state="excluded").count() == 1_750
    assert server.login.issued == 1  # one token is for all mailboxes
    wanted = {user.id for user in server.tenant.users.values() if "staff" in (user.mail or "")}
    held = {key: content for key, content in held_by(server).items() if key[0] in wanted}
    assert archived(source) == held
    per_mailbox = sum(1 for entry in server.log if entry.user or "batch" in entry.path) / 250
    assert per_mailbox <= 10  # the batch and its 7 parts, delta, the message
