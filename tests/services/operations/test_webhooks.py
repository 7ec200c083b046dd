"""Webhooks: what happened is told, signed, until it arrives; and no server can harm who tells."""

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient
from standardwebhooks.webhooks import WebhookVerificationError

from ingestion import feed
from ingestion.errors import Corrupt, InvalidInput
from ingestion.models import (
    AuditEvent,
    Folder,
    IngestionSource,
    Placement,
    WebhookDelivery,
    WebhookEndpoint,
)
from ingestion.models.webhook import Event
from ingestion.packs.store import store
from ingestion.services.archive import reading, verify
from ingestion.services.engine import due_work
from ingestion.services.events import announce
from ingestion.services.operations import webhooks
from ingestion.services.sources import verbs
from tests.e2e import rows
from tests.servers import people, receiver
from tests.servers.receiver import Receiver
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, create, fill, finish, start

pytestmark = pytest.mark.django_db(transaction=True)

ALL = Event.values
THREE_DAYS = dt.timedelta(days=3)


@pytest.fixture
def at() -> Iterator[Receiver]:
    with receiver.running() as running:
        yield running


def endpoint(at: Receiver, user: User, *events: str) -> tuple[WebhookEndpoint, str]:
    return webhooks.create(user, url=at.url, events=events or ALL, actor=ACTOR)


def work() -> None:
    """Do what is due of webhooks, as dispatcher and workers do."""
    for due in due_work.hand_out():
        if due.kind in ("deliver", "ring"):
            due_work.do_now(due)


def later() -> None:
    """Have all waits be over."""
    long_ago = timezone.now() - dt.timedelta(seconds=1)
    WebhookDelivery.objects.update(not_before=long_ago, handed_out_at=None)
    WebhookEndpoint.objects.update(ring_not_before=long_ago, handed_out_at=None)


def happen(source: IngestionSource, **data: Any) -> None:
    with transaction.atomic():
        announce(Event.RUN_FINISHED, source, data)


# -- what is told ------------------------------------------------------------------------------


def test_a_run_that_ended_is_told_with_a_signature(server: Server, at: Receiver) -> None:
    source = create()
    made, secret = endpoint(at, source.owner, "run.finished")
    fill(server, 3)
    start(source)
    finish(source)
    work()
    [came] = at.came
    told = came.verified(secret)
    assert told["type"] == "run.finished"
    assert told["data"]["sourceId"] == str(source.pk)
    assert (told["data"]["kind"], told["data"]["status"]) == ("import", "completed")
    assert told["data"]["messagesNew"] == 3
    assert came.headers["Content-Type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        came.verified(webhooks._new_secret())
    made.refresh_from_db()
    assert made.last_result == "run.finished: It answered 204."
    assert made.last_delivered_at is not None
    work()
    assert len(at.came) == 1, "once is enough"


def test_a_source_that_needs_somebody_is_told(source: IngestionSource, at: Receiver) -> None:
    _, secret = endpoint(at, source.owner, "source.error")
    with transaction.atomic():
        verbs.fail(source, "The password was refused.", actor=ACTOR)
    work()
    [came] = at.came
    assert came.verified(secret)["data"]["message"] == "The password was refused."


def test_what_was_rolled_back_did_not_happen(source: IngestionSource, at: Receiver) -> None:
    endpoint(at, source.owner)
    with pytest.raises(RuntimeError), transaction.atomic():
        announce(Event.RUN_FINISHED, source, {})
        raise RuntimeError
    assert not WebhookDelivery.objects.exists()


def test_damage_that_a_verification_finds_is_told(owner: User, at: Receiver) -> None:
    _, secret = endpoint(at, owner, "archive.corrupt")
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    [message] = rows.archived(folder, b"Subject: one\r\n\r\n")
    verify.verify_archive(on_problem=lambda _: None)
    assert not WebhookDelivery.objects.exists()
    [pack] = store().packs(folder.mailbox.source_id)
    store().delete(pack)
    verify.verify_archive(on_problem=lambda _: None)
    work()
    [came] = at.came
    assert came.verified(secret)["data"]["problems"] == {"missing_pack": 1}
    assert str(message.pk) not in came.body.decode()


def test_a_damaged_message_that_is_read_is_told_once(owner: User, at: Receiver) -> None:
    endpoint(at, owner, "archive.corrupt")
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    messages = rows.archived(folder, b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")
    [pack] = store().packs(folder.mailbox.source_id)
    store().delete(pack)
    for message in messages:
        with pytest.raises(Corrupt):
            reading.opened(message)
    [told] = WebhookDelivery.objects.all()
    assert told.data["problems"] == {"corrupt_message": 1}


def test_only_who_may_see_a_source_is_told_of_it(
    source: IngestionSource, at: Receiver, other_user: User
) -> None:
    looks = people.staff("looks", "view_ingestionsource")
    gone = people.staff("gone", "view_ingestionsource")
    for user in (source.owner, other_user, looks, gone):
        endpoint(at, user)
    User.objects.filter(pk=gone.pk).update(is_active=False)
    happen(source)
    told = WebhookDelivery.objects.values_list("endpoint__owner__username", flat=True)
    assert sorted(told) == ["engine", "looks"]
    with transaction.atomic():
        announce(Event.ARCHIVE_CORRUPT, None, {})
    of_all = WebhookDelivery.objects.filter(event="archive.corrupt")
    assert [row.endpoint.owner for row in of_all] == [looks]


def test_who_is_switched_off_or_may_not_see_a_source_is_sent_nothing_of_it(
    source: IngestionSource, at: Receiver
) -> None:
    """Rights may go between what happened and the try that would succeed."""
    looks = people.staff("looks", "view_ingestionsource")
    mine = rows.a_source(looks, name="Mine")
    gone = people.staff("gone", "view_ingestionsource")
    for user in (looks, gone):
        endpoint(at, user)
    happen(source)
    happen(mine)
    User.objects.filter(pk=gone.pk).update(is_active=False)
    looks.user_permissions.clear()
    work()
    assert [json.loads(came.body)["data"]["sourceName"] for came in at.came] == ["Mine"]
    told = WebhookDelivery.objects.values_list("endpoint__owner__username", "outcome", "result")
    assert sorted(told) == [
        ("gone", "given_up", webhooks._OWNER_GONE),
        ("gone", "given_up", webhooks._OWNER_GONE),
        ("looks", "delivered", "It answered 204."),
        ("looks", "given_up", webhooks._NOT_SEEN),
    ]


def test_the_list_of_deliveries_tells_of_no_source_that_its_reader_may_not_see(
    source: IngestionSource, at: Receiver
) -> None:
    looks = people.staff("looks", "view_ingestionsource")
    made, _ = endpoint(at, looks)
    mine, gone = rows.a_source(looks, name="Mine"), rows.a_source(looks, name="Gone")
    for one in (source, mine, gone):
        happen(one)
    verbs.delete(gone, actor=ACTOR)
    client = APIClient()
    client.force_authenticate(looks)
    address = f"/api/v1/webhooks/{made.pk}/deliveries"
    named = [row["data"]["sourceName"] for row in client.get(address).json()]
    assert sorted(named) == sorted([source.name, "Mine", "Gone"])
    looks.user_permissions.clear()
    client.force_authenticate(User.objects.get(pk=looks.pk))
    told = {row["sourceId"]: row["data"].get("sourceName") for row in client.get(address).json()}
    assert told == {str(source.pk): None, str(mine.pk): "Mine", str(gone.pk): "Gone"}


def test_the_like_is_told_once_in_a_while(source: IngestionSource, at: Receiver) -> None:
    endpoint(at, source.owner)
    for _ in range(2):
        with transaction.atomic():
            announce(Event.ARCHIVE_CORRUPT, source, {}, once_in=dt.timedelta(hours=1))
    assert WebhookDelivery.objects.count() == 1


def test_what_was_told_by_a_clock_that_was_ahead_is_told_again(
    source: IngestionSource, at: Receiver
) -> None:
    endpoint(at, source.owner)
    for count in (1, 2):
        with transaction.atomic():
            announce(Event.ARCHIVE_CORRUPT, source, {}, once_in=dt.timedelta(hours=1))
        assert WebhookDelivery.objects.count() == count
        WebhookDelivery.objects.update(created_at=timezone.now() + dt.timedelta(days=365))


# -- the doorbell ------------------------------------------------------------------------------


@pytest.fixture
def folder(owner: User) -> Folder:
    return rows.a_folder(rows.a_mailbox(rows.a_source(owner)))


def test_the_feed_rings_once_for_all_that_came(
    folder: Folder, owner: User, at: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert webhooks._RING_SECONDS > 0
    monkeypatch.setattr(webhooks, "_RING_SECONDS", 3_600)  # longer than the test
    rows.archived(folder, b"Subject: before\r\n\r\n")
    _, secret = endpoint(at, owner, "archive.changed")
    later()
    work()
    assert not at.came, "what was there before is no news"
    other = rows.a_folder(folder.mailbox, "Other")
    rows.archived(other, *(b"Subject: %d\r\n\r\n" % n for n in range(9)))
    work()
    work()
    [came] = at.came
    cursor = came.verified(secret)["data"]["cursor"]
    assert feed.page(owner, after=cursor, limit=10).changes == []
    Placement.objects.filter(folder=folder).update(labels=["new"])
    work()
    assert len(at.came) == 1, "not so soon again"
    later()
    work()
    work()
    assert len(at.came) == 2
    assert len(feed.page(owner, after=cursor, limit=10).changes) == 1


def test_the_feed_does_not_ring_for_others_mail_nor_while_it_rings(
    folder: Folder, owner: User, other_user: User, at: Receiver
) -> None:
    endpoint(at, owner, "archive.changed")
    endpoint(at, other_user, "archive.changed")
    at.status = 503
    rows.archived(folder, b"Subject: one\r\n\r\n")
    work()
    Placement.objects.update(labels=["new"])
    WebhookEndpoint.objects.update(ring_not_before=timezone.now() - dt.timedelta(seconds=1))
    work()
    [ring] = WebhookDelivery.objects.all()
    assert ring.endpoint.owner == owner


def test_the_feed_rings_behind_however_much_of_others(
    folder: Folder, owner: User, other_user: User, at: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_LOOKS_AT", 3)
    endpoint(at, other_user, "archive.changed")
    theirs = rows.a_folder(rows.a_mailbox(rows.a_source(other_user, name="Theirs")))
    rows.archived(folder, *(b"Subject: %d\r\n\r\n" % n for n in range(20)))
    rows.archived(theirs, b"Subject: theirs\r\n\r\n")
    work()
    [ring] = WebhookDelivery.objects.all()
    assert ring.endpoint.owner == other_user


# -- servers that don't take it ----------------------------------------------------------------


def the_delivery() -> WebhookDelivery:
    return WebhookDelivery.objects.select_related("endpoint").get()


def test_it_is_tried_again_ever_later_then_given_up_and_that_is_told(
    source: IngestionSource, at: Receiver
) -> None:
    _, secret = endpoint(at, source.owner)
    at.status = 500
    happen(source)
    waits = []
    while (row := the_delivery()).outcome == "pending":
        later()
        began = timezone.now()
        work()
        until, ended = the_delivery().not_before, timezone.now()
        waits.append(((until - ended).total_seconds(), (until - began).total_seconds()))
    for (least, most), seconds in zip(waits, (5, 60, 300), strict=False):
        assert least <= seconds <= most
    assert sum(least for least, _ in waits[:-1]) > dt.timedelta(days=2).total_seconds()
    assert len(at.came) == row.attempts == 11
    assert {c.headers["webhook-id"] for c in at.came} == {row.pk.hex}
    assert {c.body for c in at.came} == {at.came[0].body}
    assert "Given up after 11 tries" in row.result
    assert "It answered 500. Given up" in row.endpoint.last_result
    assert webhooks.given_up(dt.timedelta(days=1)) == 1
    at.came[-1].verified(secret)


def test_the_doorbell_is_not_silent_for_long_after_its_server_is_back(
    folder: Folder, owner: User, at: Receiver
) -> None:
    endpoint(at, owner, "archive.changed")
    at.status = 503
    rows.archived(folder, b"Subject: one\r\n\r\n")
    for _ in range(13):  # more than others are tried
        later()
        work()
    ring = the_delivery()
    assert (ring.attempts, ring.outcome) == (12, "pending")
    assert ring.not_before - timezone.now() <= dt.timedelta(minutes=5)
    WebhookDelivery.objects.update(attempts=len(webhooks._RING_WAITS_SECONDS))
    later()
    work()
    assert the_delivery().outcome == "given_up"
    assert 3 <= sum(webhooks._RING_WAITS_SECONDS) / 86_400 <= 3.2


def test_a_server_says_itself_when_to_come_back(source: IngestionSource, at: Receiver) -> None:
    endpoint(at, source.owner)
    at.status, at.headers = 429, {"Retry-After": "1200"}
    happen(source)
    work()
    wait = the_delivery().not_before - timezone.now()
    assert dt.timedelta(minutes=19) < wait <= dt.timedelta(minutes=20)


def test_a_server_that_wants_no_more_is_told_nothing_more(
    source: IngestionSource, at: Receiver
) -> None:
    made, _ = endpoint(at, source.owner)
    at.status = 410
    happen(source, number=1)
    happen(source, number=2)
    work()
    made.refresh_from_db()
    assert not made.enabled
    assert "410" in made.last_result
    assert set(WebhookDelivery.objects.values_list("outcome", flat=True)) == {"given_up"}
    happen(source)
    assert WebhookDelivery.objects.count() == 2
    webhooks.change(made, enabled=True, actor=ACTOR)
    at.status = 204
    happen(source)
    work()
    assert len(at.came) == 2


def test_a_redirect_is_not_followed(source: IngestionSource, at: Receiver) -> None:
    endpoint(at, source.owner)
    at.status, at.headers = 307, {"Location": at.url + "/elsewhere"}
    happen(source)
    work()
    assert [came.path for came in at.came] == ["/hook"]
    assert "redirect, which is not followed" in the_delivery().result


@pytest.mark.parametrize("endless", [False, True])
def test_what_a_server_answers_is_not_read(
    source: IngestionSource, at: Receiver, endless: bool
) -> None:
    """It may be another server's page, which nobody should see by way of us, or have no end."""
    endpoint(at, source.owner)
    at.status, at.body, at.endless = 500, b"the secrets of a server inside", endless
    happen(source)
    work()
    assert the_delivery().result == "It answered 500."
    assert "inside" not in the_delivery().endpoint.last_result


def test_private_addresses_are_forbidden_where_the_installation_says_so(
    source: IngestionSource, at: Receiver, settings: Any
) -> None:
    settings.FORBID_PRIVATE_ADDRESSES = True
    endpoint(at, source.owner)
    happen(source)
    work()
    assert not at.came
    assert "private addresses" in the_delivery().result


def test_a_clouds_credentials_are_never_asked_for(source: IngestionSource, at: Receiver) -> None:
    at.url = "http://169.254.169.254/latest/meta-data"
    endpoint(at, source.owner)
    happen(source)
    work()
    assert "link-local" in the_delivery().result


def test_nobody_there_is_told_in_words(source: IngestionSource, at: Receiver) -> None:
    at.url = "http://127.0.0.1:1/hook"
    endpoint(at, source.owner)
    happen(source)
    work()
    assert "127.0.0.1" in the_delivery().result
    assert the_delivery().outcome == "pending"


def test_a_silent_server_is_left_alone_for_a_minute(source: IngestionSource, at: Receiver) -> None:
    """Else each event that it is owed takes the owner's place for as long as a try."""
    asked, at.url = at.url, "http://127.0.0.1:1/hook"
    made, _ = endpoint(at, source.owner)
    for _ in range(3):
        happen(source)
    work()
    work()
    pending = WebhookDelivery.objects.filter(outcome="pending")
    assert sorted(pending.values_list("attempts", flat=True)) == [0, 0, 1]
    webhooks.test_soon(made, actor=ACTOR)
    work()
    assert WebhookDelivery.objects.get(event="webhook.test").attempts == 1, "who asks waits for it"
    WebhookEndpoint.objects.update(silent_until=timezone.now())
    old = WebhookDelivery.objects.filter(attempts=0)[:1].get()
    WebhookDelivery.objects.filter(pk=old.pk).update(created_at=timezone.now() - 2 * THREE_DAYS)
    later()
    work()
    old.refresh_from_db()
    assert (old.outcome, old.result[:8], pending.count()) == ("given_up", "Given up", 2)
    WebhookEndpoint.objects.update(silent_until=timezone.now(), url=asked)
    later()
    work()
    assert len(at.came) == 2


# -- endpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://example.com/", "https://", "https://u:p@example.com/", "https://\0"],
)
def test_what_is_no_address_of_a_server_is_refused(owner: User, url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        webhooks.create(owner, url=url, events=ALL, actor=ACTOR)
    assert set(refused.value.errors) == {"url"}


def test_a_rotated_secret_and_the_one_before_are_both_good_for_a_day(
    source: IngestionSource, at: Receiver
) -> None:
    made, before = endpoint(at, source.owner)
    new = webhooks.rotate_secret(made, actor=ACTOR)
    happen(source)
    work()
    at.came[0].verified(new)
    at.came[0].verified(before)
    WebhookEndpoint.objects.update(rotated_at=timezone.now() - dt.timedelta(days=2))
    happen(source)
    work()
    at.came[1].verified(new)
    with pytest.raises(WebhookVerificationError):
        at.came[1].verified(before)


def test_the_secret_is_encrypted_at_rest(owner: User, at: Receiver) -> None:
    _, secret = endpoint(at, owner)
    with connection.cursor() as cursor:
        cursor.execute("SELECT secrets::text FROM ingestion_webhookendpoint")
        assert secret not in cursor.fetchone()[0]
    assert WebhookEndpoint.objects.get().secrets["secret"] == secret


def test_the_audit_names_the_host_alone(owner: User, at: Receiver) -> None:
    """An address may have a token in it."""
    at.url = "https://hooks.example.com/T0/s3cret?token=s3cret"
    made, _ = endpoint(at, owner)
    webhooks.change(made, enabled=False, actor=ACTOR)
    webhooks.delete(made, actor=ACTOR)
    told = AuditEvent.objects.filter(action__startswith="webhook.").order_by("pk")
    assert [event.action for event in told] == [
        *("webhook.create", "webhook.update", "webhook.delete"),
    ]
    assert {event.changes["host"] for event in told} == {"hooks.example.com"}
    assert "s3cret" not in str([event.changes for event in told])


def test_deliveries_of_long_ago_are_forgotten(source: IngestionSource, at: Receiver) -> None:
    endpoint(at, source.owner)
    happen(source)
    work()
    happen(source)
    assert webhooks.forget_old() == 0
    long_ago = timezone.now() - dt.timedelta(days=31)
    WebhookDelivery.objects.filter(outcome="delivered").update(finished_at=long_ago)
    assert webhooks.forget_old() == 1
    assert the_delivery().outcome == "pending"
