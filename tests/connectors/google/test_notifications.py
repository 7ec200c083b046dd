"""Gmail's notifications: what is told is had at once, and nothing depends on it."""

import base64
import datetime as dt
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.utils import timezone

from connectors import registry
from connectors.base import Watch
from connectors.config import ConfigError
from connectors.google import notifications
from connectors.google.config import GoogleConfig
from connectors.types import RemoteMailbox
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import doorbells, due_work, runs, sync
from ingestion.services.sources import credentials, discovery
from tests.connectors.google.test_connector import (  # noqa: F401 - fixtures
    add,
    archived,
    google,
    held_by,
    imported,
)
from tests.servers import google_sources
from tests.servers.gmail import MAIL_SCOPE, Gmail
from tests.servers.gmail_store import Person
from tests.servers.pubsub import SCOPE, Subscription
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
TOPIC = "projects/project-1/topics/mail"
ALICE, BOB = "alice@example.com", "bob@example.com"
LATER = dt.timedelta(hours=1)


@pytest.fixture
def subscription(google: Gmail) -> Subscription:  # noqa: F811 - a fixture
    return google.pubsub.make(TOPIC, reader=google.oauth.account)


@pytest.fixture
def people(google: Gmail) -> tuple[Person, Person]:  # noqa: F811 - a fixture
    for address in (ALICE, BOB):
        google.add(address).deliver(b"Subject: old\r\n\r\n")
    return google.people[ALICE], google.people[BOB]


@pytest.fixture
def source(
    google: Gmail,  # noqa: F811 - a fixture
    people: tuple[Person, Person],
    subscription: Subscription,
    add: Callable[..., IngestionSource],  # noqa: F811 - a fixture
) -> IngestionSource:
    """A domain that is imported, listened to, and due in an hour."""
    source = add(domain(google), listen=True)
    imported(source)
    rest()
    return source


@pytest.fixture
def listener() -> Iterator[doorbells.Listener]:
    listener = doorbells.Listener()
    yield listener
    listener.end()


def domain(google: Gmail) -> dict[str, Any]:  # noqa: F811 - a fixture
    return google_sources.domain(google) | {"notificationTopic": TOPIC}


def rest() -> None:
    now = timezone.now()
    Mailbox.objects.update(last_synced_at=now - dt.timedelta(minutes=1))
    IngestionSource.objects.update(next_sync_at=now + LATER)


def work() -> None:
    """Do what is due, as a worker would, and no more."""
    for each in due_work.hand_out():
        if each.kind == "mailbox":
            sync.sync_mailbox(each.pk)
        elif each.kind == "discover":
            due_work.do_now(each)


def listen(
    listener: doorbells.Listener,
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
) -> None:
    """Begin, and wait until all that Gmail tells at the beginning was had."""
    listener.keep_up()
    wait_for(lambda: len(google.watched) == len(google.people) and not subscription.messages)

    def is_done() -> bool:
        work()
        return Run.objects.count() > 1 and not Run.objects.filter(finished_at=None).exists()

    wait_for(is_done)
    rest()


def opened(google: Gmail, config: dict[str, Any], *addresses: str) -> Watch:  # noqa: F811 - a fixture
    connector = registry.build("google", config, google_sources.environment(google))
    watch = connector.watch([RemoteMailbox(address, address) for address in addresses])
    assert watch is not None
    return watch


def rings(watch: Watch) -> set[str]:
    return {mailbox.address for mailbox in watch.wait(0.1)}


# -- the engine --------------------------------------------------------------------------------


def test_new_mail_is_had_long_before_its_turn_and_nobody_else_is_asked(
    google: Gmail,  # noqa: F811 - a fixture
    people: tuple[Person, Person],
    source: IngestionSource,
    subscription: Subscription,
    listener: doorbells.Listener,
) -> None:
    listen(listener, google, subscription)
    asked, listed = google.count("getProfile", user=BOB), google.count("users.list")
    people[0].deliver(b"Subject: new\r\n\r\n")
    wait_for(lambda: Mailbox.objects.filter(run__isnull=False).exists())
    work()
    assert archived(ALICE) == held_by(people[0])
    assert google.count("getProfile", user=BOB) == asked
    assert google.count("users.list") == listed
    run = Run.objects.latest("started_at")
    assert (run.status, run.mailboxes_total, run.mailboxes_done) == ("completed", 1, 1)
    source.refresh_from_db()
    assert source.next_sync_at is not None
    assert source.next_sync_at > timezone.now() + LATER / 2  # of all, as if nothing had rung


def test_killing_bell_and_subscription_loses_nothing(
    google: Gmail,  # noqa: F811 - a fixture
    people: tuple[Person, Person],
    source: IngestionSource,
    subscription: Subscription,
    listener: doorbells.Listener,
) -> None:
    listen(listener, google, subscription)
    listener.end()
    google.pubsub.subscriptions.clear()
    google.watched.clear()
    people[0].deliver(b"Subject: nobody heard\r\n\r\n")
    IngestionSource.objects.update(next_sync_at=timezone.now())  # its turn has come
    work()
    work()
    assert archived(ALICE) == held_by(people[0])


def ring(*addresses: str) -> set[str]:
    source = IngestionSource.objects.get()
    wanted = Mailbox.objects.filter(address__in=addresses)
    rung = doorbells.ring(source.pk, wanted.values_list("pk", flat=True))
    return set(Mailbox.objects.filter(pk__in=rung).values_list("address", flat=True))


def test_the_sync_of_all_comes_in_its_time_while_some_are_rung_for(
    google: Gmail,  # noqa: F811 - a fixture
    source: IngestionSource,
) -> None:
    assert ring(ALICE) == {ALICE}
    IngestionSource.objects.update(next_sync_at=timezone.now())
    asked = google.count("getProfile", user=BOB)
    work()
    work()
    assert google.count("getProfile", user=BOB) == asked + 1
    run = Run.objects.latest("started_at")
    assert (run.status, run.mailboxes_total, run.mailboxes_done) == ("completed", 3, 3)
    source.refresh_from_db()
    assert source.next_sync_at is not None
    assert source.next_sync_at > timezone.now()


def test_whoever_is_rung_for_joins_the_run_that_is_under_way(source: IngestionSource) -> None:
    assert ring(ALICE) == {ALICE}
    assert ring(ALICE, BOB) == {BOB}  # alice's work may be past what rang: she is rung for again
    run = Run.objects.get(finished_at=None)
    assert (run.mailboxes_total, run.mailboxes_done) == (2, 0)
    work()
    run.refresh_from_db()
    assert (run.status, run.mailboxes_done) == ("completed", 2)


def test_a_ring_waits_while_a_run_lists_its_mailboxes(source: IngestionSource) -> None:
    IngestionSource.objects.update(next_sync_at=timezone.now())
    list(due_work.hand_out())
    assert ring(ALICE) == set()
    discovery.discover(Run.objects.get(finished_at=None).pk)
    assert Mailbox.objects.filter(run__isnull=False).count() == 3


def test_a_flood_of_rings_is_a_sync_in_ten_seconds(source: IngestionSource) -> None:
    Mailbox.objects.update(
        last_synced_at=timezone.now() - dt.timedelta(seconds=runs._RINGS_SECONDS - 5)
    )
    assert ring(ALICE) == set()


def test_what_is_paused_is_not_rung_for(source: IngestionSource) -> None:
    IngestionSource.objects.update(status="paused")
    assert ring(ALICE) == set()


# -- what is pulled ----------------------------------------------------------------------------


def test_what_was_not_seen_to_comes_again(google: Gmail, subscription: Subscription) -> None:  # noqa: F811 - a fixture
    google.pubsub.ack_deadline_seconds = 0.0
    alice = google.add(ALICE)
    config = domain(google)
    with opened(google, config, ALICE) as dies:
        assert rings(dies) == {ALICE}
    with opened(google, config) as another:
        assert rings(another) == set()  # it was told of nobody
    assert len(subscription.messages) == 1  # and yet nothing was seen to
    with opened(google, config, ALICE) as watch:
        assert rings(watch) == {ALICE}
        assert rings(watch) == set()
    assert not subscription.messages
    alice.deliver(b"Subject: new\r\n\r\n")
    assert len(subscription.messages) == 1


def told(address: Any) -> bytes:
    return json.dumps({"emailAddress": address, "historyId": "1"}).encode()


HOSTILE = [
    b"",
    b"\xff\x00",
    b"[" * 100_000,
    b'"text"',
    b"[]",
    b"{}",
    b'{"emailAddress": NaN}',
    told(None),
    told({"x": [ALICE]}),
    told("stranger@example.com"),
    told(f"{ALICE}\x00"),
    told("x" * 1_000_000),
]


def test_what_is_hostile_or_of_strangers_rings_for_nobody_and_is_done_with(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
) -> None:
    google.add(ALICE)
    with opened(google, domain(google), ALICE) as watch:
        assert rings(watch) == {ALICE}
        for data in HOSTILE:
            google.pubsub.publish(TOPIC, data)
        assert rings(watch) == set()
        google.pubsub.publish(TOPIC, told(ALICE.upper()))
        assert rings(watch) == {ALICE}
        assert rings(watch) == set()
    assert not subscription.messages


@pytest.mark.parametrize("data", [None, 7, "%%%", "Zg", [], base64.b64encode(b"\xff").decode()])
def test_no_form_of_a_message_is_an_error(data: Any) -> None:
    assert notifications.address_in({"data": data}) == ""
    assert notifications.address_in(data) == ""


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connectors.google.client._backoff", lambda *_: 0.0)
    google.add(ALICE)
    with opened(google, domain(google), ALICE) as watch:
        google.pubsub.refusals = [status]
        assert rings(watch) == {ALICE}


def test_an_outage_of_notifications_has_no_mailbox_told_of_again(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connectors.google.client._backoff", lambda *_: 0.0)
    monkeypatch.setattr(notifications, "_PAUSE_SECONDS", 0.3)
    google.add(ALICE)
    with opened(google, domain(google), ALICE) as watch:
        assert rings(watch) == {ALICE}
        assert rings(watch) == set()
        asked = google.count("watch")
        google.pubsub.refusals = [503] * 4
        assert rings(watch) == set()
        assert not google.pubsub.refusals
        pulls = subscription.pulls
        assert rings(watch) == set()
        assert subscription.pulls == pulls  # it is left alone for a while
        google.people[ALICE].deliver(b"Subject: new\r\n\r\n")
        wait_for(lambda: rings(watch) == {ALICE})
    assert google.count("watch") == asked


def test_who_is_asked_to_wait_long_before_the_next_pull_can_be_ended_meanwhile(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
) -> None:
    google.add(ALICE)
    with opened(google, domain(google), ALICE) as watch:
        assert rings(watch) == {ALICE}
        google.pubsub.refusals, google.pubsub.retry_after = [429], "3600"
        began = time.monotonic()
        assert rings(watch) == rings(watch) == set()
        assert time.monotonic() - began < 10


def test_silence_is_no_failure(google: Gmail, subscription: Subscription) -> None:  # noqa: F811 - a fixture
    google.add(ALICE)
    google.pubsub.pull_seconds = 5.0
    environment = google_sources.environment(google, timeout_seconds=2)
    connector = registry.build("google", domain(google), environment)
    watch = connector.watch([RemoteMailbox(ALICE, ALICE)])
    assert watch is not None
    with watch:
        assert rings(watch) == {ALICE}
        assert rings(watch) == set()


def test_another_topic_takes_the_place_of_the_one_before(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connectors.google.client._backoff", lambda *_: 0.0)
    google.add(ALICE)
    google.watched[ALICE] = "projects/project-1/topics/before"
    with opened(google, domain(google), ALICE) as watch:
        assert rings(watch) == {ALICE}
    assert google.watched == {ALICE: TOPIC}


def test_a_mailbox_that_can_not_be_told_of_stops_no_other(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connectors.google.client._backoff", lambda *_: 0.0)
    google.add(ALICE)
    google.add(BOB).licensed = False
    with opened(google, domain(google), ALICE, BOB, "gone@example.com") as watch:
        wait_for(lambda: rings(watch) == {ALICE})


# -- what a check says -------------------------------------------------------------------------


def not_granted(google: Gmail) -> None:  # noqa: F811 - a fixture
    google.pubsub.topics[TOPIC].clear()


def no_topic(google: Gmail) -> None:  # noqa: F811 - a fixture
    google.pubsub.topics.clear()


def no_subscription(google: Gmail) -> None:  # noqa: F811 - a fixture
    google.pubsub.subscriptions.clear()


def not_a_reader(google: Gmail) -> None:  # noqa: F811 - a fixture
    google.pubsub.subscriptions[f"{TOPIC.replace('topics', 'subscriptions')}-sub"].readers.clear()


def disabled(google: Gmail) -> None:  # noqa: F811 - a fixture
    google.pubsub.disabled = True


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (not_granted, "gmail-api-push@system.gserviceaccount.com the role Pub/Sub Publisher"),
        (no_topic, "no such notification topic"),
        (no_subscription, "no subscription of its name with -sub"),
        (not_a_reader, "the role Pub/Sub Subscriber"),
        (disabled, "/pubsub.googleapis.com?project=project-1"),
    ],
)
def test_a_check_says_what_is_wrong_with_the_topic_and_mail_is_archived_all_the_same(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
    add: Callable[..., IngestionSource],  # noqa: F811 - a fixture
    wrong: Callable[[Gmail], None],
    words: str,
) -> None:
    google.add(ALICE)
    source = add(domain(google))
    wrong(google)
    verdict = credentials.check(source)
    assert verdict.ok
    assert "New mail is not listened for" in verdict.message
    assert words in verdict.message


def test_a_check_says_nothing_of_a_topic_that_works(
    google: Gmail,  # noqa: F811 - a fixture
    subscription: Subscription,
    add: Callable[..., IngestionSource],  # noqa: F811 - a fixture
) -> None:
    google.add(ALICE)
    assert "listened" not in credentials.check(add(domain(google))).message


def test_a_topic_of_another_project_is_named_as_that(
    google: Gmail,  # noqa: F811 - a fixture
    add: Callable[..., IngestionSource],  # noqa: F811 - a fixture
) -> None:
    google.add(ALICE)
    topic = "projects/other/topics/mail"
    google.pubsub.make(topic, reader=google.oauth.account)
    source = add(google_sources.domain(google) | {"notificationTopic": topic})
    assert "in the Cloud project of the service account" in credentials.check(source).message


def test_one_account_listens_with_what_it_consented_to(
    google: Gmail,  # noqa: F811 - a fixture
    add: Callable[..., IngestionSource],  # noqa: F811 - a fixture
) -> None:
    google.pubsub.make(TOPIC, reader=ALICE)
    google.add(ALICE)
    config = google_sources.account(google, ALICE) | {"notificationTopic": TOPIC}
    assert "sign in again" in credentials.check(add(config)).message
    config["refreshToken"] = google.oauth.grant(ALICE, f"{MAIL_SCOPE} {SCOPE}")
    assert "listened" not in credentials.check(add(config)).message
    with opened(google, config, ALICE) as watch:
        assert rings(watch) == {ALICE}


def test_signing_in_asks_for_notifications_where_there_is_a_topic(google: Gmail) -> None:  # noqa: F811 - a fixture
    provider = registry.get("google")
    for topic, asked in (("", False), (TOPIC, True)):
        config = {"clientId": "c", "clientSecret": "s"} | (
            {"notificationTopic": topic} if topic else {}
        )
        environment = google_sources.environment(google)
        consent = provider.consent(provider.config.parse(config), environment)
        assert consent is not None
        url = consent.authorize_url(redirect_uri="http://x", state="s", code_challenge="c")
        assert ("auth%2Fpubsub" in url) is asked


@pytest.mark.parametrize(
    "topic", ["mail", "projects/p/topics/", "projects/p/subscriptions/mail-sub"]
)
def test_a_topic_has_its_whole_name(google: Gmail, topic: str) -> None:  # noqa: F811 - a fixture
    with pytest.raises(ConfigError) as caught:
        GoogleConfig.parse(domain(google) | {"notificationTopic": topic})
    assert list(caught.value.errors) == ["notificationTopic"]


def test_without_a_topic_nobody_listens(google: Gmail) -> None:  # noqa: F811 - a fixture
    config = google_sources.domain(google)
    connector = registry.build("google", config, google_sources.environment(google))
    assert connector.watch([RemoteMailbox(ALICE, ALICE)]) is None
