"""Alerts: told in time, once, together, until it is over; by a real mail server and a real ping."""

import copy
import datetime as dt
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion.models import (
    Alert,
    AlertNotice,
    AlertRule,
    AuditEvent,
    FailedMessage,
    IngestionSource,
    WebhookDelivery,
)
from ingestion.models.webhook import Event
from ingestion.services.archive import verify
from ingestion.services.audit import Actor
from ingestion.services.engine import clocks, due_work
from ingestion.services.operations import doctor, webhooks
from ingestion.services.operations.alerting import rules, sending, watch
from ingestion.services.sources import deletion, verbs
from tests.e2e import rows
from tests.servers import people, receiver, smtp
from tests.servers.receiver import Receiver
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import create, fill, finish, start
from tests.servers.smtp import Mailbox

pytestmark = pytest.mark.django_db(transaction=True)

ACTOR = Actor.system("tests")
ALL = ["source.attention", "source.failures", "source.secret", "import.finished",
       "archive.corrupt", "archive.storage", "archive.idle", "index.stuck",
       "workers.silent"]  # fmt: skip
LONG_AGO = dt.timedelta(seconds=11)


@pytest.fixture
def inbox(settings: Any) -> Iterator[Mailbox]:
    with smtp.running() as mailbox:
        smtp.use(settings, mailbox)
        yield mailbox


@pytest.fixture
def at() -> Iterator[Receiver]:
    with receiver.running() as running:
        yield running


@pytest.fixture
def staff() -> User:
    return people.staff("operator", "view_ingestionsource")


def a_rule(user: User, **given: Any) -> AlertRule:
    usual = {"name": "All", "way": "mail", "recipients": ["ops@example.com"], "kinds": ALL}
    return rules.create(user, given=usual | given, actor=ACTOR)


def broken(owner: User, count: int = 1, why: str = "The password was refused.") -> list[Any]:
    one = rows.a_source(owner, "Source 0", status="error", status_message=why)
    others = []
    for n in range(1, count):
        another = copy.copy(one)
        another.pk, another.name = uuid.uuid4(), f"Source {n}"
        others.append(another)
    return [one, *IngestionSource.objects.bulk_create(others)]


def mended(*sources: IngestionSource) -> None:
    IngestionSource.objects.filter(pk__in=[s.pk for s in sources]).update(status="active")


def pass_by(span: dt.timedelta = LONG_AGO) -> None:
    """Have it be later: all that was written is as much older."""
    for model, names in (
        (Alert, ("began_at", "well_since", "ended_at")),
        (AlertNotice, ("created_at",)),
        (AlertRule, ("not_before", "handed_out_at")),
    ):
        model.objects.update(**{name: F(name) - span for name in names})


def work() -> None:
    """Look, and do what is due of alerts, as the processes of the service do."""
    watch.look_at_sources()
    pass_by()
    for due in due_work.hand_out():
        if due.kind in ("alert", "deliver"):
            due_work.do_now(due)


def later(minutes: float = 6) -> None:
    pass_by(dt.timedelta(minutes=minutes))
    work()


# -- what is told ------------------------------------------------------------------------------


def test_a_source_that_needs_somebody_is_told_once_and_when_it_is_well_again(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    a_rule(staff)
    [source] = broken(owner)
    work()
    [mail] = inbox.came
    assert mail["Subject"] == "[Email ingestion] Source 0 needs somebody"
    assert inbox.recipients == [["ops@example.com"]]
    assert "The password was refused." in smtp.text(mail)
    later()
    later(60)
    assert len(inbox.came) == 1, "once is enough"
    mended(source)
    work()
    later()
    [_, mail] = inbox.came
    assert mail["Subject"] == "[Email ingestion] Source 0 is well again"
    assert "It was: The password was refused." in smtp.text(mail).replace("\n", " ")
    later(60)
    assert len(inbox.came) == 2
    assert Alert.objects.get().ended_at is not None


def test_three_hundred_sources_down_at_once_are_one_mail(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    a_rule(staff)
    broken(owner, 300, "Can't connect to imap.example.com:993.")
    work()
    later(1)
    [mail] = inbox.came
    assert mail["Subject"] == "[Email ingestion] 300 sources need somebody"
    for kind in ("plain", "html"):
        body = smtp.text(mail, kind)
        assert body.count("imap.example.com") == 1, "what is the same is said once"
        assert "and 290 more" in body
    mended(*IngestionSource.objects.all())
    work()
    later()
    assert [m["Subject"] for m in inbox.came[1:]] == ["[Email ingestion] 300 alerts are over"]


def test_what_goes_on_failing_is_told_together_with_what_failed_since(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    a_rule(staff)
    broken(owner)
    work()
    for n in range(3):
        rows.a_source(owner, f"Other {n}", status="error", status_message="Down.")
        work()
    assert len(inbox.came) == 1, "not so soon again"
    later()
    assert inbox.came[-1]["Subject"] == "[Email ingestion] 3 sources need somebody"


def test_a_source_that_comes_and_goes_is_damped(staff: User, owner: User, inbox: Mailbox) -> None:
    """Six hours of ten minutes down and ten minutes up are no 36 mails."""
    a_rule(staff)
    [source] = broken(owner)
    for _ in range(18):
        later(10)
        mended(source)
        work()
        later(10)
        IngestionSource.objects.update(status="error")
        work()
    assert 4 <= len(inbox.came) <= 14
    assert any("it came back" in text for text in inbox.texts())


def test_what_came_and_went_before_it_was_told_is_told_as_that(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    a_rule(staff)
    [source] = broken(owner)
    inbox.refuse = "451 Later"
    work()
    mended(source)
    work()
    later(60)
    inbox.refuse = ""
    later(60)
    [mail] = inbox.came
    assert "Came and went" in smtp.text(mail)
    assert "Needs somebody" not in smtp.text(mail)


@pytest.mark.parametrize(
    ("left", "words"), [(30, "in 30 days"), (7, "in 7 days"), (1, "tomorrow"), (0, "expired on")]
)
def test_a_secret_that_expires_is_told(
    staff: User, owner: User, inbox: Mailbox, left: int, words: str
) -> None:
    a_rule(staff)
    source = rows.a_source(owner)
    day = timezone.now().date() + dt.timedelta(days=left)
    source.options["credentialsExpireOn"] = str(day)
    source.save()
    work()
    assert words in inbox.texts()[0]
    assert str(day) in inbox.texts()[0]


def test_a_secret_is_told_at_thirty_seven_and_one_days_and_no_more(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    a_rule(staff)
    source = rows.a_source(owner)
    told = []
    for left in (40, 31, 30, 29, 8, 7, 6, 2, 1, 0, -1, -5):
        day = timezone.now().date() + dt.timedelta(days=left)
        IngestionSource.objects.update(options=source.options | {"credentialsExpireOn": str(day)})
        before = len(inbox.came)
        later()
        told += [left] * (len(inbox.came) - before)
    assert told == [30, 7, 1, 0]


def test_failures_of_a_source_are_told_apart_from_its_being_down(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    a_rule(staff)
    source = rows.a_source(owner)
    folder = rows.a_folder(mailbox := rows.a_mailbox(source, last_synced_at=timezone.now()))
    FailedMessage.objects.create(
        mailbox=mailbox, folder=folder, remote_id="1", code="refused", not_before=timezone.now()
    )
    work()
    assert inbox.came[0]["Subject"] == "[Email ingestion] Sales has failures"
    IngestionSource.objects.update(status="error", status_message="Refused.")
    later()
    assert inbox.came[1]["Subject"] == "[Email ingestion] Sales needs somebody"


def test_an_import_that_is_finished_is_told(inbox: Mailbox, server: Server) -> None:
    source = create()
    a_rule(source.owner, kinds=["import.finished"])
    fill(server, 3)
    start(source)
    finish(source)
    work()
    [mail] = inbox.came
    assert mail["Subject"] == "[Email ingestion] Scripted is imported"
    assert "3 archived" in smtp.text(mail)


def test_damage_is_told_until_a_verification_finds_none(
    staff: User, owner: User, inbox: Mailbox, archive_dir: Path
) -> None:
    a_rule(staff)
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner), last_synced_at=timezone.now()))
    rows.archived(folder, b"Subject: one\r\n\r\n")
    [where] = archive_dir.rglob("*.pack")
    whole = where.read_bytes()
    where.unlink()
    for _ in range(2):
        verify.verify_archive(on_problem=lambda _: None)
    later()
    assert [m["Subject"] for m in inbox.came] == [
        "[Email ingestion] Archived mail of Sales is damaged or missing"
    ]
    where.write_bytes(whole)
    verify.verify_archive(on_problem=lambda _: None)
    later()
    assert inbox.came[-1]["Subject"] == "[Email ingestion] Sales is well again"


def test_webhooks_are_told_of_alerts_too(owner: User, at: Receiver) -> None:
    events = [Event.ALERT_BEGAN, Event.ALERT_ENDED]
    _, secret = webhooks.create(owner, url=at.url, events=events, actor=ACTOR)
    [source] = broken(owner)
    work()
    [came] = at.came
    told = came.verified(secret)
    assert told["type"] == "alert.began"
    assert told["data"]["kind"] == "source.attention"
    assert told["data"]["sourceId"] == str(source.pk)
    mended(source)
    work()
    later()
    assert [came.event for came in at.came] == ["alert.began", "alert.ended"]


# -- who is told -------------------------------------------------------------------------------


def test_webhooks_are_told_that_an_alert_is_over_as_its_source_was_deleted(
    owner: User, at: Receiver
) -> None:
    """An incident that it opened elsewhere is closed by nothing else."""
    _, secret = webhooks.create(owner, url=at.url, events=["alert.ended"], actor=ACTOR)
    [source, _] = broken(owner, 2)
    work()
    opened = Alert.objects.get(source=source)
    verbs.delete(source, actor=ACTOR)
    deletion.delete_source(source.pk)
    work()
    [came] = at.came
    told = came.verified(secret)["data"]
    assert (told["alert"], told["message"]) == (str(opened.pk), "The source was deleted.")
    assert told["sourceName"] == source.name
    assert Alert.objects.filter(ended_at=None).count() == 1


def test_a_rule_tells_what_its_owner_may_see(
    staff: User, owner: User, other_user: User, inbox: Mailbox
) -> None:
    for user in (staff, owner, other_user):
        a_rule(user, recipients=[f"{user.username}@example.com"])
    broken(owner)
    work()
    assert sorted(inbox.recipients) == [["operator@example.com"], ["owner@example.com"]]
    assert not AlertNotice.objects.filter(rule__owner=other_user).exists()


def test_who_may_see_it_no_more_is_not_told(staff: User, owner: User, inbox: Mailbox) -> None:
    """Between what happened and the mail, rights may go, and sources be deleted."""
    a_rule(staff)
    broken(owner)
    watch.look_at_sources()
    staff.user_permissions.clear()
    work()
    assert inbox.came == []
    assert not AlertNotice.objects.filter(sent_at=None).exists()
    [source] = IngestionSource.objects.all()
    with transaction.atomic():
        verbs.delete(source, actor=ACTOR)
    deletion.delete_source(source.pk)
    assert not Alert.objects.exists()


def test_chosen_sources_and_kinds_alone_are_told(staff: User, owner: User, inbox: Mailbox) -> None:
    first, _ = broken(owner, 2)
    a_rule(staff, sources=[first.pk])
    a_rule(staff, kinds=["archive.corrupt"], recipients=["other@example.com"])
    work()
    assert inbox.recipients == [["ops@example.com"]]
    assert inbox.came[0]["Subject"] == "[Email ingestion] Source 0 needs somebody"


def test_a_paused_source_is_not_said_to_be_well(staff: User, owner: User, inbox: Mailbox) -> None:
    a_rule(staff)
    [source] = broken(owner)
    work()
    with transaction.atomic():
        verbs.pause(source, actor=ACTOR)
    work()
    later()
    assert "It is paused." in inbox.texts()[1]


# -- the mail server ---------------------------------------------------------------------------


def test_a_mail_server_that_was_down_gets_all_in_one_mail_that_says_it_is_old(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    rule = a_rule(staff)
    inbox.refuse = "451 Try again later"
    for n in range(5):
        rows.a_source(owner, f"Source {n}", status="error", status_message="Down.")
        later(30)
    rule.refresh_from_db()
    assert rule.attempts >= 5
    assert "takes no mail for ops@example.com (451 Try again later). It is tried again." in (
        rule.last_result
    )
    assert list(sending.failing()) == [rule]
    finding = doctor._alerts()
    assert (finding.state, "451 Try again later" in finding.message) == ("warning", True)
    inbox.refuse = ""
    later(30)
    [mail] = inbox.came
    assert mail["Subject"] == "[Email ingestion] 5 sources need somebody"
    assert "This comes late" in smtp.text(mail)
    rule.refresh_from_db()
    assert (rule.attempts, rule.last_result) == (0, "Sent to 1 address.")
    assert doctor._alerts().state == "ok"


def test_who_the_mail_server_refuses_is_named_and_the_others_are_told_once(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    rule = a_rule(staff, recipients=["ops@example.com", "oncal@example.com"])
    inbox.refuse, inbox.refused = "550 Nobody here", {"oncal@example.com"}
    told = (
        f"Sent to 1 of 2 addresses. 127.0.0.1:{inbox.port} takes no mail for oncal@example.com"
        " (550 Nobody here)."
    )
    tested = rules.test(rule, actor=ACTOR)
    assert (tested.ok, tested.text) == (False, told)
    broken(owner)
    later()
    later()
    assert inbox.recipients[1:] == [["ops@example.com"]], "once is enough"
    rule.refresh_from_db()
    assert (rule.last_result, rule.last_sent_at is not None) == (told, True)
    assert told in doctor._alerts().message
    rules.change(rule, given={"recipients": ["ops@example.com"]}, actor=ACTOR)
    assert doctor._alerts().state == "ok"


def test_what_waits_for_a_time_that_cannot_be_is_told(
    staff: User, owner: User, inbox: Mailbox
) -> None:
    """The database's clock was a year ahead for a moment."""
    a_rule(staff, digest="weekly")
    broken(owner)
    watch.look_at_sources()
    clocks.bring_back()  # what the source itself waits for
    assert clocks.bring_back() == 0
    for model, name in (
        (AlertRule, "not_before"),
        (AlertRule, "digest_at"),
        (AlertNotice, "created_at"),
    ):
        model.objects.update(**{name: F(name) + dt.timedelta(days=365)})
    assert clocks.bring_back() == 3
    work()
    assert len(inbox.came) == 2


def test_nobody_at_the_mail_servers_port_is_told_in_words(
    staff: User, owner: User, inbox: Mailbox, settings: Any
) -> None:
    rule = a_rule(staff)
    settings.EMAIL_PORT = 1
    broken(owner)
    work()
    rule.refresh_from_db()
    assert "Can't send by 127.0.0.1:1 (Connection refused)" in rule.last_result
    settings.EMAIL_URL = ""
    later()
    rule.refresh_from_db()
    assert "EMAIL_URL" in rule.last_result


def test_the_same_mail_has_the_same_message_id(
    staff: User, owner: User, inbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who dies between sending and remembering it sends it again: readers know it by that."""

    class Dies(BaseException):
        pass

    a_rule(staff)
    broken(owner)

    def die(*_: Any, **__: Any) -> None:
        raise Dies

    with monkeypatch.context() as patched, pytest.raises(Dies):
        patched.setattr(sending, "_done", die)
        work()
    later()
    first, second = inbox.came
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Auto-Submitted"] == "auto-generated"


def test_a_hostile_name_is_only_text(staff: User, owner: User, inbox: Mailbox) -> None:
    a_rule(staff)
    [source] = broken(
        owner, why="x\r\n.\r\nRCPT TO:<evil@example.com>\r\n<script>alert(1)</script>"
    )
    hostile = "A\r\nBcc: evil@example.com\r\n\r\n<script>alert(2)</script> {{ rule }}"
    IngestionSource.objects.filter(pk=source.pk).update(name=hostile)
    work()
    [mail] = inbox.came
    assert mail["Bcc"] is None
    assert inbox.recipients == [["ops@example.com"]]
    assert mail["Subject"].startswith("[Email ingestion] A Bcc: evil@example.com")
    assert "<script" not in smtp.text(mail, "html")
    assert "&lt;script&gt;alert(2)" in smtp.text(mail, "html")
    assert "{{ rule }}" in smtp.text(mail)


# -- ping --------------------------------------------------------------------------------------


def test_a_rule_by_webhook_tells_what_happens_together_in_one_signed_delivery(
    staff: User, owner: User, at: Receiver
) -> None:
    hook, secret = webhooks.create(staff, url=at.url, events=[], actor=ACTOR)
    rule = a_rule(staff, way="webhook", webhook=hook, recipients=[])
    sources = broken(owner, 300)
    work()
    work()
    [came] = at.came
    told = came.verified(secret)
    assert (told["type"], told["data"]["rule"]) == ("alerts", "All")
    notices = told["data"]["notices"]
    assert {notice["sourceId"] for notice in notices} == {str(s.pk) for s in sources}
    assert {notice["change"] for notice in notices} == {"began"}
    mended(*sources)
    work()
    later()
    work()
    [_, came] = at.came
    assert {notice["change"] for notice in came.verified(secret)["data"]["notices"]} == {"ended"}
    webhooks.delete(hook, actor=ACTOR)
    broken(owner)
    later()
    rule.refresh_from_db()
    assert rule.last_result.startswith("Its webhook was deleted. Choose another.")
    assert list(sending.failing()) == [rule], "doctor tells it"


def test_what_is_told_of_many_sources_costs_as_many_queries_as_of_one(
    staff: User, owner: User, at: Receiver
) -> None:
    for _ in range(3):
        webhooks.create(staff, url=at.url, events=["alert.began"], actor=ACTOR)
        a_rule(staff)
    counts = []
    for number in (1, 30):
        broken(owner, number)
        with CaptureQueriesContext(connection) as queries:
            watch.look_at_sources()
        counts.append(len(queries))
    assert counts[0] == counts[1]
    assert (AlertNotice.objects.count(), WebhookDelivery.objects.count()) == (93, 93)


def test_a_ping_says_each_minute_that_all_is_well_and_when_it_is_not(
    staff: User, owner: User, at: Receiver
) -> None:
    a_rule(staff, way="ping", url=f"{at.url}/?create=1", recipients=[])
    work()
    assert [came.path for came in at.came] == ["/hook/?create=1"]
    work()
    assert len(at.came) == 1, "each minute"
    [source] = broken(owner)
    later(1)
    assert at.came[-1].path == "/hook/fail?create=1"
    assert at.came[-1].body == b"Source 0: The password was refused."
    mended(source)
    work()
    later(2)
    assert at.came[-1].path == "/hook/?create=1"


def test_a_ping_that_nobody_takes_is_sent_again(staff: User, at: Receiver) -> None:
    rule = a_rule(staff, way="ping", url=at.url, recipients=[])
    at.status = 503
    work()
    rule.refresh_from_db()
    assert rule.last_result == "Not told. It answered 503."
    at.status = 200
    later(1)
    rule.refresh_from_db()
    assert rule.last_result == "Told that all is well. It answered 200."


def test_a_ping_that_is_handed_out_twice_is_not_late_the_next_time(
    staff: User, at: Receiver
) -> None:
    rule = a_rule(staff, way="ping", url=at.url, recipients=[])
    work()
    rule.refresh_from_db()
    due = rule.not_before
    sending.tell(rule.pk)
    rule.refresh_from_db()
    assert (len(at.came), rule.not_before) == (1, due)


# -- rules -------------------------------------------------------------------------------------


def test_a_test_says_in_words_what_came_of_it(
    staff: User, owner: User, inbox: Mailbox, at: Receiver
) -> None:
    rule = a_rule(staff)
    broken(owner)
    watch.look_at_sources()
    assert rules.test(rule, actor=ACTOR).text == "Sent to 1 address."
    assert "Open now" in inbox.texts()[0]
    assert "The password was refused." in inbox.texts()[0]
    inbox.refuse = "550 Nobody here"
    sent = rules.test(rule, actor=ACTOR)
    assert (sent.ok, sent.text) == (
        False,
        f"127.0.0.1:{inbox.port} takes no mail for ops@example.com (550 Nobody here).",
    )
    ping = a_rule(staff, way="ping", url=at.url, recipients=[])
    assert rules.test(ping, actor=ACTOR).text == (
        "Told that something needs somebody. It answered 204."
    )


def test_the_audit_has_the_host_of_a_ping_alone(staff: User) -> None:
    rule = a_rule(staff, way="ping", url="https://hc.example.com/s3cret-uuid", recipients=[])
    rules.change(rule, given={"enabled": False}, actor=ACTOR)
    rules.delete(rule, actor=ACTOR)
    told = AuditEvent.objects.filter(action__startswith="alert_rule").order_by("pk")
    assert [event.action.partition(".")[2] for event in told] == ["create", "update", "delete"]
    assert {event.changes["to"] for event in told} == {"hc.example.com"}


def test_what_is_over_for_long_is_forgotten(staff: User, owner: User, inbox: Mailbox) -> None:
    a_rule(staff)
    [source] = broken(owner)
    work()
    mended(source)
    work()
    later()
    assert sending.forget_old() == 0
    pass_by(dt.timedelta(days=91))
    assert sending.forget_old() == 3
    assert not WebhookDelivery.objects.exists()
