"""Parts of a running service that die or sleep in the middle of an import: it completes by itself,
with every message exactly once. A whole service of this module's own, since all of it is killed."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.servers.imap_script import Box, Client, ImapScript
from tests.servers.imap_source import held_by
from tests.servers.own_stack import OwnStack
from tests.servers.stack import let_nobody_give_way, packing_processes, wait_for

pytestmark = pytest.mark.long(seconds=90)
_SECOND = b"Second"
_HELD = "SELECT id FROM ingestion_mailbox WHERE lease_expires_at IS NOT NULL"


@pytest.fixture(scope="module")
def stack() -> Iterator[OwnStack]:
    with OwnStack.started(os.environ) as running:
        yield running


@pytest.fixture
def server() -> Iterator[ImapScript]:
    """Two folders, the second of which is the middle of the import."""
    with ImapScript() as script:
        script.boxes[_SECOND] = Box(validity=2)
        for name, box in script.boxes.items():
            for number in range(60):
                box.deliver(b"Subject: %d\r\n\r\n%s %d\r\n" % (number, name, number))
        yield script


class Halfway:
    """Calls `then` once, when the second folder's message 30 is asked for, before it is sent."""

    def __init__(self, server: ImapScript) -> None:
        self._second = server.boxes[_SECOND]
        self._lock = threading.Lock()
        self._done = False
        server.before_each_mail = self._look

    def _look(self, client: Client, uid: int) -> None:
        if client.box is self._second and uid == 30:
            with self._lock:
                done, self._done = self._done, True
            if not done:
                self.then(client)

    def then(self, client: Client) -> None:
        raise NotImplementedError


def assert_exactly_once(stack: OwnStack, server: ImapScript, source: str) -> None:
    assert stack.archived(source) == held_by(server)
    assert stack.message_count(source) == sum(len(box.mails) for box in server.boxes.values())


def test_a_mailbox_that_no_process_is_free_for_is_left_to_other_machines(
    stack: OwnStack, server: ImapScript
) -> None:
    """What a worker had fetched ahead would wait for it, however long its mailboxes take."""
    go_on = threading.Event()

    def hold(_client: Client, _uid: int) -> None:
        go_on.wait(400)

    server.before_each_mail = hold
    sources = [stack.import_from(server) for _ in range(2)]  # as many as it has processes
    wait_for(lambda: len(stack.rows(_HELD)) == len(sources))
    sources.append(stack.import_from(server))
    with redis.Redis(unix_socket_path=str(stack.root / "var/run/redis.sock")) as broker:
        wait_for(lambda: broker.llen("sync"))
        fetched_ahead = [json.loads(message)[-1] for message in broker.hvals("unacked")]
    go_on.set()
    for source in sources:
        stack.wait_until_active(source)
    assert "sync" not in fetched_ahead


def test_redis_emptied_and_killed_in_the_middle(stack: OwnStack, server: ImapScript) -> None:
    """And the connection drops, so that the mailbox has to be found again by a broker that knows
    nothing of it."""

    class Outage(Halfway):
        def then(self, client: Client) -> None:
            broker = redis.Redis(unix_socket_path=str(stack.root / "var/run/redis.sock"))
            broker.flushall()
            broker.close()
            stack.kill("redis")
            client.hang_up()

    Outage(server)
    source = stack.import_from(server)
    assert stack.wait_until_active(source)["message"].startswith("120 archived.")
    assert_exactly_once(stack, server, source)


def test_postgresql_killed_in_the_middle(stack: OwnStack, server: ImapScript) -> None:
    class Outage(Halfway):
        def then(self, client: Client) -> None:
            stack.kill("postgres")

    Outage(server)
    source = stack.import_from(server)
    assert stack.wait_until_active(source)["message"].startswith("120 archived.")
    assert_exactly_once(stack, server, source)


def test_the_packing_process_killed_in_the_middle(stack: OwnStack, server: ImapScript) -> None:
    """Its worker dies with it, and the next one goes on."""
    workers: list[int] = []

    class Outage(Halfway):
        def then(self, client: Client) -> None:
            workers.append(stack.process_of(client))
            [packing] = wait_for(lambda: packing_processes(workers[0]))
            os.kill(packing, signal.SIGKILL)

    Outage(server)
    source = stack.import_from(server)
    assert stack.wait_until_active(source)["message"].startswith("120 archived.")
    assert_exactly_once(stack, server, source)
    wait_for(lambda: not Path(f"/proc/{workers[0]}").exists())  # while the next one goes on
    assert "packing_process_died" in stack.running.output()


def test_the_packing_process_ends_with_its_worker_and_not_before(
    stack: OwnStack, server: ImapScript
) -> None:
    processes: list[int] = []

    class Outage(Halfway):
        def then(self, client: Client) -> None:
            processes.append(stack.process_of(client))
            processes.extend(wait_for(lambda: packing_processes(processes[0])))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(processes[1], number)

    Outage(server)
    source = stack.import_from(server)
    assert stack.wait_until_active(source)["message"].startswith("120 archived.")
    worker, packing = processes
    assert packing_processes(worker) == [packing]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{packing}").exists())


def test_a_worker_that_sleeps_through_its_lease_can_not_commit(
    stack: OwnStack, server: ImapScript
) -> None:
    """It wakes up with half a folder in hand while another worker has begun with that folder."""
    first_folder_is_counted = (
        "SELECT 1 FROM ingestion_mailbox b JOIN ingestion_ingestionsource s ON s.id = b.source_id"
        " WHERE b.lease_expires_at IS NOT NULL AND s.message_count = 60"
    )
    sleeper: list[tuple[int, Client]] = []
    taken_over, go_on = threading.Event(), threading.Event()

    def look(client: Client, uid: int) -> None:
        if client.box is not server.boxes[_SECOND]:
            return
        if uid == 30 and not sleeper:
            # Not in the middle of a transaction: its row locks would sleep with it.
            wait_for(lambda: stack.rows(first_folder_is_counted))
            sleeper.append((stack.process_of(client), client))
            os.kill(sleeper[0][0], signal.SIGSTOP)
            # Its 20 seconds are over: as they will be, only sooner.
            stack.rows(
                "UPDATE ingestion_mailbox SET lease_expires_at = now() - interval '1 second'"
                " WHERE lease_expires_at IS NOT NULL RETURNING id"
            )
        elif sleeper and client is not sleeper[0][1]:
            taken_over.set()
            assert go_on.wait(400)

    server.before_each_mail = look
    source = stack.import_from(server)
    assert taken_over.wait(240)
    lost = stack.running.output().count("lease_lost")
    os.kill(sleeper[0][0], signal.SIGCONT)
    wait_for(lambda: stack.running.output().count("lease_lost") > lost)
    assert stack.message_count(source) == 60  # the first folder's
    go_on.set()
    assert stack.wait_until_active(source)["message"].startswith("120 archived.")
    assert_exactly_once(stack, server, source)
    packs = stack.rows("SELECT id FROM ingestion_pack WHERE source_id = %s", source)
    files = {path.stem for path in stack.root.glob(f"var/archive/{source}/*/*")}
    assert files == {str(pack["id"]) for pack in packs}


@pytest.mark.parametrize("step", ["1 hour", "-1 hour"])
def test_the_clock_stepped_by_an_hour_in_the_middle(
    stack: OwnStack, server: ImapScript, step: str
) -> None:
    """The service compares the times in its rows to the database's clock alone, so moving all of
    them by an hour is what stepping that clock the other way would be."""

    class Step(Halfway):
        def then(self, client: Client) -> None:
            with stack.connect() as connection, connection.transaction():
                # A clock that steps fires no trigger, not the one that keeps the audit either.
                connection.execute("SET LOCAL session_replication_role = replica")
                columns = connection.execute(
                    "SELECT table_name, column_name FROM information_schema.columns"
                    " WHERE table_name LIKE 'ingestion_%%' AND data_type LIKE 'timestamp%%'"
                    " AND column_name <> 'lease_session_started_at'"  # not told by the clock of now
                ).fetchall()
                assert len(columns) > 20
                # As everybody locks them, or this and a commit would wait for each other.
                order = ["ingestion_ingestionsource", "ingestion_mailbox"]
                columns.sort(key=lambda column: column["table_name"] not in order)
                for column in columns:
                    connection.execute(
                        f"UPDATE {column['table_name']} SET {column['column_name']} ="
                        f" {column['column_name']} - interval '{step}'"
                    )
            client.hang_up()

    Step(server)
    source = stack.import_from(server)
    assert stack.wait_until_active(source)["message"].startswith("120 archived.")
    assert_exactly_once(stack, server, source)


def test_a_message_that_kills_whoever_parses_it_is_archived_without_parsing(
    stack: OwnStack, server: ImapScript
) -> None:
    server.boxes[_SECOND].deliver(b"Subject: =?cp666?q?boom?=\r\n\r\nExact \xff bytes\r\n")
    server.boxes[_SECOND].deliver(b"Subject: the next\r\n\r\n")
    before = stack.deaths
    with stack.running.standing_still("index"):  # it reads the mail in a process that may die
        source = stack.import_from(server)
        run = stack.wait_until_active(source)
        assert stack.deaths - before == 3
        assert run["message"] == "122 archived."
        assert_exactly_once(stack, server, source)
        poison = stack.placed(source, "2:61")
        assert poison["subject"] == ""
        assert poison["defects"] == ["not parsed: workers died when they did"]
        assert not stack.api.get(f"/ingestion/{source}/failures").json()
        unparsed = "SELECT count(*) AS n FROM ingestion_message WHERE subject = ''"
        assert stack.rows(unparsed) == [{"n": 1}]

    def is_read() -> bool:
        let_nobody_give_way(stack.running.process.pid)
        return "boom" in stack.placed(source, "2:61")["subject"]

    wait_for(is_read, 500)
    assert stack.deaths - before == 3


def test_a_message_that_kills_whoever_touches_it_is_set_aside_and_the_rest_goes_on(
    stack: OwnStack, server: ImapScript
) -> None:
    """Nothing is patched: the server kills the process that asks for this message."""
    killed: list[int] = []

    def kill(client: Client, uid: int) -> None:
        if client.box is server.boxes[_SECOND] and uid == 30:
            pid = stack.process_of(client)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    server.before_each_mail = kill
    packs = stack.running.output().count("pack_archived")
    source = stack.import_from(server)
    run = stack.wait_until_active(source)
    # One by one, but for those that passed not a pack each.
    assert stack.running.output().count("pack_archived") - packs < 25
    assert len(set(killed)) == 4  # among others, twice alone, and once without parsing
    assert run["message"].startswith("119 archived, 1 failed.")
    held = held_by(server)
    missing = held.pop(("Second", "2:30"))
    assert stack.archived(source) == held
    [failure] = stack.api.get(f"/ingestion/{source}/failures").json()
    assert (failure["code"], failure["remoteId"]) == ("poison", "2:30")
    assert "retry it" in failure["reason"]

    server.before_each_mail = lambda _client, _uid: None
    assert stack.api.post(f"/ingestion/{source}/failures/retry").status_code < 300
    wait_for(lambda: ("Second", "2:30") in stack.archived(source))
    assert stack.archived(source)["Second", "2:30"] == missing
    assert_exactly_once(stack, server, source)
