"""The digest: due in the morning, in its owner's rights, text and HTML."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion import expiry
from ingestion.models import AlertRule, ArchivedDay
from ingestion.services.operations.alerting import digest, rules, sending
from tests.e2e import rows
from tests.servers import people, smtp
from tests.servers.scripted_source import ACTOR
from tests.servers.smtp import Mailbox

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def inbox(settings: Any) -> Iterator[Mailbox]:
    with smtp.running() as mailbox:
        smtp.use(settings, mailbox)
        yield mailbox


def sent(user: User, which: str = "daily", **given: Any) -> AlertRule:
    """Make a rule with a digest, and send it as if it were due."""
    usual = {"name": "Digest", "recipients": ["ada@example.com"], "digest": which}
    rule = rules.create(user, given=usual | given, actor=ACTOR)
    AlertRule.objects.update(digest_at=timezone.now())
    sending.tell(rule.pk)
    rule.refresh_from_db()
    return rule


def test_it_says_what_was_archived_and_what_needs_somebody(
    owner: User, other_user: User, inbox: Mailbox
) -> None:
    busy, broken = rows.a_source(owner, "Busy <b>"), rows.a_source(owner, "Broken")
    rows.a_mailbox(busy, last_synced_at=timezone.now())
    type(broken).objects.filter(pk=broken.pk).update(status="error", status_message="Refused.")
    rows.a_source(other_user, "Somebody else's")
    yesterday = timezone.now().date() - dt.timedelta(days=1)
    for days, messages in ((0, 5), (1, 70), (6, 900), (8, 1_000)):
        day = yesterday + dt.timedelta(days=1 - days)
        ArchivedDay.objects.create(source=busy, day=day, messages=messages, size_bytes=10**7)
    sent(owner)
    [mail] = inbox.came
    assert mail["Subject"] == (
        "[Email ingestion] 70 messages archived yesterday; 1 source needs somebody"
    )
    for kind in ("plain", "html"):
        body = smtp.text(mail, kind)
        assert "Refused." in body
        assert "10.0 MB" in body
        assert "Somebody else" not in body
        assert "free" not in body, "the disk is the operators' business"
    assert "Busy &lt;b&gt;" in smtp.text(mail, "html")
    sent(owner, "weekly")
    assert "970 messages archived last week" in inbox.came[1]["Subject"]


def test_it_tells_up_to_when_each_is_archived_and_who_needs_somebody_having_judged_all_once(
    owner: User, inbox: Mailbox
) -> None:
    now = timezone.now()
    for name, hours, options in (
        ("Fresh", 0, {}),
        ("Late", 30, {}),
        ("Expires", 0, {expiry.OPTION: str(now.date() + dt.timedelta(days=5))}),
    ):
        source = rows.a_source(owner, name, options=options)
        rows.a_mailbox(source, last_synced_at=now - dt.timedelta(hours=hours))
        rows.a_mailbox(source, "bob@example.com", last_synced_at=now)
    with CaptureQueriesContext(connection) as statements:
        sent(owner)
    assert len([one for one in statements if 'AS "is_late"' in one["sql"]]) == 1
    [mail] = inbox.came
    assert "2 sources need somebody" in mail["Subject"]
    text = " ".join(smtp.text(mail, "plain").split())
    assert "Late has not been reached since" in text
    assert "Not up to date" in text
    assert f"The credentials expire on {now.date() + dt.timedelta(days=5)}" in text
    assert text.count("(30 h ago)") == 3, "in the sentence, its reason and its row"


def test_operators_are_told_of_the_disk(owner: User, inbox: Mailbox, archive_dir: Any) -> None:
    rows.archived(rows.a_folder(rows.a_mailbox(rows.a_source(owner))), b"Subject: one\r\n\r\n")
    sent(people.staff("operator", "view_ingestionsource"))
    assert "The archive grows by" in inbox.texts()[0].replace("\n", " ")


def test_it_is_due_once_and_waits_for_a_mail_server(owner: User, inbox: Mailbox) -> None:
    inbox.refuse = "451 Later"
    rule = sent(owner)
    assert rule.attempts == 1
    assert rule.digest_at is not None
    assert rule.digest_at <= timezone.now()
    inbox.refuse = ""
    AlertRule.objects.update(not_before=timezone.now())
    for _ in range(2):
        sending.tell(rule.pk)
        AlertRule.objects.update(not_before=timezone.now())
    rule.refresh_from_db()
    assert len(inbox.came) == 1
    assert rule.digest_at is not None
    assert rule.digest_at > timezone.now()


def test_the_next_is_in_the_morning_and_a_weeks_on_monday() -> None:
    monday = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
    for hours in range(24 * 8):
        after = monday + dt.timedelta(hours=hours)
        for which, days in (("daily", 1), ("weekly", 7)):
            at = digest.next_at(which, after)
            assert at is not None
            assert after < at <= after + dt.timedelta(days=days)
            assert (at.hour, at.minute, at.tzinfo) == (6, 0, dt.UTC)
            assert which == "daily" or at.weekday() == 0
    assert digest.next_at("", monday) is None
