"""Two that wait for each other: PostgreSQL breaks one off, which begins again by itself."""

import contextlib
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, transaction
from django.db.models import Model
from django.utils import timezone

from connectors import errors
from ingestion.errors import LostRace
from ingestion.models import (
    Alert,
    AlertKind,
    AuditEvent,
    FailedMessage,
    IngestionSource,
    Mailbox,
    Pack,
    Placement,
    Run,
    WebhookDelivery,
    WebhookEndpoint,
)
from ingestion.services.archive import indexing, restored
from ingestion.services.engine import clocks, due_work, runs, sync
from ingestion.services.operations import webhooks
from ingestion.services.operations.alerting import watch
from ingestion.services.sources import discovery, verbs
from ingestion.services.sources.status import locked
from ingestion.services.transactions import (
    in_transaction,
    others_are_in_the_way,
    others_went_first,
)
from tests.e2e import rows
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, due_now, fill, finish, start

pytestmark = pytest.mark.django_db(transaction=True)

SOURCE = "SELECT 1 FROM ingestion_ingestionsource FOR NO KEY UPDATE"
MAILBOX = "SELECT 1 FROM ingestion_mailbox FOR NO KEY UPDATE"
RUN = "SELECT 1 FROM ingestion_run FOR NO KEY UPDATE"
ALERT = "SELECT 1 FROM ingestion_alert FOR UPDATE"
FAILURE = "SELECT 1 FROM ingestion_failedmessage FOR UPDATE"
#: Within the server: who waits looks for a circle once, after a second, and never again.
ONCE_SOMEBODY_WAITS = """DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_locks
                       WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    EXECUTE '{}';
END $$"""


@contextlib.contextmanager
def crossing(first: str, second: str) -> Iterator[None]:
    """Have another session lock `first`, and ask for `second` once somebody waits for it.

    That session never looks whether it waits in a circle, so it is the other that is broken off.
    """
    locks, failed = threading.Event(), []

    def cross() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL deadlock_timeout = '1h'; SET LOCAL statement_timeout = 0")
                cursor.execute(first)
                locks.set()
                cursor.execute(ONCE_SOMEBODY_WAITS.format(second.replace("'", "''")))
        except Exception as error:
            failed.append(error)
            raise
        finally:
            connection.close()

    thread = threading.Thread(target=cross)
    thread.start()
    assert locks.wait(120)
    try:
        yield
    finally:
        thread.join()
    assert not failed


def two_rows(model: type[Model]) -> tuple[str, str]:
    """Return what locks one of two rows, and then the one that lies before it in the table."""
    lock = f"SELECT 1 FROM {model._meta.db_table} WHERE id = '{{}}' FOR UPDATE"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {model._meta.db_table} ORDER BY ctid DESC")
        [(last,), (first,)] = cursor.fetchall()
    return lock.format(last), lock.format(first)


def test_a_verb_begins_again(source: IngestionSource) -> None:
    start(source)
    verbs.pause(source, actor=ACTOR)
    with crossing(MAILBOX, SOURCE):
        assert verbs.resume(source, actor=ACTOR).status == "importing"
    assert AuditEvent.objects.filter(action="source.resume").count() == 1


def test_a_group_is_committed_without_being_fetched_again(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    finish(source)
    fill(server, 3)
    discovery.discover(verbs.start_sync(source, actor=ACTOR).pk)
    with crossing(RUN, MAILBOX):
        assert not sync.sync_mailbox(due_now().pk)
    assert len(server.fetched) == 3
    assert Run.objects.latest("started_at").message == "3 archived."
    assert_exact(server, source)


def test_a_slice_of_work_goes_on_at_once(server: Server, source: IngestionSource) -> None:
    """The database is there: nobody need wait for it."""
    fill(server, 3)
    start(source)
    with broken_off("ingestion_run", "UPDATE", times=4):
        assert sync.sync_mailbox(due_now().pk)
    mailbox = Mailbox.objects.get()
    assert (mailbox.attempts, mailbox.lease_expires_at) == (0, None)
    finish(source)
    assert_exact(server, source)


def test_a_mailbox_is_done_with_at_once(source: IngestionSource) -> None:
    start(source)
    with crossing(RUN, MAILBOX):
        assert not sync.sync_mailbox(due_now().pk)
    assert Run.objects.get().message == "0 archived."


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [
        (errors.Unavailable("It is away.", code="away"), RUN, MAILBOX),
        (errors.MailboxUnavailable("It is closed.", code="closed"), RUN, MAILBOX),
        (errors.Fatal("It is no such server.", code="other"), MAILBOX, SOURCE),
    ],
    ids=["retry", "mailbox", "stop"],
)
def test_how_a_slice_failed_is_written_down_at_once(
    server: Server,
    source: IngestionSource,
    error: errors.ConnectorError,
    first: str,
    second: str,
) -> None:
    fill(server, 1)
    start(source)
    with contextlib.ExitStack() as stack:

        def fail(_: str) -> None:
            stack.enter_context(crossing(first, second))
            raise error

        server.before_changes = fail
        assert not sync.sync_mailbox(due_now().pk)
    assert Mailbox.objects.get().last_error_code == error.code


def test_a_sync_begins_at_its_time(source: IngestionSource) -> None:
    """Of a run that has some mailboxes alone, and becomes one of all."""
    start(source)
    finish(source)
    Mailbox.objects.update(last_synced_at=timezone.now() - dt.timedelta(minutes=1))
    runs.follow_now(source.pk, [Mailbox.objects.get().pk])
    IngestionSource.objects.update(next_sync_at=timezone.now())
    with crossing(RUN, SOURCE):
        list(due_work.hand_out())
    list(due_work.hand_out())  # who went first may still have had the source
    assert Run.objects.get(finished_at=None).discovered_at is None


def test_a_message_is_not_blamed_for_a_transaction_that_was_broken_off(
    server: Server, source: IngestionSource
) -> None:
    """The worst is expected of the third message, and no more of the second; then that is undone."""
    fill(server, 4)
    start(source)
    Mailbox.objects.update(worker_deaths=1)
    with contextlib.ExitStack() as stack:

        def cross(fetched: int) -> None:
            if fetched == 1:
                assert FailedMessage.objects.get().attempts == 1
                stack.enter_context(crossing(FAILURE, MAILBOX))

        server.before_message = cross
        assert sync.sync_mailbox(due_now().pk)
    assert len(server.fetched) == 2
    assert not FailedMessage.objects.exists()
    assert finish(source).message == "4 archived."
    assert_exact(server, source)


@contextlib.contextmanager
def broken_off(table: str, statement: str, *, times: int) -> Iterator[None]:
    """Have PostgreSQL break off the next statements on a table's rows, as it does in a deadlock."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE broken_off")
        cursor.execute(
            f"""CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                  IF nextval('broken_off') <= {times} THEN
                    RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01';
                  END IF;
                  RETURN coalesce(NEW, OLD);
                END $$"""
        )
        cursor.execute(
            f"""CREATE TRIGGER break_off BEFORE {statement} ON {table}
                FOR EACH ROW EXECUTE FUNCTION break_off()"""
        )
        try:
            yield
            cursor.execute("SELECT last_value FROM broken_off")
            assert cursor.fetchone()[0] >= times
        finally:
            cursor.execute(f"DROP TRIGGER break_off ON {table}")
            cursor.execute("DROP FUNCTION break_off; DROP SEQUENCE broken_off")


def test_a_message_is_not_blamed_where_taking_that_back_is_broken_off_too(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 4)
    start(source)
    Mailbox.objects.update(worker_deaths=1)
    # Of all tries to commit a message, and of the first to undo what was written down of it.
    with broken_off("ingestion_failedmessage", "DELETE", times=5):
        assert sync.sync_mailbox(due_now().pk)
    assert not FailedMessage.objects.exists()
    assert finish(source).message == "4 archived."
    assert_exact(server, source)


def test_who_is_broken_off_again_and_again_is_told_to_try_again(source: IngestionSource) -> None:
    tries = []

    @in_transaction
    def verb() -> None:
        tries.append(1)
        locked(source)
        with connection.cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$")

    with pytest.raises(LostRace, match="Try again"):
        verb()
    assert len(tries) == 4


# -- what changes many rows by one statement -------------------------------------------------------


def test_times_that_can_not_be_are_brought_back_in_a_second_try(owner: User) -> None:
    source = rows.a_source(owner, next_sync_at=None, check_not_before=timezone.now())
    for number in range(2):
        rows.a_mailbox(source, str(number))
    with crossing(*two_rows(Mailbox)):
        assert clocks.bring_back() == 2


def test_rows_of_another_cluster_come_into_the_feed_in_a_second_try(owner: User) -> None:
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    rows.archived(folder, b"Subject: 1\r\n\r\n", b"Subject: 2\r\n\r\n")
    Placement.objects.update(changed_xid=2**40)
    with crossing(*two_rows(Placement)):
        assert restored.bring_back_feed() == 2


def test_doorbells_begin_again_in_a_second_try(owner: User) -> None:
    for _ in range(2):
        WebhookEndpoint.objects.create(owner=owner, url="https://a", events=[], rung_xid=2**40)
    with crossing(*two_rows(WebhookEndpoint)):
        restored.bring_back_feed()
    assert not WebhookEndpoint.objects.exclude(rung_xid=0).exists()


def test_deliveries_are_forgotten_in_a_second_try(owner: User) -> None:
    endpoint = WebhookEndpoint.objects.create(owner=owner, url="https://a", events=[])
    long_ago = timezone.now() - dt.timedelta(days=40)
    for _ in range(2):
        WebhookDelivery.objects.create(
            endpoint=endpoint, event="", data={}, outcome="delivered", finished_at=long_ago
        )
    with crossing(*two_rows(WebhookDelivery)):
        assert webhooks.forget_old() == 2


def test_packs_are_to_be_indexed_anew_in_a_second_try(owner: User) -> None:
    source = rows.a_source(owner)
    for _ in range(2):
        Pack.objects.create(pk=uuid.uuid4(), source=source, size_bytes=1, message_count=0)
    with crossing(*two_rows(Pack)):
        assert indexing.owe(everything=True) == 2


@pytest.mark.parametrize("look", [watch.look_at_sources, watch.look_at_service])
def test_who_looks_for_alerts_begins_again(owner: User, look: Callable[[], None]) -> None:
    about = rows.a_source(owner)
    Alert.objects.create(kind=AlertKind.SOURCE_FAILURES, source=about, message="It fails.")
    Alert.objects.create(kind=AlertKind.ARCHIVE_IDLE, message="Nothing comes.")
    with crossing(ALERT, "SELECT pg_advisory_xact_lock(hashtext('alerts'))"):
        look()
    assert Alert.objects.exclude(well_since=None).count() == 1


@pytest.mark.parametrize(
    ("sqlstate", "went_first", "in_the_way"),
    [
        ("40P01", True, True),
        ("40001", True, True),
        ("55P03", False, True),  # lock_timeout
        ("57014", False, False),  # statement_timeout
        ("57P01", False, False),  # the server ends
    ],
)
def test_what_others_did_is_told_from_what_the_database_lacks(
    sqlstate: str, went_first: bool, in_the_way: bool
) -> None:
    with pytest.raises(OperationalError) as raised, connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$")
    found = others_went_first(raised.value), others_are_in_the_way(raised.value)
    assert found == (went_first, in_the_way)
