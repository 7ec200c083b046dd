"""Freshness is told by success, not by tries: `ingestion.freshness` on rows in every state."""

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion import explaining, freshness
from ingestion.amounts import time_of
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Run
from tests.e2e.rows import LATER, a_folder, a_mailbox, a_source
from tests.servers import people
from tests.servers.command_line import CommandLine

pytestmark = pytest.mark.django_db


def ago(**span: float) -> dt.datetime:
    return timezone.now() - dt.timedelta(**span)


def judge(source: IngestionSource) -> Any:
    [found] = freshness.read(freshness.judged(IngestionSource.objects.filter(pk=source.pk)))
    return found


def codes(source: IngestionSource) -> list[str]:
    judged = judge(source)
    found = explaining.reasons(judged)
    assert freshness.needs_somebody(judged) is bool(found)
    everybody = IngestionSource.objects.all()
    assert (source.pk in freshness.needing(everybody)) is bool(found)
    by_verdict = freshness.judged_before(freshness.verdicts(everybody), [source.pk])[source.pk]
    assert explaining.reasons(by_verdict) == found
    assert by_verdict.archived_up_to == judged.archived_up_to
    return [reason.code for reason in found]


def said(source: IngestionSource) -> str:
    judged = judge(source)
    return " ".join(map(str, explaining.reasons(judged)))


def summary() -> explaining.Summary:
    return explaining.summary(freshness.verdicts(IngestionSource.objects.filter(deleted_at=None)))


def test_a_source_is_archived_up_to_its_oldest_mailbox(owner: User) -> None:
    source = a_source(owner)
    assert judge(source).archived_up_to is None  # no mailbox
    oldest = a_mailbox(source, "a@example.com", last_synced_at=ago(minutes=7))
    a_mailbox(source, "b@example.com", last_synced_at=ago(minutes=1))
    a_mailbox(source, "c@example.com", state="excluded")
    a_mailbox(source, "d@example.com", state="gone", last_synced_at=ago(days=400))
    assert judge(source).archived_up_to == oldest.last_synced_at
    assert codes(source) == []
    assert summary().tone == "success"
    assert summary().text.startswith("The source is archived up to ")
    assert "(7 min ago)" in summary().text


def test_one_that_was_never_synced_makes_it_unknown(owner: User) -> None:
    source = a_source(owner)
    a_mailbox(source, "a@example.com", last_synced_at=ago(minutes=7))
    a_mailbox(source, "b@example.com")
    assert judge(source).archived_up_to is None
    assert codes(source) == []
    assert "for the first time" in summary().text


@pytest.mark.parametrize(
    ("interval_seconds", "minutes", "late"),
    [(30, 14, False), (30, 16, True), (300, 14, False), (300, 16, True),
     (3_600, 170, False), (3_600, 190, True)],
)  # fmt: skip
def test_late_is_three_intervals_and_never_less_than_a_quarter_of_an_hour(
    owner: User, interval_seconds: int, minutes: int, late: bool
) -> None:
    source = a_source(owner, options={"syncIntervalSeconds": interval_seconds})
    a_mailbox(source, last_synced_at=ago(minutes=minutes))
    assert codes(source) == (["late"] if late else [])


def test_the_reason_is_what_the_longest_waiting_mailbox_met(owner: User) -> None:
    source = a_source(owner, "Alice", options={})
    a_mailbox(
        source,
        last_synced_at=ago(minutes=27),
        last_error="Can't connect to imap.example.com:993 (Connection refused).",
        last_error_code="unavailable",
    )
    a_mailbox(a_source(owner, "Bob"), last_synced_at=ago(minutes=1))
    assert codes(source) == ["late"]
    assert "Connection refused" in said(source)
    told = summary()
    assert told.tone == "danger"
    assert told.text.startswith("Alice has not been reached since ")
    assert "(27 min ago): Can't connect" in told.text


def test_a_first_copy_that_takes_days_is_not_late_and_one_that_fails_is(owner: User) -> None:
    source = a_source(owner)
    run = Run.objects.create(source=source, kind="sync")
    a_mailbox(source, "a@example.com", last_synced_at=ago(minutes=2))
    new = a_mailbox(source, "b@example.com", run=run)
    Mailbox.objects.filter(pk=new.pk).update(created_at=ago(days=3))
    assert codes(source) == []
    Mailbox.objects.filter(pk=new.pk).update(attempts=4, last_error="Connection refused.")
    assert codes(source) == ["late"]


REFUSED = "Can't connect to imap.example.com:993 (Connection refused)."


def a_failing(source: IngestionSource, address: str, since: dt.datetime, **state: Any) -> Mailbox:
    state = {"last_synced_at": ago(minutes=2), "last_error_code": "unavailable"} | state
    return a_mailbox(source, address, failing_since=since, last_error=REFUSED, **state)


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (0, "23:30 UTC"),
        (0.25, "23:45 UTC"),
        (1, "2027-01-01 00:30 UTC"),
        (-24, "2026-12-30 23:30 UTC"),
    ],
)
def test_a_time_of_another_day_is_told_with_its_date(hours: float, said: str) -> None:
    now = dt.datetime(2026, 12, 31, 23, 30, tzinfo=dt.UTC)
    elsewhere = dt.timezone(dt.timedelta(hours=13))
    assert time_of(now + dt.timedelta(hours=hours), now) == said
    assert time_of(now.astimezone(elsewhere) + dt.timedelta(hours=hours), now) == said


@pytest.mark.parametrize("status", ["active", "importing"])
def test_a_source_of_which_nothing_succeeds_any_more_fails_after_half_a_minute(
    owner: User, status: str
) -> None:
    source = a_source(owner, "Alice", status=status)
    mailbox = a_failing(source, "a@example.com", ago(seconds=25))
    assert codes(source) == []  # a hiccup
    again_at = timezone.now() + LATER
    Mailbox.objects.update(failing_since=ago(seconds=35), not_before=again_at)
    assert codes(source) == ["failing"]
    assert f"Nothing is archived now: {REFUSED} It is tried again by itself." in said(source)
    assert f"The next try is at {again_at:%Y-%m-%d %H:%M} UTC. Since " in said(source)
    assert summary().tone == "danger"
    assert summary().text.startswith("Alice has been failing since ")
    assert REFUSED in summary().text
    for silent in ("paused", "error"):
        IngestionSource.objects.update(status=silent)
        assert "failing" not in codes(source)
    IngestionSource.objects.update(status="active")
    Mailbox.objects.filter(pk=mailbox.pk).update(last_mail_at=timezone.now())
    assert codes(source) == []  # it makes progress; or a worker of an older version settled it


def test_one_mailbox_of_several_that_fails_is_late_after_a_quarter_of_an_hour(owner: User) -> None:
    source = a_source(owner)
    others = [a_mailbox(source, f"{n}@example.com", last_synced_at=ago(minutes=2)) for n in "bc"]
    a_failing(source, "a@example.com", ago(minutes=1), last_synced_at=ago(minutes=6))
    Mailbox.objects.filter(address="a@example.com").update(last_error="Its own trouble.")
    assert codes(source) == []
    Mailbox.objects.filter(pk=others[0].pk).update(failing_since=ago(seconds=40))
    assert codes(source) == ["failing"]  # of two, nothing succeeded since
    Mailbox.objects.filter(pk=others[1].pk).update(last_synced_at=timezone.now())
    assert codes(source) == []
    # An hour later a second one fails last: that one of them always does says nothing.
    Mailbox.objects.filter(address="a@example.com").update(failing_since=ago(hours=1))
    Mailbox.objects.filter(pk=others[1].pk).update(last_synced_at=ago(minutes=2))
    assert codes(source) == []
    Mailbox.objects.filter(pk__in=[one.pk for one in others]).update(
        failing_since=ago(minutes=1), last_error=REFUSED
    )
    Mailbox.objects.filter(address="a@example.com").update(last_synced_at=ago(minutes=20))
    assert codes(source) == ["failing", "late"]
    assert said(source).count(REFUSED) == 1
    assert "Its own trouble" not in said(source)


@pytest.mark.parametrize("status", ["active", "importing"])
def test_a_source_of_which_all_fails_is_told_whatever_began_to_fail_before(
    owner: User, status: str
) -> None:
    source = a_source(owner, status=status)
    a_failing(source, "a@example.com", ago(hours=1), last_synced_at=ago(minutes=6))
    a_failing(source, "b@example.com", ago(seconds=40))
    assert codes(source) == ["failing"]  # the one always did, the other since its success
    third = a_failing(source, "c@example.com", ago(seconds=35))
    assert codes(source) == ["failing"]
    Mailbox.objects.filter(pk=third.pk).update(failing_since=None, last_synced_at=timezone.now())
    assert codes(source) == []


@pytest.mark.parametrize(("status", "kind"), [("active", "sync"), ("importing", "import")])
def test_a_source_whose_mailboxes_can_not_be_listed_fails_whatever_those_do_that_were(
    owner: User, status: str, kind: str
) -> None:
    source = a_source(owner, "Acme", status=status)
    run = Run.objects.create(
        source=source, kind=kind, failing_since=ago(seconds=25), warning=REFUSED, attempts=1
    )
    for n in "abc":
        a_mailbox(source, f"{n}@example.com", last_synced_at=timezone.now())
    assert codes(source) == []  # a hiccup
    again_at = timezone.now() + LATER
    Run.objects.update(failing_since=ago(seconds=35), not_before=again_at)
    assert codes(source) == ["failing"]
    assert f"can't be listed to the end, and the rest is not archived now: {REFUSED}" in said(
        source
    )
    assert f"The next try is at {again_at:%Y-%m-%d %H:%M} UTC. Since " in said(source)
    assert summary().text.startswith("Acme has been failing since ")
    assert REFUSED in summary().text
    for ended in ("discovered_at", "finished_at"):
        Run.objects.filter(pk=run.pk).update(**{ended: timezone.now()})
        assert codes(source) == []
        Run.objects.filter(pk=run.pk).update(**{ended: None})
    assert codes(source) == ["failing"]


def test_what_waits_for_somebody_needs_attention(owner: User) -> None:
    failing = a_source(
        owner, "Failing", status="pending_auth", check_attempts=1,
        status_message="Connection refused. Tried again in 10 s.",
    )  # fmt: skip
    assert codes(failing) == ["check_failing"]
    assert "Connection refused" in said(failing)
    waiting = a_source(
        owner, "Waiting", status="pending_auth", status_message="Sign in with Google.",
        check_not_before=timezone.now() + LATER,
    )  # fmt: skip
    assert codes(waiting) == ["sign_in_awaited"]
    checked_now = a_source(owner, "New", status="pending_auth", check_not_before=timezone.now())
    assert codes(checked_now) == []
    refused = a_source(owner, "Refused", status="error", status_message="Wrong password.")
    assert codes(refused) == ["error"]
    assert summary().tone == "danger"
    assert "1 is in error" in summary().text


def test_what_is_left_out_is_told_beside_and_holds_nothing_back(owner: User) -> None:
    source = a_source(owner)
    mailbox = a_mailbox(source, last_synced_at=ago(minutes=1))
    a_mailbox(
        source, "gone@example.com", state="unavailable", state_reason="It has no licence.",
        last_error_code="mailbox_unavailable", last_synced_at=ago(days=9),
    )  # fmt: skip
    a_folder(
        mailbox, "Shared", failing_since=ago(hours=5), attempts=3, last_error_code="folder_refused",
        last_error="The server says: Permission denied.", not_before=timezone.now() + LATER,
    )  # fmt: skip
    inbox = a_folder(mailbox)
    FailedMessage.objects.create(
        mailbox=mailbox, folder=inbox, remote_id="1", code="message_refused", reason="NO",
        not_before=timezone.now() + LATER,
    )  # fmt: skip
    assert judge(source).archived_up_to == mailbox.last_synced_at
    assert codes(source) == ["mailboxes_unavailable", "folders_failing", "messages_failing"]
    assert "1 folder could not be read: Shared (ada@example.com)" in said(source)
    assert "gone@example.com: It has no licence" in said(source)
    missing = explaining.left_out(judge(source))
    assert [(one.mailbox, one.folder, one.code) for one in missing] == [
        ("gone@example.com", None, "mailbox_unavailable"),
        ("ada@example.com", "Shared", "folder_refused"),
    ]
    Folder.objects.filter(path="Shared").update(removed_at=timezone.now())
    assert "folders_failing" not in codes(source)
    Mailbox.objects.filter(pk=mailbox.pk).update(state="gone")
    assert "messages_failing" not in codes(source)  # nobody tries them


def test_a_paused_source_needs_nobody(owner: User) -> None:
    source = a_source(owner, status="paused")
    a_mailbox(source, last_synced_at=ago(days=9), last_error="Connection refused.")
    assert codes(source) == []
    assert summary().text == "No source is followed yet. 1 is paused."


def test_of_many_the_first_are_told_at_a_constant_number_of_queries(
    owner: User, django_assert_num_queries: Any
) -> None:
    for source in [a_source(owner, f"Source {number}") for number in range(5)]:
        Mailbox.objects.bulk_create(
            Mailbox(
                source=source, remote_id=str(n), address=f"{n:03}@example.com",
                state="unavailable", state_reason="Suspended.", last_synced_at=ago(days=100 - n),
            )
            for n in range(60)
        )  # fmt: skip
    with django_assert_num_queries(4):
        judged = freshness.read(freshness.judged(IngestionSource.objects.all()))
    for source in judged:
        assert [one.mailbox for one in explaining.left_out(source)] == [
            f"{n:03}@example.com" for n in range(freshness.MAX_LEFT_OUT)
        ]
        (reason,) = explaining.reasons(source)
        assert reason.text.startswith(
            "20+ mailboxes could not be read: 000@example.com: Suspended;"
        )


def test_of_all_sources_no_table_is_asked_of_each(owner: User) -> None:
    """Each ten seconds all are looked at (`alerting.watch`)."""
    with connection.cursor() as cursor:
        # What is known to be empty may well be asked of each; a test before may have had it known.
        cursor.execute("TRUNCATE ingestion_ingestionsource CASCADE")
    many = 1_000
    usual = {"owner": owner, "provider": "generic_imap", "status": "active", "config": {}}
    sources = [IngestionSource(name=str(number), **usual) for number in range(many)]
    IngestionSource.objects.bulk_create(sources)
    Mailbox.objects.bulk_create(
        Mailbox(source=source, remote_id="a", address="a", last_synced_at=timezone.now())
        for source in sources
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE ingestion_ingestionsource, ingestion_mailbox")
    with CaptureQueriesContext(connection) as queries:
        assert len(freshness.verdicts(IngestionSource.objects.all())) == many
    for query in queries:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN ANALYZE {query['sql']}")
            plan = "\n".join(line for (line,) in cursor)
        assert f"loops={many}" not in plan, plan


def test_many_are_read_as_each_alone_is_in_as_many_queries(owner: User) -> None:
    sources = [a_source(owner, f"Source {number:03}") for number in range(101)]
    for source in sources[:4]:
        for n in range(freshness.MAX_LEFT_OUT + 1):
            a_mailbox(source, f"{n:02}", last_synced_at=ago(days=100 - n), last_error="No.")
    well = a_mailbox(sources[4], last_synced_at=ago(minutes=1))
    a_folder(well, "Shared", failing_since=ago(hours=5), last_error="Permission denied.")
    Run.objects.create(
        source=sources[5], kind="sync", actor="beat", failing_since=ago(minutes=1), warning="Gone."
    )
    Run.objects.create(source=sources[6], kind="sync", actor="beat")
    IngestionSource.objects.update(created_at=ago(days=200))
    rows = freshness.judged(IngestionSource.objects.order_by("name"))
    with CaptureQueriesContext(connection) as queries:
        many = freshness.read(rows)
    assert len(queries) == 4
    assert max(len(query["sql"]) for query in queries) < 10_000

    def told(source: Any) -> Any:
        runs = [run.pk for run in source.unfinished_runs]
        return explaining.left_out(source), explaining.reasons(source), runs

    alone = [freshness.read(rows.filter(pk=source.pk)) for source in sources[:9]]
    assert [told(source) for source in many[:9]] == [told(source) for (source,) in alone]
    assert [len(explaining.left_out(source)) for source in many[:6]] == [20, 20, 20, 20, 1, 0]
    assert "Gone." in str(explaining.reasons(many[5])[0])


def test_commands_end_with_1_and_say_why_until_it_is_mended(
    transactional_db: None, manage: CommandLine
) -> None:
    owner = people.superuser("root")
    alice, bob = a_source(owner, "Alice"), a_source(owner, "Bob")
    # As it may have been stored before such names were refused.
    IngestionSource.objects.filter(pk=bob.pk).update(name="Bob\u202e")
    late = a_mailbox(
        alice, last_synced_at=ago(minutes=27), last_error="Connection refused.", attempts=3
    )
    well = a_mailbox(bob, last_synced_at=ago(minutes=1))
    a_folder(well, "Sh\x9bared", failing_since=ago(hours=5), last_error="Permission denied.")
    everything = manage.here("source_status")
    assert everything.code == 1
    assert "Alice has not been reached since" in everything.stdout
    assert "Not up to date: Connection refused." in everything.stdout
    assert "27 min" in everything.stdout
    assert not {"\x9b", "\u202e"} & set(everything.stdout)
    one = manage.here("source_status", "Bob\u202e")
    assert one.code == 1
    assert "Sh\\x9bared" in one.stdout
    assert "Permission denied" in one.stdout
    found = {f["name"]: f for f in manage.here("doctor", "--json").json()["findings"]}
    assert found["sources"]["state"] == "problem"
    assert "Needs attention: Alice, Bob" in found["sources"]["message"]
    shown = manage.here("source_status", "--json").json()["sources"]
    assert [[reason["code"] for reason in source["attention"]] for source in shown] == [
        ["late"],
        ["folders_failing"],
    ]
    Mailbox.objects.filter(pk=late.pk).update(last_synced_at=timezone.now(), last_error="")
    Folder.objects.update(failing_since=None)
    mended = manage.here("source_status")
    assert mended.code == 0
    assert "All 2 sources are archived up to" in mended.stdout
    found = {f["name"]: f for f in manage.here("doctor", "--json").json()["findings"]}
    assert found["sources"]["state"] == "ok"
