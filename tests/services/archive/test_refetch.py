"""What the archive has lost is fetched again where the provider has it, and nothing is forgotten."""

import os
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from connectors.errors import MailboxUnavailable, MessageGone, NeedsReauth, RateLimited, Unavailable
from ingestion.models import AuditEvent, IngestionSource, Message, Pack, Placement
from ingestion.services.archive import housekeeping, refetch, verify
from ingestion.services.engine import due_work
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.management.backup.world import end_idle_sessions
from tests.servers.command_line import CommandLine
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, body, fill, finish, start, synced

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pack(server: Server, source: IngestionSource) -> Path:
    """A pack of nine imported messages."""
    server.page_size = 1000
    fill(server, 9)
    start(source)
    finish(source)
    [path] = (settings.ARCHIVE_DIR / str(source.pk)).rglob("*.pack")
    return path


def damage(path: Path, row: Message) -> None:
    data = bytearray(path.read_bytes())
    data[row.pack_offset + row.pack_length // 2] ^= 1
    path.write_bytes(data)


def verified(source: IngestionSource) -> list[verify.Problem]:
    problems: list[verify.Problem] = []
    verify.verify_archive([source], on_problem=problems.append)
    return problems


def refetched(source: IngestionSource) -> tuple[tuple[int, int], list[str]]:
    lost = {problem.pack_id for problem in verified(source)}
    left: list[str] = []
    done = refetch.refetch(source, lost, actor=ACTOR, on_left=left.append)
    return (done.fetched, done.left), left


def rows() -> list[object]:
    return list(Message.objects.order_by("pk").values_list("pk", "sha256", "archived_at"))


def test_lost_packs_are_fetched_again_and_the_rows_stay_the_same(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    for number in range(50, 53):
        server.deliver("Work", body(number))
    synced(source)
    before = rows()
    for path in pack.parents[1].rglob("*.pack"):
        path.unlink()
    assert refetched(source) == ((12, 0), [])
    assert rows() == before
    assert verified(source) == []
    assert sorted(Pack.objects.values_list("message_count", flat=True)) == [3, 9]
    assert_exact(server, source)
    assert AuditEvent.objects.filter(action="archive.refetch").exists()
    assert synced(source).messages_new == 0


def test_of_a_damaged_pack_what_can_be_read_goes_along_and_nothing_needs_it_any_more(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    server.fetched.clear()
    damage(pack, Message.objects.order_by("pack_offset")[4])
    assert refetched(source) == ((1, 0), [])
    assert len(server.fetched) == 1
    [problem] = verified(source)
    assert (problem.kind, problem.messages) == ("orphan_pack", 0)
    os.utime(pack, (0, 0))
    assert housekeeping.collect_orphans() == 1
    assert verified(source) == []
    assert_exact(server, source)


def test_what_the_provider_does_not_have_any_more_stays_and_is_told(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    del server.folders["INBOX"][2]  # not known yet
    del server.folders["INBOX"][3]
    Placement.objects.filter(remote_id="1:3", folder__path="INBOX").update(
        removed_at=timezone.now()
    )
    pack.unlink()
    counts, left = refetched(source)
    assert counts == (7, 2)
    assert all("message " in text for text in left)
    assert len(rows()) == 9
    [problem] = verified(source)
    assert (problem.kind, problem.messages) == ("missing_pack", 2)


def test_other_bytes_are_not_taken_for_what_was_lost(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    server.folders["INBOX"][1].body = b"Subject: 0\r\n\r\nwritten again\r\n"
    damage(pack, Message.objects.get(subject="0"))
    counts, [left] = refetched(source)
    assert counts == (0, 1)
    assert "other bytes" in left
    assert [problem.kind for problem in verified(source)] == ["corrupt_message"]
    assert list(pack.parents[1].rglob("*.*")) == [pack]


def test_an_outage_leaves_the_rest_for_the_next_time(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    def fail(handed_out: int) -> None:
        if handed_out == 2:
            raise Unavailable("The connection was lost.")

    pack.unlink()
    server.fetched.clear()
    server.before_message = fail
    counts, left = refetched(source)
    assert sum(counts) == 9
    assert 0 < counts[0] < 9
    assert "The connection was lost." in left[0]
    server.before_message = lambda _: None
    assert refetched(source) == ((counts[1], 0), [])
    assert verified(source) == []
    assert_exact(server, source)


@pytest.fixture
def two_packs(server: Server, source: IngestionSource, pack: Path) -> list[Path]:
    """Lost, with a folder more in the second."""
    for number in range(50, 53):
        server.deliver("Work", body(number))
    synced(source)
    both = list(pack.parents[1].rglob("*.pack"))
    for path in both:
        path.unlink()
    server.opened = 0
    server.fetched.clear()
    return both


@pytest.mark.parametrize("error", [NeedsReauth("Denied."), Unavailable("Away."), RateLimited("…")])
def test_who_is_not_let_in_does_not_try_it_for_each_folder(
    server: Server, source: IngestionSource, two_packs: list[Path], error: Exception
) -> None:
    """Accounts are locked for that, and addresses banned."""
    assert len(server.folders) > 1
    server.open_error = error
    packs = Pack.objects.values_list("pk", flat=True)
    done = refetch.refetch(source, packs, actor=ACTOR, on_left=lambda _: None)
    assert (done.refused, done.fetched, done.packs_not_asked_for) == (error, 0, 1)
    assert server.opened == 1
    assert AuditEvent.objects.filter(action="archive.refetch").exists()


def test_a_mailbox_that_cannot_be_had_is_asked_for_once(
    server: Server, source: IngestionSource, two_packs: list[Path]
) -> None:
    server.open_error = MailboxUnavailable("It has no licence.")
    counts, left = refetched(source)
    assert counts == (0, 12)
    assert server.opened == 1
    assert all("It has no licence." in text for text in left)


def test_what_was_fetched_before_the_provider_refuses_is_kept(
    server: Server, source: IngestionSource, two_packs: list[Path]
) -> None:
    def fail(handed_out: int) -> None:
        if handed_out == 2:
            raise NeedsReauth("Denied.")

    server.before_message = fail
    left: list[str] = []
    packs = {problem.pack_id for problem in verified(source)}
    done = refetch.refetch(source, packs, actor=ACTOR, on_left=left.append)
    assert str(done.refused) == "Denied."
    assert (done.fetched, done.packs_not_asked_for) == (2, 1)
    assert all("Denied." in text for text in left)
    assert sum(problem.messages for problem in verified(source)) == 10
    assert AuditEvent.objects.get(action="archive.refetch").changes["fetched"] == 2


def test_a_mailbox_that_is_to_wait_is_left_and_others_are_fetched(
    server: Server, source: IngestionSource
) -> None:
    """Microsoft counts the requests of each mailbox: all of a domain was to be verified again
    before the others were asked for."""

    def fail(handed_out: int) -> None:
        if server.opened == 1 and handed_out == 2:
            raise RateLimited("Wait a minute.", retry_after_seconds=60)

    server.accounts, server.page_size = ("ada", "bob"), 1000
    fill(server, 9)
    start(source)
    due_work.work_until_done(source, on_progress=lambda _: None)
    for path in (settings.ARCHIVE_DIR / str(source.pk)).rglob("*.pack"):
        path.unlink()
    server.opened = 0
    server.fetched.clear()
    server.before_message = fail
    counts, left = refetched(source)
    assert counts == (11, 7)
    assert all("Wait a minute." in text for text in left)
    assert server.opened == 2


@pytest.mark.parametrize(
    "error", [MailboxUnavailable("It has no licence."), RateLimited("Wait a minute.")]
)
def test_who_is_to_wait_keeps_no_others_from_being_fetched_where_no_mailbox_is_open(
    server: Server, source: IngestionSource, error: Exception
) -> None:
    """The next can't be opened, then the first has another pack."""

    def fail(handed_out: int) -> None:
        if handed_out == 2:
            server.open_error = error
            raise RateLimited("Wait a minute.", retry_after_seconds=60)

    server.accounts = ("ada", "bob")
    for first in (0, 9):
        for number in range(first, first + 9):
            server.deliver("INBOX", body(number))
        discovery.discover(verbs.start_sync(source, actor=ACTOR).pk)
        due_work.work_until_done(source, on_progress=lambda _: None)
    for path in (settings.ARCHIVE_DIR / str(source.pk)).rglob("*.pack"):
        path.unlink()
    server.opened = 0
    server.fetched.clear()
    server.before_message = fail
    packs = Pack.objects.values_list("pk", flat=True)
    done = refetch.refetch(source, packs, actor=ACTOR, on_left=lambda _: None)
    assert (done.refused, done.packs_not_asked_for) == (None, 0)
    assert (done.fetched, done.left) == (2, 34)
    assert server.opened == 2


def test_a_connection_that_is_lost_is_made_again_for_the_next_folder(
    server: Server, source: IngestionSource, two_packs: list[Path]
) -> None:
    def fail(handed_out: int) -> None:
        if handed_out == 1 and server.opened == 1:
            raise Unavailable("The connection was lost.")

    server.before_message = fail
    (fetched, left), _ = refetched(source)
    assert fetched > 1
    assert left > 0
    assert server.opened == 2


def test_a_message_that_can_be_read_once_and_not_twice_costs_nothing_that_was_fetched(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    first, second = Message.objects.order_by("pack_offset")[3:5]

    def fail(_: int) -> None:
        server.before_message = lambda _: None
        damage(pack, second)

    damage(pack, first)
    server.before_message = fail
    assert refetched(source) == ((1, 0), [])
    assert [problem.message_id for problem in verified(source)] == [second.pk]


def test_a_verification_beside_it_misses_no_rows(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    """One message of each pack can't be had again: it keeps a row, and had more when it was
    listed."""
    for number in range(50, 53):
        server.deliver("Work", body(number))
    synced(source)
    for row in Message.objects.all():
        [path] = pack.parents[1].rglob(f"{row.pack_id}.pack")
        damage(path, row)
    server.refused["1:1"] = MessageGone("Gone.")
    lost = {pack.pk for pack in Pack.objects.filter(source=source)}
    problems: list[verify.Problem] = []

    def fetch_again(so_far: verify.Verification) -> None:
        if so_far.packs == 1:
            refetch.refetch(source, lost, actor=ACTOR, on_left=lambda _: None)

    verify.verify_archive([source], on_problem=problems.append, on_progress=fetch_again)
    assert Message.objects.filter(pack__in=lost).count() == 2
    assert "missing_rows" not in {problem.kind for problem in problems}


def test_the_command_goes_on_with_other_sources_where_one_is_not_let_in(
    manage: CommandLine, server: Server, source: IngestionSource, two_packs: list[Path]
) -> None:
    """And what was fetched of that one until then is told of."""
    other = configuration.create(
        owner=source.owner,
        name="Other",
        provider=source.provider,
        provider_config={"password": "secret"},
        actor=ACTOR,
    )
    start(other)
    due_work.work_until_done(other, on_progress=lambda _: None)
    for path in settings.ARCHIVE_DIR.rglob("*.pack"):
        path.unlink()

    def fail(handed_out: int) -> None:
        if server.opened == 1 and handed_out == 2:
            raise NeedsReauth("The password was not accepted.")

    server.opened = 0
    server.fetched.clear()
    server.before_message = fail
    found = manage.here("verify_archive", "--refetch", "--json")
    assert found.code == 1
    assert "The password was not accepted." in found.stderr
    told = found.json()
    assert told["missingPacks"] == 4
    assert (told["refetched"], told["packsNotAskedFor"]) == (2 + 12, 1)
    assert told["notRefetched"] in {9 - 2, 3 - 2}
    assert "what is lost of 1 more pack was not asked for" in found.stderr


def test_the_command_says_that_what_is_left_is_not_tried_again_by_itself(
    manage: CommandLine, server: Server, source: IngestionSource, pack: Path
) -> None:
    """Of who is to wait a provider's words promise that, as it is where a sync is told to."""

    def fail(handed_out: int) -> None:
        if handed_out == 2:
            raise RateLimited("Slow down. It goes on by itself.")

    pack.unlink()
    server.fetched.clear()
    server.before_message = fail
    told = manage.here("verify_archive", "--refetch").stderr
    assert "It goes on by itself." in told
    assert f"{source.name}: what is left is not tried again by itself" in told
    server.before_message = lambda _: None
    assert "by itself" not in manage.here("verify_archive", "--refetch").stderr


def test_who_fetches_for_hours_finds_the_database_again(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    """Else what takes longer than a session may idle would never be archived again."""
    pack.unlink()
    server.before_message = end_idle_sessions
    assert refetched(source) == ((9, 0), [])
    server.before_message = lambda _: None
    assert verified(source) == []
    assert_exact(server, source)


def test_housekeeping_leaves_it_the_pack_that_it_writes_for_hours(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    def two_hours_later(_: int) -> None:
        for half in pack.parents[1].rglob("*.partial"):
            os.utime(half, (0, 0))
        assert housekeeping.collect_orphans() == 0

    pack.unlink()
    server.before_message = two_hours_later
    assert refetched(source) == ((9, 0), [])
    server.before_message = lambda _: None
    assert verified(source) == []


def test_a_token_that_is_renewed_on_the_way_is_kept_though_the_session_was_ended(
    server: Server, source: IngestionSource, pack: Path
) -> None:
    """Else an hour's token would end with what was fetched of the pack until then."""
    exchanging = credentials.environment(source).exchanging

    def renew(handed_out: int) -> None:
        end_idle_sessions()
        with exchanging() as secrets:
            secrets["password"] = f"renewed after {handed_out}"

    pack.unlink()
    server.fetched.clear()
    server.before_message = renew
    assert refetched(source) == ((9, 0), [])
    server.before_message = lambda _: None
    source.refresh_from_db()
    assert source.secrets["password"] == "renewed after 8"
    assert_exact(server, source)


def test_the_command_offers_it_and_says_what_came_of_it(
    manage: CommandLine, server: Server, source: IngestionSource, pack: Path
) -> None:
    pack.unlink()
    assert "--refetch" in manage.here("verify_archive").stdout
    found = manage.here("verify_archive", "--refetch", "--json")
    assert found.code == 1
    assert (found.json()["refetched"], found.json()["notRefetched"]) == (9, 0)
    assert manage.here("verify_archive").code == 0
