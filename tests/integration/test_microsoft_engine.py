"""Microsoft 365 through the real engine, database and archive: exact, also where Graph is not."""

import concurrent.futures
import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User as Owner
from django.db import connection
from django.utils import timezone

from ingestion.archive.store import Extent, store
from ingestion.errors import InvalidInput
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Placement,
    Run,
)
from ingestion.services import consent, discovery, failures, reconcile, sources, sync
from ingestion.services.sources import Actor
from tests.servers.command_line import CommandLine
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph import Mailbox as Box
from tests.servers.graph.words import error

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("test")
Make = Callable[..., IngestionSource]


@pytest.fixture
def server(settings: Any, tmp_path: Path) -> Iterator[GraphServer]:
    with GraphServer() as server:
        settings.ARCHIVE_DIR = tmp_path / "archive"
        settings.EXTRA_CA_FILE = server.ca_file
        settings.PROVIDER_ENDPOINTS = {
            "microsoft.login": server.origin,
            "microsoft.graph": server.origin,
        }
        settings.PROVIDER_QUOTAS = {"microsoft": {"mailbox": 1e6, "application": 1e6}}
        yield server


@pytest.fixture
def make(server: GraphServer) -> Make:
    def make(options: dict[str, Any] | None = None, **config: Any) -> IngestionSource:
        return sources.create(
            owner=Owner.objects.create_user("engine"),
            name="Contoso",
            provider="microsoft",
            provider_config=server.config(**config),
            options={"includeTrash": True, "includeJunk": True, **(options or {})},
            actor=ACTOR,
        )

    return make


@pytest.fixture
def alice(server: GraphServer) -> User:
    return server.tenant.add_user("alice")


def box(user: User) -> Box:
    assert user.mailbox is not None
    return user.mailbox


def body(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <same@example.com>\r\n\r\nBody %d\r\n" % (number, number)


def fill(mailbox: Box, count: int) -> list[str]:
    return [mailbox.deliver(body(number)) for number in range(count)]


def imported(source: IngestionSource) -> Run:
    run = sources.start_import(source, actor=ACTOR)
    verdict = sources.verify(source, actor=ACTOR)
    assert verdict.ok, verdict
    discovery.discover(run.pk)
    return finish(source)


def synced(source: IngestionSource) -> Run:
    run = sources.start_sync(source, actor=ACTOR)
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


def archived(source: IngestionSource) -> dict[tuple[str, str, str], bytes]:
    """Read back what is placed now: (user, folder, message) -> bytes."""
    found = {}
    rows = Placement.objects.filter(removed_at=None).select_related("message", "folder__mailbox")
    for placement in rows:
        message = placement.message
        content = store().open(
            source.pk,
            message.pack_id,
            Extent(message.pack_offset, message.pack_length),
            sha256=bytes(message.sha256),
            size=message.size_bytes,
        )
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
    assert got.keys() == held.keys()
    generated = {key: content.partition(b"X-Generated:")[0] for key, content in got.items()}
    assert generated == held
    ids = Placement.objects.values_list("stable_id", "message_id").distinct()
    assert not [key for key, count in Counter(stable for stable, _ in ids).items() if count > 1]
    assert Message.objects.count() == len({message for _, message in ids})
    source.refresh_from_db()
    assert source.message_count == Message.objects.count()


def labels_of(remote_id: str) -> list[str]:
    labels: list[str] = Placement.objects.get(remote_id=remote_id, removed_at=None).labels
    return labels


# -- what is archived ----------------------------------------------------------------------------


def test_a_whole_tree_of_folders_is_archived_and_a_second_sync_costs_one_request_for_each(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    fill(mailbox, 30)
    projects = mailbox.add_folder("Projects", parent=mailbox.inbox)
    deep = mailbox.add_folder("2025/Q1\n", parent=mailbox.add_folder("Old", parent=projects))
    for number in range(30, 60):
        mailbox.deliver(body(number), deep)
    for number in range(15):
        mailbox.add_folder(f"Folder {number}")  # more than the default page of ten
    hidden = mailbox.add_folder("Hidden", hidden=True)
    search = mailbox.add_folder("Unread", search=True)
    source = make()
    assert imported(source).message == "60 archived."
    assert_exact(server, source)
    paths = dict(Folder.objects.values_list("remote_id", "path"))
    assert paths[deep.id] == "Inbox/Projects/Old/2025/Q1 "
    assert not {hidden.id, search.id} & set(paths)
    roles = set(Folder.objects.exclude(role="").values_list("path", "role"))
    assert ("Inbox", "inbox") in roles
    assert ("Deleted Items", "trash") in roles
    followed = Folder.objects.exclude(role="drafts").count()
    server.log.clear()
    assert synced(source).message == "0 archived."
    assert server.count("/$value") == 0
    assert server.count("/delta") == followed
    # The users, the first batch (top level and well-known names), one for each level below.
    assert len([e for e in server.log if not e.user]) == 1 + 4


def test_moves_flags_and_deletions_are_followed(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    read, flagged, moved, deleted, plain = fill(mailbox, 5)
    source = make()
    imported(source)
    mailbox.mark(read, is_read=True)
    mailbox.mark(flagged, flagged=True, categories=("Blue category",))
    mailbox.mark(moved, is_read=True)
    mailbox.move(moved, mailbox.by_name["archive"])
    mailbox.remove(deleted)
    server.log.clear()
    assert synced(source).message == "0 archived, 1 recognised."
    assert server.count("/$value") == 0
    assert_exact(server, source)
    assert labels_of(read) == ["\\Seen"]
    assert labels_of(flagged) == ["Blue category", "\\Flagged"]
    assert labels_of(moved) == ["\\Seen"]
    assert labels_of(plain) == []
    mailbox.mark(flagged, is_read=True)  # delta tells only that: the rest must stay
    synced(source)
    assert labels_of(flagged) == ["Blue category", "\\Flagged", "\\Seen"]
    assert Message.objects.count() == 5  # what was deleted stays archived


def test_an_expired_state_lists_again_and_downloads_nothing_that_is_known(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    gone, *_ = fill(mailbox, 25)
    source = make()
    imported(source)
    codes = ("SyncStateNotFound", "syncStateInvalid", "resyncRequired", "whateverWith410")
    for number, code in enumerate(codes, 100):
        server.graph.deltas.error_code = code
        mailbox.remove(gone)
        gone = mailbox.deliver(body(number))
        mailbox.expire_state()
        server.log.clear()
        assert synced(source).message == "1 archived."
        assert server.count("/$value") == 1
        assert_exact(server, source)


def test_a_listing_that_is_cut_into_slices_still_finds_what_is_gone(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    server.graph.deltas.largest_page = 10
    gone, *_ = fill(mailbox, 45)
    source = make()
    imported(source)
    mailbox.remove(gone)
    mailbox.expire_state()
    run = sources.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    [row] = Mailbox.objects.filter(run=run)
    assert sync.sync_mailbox(row.pk, slice_seconds=0)  # one page, and the slice is over
    cursor = Folder.objects.get(role="inbox").cursor
    assert cursor is not None
    assert cursor["listed"] is False
    server.log.clear()
    assert finish(source).message == "0 archived."
    assert server.count("/$value") == 0
    assert_exact(server, source)


def test_replays_and_empty_pages_change_nothing(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    server.graph.deltas.largest_page = 10
    server.graph.deltas.replay = 4
    server.graph.deltas.empty_pages = True
    fill(mailbox, 45)
    source = make()
    assert imported(source).message == "45 archived."
    assert server.count("/$value") == 45
    assert_exact(server, source)
    mailbox.deliver(body(100))
    assert synced(source).message == "1 archived."
    assert_exact(server, source)


def test_a_cloud_without_delta_query_is_listed_whole_and_followed_all_the_same(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    server.graph.deltas.supported = False
    gone, moved, read, *_ = fill(mailbox, 30)
    source = make(cloud="china")
    assert imported(source).message == "30 archived."
    assert_exact(server, source)
    mailbox.remove(gone)
    mailbox.move(moved, mailbox.by_name["archive"])
    mailbox.mark(read, is_read=True)
    mailbox.deliver(body(100))
    server.log.clear()
    assert synced(source).message == "1 archived, 1 recognised."
    assert server.count("/$value") == 1
    assert labels_of(read) == ["\\Seen"]
    assert_exact(server, source)


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("retried_at_once", [False, True])
def test_a_message_that_failed_and_was_moved_is_archived_once(
    server: GraphServer, make: Make, alice: User, retried_at_once: bool, expired: bool
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    bad, *_ = fill(mailbox, 3)

    def refuse(request: Request, user: User | None) -> Response | None:
        if request.segments[-1] == "$value" and request.segments[-2] == bad:
            return error(400, "ErrorMimeContentConversionFailed", "Failed.")
        return None

    server.faults.intercept = refuse
    source = make()
    assert imported(source).message == "2 archived, 1 failed."
    failed = FailedMessage.objects.get()
    assert (failed.remote_id, failed.code) == (bad, "message_refused")
    server.faults.intercept = lambda _request, _user: None
    if expired:
        mailbox.expire_state()
    if retried_at_once:
        FailedMessage.objects.update(not_before=timezone.now())
    mailbox.move(bad, mailbox.by_name["archive"])
    synced(source)
    assert not FailedMessage.objects.exists()
    assert_exact(server, source)
    failures.retry(source, actor=ACTOR)
    assert mailbox.messages[bad].downloads == 1
    assert_exact(server, source)


def test_a_message_that_failed_and_was_archived_elsewhere_is_not_fetched_again(
    server: GraphServer, make: Make, alice: User
) -> None:
    """Between two slices: the new folder was followed, the old one not yet."""
    mailbox = box(alice)
    mailbox.regenerates = True
    bad = mailbox.deliver(body(1), mailbox.by_name["archive"])
    server.faults.intercept = lambda request, _user: (
        error(400, "ErrorMimeContentConversionFailed", "Failed.")
        if request.segments[-1] == "$value"
        else None
    )
    source = make()
    assert imported(source).message == "0 archived, 1 failed."
    server.faults.intercept = lambda _request, _user: None
    mailbox.move(bad, mailbox.inbox)
    run = sources.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    sync.sync_mailbox(Mailbox.objects.get().pk, slice_seconds=0)  # the inbox, and no more
    assert mailbox.messages[bad].downloads == 1
    FailedMessage.objects.update(not_before=timezone.now())
    finish(source)
    assert mailbox.messages[bad].downloads == 1
    assert not FailedMessage.objects.exists()
    assert_exact(server, source)


def test_reconciling_finds_nothing_missing(server: GraphServer, make: Make, alice: User) -> None:
    fill(box(alice), 20)
    source = make()
    imported(source)
    reports = list(reconcile.reconcile(source))
    assert all(report.ok for report in reports)
    assert sum(report.present for report in reports) == 20


def test_recoverable_items_come_where_they_are_wanted(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    deleted = mailbox.add_folder(
        "Deletions", parent=mailbox.recoverable, well_known="recoverableitemsdeletions"
    )
    mailbox.deliver(body(1), deleted)
    source = make(includeRecoverableItems=True)
    assert imported(source).message == "1 archived."
    assert Folder.objects.get(remote_id=deleted.id).path == "Recoverable Items/Deletions"


# -- mailboxes that can't be had -----------------------------------------------------------------


def states() -> dict[str, tuple[str, str]]:
    rows = Mailbox.objects.values_list("address", "state", "state_reason")
    return {address.partition("@")[0]: (state, reason) for address, state, reason in rows}


def test_what_one_mailbox_lacks_is_its_own_state_and_may_change(
    server: GraphServer, make: Make
) -> None:
    add = server.tenant.add_user
    alice = add("alice")
    left = add("left", enabled=False)  # the mailbox of who left is archived as well
    shared = add("shared", enabled=False, plans=())
    forbidden = add("forbidden")
    guest = add("guest", kind="Guest", has_mailbox=False, plans=())
    guest.principal_name = "guest_fabrikam.example#EXT#@contoso.onmicrosoft.com"
    unlicensed = add("unlicensed", has_mailbox=False, plans=(), mail=None)
    on_premises = add("onpremises", has_mailbox=False, plans=())
    for number, user in enumerate((alice, left, shared, forbidden)):
        box(user).deliver(body(number))
    server.tenant.policy = set(server.tenant.users) - {forbidden.id}
    source = make()
    run = imported(source)
    source.refresh_from_db()
    assert source.status == "active"
    assert run.message == "3 archived."
    found = states()
    for name in ("alice", "left", "shared"):
        assert found[name] == ("active", "")
    assert found["guest"][0] == found["unlicensed"][0] == found["onpremises"][0] == "unavailable"
    assert "policy" in found["forbidden"][1]
    assert "licence" in found["unlicensed"][1]
    # The next syncs pick up what became possible, and users that are new.
    server.tenant.policy = None
    on_premises.mailbox, unlicensed.mailbox, unlicensed.plans = Box(), Box(), ("exchange",)
    new = add("new")
    for number, user in enumerate((on_premises, unlicensed, new), 10):
        box(user).deliver(body(number))
    del server.tenant.users[left.id]
    assert synced(source).message == "4 archived."
    found = states()
    gone, _ = found.pop("left")
    assert gone == "gone"
    assert {state for name, (state, _) in found.items() if name != "guest"} == {"active"}


def test_shared_mailboxes_can_be_left_out(server: GraphServer, make: Make, alice: User) -> None:
    box(alice).deliver(body(1))
    box(server.tenant.add_user("room", enabled=False, plans=())).deliver(body(2))
    source = make(includeSharedMailboxes=False)
    assert imported(source).message == "1 archived."
    assert "includeSharedMailboxes" in states()["room"][1]


def test_a_permission_that_was_withdrawn_stops_the_source_and_is_named(
    server: GraphServer, make: Make, alice: User
) -> None:
    fill(box(alice), 3)
    source = make()
    imported(source)
    server.tenant.roles = {"User.Read.All"}
    server.login.expire_tokens()
    run = sources.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    finish(source)
    source.refresh_from_db()
    assert source.status == "error"
    assert "Mail.Read" in source.status_message


def test_permission_by_rbac_is_for_some_mailboxes_and_the_others_are_not_an_error(
    server: GraphServer, make: Make, alice: User
) -> None:
    bob = server.tenant.add_user("bob")
    box(bob).deliver(body(1))
    server.tenant.roles = {"User.Read.All"}  # RBAC for applications is not in the token
    server.tenant.rbac = {bob.id}
    source = make(checkMailbox=bob.principal_name)
    assert imported(source).message == "1 archived."
    source.refresh_from_db()
    assert source.status == "active"
    assert {name: state for name, (state, _) in states().items()} == {
        "alice": "unavailable",
        "bob": "active",
    }


# -- exact, where nothing is reliable ------------------------------------------------------------


def test_five_thousand_messages_through_every_fault_are_archived_exactly_once(
    server: GraphServer, make: Make
) -> None:
    users = [server.tenant.add_user(f"user{number}") for number in range(20)]
    for number, user in enumerate(users):
        mailbox = box(user)
        mailbox.regenerates = True  # a second download would be a second message
        for index in range(250):
            folder = mailbox.by_name["archive"] if index % 3 == 0 else mailbox.inbox
            mailbox.deliver(body(number * 1_000 + index), folder)
    server.graph.deltas.largest_page = 60
    server.graph.deltas.replay = 5
    source = make()
    run = sources.start_import(source, actor=ACTOR)
    assert sources.verify(source, actor=ACTOR).ok
    discovery.discover(run.pk)
    doomed = {box(user).deliver(b"to be deleted") for user in users}
    server.faults.intercept = delete_when_asked_for(doomed)
    server.faults.chance = {
        429: 0.004,
        503: 0.006,
        504: 0.006,
        "cut": 0.01,
        "expire_token": 0.001,
        "expire_delta": 0.004,
    }
    finish(source, workers=6)
    server.faults.chance = {}
    run.refresh_from_db()
    assert run.messages_gone == len(doomed)
    assert all(server.faults.injected[fault] for fault in (429, 503, 504, "cut", "expire_delta"))
    assert not FailedMessage.objects.exists()
    assert Message.objects.count() == 5_000
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
    run = sources.start_import(source, actor=ACTOR)
    assert sources.verify(source, actor=ACTOR).ok
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


# -- one person's mailbox, by consent ------------------------------------------------------------


@pytest.fixture
def person(server: GraphServer, alice: User) -> dict[str, Any]:
    return {"tenantId": "common", "email": alice.mail}


def test_a_person_signs_in_with_the_browser_and_the_mailbox_is_archived(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any]
) -> None:
    fill(box(alice), 3)
    redirect_uri = "https://mail.example/api/v1/oauth/callback"
    server.login.redirect_uris.add(redirect_uri)
    source = make(**person)
    verdict = sources.verify(source, actor=ACTOR)
    assert verdict.code == "consent_needed"
    owner = source.owner
    url = consent.begin(source, user=owner, redirect_uri=redirect_uri)
    bob = server.tenant.add_user("bob")
    wrong = server.login.sign_in(url, bob)
    with pytest.raises(InvalidInput, match="bob"):
        consent.finish(user=owner, **wrong, actor=ACTOR)
    url = consent.begin(source, user=owner, redirect_uri=redirect_uri)
    consent.finish(user=owner, **server.login.sign_in(url, alice), actor=ACTOR)
    source.refresh_from_db()
    given = source.secrets["refreshToken"]
    assert imported(source).message == "3 archived."
    assert [mailbox.address for mailbox in Mailbox.objects.all()] == [alice.mail]
    # The next access token costs the refresh token, and the new one is stored.
    server.login.expire_tokens()
    box(alice).deliver(body(9))
    assert synced(source).message == "1 archived."
    source.refresh_from_db()
    assert source.secrets["refreshToken"] != given
    assert source.secrets["refreshToken"] in server.login.refresh_tokens
    assert source.secrets["clientSecret"] == server.login.client_secret


def test_a_person_signs_in_by_typing_in_a_code(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any], settings: Any
) -> None:
    fill(box(alice), 2)
    server.login.is_public_client = True
    source = make(**person, clientSecret="")
    prompt = consent.begin_device(source)
    assert not consent.finish_device(source, prompt, actor=ACTOR)
    server.login.enter_device_code(prompt.user_code, alice)
    command = CommandLine(settings.ARCHIVE_DIR)
    assert command.here("sign_in_source", "Nobody").code == 2
    server.login.signs_in_at_once = alice
    done = command.here("sign_in_source", "Contoso")
    assert (done.code, "type in the code" in done.stderr) == (0, True)
    source.refresh_from_db()
    assert imported(source).message == "2 archived."


def test_nobody_types_in_a_code_for_a_tenant_or_for_an_application_with_a_secret(
    server: GraphServer, make: Make, settings: Any, alice: User
) -> None:
    make()
    refused = CommandLine(settings.ARCHIVE_DIR).here("sign_in_source", "Contoso")
    assert refused.code == 1
    assert "without a client secret" in refused.stderr


def test_a_rotated_secret_does_not_replace_a_newer_one(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any]
) -> None:
    first = server.login.refresh_token_of(alice)
    source = make(**person, refreshToken=first)
    keep = sources.environment(source).keep_secrets
    reconnected = server.login.refresh_token_of(alice)
    sources.reconnect(source, {"refreshToken": reconnected}, actor=ACTOR)
    keep({"refreshToken": "rotated-of-the-first"})
    source.refresh_from_db()
    assert source.secrets["refreshToken"] == reconnected
    keep = sources.environment(source).keep_secrets
    for rotated in ("second", "third"):
        keep({"refreshToken": rotated})
        source.refresh_from_db()
        assert source.secrets["refreshToken"] == rotated
