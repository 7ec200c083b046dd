"""What `reconcile` calls missing is fetched by its repair, and one folder that can't be read hides
no other."""

import pytest

from connectors.errors import FolderRefused, MailboxUnavailable, RateLimited, Unavailable
from ingestion.management.base import Exit
from ingestion.models import Folder, IngestionSource, Placement, Proof, Run
from ingestion.services.archive import reconcile
from ingestion.services.archive.reconcile import FolderReport
from ingestion.services.sources import credentials, discovery
from tests.management.backup.world import end_idle_sessions
from tests.servers.command_line import CommandLine
from tests.servers.scripted_provider import Mail, Server
from tests.servers.scripted_source import assert_exact, body, fill, finish, start, synced

pytestmark = pytest.mark.django_db(transaction=True)


def compared(source: IngestionSource) -> dict[str, FolderReport]:
    return {report.path: report for report in reconcile.reconcile(source)}


def test_mail_that_came_below_the_cursor_is_fetched_by_a_repair(
    server: Server, source: IngestionSource, manage: CommandLine
) -> None:
    fill(server, 5)
    late = server.folders["INBOX"].pop(3)
    fill(server, 5, "Sent")
    start(source)
    finish(source)
    server.folders["INBOX"][3] = Mail(body(333), labels=late.labels)
    assert synced(source).message == "0 archived."  # no cursor leads to it
    assert compared(source)["INBOX"].missing == 1
    server.fetched.clear()
    ran = manage.here("reconcile_source", source.name, "--repair", "--json")
    assert (ran.code, ran.json()["repairing"]) == (Exit.PROBLEM, True)
    kept = Proof.objects.latest("at")  # what the pages show
    assert (kept.kind, kept.source, kept.problems) == ("reconciliation", source, 1)
    assert kept.messages == ran.json()["listed"]
    discovery.discover(Run.objects.latest("started_at").pk)
    assert finish(source).message == "1 archived."
    assert server.fetched == ["INBOX/1:3"]  # the others were recognised
    assert_exact(server, source)
    assert all(report.ok for report in compared(source).values())


@pytest.mark.parametrize(
    "error", [FolderRefused("NO [NOPERM] Not for you."), Unavailable("NO [SERVERBUG] Sorry.")]
)
def test_a_folder_that_can_not_be_read_is_told_and_the_others_are_compared(
    server: Server, source: IngestionSource, error: Exception
) -> None:
    for name in "ABC":
        fill(server, 3, name)
    start(source)
    finish(source)

    def refuse(name: str) -> None:
        if name == "B":
            raise error

    server.before_changes = refuse
    reports = compared(source)
    assert (reports["B"].ok, reports["B"].error) == (False, str(error))
    assert (reports["A"].present, reports["C"].present) == (3, 3)


@pytest.mark.parametrize("error", [MailboxUnavailable("No licence."), RateLimited("Wait an hour.")])
def test_a_mailbox_that_can_not_be_opened_now_is_told_and_the_others_are_compared(
    server: Server, source: IngestionSource, error: Exception
) -> None:
    fill(server, 3)
    server.accounts = ("one", "two")
    server.open_errors["one"] = error
    one, two = reconcile.reconcile(source)
    assert (one.mailbox, one.error, two.missing) == ("one@example.com", str(error), 3)
    assert Proof.objects.latest("at").problems == 4


def test_a_listing_that_is_cut_is_told_by_the_providers_own_count(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    server.uncounted["INBOX"] = 2
    report = compared(source)["INBOX"]
    assert (report.listed, report.present, report.unlisted, report.ok) == (3, 3, 2, False)
    assert Folder.objects.get().remote_count == 3
    assert Placement.objects.count() == 3


def test_who_compares_for_hours_finds_the_database_again(
    server: Server, source: IngestionSource
) -> None:
    """Also who renewed a token while a folder was listed."""
    for name in "ABC":
        fill(server, 3, name)
    start(source)
    finish(source)
    exchanging = credentials.environment(source).exchanging

    def renew(name: str) -> None:
        end_idle_sessions()
        with exchanging() as secrets:
            secrets["password"] = f"renewed before {name}"
        end_idle_sessions()

    server.before_changes = renew
    reports = compared(source)
    assert {name: report.present for name, report in reports.items()} == dict.fromkeys("ABC", 3)
    source.refresh_from_db()
    assert source.secrets["password"] == "renewed before C"
    assert Proof.objects.latest("at").problems == 0
