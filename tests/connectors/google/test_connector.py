"""The engine on a real PostgreSQL and a real archive, against a scripted Google on a socket."""

import concurrent.futures
import datetime as dt
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from connectors.google import listing
from connectors.types import SpooledBody
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Placement,
    Run,
)
from ingestion.services.archive import reading, reconcile
from ingestion.services.audit import Actor
from ingestion.services.engine import runs, sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers import google_sources
from tests.servers.command_line import CommandLine
from tests.servers.gmail import Gmail
from tests.servers.gmail_store import Person

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("test")


@pytest.fixture
def google(settings: Any, tmp_path: Path) -> Iterator[Gmail]:
    with Gmail() as server:
        settings.PROVIDER_ENDPOINTS = server.endpoints
        settings.PROVIDER_QUOTAS = {"google": google_sources.AMPLE}
        settings.ARCHIVE_DIR = tmp_path / "archive"
        yield server


@pytest.fixture
def add(google: Gmail) -> Callable[..., IngestionSource]:
    """`add(providerConfig, option=...)` makes a source."""

    def make(config: dict[str, Any], **options: Any) -> IngestionSource:
        return configuration.create(
            owner=User.objects.create_user(f"owner{User.objects.count()}"),
            name="Google",
            provider="google",
            provider_config=config,
            options=options,
            actor=ACTOR,
        )

    return make


@pytest.fixture
def alice(google: Gmail) -> Person:
    return google.add("alice@example.com")


@pytest.fixture
def account(google: Gmail, alice: Person, add: Callable[..., IngestionSource]) -> IngestionSource:
    return add(google_sources.account(google, alice.address))


def imported(source: IngestionSource) -> Run:
    verbs.start_import(source, actor=ACTOR)
    return finished(source)


def synced(source: IngestionSource) -> Run:
    verbs.start_sync(source, actor=ACTOR)
    return finished(source)


def finished(source: IngestionSource, *, workers: int = 1) -> Run:
    """Do all work of the source's run, waiting for nothing: each retry is due at once."""
    source.refresh_from_db()
    if source.status == "pending_auth":
        assert credentials.check(source, actor=ACTOR).ok
    run = Run.objects.get(source=source, finished_at=None)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for _ in range(200):
            if run.discovered_at is None:
                Run.objects.filter(pk=run.pk).update(not_before=timezone.now())
                discovery.discover(run.pk)
            owed = Mailbox.objects.filter(run=run)
            owed.update(not_before=timezone.now() - dt.timedelta(seconds=1))
            list(pool.map(_work, owed.values_list("pk", flat=True)))
            runs.finish_if_done(run.pk)
            run.refresh_from_db()
            if run.finished_at:
                return run
    owed = Mailbox.objects.filter(run=run)
    raise AssertionError(f"the run does not finish: {owed.values_list('address', 'last_error')}")


def _work(mailbox_id: Any) -> None:
    try:
        sync.sync_mailbox(mailbox_id)
    finally:
        connection.close()


def archived(address: str) -> dict[str, bytes]:
    """Read back what is placed now, through the verified path: remote id -> bytes."""
    found: dict[str, bytes] = {}
    placed = Placement.objects.filter(mailbox__address=address, removed_at=None)
    for placement in placed.select_related("message", "mailbox"):
        message = placement.message
        body = reading.opened(message)
        if isinstance(body, SpooledBody):
            spooled, body = body, b"".join(body.chunks())
            spooled.close()
        found[placement.remote_id] = body
    return found


def held_by(
    person: Person, *, without: tuple[str, ...] = ("SPAM", "TRASH", "DRAFT")
) -> dict[str, bytes]:
    kept = (mail for mail in person.mail.values() if not mail.labels & set(without))
    return {mail.id: mail.raw for mail in kept}


def labels_of(remote_id: str) -> list[str]:
    return Placement.objects.get(remote_id=remote_id).labels


def body(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <same@example.com>\r\n\r\nBody %d\r\n" % (number, number)


# -- one account -------------------------------------------------------------------------------


def test_an_account_is_imported_with_labels_dates_and_threads(
    account: IngestionSource, alice: Person
) -> None:
    work = alice.make_label("Work/Clients")
    first = alice.deliver(body(1), {"INBOX", "UNREAD", work}, date_ms=1_600_000_000_123)
    for number in range(2, 40):
        alice.deliver(body(number))
    alice.deliver(bytes(range(256)) * 20_000)
    assert imported(account).message == "40 archived."
    assert archived(alice.address) == held_by(alice)
    placement = Placement.objects.select_related("message", "folder").get(remote_id=first)
    assert placement.labels == ["INBOX", "UNREAD", "Work/Clients"]
    assert placement.thread_id == placement.stable_id == first
    assert placement.folder.path == "All Mail"
    assert placement.message.received_at == dt.datetime.fromtimestamp(1_600_000_000.123, dt.UTC)


def test_a_sync_brings_what_is_new_changed_and_gone(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    kept, gone = alice.deliver(body(1)), alice.deliver(body(2))
    imported(account)
    alice.delete(gone)
    alice.relabel(kept, add={"STARRED"}, remove={"INBOX"})
    new = alice.deliver(body(3))
    before = google.count("messages.get")
    assert synced(account).message == "1 archived."
    assert google.count("messages.get") == before + 1
    assert set(archived(alice.address)) == {kept, new}
    assert labels_of(kept) == ["STARRED"]
    assert Message.objects.count() == 3  # what was deleted there stays here


def test_a_sync_without_changes_costs_one_request(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    alice.deliver(body(1))
    imported(account)
    google.requests.clear()
    synced(account)
    assert google.requests == ["/gmail/v1/users/me/profile"]


def test_what_comes_between_two_pages_of_the_history_is_not_passed(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    alice.deliver(body(1))
    imported(account)
    google.page_size = 2
    for number in range(2, 6):
        alice.deliver(body(number))
    pages: list[str] = []

    def deliver_after_the_first(method: str, *_: str) -> None:
        pages.extend([method] if method == "history.list" else [])
        if len(pages) == 2:
            google.before_call = lambda *_: None
            alice.deliver(body(6))

    google.before_call = deliver_after_the_first
    synced(account)
    synced(account)
    assert len(pages) == 2
    assert archived(alice.address) == held_by(alice)


def test_labels_are_followed_where_the_history_does_not_tell_them(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    name = alice.deliver(body(1), {"INBOX"})
    imported(account)
    google.faults.history_tells_labels = False
    alice.relabel(name, remove={"INBOX"})
    synced(account)
    assert labels_of(name) == []


def test_labels_that_gmail_does_not_list_keep_their_ids_and_cost_nothing(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    names = [alice.deliver(body(number), {"INBOX", "Label_gone"}) for number in range(30)]
    imported(account)
    assert labels_of(names[0]) == ["INBOX", "Label_gone"]
    assert google.count("labels.list") == 1


def test_a_label_that_is_deleted_while_labels_are_listed_is_no_trouble(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    label = alice.make_label("Work")
    name = alice.deliver(body(1), {"INBOX", label})
    imported(account)
    alice.expire_history()
    asked: list[str] = []

    def delete_it(method: str, *_: str) -> None:
        asked.append(method)
        if method == "labels.list":
            google.before_call = lambda *_: alice.drop_label(label)

    google.before_call = delete_it
    assert synced(account).message == "0 archived."
    assert labels_of(name) == ["INBOX"]
    assert "labels.list" in asked


def test_a_label_that_is_deleted_between_two_of_its_pages_is_no_trouble(
    account: IngestionSource, alice: Person, google: Gmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    google.page_size = 2
    label = alice.make_label("Work")
    names = [alice.deliver(body(number), {"INBOX", label}) for number in range(5)]
    imported(account)
    alice.expire_history()
    real, pages = google._messages, itertools.count(1)

    def messages(one: dict[str, str], query: dict[str, list[str]], person: Person) -> Any:
        if query.get("labelIds") == [label] and next(pages) == 2:
            alice.drop_label(label)
        return real(one, query, person)

    monkeypatch.setattr(google, "_messages", messages)
    assert synced(account).message == "0 archived."
    account.refresh_from_db()
    assert account.status == "active"
    assert {tuple(labels_of(name)) for name in names} == {("INBOX",)}


def test_an_expired_history_relists_and_downloads_only_what_is_unknown(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    google.page_size = 50
    names = [alice.deliver(body(number)) for number in range(120)]
    imported(account)
    alice.relabel(names[0], add={"STARRED"})
    alice.delete(names[1])
    new = alice.deliver(body(5_000))
    alice.expire_history()
    before = google.count("messages.get")
    assert synced(account).message == "1 archived."
    assert google.count("messages.get") == before + 1
    assert archived(alice.address) == held_by(alice)
    assert new in archived(alice.address)
    assert labels_of(names[0]) == ["INBOX", "STARRED"]
    assert labels_of(names[2]) == ["INBOX"]
    google.requests.clear()
    synced(account)
    assert len(google.requests) == 1


def test_labels_are_listed_by_several_connections(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    name = alice.deliver(body(1))
    imported(account)
    alice.relabel(name, add={"STARRED"})
    alice.expire_history()
    asked, two, numbers = google.count("labels.list"), threading.Barrier(2), itertools.count()

    def meet(method: str, *_: str) -> None:
        at_the_end = google.count("labels.list") > asked
        if method == "messages.list" and at_the_end and next(numbers) < 2:
            two.wait(10)

    google.before_call = meet
    synced(account)
    assert next(numbers) > 2
    assert not two.broken
    assert labels_of(name) == ["INBOX", "STARRED"]


def test_labels_are_listed_once_however_short_the_slice(
    account: IngestionSource, alice: Person, google: Gmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_RELABELLED", 2)
    names = [alice.deliver(body(number)) for number in range(7)]
    imported(account)
    for name in names:
        alice.relabel(name, add={"STARRED"})
    alice.delete(names.pop())
    alice.expire_history()
    run = verbs.start_sync(account, actor=ACTOR)
    discovery.discover(run.pk)
    mailbox, asked = Mailbox.objects.get(), google.count("labels.list")
    for _ in range(2):  # the only page of the listing; what is known of that
        assert sync.sync_mailbox(mailbox.pk, slice_seconds=0)
    assert google.count("labels.list") == asked + 1
    assert all(labels_of(name) == ["INBOX", "STARRED"] for name in names)
    assert archived(alice.address) == held_by(alice)


def test_a_first_import_lists_no_labels_at_its_end(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    google.page_size = 50
    for number in range(60):
        alice.deliver(body(number))
    run = verbs.start_import(account, actor=ACTOR)
    assert credentials.check(account, actor=ACTOR).ok
    discovery.discover(run.pk)
    mailbox = Mailbox.objects.get()
    for _ in range(2):
        assert sync.sync_mailbox(mailbox.pk, slice_seconds=0)  # one page
    asked = google.count("labels.list")
    assert finished(account).message == "60 archived."
    assert google.count("labels.list") == asked
    assert archived(alice.address) == held_by(alice)


@pytest.mark.parametrize("begun_by_a_version_before", [False, True])
def test_labels_are_followed_where_the_listing_after_an_expired_history_was_cut_off(
    account: IngestionSource, alice: Person, begun_by_a_version_before: bool
) -> None:
    name = alice.deliver(body(1))
    imported(account)
    alice.relabel(name, add={"STARRED"})
    alice.expire_history()
    run = verbs.start_sync(account, actor=ACTOR)
    discovery.discover(run.pk)
    mailbox = Mailbox.objects.get()
    sync.sync_mailbox(mailbox.pk, slice_seconds=0)  # the only page, and not what ends the listing
    assert Mailbox.objects.filter(run=run).exists()
    if begun_by_a_version_before:
        folder = Folder.objects.get()
        assert folder.cursor is not None
        assert folder.cursor.pop("recognised")
        folder.save()
    finished(account)
    assert labels_of(name) == ["INBOX", "STARRED"]


def test_an_import_that_was_cut_off_goes_on_at_its_page(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    google.page_size = 50
    for number in range(130):
        alice.deliver(body(number))
    verbs.start_import(account, actor=ACTOR)
    assert credentials.check(account, actor=ACTOR).ok
    discovery.discover(Run.objects.get().pk)
    mailbox = Mailbox.objects.get()
    sync.sync_mailbox(mailbox.pk, slice_seconds=0)  # one page
    assert Message.objects.count() == 50
    late = alice.deliver(body(9_999))  # what comes meanwhile is no other sync's
    assert finished(account).message == "131 archived."
    assert google.count("messages.get") == 131
    assert late in archived(alice.address)
    assert archived(alice.address) == held_by(alice)


# -- junk, trash and drafts --------------------------------------------------------------------


def test_junk_trash_and_drafts_follow_the_options(
    google: Gmail, alice: Person, add: Callable[..., IngestionSource]
) -> None:
    for number, label in enumerate(("INBOX", "SPAM", "TRASH", "DRAFT")):
        alice.deliver(body(number), {label})
    source = add(google_sources.account(google, alice.address), includeTrash=True)
    imported(source)
    assert archived(alice.address) == held_by(alice, without=("SPAM", "DRAFT"))
    assert google.count("messages.get") == 2  # what is left out is not downloaded
    configuration.update(source, changes={"options": {"includeJunk": True}}, actor=ACTOR)
    synced(source)
    assert archived(alice.address) == held_by(alice, without=("DRAFT",))
    assert google.count("messages.get") == 3


def test_a_message_that_leaves_spam_or_drafts_is_archived_then(
    account: IngestionSource, alice: Person
) -> None:
    names = {
        label: alice.deliver(body(n), {label}) for n, label in enumerate(("SPAM", "TRASH", "DRAFT"))
    }
    imported(account)
    later = alice.deliver(body(9), {"SPAM", "UNREAD"})
    synced(account)
    assert archived(alice.address) == {}
    alice.relabel(later, remove={"UNREAD"})
    for label, name in names.items():
        alice.relabel(name, add={"INBOX"}, remove={label})
    synced(account)
    assert archived(alice.address) == {name: alice.mail[name].raw for name in names.values()}
    alice.relabel(later, add={"INBOX"}, remove={"SPAM"})
    alice.relabel(names["DRAFT"], add={"TRASH"}, remove={"INBOX"})
    synced(account)
    assert archived(alice.address) == held_by(alice, without=())
    assert labels_of(names["DRAFT"]) == ["TRASH"]


def test_a_draft_that_only_the_download_reveals_is_not_kept(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    name = alice.deliver(body(1))

    def become_a_draft(method: str, _user: str, message: str) -> None:
        if method == "messages.get" and message == name:
            alice.relabel(name, add={"DRAFT"}, remove={"INBOX"})

    google.before_call = become_a_draft
    imported(account)
    assert archived(alice.address) == {}
    assert not FailedMessage.objects.exists()


def test_a_draft_is_left_out_by_careful_workers_too(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    """After workers died, messages are fetched one by one: by another way, and the same rules."""
    name, kept = alice.deliver(body(1)), alice.deliver(body(2))

    def become_a_draft(method: str, _user: str, message: str) -> None:
        if method == "messages.get" and message == name:
            alice.relabel(name, add={"DRAFT"}, remove={"INBOX"})

    google.before_call = become_a_draft
    run = verbs.start_import(account, actor=ACTOR)
    assert credentials.check(account, actor=ACTOR).ok
    discovery.discover(run.pk)
    Mailbox.objects.update(worker_deaths=1)
    finished(account)
    assert set(archived(alice.address)) == {kept}
    assert not FailedMessage.objects.exists()


def test_only_mail_since_a_day_is_listed(
    google: Gmail, alice: Person, add: Callable[..., IngestionSource]
) -> None:
    day = int(dt.datetime(2024, 2, 1, tzinfo=dt.UTC).timestamp() * 1000)
    old, new = alice.deliver(body(1), date_ms=day - 1), alice.deliver(body(2), date_ms=day)
    source = add(google_sources.account(google, alice.address), since="2024-02-01")
    imported(source)
    assert set(archived(alice.address)) == {new}
    assert google.count("messages.get") == 1
    configuration.update(source, changes={"options": {"since": None}}, actor=ACTOR)
    synced(source)
    assert set(archived(alice.address)) == {old, new}


# -- what fails --------------------------------------------------------------------------------


def test_a_message_that_google_fails_at_is_shown_and_the_others_go_on(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    names = [alice.deliver(body(number)) for number in range(20)]
    google.faults.broken.add(names[7])
    assert imported(account).message == "19 archived, 1 failed."
    failure = FailedMessage.objects.get()
    assert (failure.remote_id, failure.code) == (names[7], "message_refused")
    google.faults.broken.clear()
    FailedMessage.objects.update(not_before=timezone.now())
    synced(account)
    assert archived(alice.address) == held_by(alice)


def test_a_message_is_not_given_up_for_refusals_of_too_much_and_one_error(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    name = alice.deliver(body(1))
    asked = [0]

    def fail(method: str, _: str, which: str) -> None:
        if method == "messages.get" and which == name:
            asked[0] += 1
            google.faults.too_many = float(asked[0] in {1, 3})
            google.faults.broken = {name} if asked[0] in {2, 4} else set()

    google.before_call = fail
    assert imported(account).message == "1 archived."
    assert asked[0] == 5
    assert archived(alice.address) == held_by(alice)


def test_of_another_account_nothing_comes_into_the_mailbox_that_a_run_still_owes(
    google: Gmail, alice: Person, account: IngestionSource
) -> None:
    alice.deliver(b"Subject: hers\r\n\r\n", {"INBOX"})
    imported(account)
    run = verbs.start_sync(account, actor=ACTOR)
    discovery.discover(run.pk)
    hers = Mailbox.objects.get()
    bob = google.add("bob@example.com")
    bob.deliver(b"Subject: of Bob\r\n\r\n", {"INBOX"})
    given = google_sources.account(google, bob.address)
    configuration.update(account, changes={"providerConfig": given}, actor=ACTOR)
    assert credentials.check(account, actor=ACTOR).ok
    sync.sync_mailbox(hers.pk)
    assert Message.objects.count() == 1
    assert archived(alice.address) == held_by(alice)
    assert finished(account).messages_new == 1
    assert archived(bob.address) == held_by(bob)
    hers.refresh_from_db()
    assert (hers.state, hers.messages.count()) == ("gone", 1)


def test_a_revoked_consent_is_an_error_that_says_sign_in_again(
    account: IngestionSource, alice: Person, google: Gmail
) -> None:
    alice.deliver(body(1))
    imported(account)
    google.oauth.refresh_tokens.clear()
    google.oauth.tokens.clear()
    run = verbs.start_sync(account, actor=ACTOR)
    discovery.discover(run.pk)
    for _ in range(3):
        Mailbox.objects.update(not_before=timezone.now() - dt.timedelta(seconds=1))
        sync.sync_mailbox(Mailbox.objects.get().pk)
    account.refresh_from_db()
    assert account.status == "error"
    assert "Sign in again" in account.status_message


@pytest.mark.parametrize("told", ["by a header", "in words"])
def test_a_mailbox_that_google_tells_to_wait_gives_its_worker_back(
    google: Gmail, add: Callable[..., IngestionSource], told: str
) -> None:
    slow = google.add(f"slow{len(told)}@example.com")  # its budget, in Redis, is nobody else's
    slow.deliver(body(1))
    source = add(google_sources.account(google, slow.address))
    assert credentials.check(source, actor=ACTOR).ok
    run = verbs.start_import(source, actor=ACTOR)
    discovery.discover(run.pk)
    began = timezone.now()
    google.faults.too_many, google.faults.retry_after = (
        1.0,
        "120" if told == "by a header" else None,
    )
    if told == "in words":
        at = (began + dt.timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        google.faults.too_many_text = f"  Retry after {at}"
    sync.sync_mailbox(Mailbox.objects.get().pk)
    row = Mailbox.objects.get()
    assert row.last_error_code == "rate_limited"
    assert row.not_before - began > dt.timedelta(seconds=100)
    assert timezone.now() - began < dt.timedelta(seconds=100)
    source.refresh_from_db()
    assert source.status == "importing"


def test_a_reconciliation_counts_what_the_options_leave_out(
    account: IngestionSource, alice: Person
) -> None:
    for label in ("INBOX", "INBOX", "SPAM"):
        alice.deliver(body(len(alice.mail)), {label})
    imported(account)
    alice.deliver(body(9))
    [report] = reconcile.reconcile(account)
    assert (report.listed, report.present, report.missing, report.excluded) == (4, 2, 1, 1)


def test_a_reconciliation_asks_for_all_mailboxes_before_it_compares_them(
    google: Gmail, add: Callable[..., IngestionSource]
) -> None:
    """Of a large domain, to compare those of one page may take longer than a page's token lives."""
    google.page_size = 2
    config = google_sources.domain(google)
    for number in range(4):
        google.add(f"user{number}@example.com").deliver(body(number))
    source = add(config)
    imported(source)
    google.calls.clear()
    assert len(list(reconcile.reconcile(source))) == 5
    methods = [call.method for call in google.calls]
    assert "users.list" not in methods[methods.index("getProfile") :]


# -- a domain ----------------------------------------------------------------------------------


def test_a_domain_is_imported_user_by_user(
    google: Gmail, add: Callable[..., IngestionSource]
) -> None:
    config = google_sources.domain(google)
    people = [google.add(f"user{number}@example.com") for number in range(3)]
    for person in people:
        person.deliver(body(1))
    google.add("left@example.com").suspended = True
    google.add("kept@example.com").archived = True
    google.add("new@example.com").mailbox_setup = False
    google.add("robot@example.com").licensed = False
    source = add(config, excludeMailboxes=["user2@*"])
    assert imported(source).message.startswith("2 archived; ")
    source.refresh_from_db()
    assert source.status == "active"
    states = {m.address.split("@")[0]: (m.state, m.state_reason) for m in Mailbox.objects.all()}
    assert {name: state for name, (state, _) in states.items()} == {
        "admin": "active", "user0": "active", "user1": "active", "user2": "excluded",
        "left": "unavailable", "kept": "unavailable", "new": "unavailable", "robot": "unavailable",
    }  # fmt: skip
    assert "Suspended" in states["left"][1]
    assert "licence" in states["robot"][1]
    later = google.add("later@example.com")
    later.deliver(body(7))
    del google.people["user1@example.com"]
    people[0].address = "renamed@example.com"
    google.people["renamed@example.com"] = google.people.pop("user0@example.com")
    synced(source)
    assert archived("later@example.com") == held_by(later)
    assert Mailbox.objects.get(address="user1@example.com").state == "gone"
    assert Mailbox.objects.get(remote_id=people[0].id).address == "renamed@example.com"
    assert archived("renamed@example.com") == held_by(people[0])


def test_a_domain_is_added_on_the_command_line_of_a_process(
    google: Gmail, manage: CommandLine, admin_user: User
) -> None:
    """As docs/google.md shows it: the key, many lines, from a variable of the environment."""
    config = google_sources.domain(google)
    done = manage(
        "add_source", "Example Ltd", "--provider", "google", "--verify",
        "--impersonated-admin-email", config["impersonatedAdminEmail"],
        "--service-account-key-json-env", "KEY",
        KEY=json.dumps(config["serviceAccountKeyJson"], indent=2), **google.settings,
    )  # fmt: skip
    assert done.code == 0, done
    assert "The credentials work. admin@example.com: 1 mailbox of its domain" in done.stdout
    assert google.count("users.list") == 1


def test_a_mailbox_that_is_not_understood_does_not_stop_the_others(
    google: Gmail, add: Callable[..., IngestionSource]
) -> None:
    config = google_sources.domain(google)
    good, odd = google.add("good@example.com"), google.add("odd@example.com")
    good.deliver(body(1))
    google.faults.odd_people.add(odd.address)
    source = add(config)
    assert imported(source).message.startswith("1 archived; ")
    row = Mailbox.objects.get(address=odd.address)
    assert (row.state, row.last_error_code) == ("unavailable", "mailbox_unavailable")
    source.refresh_from_db()
    assert source.status == "active"


@pytest.mark.long(seconds=20)
def test_exactness_with_faults(google: Gmail, add: Callable[..., IngestionSource]) -> None:
    """2,000 messages of 20 users; 10 % 429, 2 % 500, cut connections, tokens that end halfway, a
    history that expires: nothing missing, nothing double, byte for byte."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    google.reseed(seed)
    config = google_sources.domain(google)
    people = [google.add(f"u{number}@example.com") for number in range(20)]

    def deliver(person: Person) -> None:
        raw = b"Subject: mail\r\n\r\n" + chance.randbytes(chance.randrange(0, 400))
        person.deliver(raw, chance.choice(({"INBOX"}, {"INBOX", "UNREAD"}, {"SENT"}, {"SPAM"})))

    for _ in range(1_900):
        deliver(chance.choice(people))
    source = add(config)
    faults = google.faults
    faults.too_many, faults.server_error, faults.dropped = 0.1, 0.02, 0.005
    calls = [0]

    def end_tokens(*_: str) -> None:
        calls[0] += 1
        if calls[0] == 1_000:
            google.oauth.tokens.clear()

    google.before_call = end_tokens
    verbs.start_import(source, actor=ACTOR)
    finished(source, workers=6)
    assert calls[0] > 1_000
    for person in people:
        assert archived(person.address) == held_by(person, without=("SPAM",))
    for _ in range(100):
        person = chance.choice(people)
        deliver(person)
        person.delete(chance.choice(list(person.mail)))
        person.relabel(chance.choice(list(person.mail)), add={"STARRED"}, remove={"UNREAD"})
    for person in people[::2]:
        person.expire_history()
    verbs.start_sync(source, actor=ACTOR)
    finished(source, workers=6)
    for person in people:
        assert archived(person.address) == held_by(person, without=("SPAM",))
        placed = Placement.objects.filter(mailbox__address=person.address, removed_at=None)
        for name, labels in placed.values_list("remote_id", "labels"):
            assert set(labels) == person.mail[name].labels
    assert google.count("messages.get", status=429) > 100
    assert not FailedMessage.objects.exists()
    ids = Placement.objects.values_list("remote_id", flat=True)
    assert not [name for name, times in Counter(ids).items() if times > 1], "placed twice"
    assert not Message.objects.filter(placements=None).exists(), "archived twice, and placed once"
    source.refresh_from_db()
    assert source.message_count == Message.objects.count()
