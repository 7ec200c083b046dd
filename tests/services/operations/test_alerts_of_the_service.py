"""What is wrong with the service as a whole: its disk, its index, its database, mail that stopped
coming."""

import datetime as dt
import shutil
import time
import types
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.utils import timezone

from ingestion.models import Alert, AlertKind, AlertRule, IngestionSource, Message, Pack
from ingestion.services.operations import capacity, workers
from ingestion.services.operations.alerting import outage, watch
from tests.e2e import rows
from tests.servers import receiver, stack

pytestmark = pytest.mark.django_db(transaction=True)

GB = 10**9


@pytest.fixture(autouse=True)
def archive(owner: User, archive_dir: Path) -> Path:
    """An archive with a message in it, of a source that has nothing to complain of."""
    cache.clear()
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner), last_synced_at=timezone.now()))
    rows.archived(folder, b"Subject: one\r\n\r\n")
    return archive_dir


def open_kinds() -> dict[str, str]:
    watch.look_at_service()
    return dict(Alert.objects.filter(ended_at=None).values_list("kind", "message"))


def disk(monkeypatch: pytest.MonkeyPatch, *, free: float, total: float = 1_000 * GB) -> None:
    usage = types.SimpleNamespace(free=int(free), total=int(total), used=int(total - free))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def grew(per_day: float) -> None:
    """Have the packs of the last week be so large."""
    Pack.objects.update(
        size_bytes=int(per_day * 7), created_at=timezone.now() - dt.timedelta(days=7, minutes=-1)
    )
    cache.clear()


@pytest.mark.parametrize(
    ("free", "per_day", "words"),
    [
        (500 * GB, 10 * GB, None),
        (500 * GB, 0, None),
        (100 * GB, 20 * GB, "is full in 5 days"),
        (100 * GB, 200 * GB, "is nearly full"),
        (40 * GB, 0, "is nearly full"),
    ],
)
def test_a_disk_that_fills_up_is_told_by_how_the_archive_grew(
    monkeypatch: pytest.MonkeyPatch, free: float, per_day: float, words: str | None
) -> None:
    disk(monkeypatch, free=free)
    grew(per_day)
    found = open_kinds()
    assert set(found) == ({"archive.storage"} if words else set())
    assert words is None or words in found["archive.storage"]
    assert capacity.per_day() == pytest.approx(per_day, rel=0.01)


def test_it_is_told_again_when_it_gets_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, free=100 * GB)
    grew(20 * GB)
    open_kinds()
    disk(monkeypatch, free=10 * GB)
    open_kinds()
    assert Alert.objects.get().stage == 2


def test_an_archive_that_is_not_there_is_told(archive: Path) -> None:
    open_kinds()
    archive.rename(archive.with_name("elsewhere"))
    archive.mkdir()
    assert "is its volume mounted?" in open_kinds()["archive.storage"]


def test_nothing_archived_for_long_is_told(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, free=500 * GB)
    long_ago = timezone.now() - dt.timedelta(hours=80)
    IngestionSource.objects.update(imported_at=long_ago)
    assert open_kinds() == {}, "a message came just now"
    Message.objects.update(archived_at=long_ago)
    settings.ALERT_IDLE_HOURS = 0
    assert open_kinds() == {}
    settings.ALERT_IDLE_HOURS = 72
    assert f"since {long_ago:%Y-%m-%d %H:%M} UTC" in open_kinds()["archive.idle"]


def test_mail_of_a_clock_that_was_ahead_hides_no_silence(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, free=500 * GB)
    settings.ALERT_IDLE_HOURS = 72
    IngestionSource.objects.update(imported_at=timezone.now() - dt.timedelta(hours=80))
    Message.objects.update(archived_at=timezone.now() + dt.timedelta(days=365))
    assert "archive.idle" in open_kinds()


def test_an_index_that_stands_still_is_told_and_one_that_goes_on_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk(monkeypatch, free=500 * GB)
    Pack.objects.update(index_not_before=timezone.now() - dt.timedelta(hours=9))
    assert open_kinds() == {}
    indexed, since = cache.get(watch._PROGRESS_KEY)
    for earlier, indexed_then in ((3_000, indexed), (3_700, indexed + 1)):
        cache.set(watch._PROGRESS_KEY, (indexed_then, since - earlier))
        assert open_kinds() == {}
    cache.set(watch._PROGRESS_KEY, (indexed, since - 3_700))
    assert "0 of 1 indexed" in open_kinds()["index.stuck"]
    cache.set(watch._PROGRESS_KEY, (indexed, time.time() + 3_600))
    open_kinds()  # the clock was set back: it begins anew
    assert cache.get(watch._PROGRESS_KEY)[1] <= time.time()


def test_a_pack_that_search_cannot_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, free=500 * GB)
    Pack.objects.update(index_attempts=1)
    assert "1 pack can't be read" in open_kinds()["index.stuck"]


def test_workers_that_never_start_are_told_and_nothing_changes_while_they_are_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody runs here: who is asked never answers."""
    monkeypatch.setattr(workers, "PING_SECONDS", 0.1)

    def told() -> list[str]:
        watch.look_at_workers()
        return list(Alert.objects.filter(ended_at=None).values_list("message", flat=True))

    def seconds_pass(seconds: float) -> None:
        awaited = cache.get(workers._AWAITED_KEY)
        cache.set(workers._AWAITED_KEY, {queue: at - seconds for queue, at in awaited.items()})

    cache.clear()  # Redis was started too, or anew
    assert told() == []
    seconds_pass(workers.STARTING_SECONDS - 5)
    assert told() == []
    seconds_pass(5)
    [message] = told()
    assert message.startswith("No worker serves the queue sync: nothing is imported")
    assert "No worker serves the queue index: search does not find" in message
    workers.starting()  # `control` is started anew
    assert told() == [message]
    assert Alert.objects.get().well_since is None


def test_a_queue_is_told_though_who_looks_is_started_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`control` lives for a minute each time; `index` answers, `sync` never does."""
    monkeypatch.setattr(workers, "PING_SECONDS", 0.1)
    clock = [time.time()]
    monkeypatch.setattr(workers, "time", types.SimpleNamespace(time=lambda: clock[0]))

    def states(*, after: float) -> tuple[str, str]:
        clock[0] += after
        workers.remember({"sync": [], "control": ["control@here"], "index": ["index@here"]})
        found = workers.states({"sync": [], "control": ["control@here"], "index": []})
        return found["sync"], found["index"]

    def told_of() -> bool:
        watch.look_at_workers()
        return Alert.objects.filter(kind="workers.silent", ended_at=None).exists()

    cache.clear()
    for _ in range(3):
        workers.starting()
        assert states(after=58) == ("starting", "served")
        clock[0] += 1
    workers.starting()
    assert not told_of()
    assert states(after=3) == ("gone", "served")
    assert told_of()
    for _ in range(5):
        clock[0] += 60
        workers.starting()
        silent = workers.states({"sync": [], "index": []})
        assert silent == {"sync": "gone", "index": "starting"}  # that one was there until now
        assert states(after=0) == ("gone", "served")
    clock[0] += workers.STARTING_SECONDS  # it stays: when it is started next, all may start
    workers.starting()
    assert states(after=workers.STARTING_SECONDS - 1) == ("starting", "served")


def test_a_queue_is_told_where_the_clock_was_set_back_since_it_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "PING_SECONDS", 0.1)
    ahead = time.time() + 3_600
    nobody: dict[str, list[str]] = {"sync": []}
    cache.clear()
    cache.set(workers._ANSWERED_KEY, {"sync": ahead})
    assert workers.states(nobody) == {"sync": "gone"}
    cache.clear()
    cache.set(workers._AWAITED_KEY, {"sync": ahead})
    assert workers.states(nobody) == {"sync": "gone"}


def test_a_worker_that_misses_the_time_for_an_answer_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "PING_SECONDS", 0.1)

    def gone_after(seconds: float) -> set[str]:
        cache.set(workers._ANSWERED_KEY, {"sync": time.time() - seconds, "index": time.time()})
        states = workers.states(workers.serving())
        return {queue for queue, state in states.items() if state == "gone"}

    workers.starting()
    assert gone_after(workers.SILENT_SECONDS - 5) == set()
    assert gone_after(workers.SILENT_SECONDS) == {"sync"}


def test_a_database_that_is_gone_is_told_to_pings_after_half_a_minute_and_each_minute(
    owner: User,
) -> None:
    given = {"way": "ping", "kinds": AlertKind.values}
    with receiver.running() as check, receiver.running() as stopped:
        AlertRule.objects.create(owner=owner, url=f"{check.url}?create=1", **given)
        AlertRule.objects.create(owner=owner, url=stopped.url, enabled=False, **given)
        outage.look_at_database()
        with stack.database_gone():
            outage.look_at_database()
            assert check.came == [], "It may only be started anew."
            cache.set(outage._GONE_SINCE_KEY, time.time() - 30)
            for _ in range(3):
                outage.look_at_database()
            [came] = check.came
            assert came.path == "/hook/fail?create=1"
            assert came.body.startswith(b"The database has not answered since ")
            cache.delete(outage._TOLD_KEY)  # a minute passes
            outage.look_at_database()
            assert len(check.came) == 2
        outage.look_at_database()
        with stack.database_gone():
            outage.look_at_database()
        assert len(check.came) == 2, "It was well in between."
        assert stopped.came == []
