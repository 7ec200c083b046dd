"""Migrations beside those who use the database: who must wait, and who goes on."""

import concurrent.futures
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.db.models.signals import post_migrate

from ingestion.models import Placement
from ingestion.services.operations import migrating
from ingestion_project import bootstrap
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers.stack import ROOT, wait_for
from tests.services.test_deadlocks import ONCE_SOMEBODY_WAITS

pytestmark = pytest.mark.django_db(transaction=True)

_LAST = "0035_mailboxes_and_runs_fail_since"
_LET_GO = "It keeps nobody waiting, tries again in"


class Bootstrap:
    """A process that brings the database up to date."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._log = directory / f"bootstrap-{time.monotonic_ns()}"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingestion_project.bootstrap"],
                cwd=ROOT, env=env, stdout=out, stderr=out,
            )  # fmt: skip

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        def is_said() -> bool:
            assert self.process.poll() is None, self.said()
            return self.said().count(text) >= times

        wait_for(is_said)

    def ends_well(self) -> str:
        assert self.process.wait(120) == 0, self.said()
        return self.said()


def connect(name: str = "older", **options: Any) -> "psycopg.Connection[Any]":
    host = settings.DATABASES["default"]["HOST"]
    return psycopg.connect(host=host, user="postgres", dbname=name, **options)


def environ(var_dir: Path, name: str) -> dict[str, str]:
    return {
        **os.environ,
        "VAR_DIR": str(var_dir),
        "DATABASE_URL": f"postgres://postgres@/{settings.DATABASES['default']['HOST']}/{name}",
        "REDIS_URL": settings.REDIS_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
    }


@pytest.fixture(scope="module")
def of_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database that knows nothing later than 0032."""
    with connect("postgres", autocommit=True) as server:
        server.execute("CREATE DATABASE of_before")
        env = environ(tmp_path_factory.mktemp("before"), "of_before")
        command = [sys.executable, "manage.py", "migrate", "-v0", "ingestion", "0032"]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        yield "of_before"
        server.execute("DROP DATABASE of_before WITH (FORCE)")


@pytest.fixture
def older(of_before: str) -> Iterator[None]:
    """A copy of that, `older`, for one test."""
    with connect("postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE older TEMPLATE {of_before}")
        yield
        server.execute("DROP DATABASE older WITH (FORCE)")


@pytest.fixture
def begin(tmp_path: Path, older: None) -> Iterator[Callable[[], Bootstrap]]:
    begun: list[Bootstrap] = []

    def one() -> Bootstrap:
        begun.append(Bootstrap(tmp_path, environ(tmp_path / "var", "older")))
        return begun[-1]

    yield one
    for each in begun:
        each.process.kill()
        each.process.wait()


def test_a_database_that_comes_up_later_is_waited_for(tmp_path: Path, older: None) -> None:
    """As after a power cut, when nobody would start the service again."""
    env = environ(tmp_path / "var", "older")
    real = settings.DATABASES["default"]["HOST"]
    env["DATABASE_URL"] = env["DATABASE_URL"].replace(real, str(tmp_path))
    bootstrap = Bootstrap(tmp_path, env)
    try:
        bootstrap.wait_for("The start waits for it, and goes on by itself")
        (tmp_path / ".s.PGSQL.5432").symlink_to(f"{real}/.s.PGSQL.5432")
        bootstrap.ends_well()
    finally:
        bootstrap.process.kill()


def test_a_database_that_refuses_is_told_at_once(tmp_path: Path) -> None:
    bootstrap = Bootstrap(tmp_path, environ(tmp_path / "var", "nowhere"))
    assert bootstrap.process.wait(120) == 1
    assert "The database refuses: " in bootstrap.said()
    assert '"nowhere" does not exist\nIs DATABASE_URL right?' in bootstrap.said()


@pytest.mark.parametrize(
    ("said", "is_no"),
    [
        ('FATAL:  permission denied for database "mail"', True),
        ('FATAL:  database "mail" is not currently accepting connections', True),
        ("server does not support SSL, but SSL was required", True),
        ("SSL error: certificate verify failed", True),
        ('server certificate for "a" does not match host name "b"', True),
        ("FATAL:  the database system is not yet accepting connections", False),
        ("FATAL:  the database system is starting up", False),
        ("SSL connection has been closed unexpectedly", False),
        ('could not translate host name "db" to address: Name or service not known', False),
    ],
)
def test_what_a_server_will_say_no_to_again(said: str, is_no: bool) -> None:
    assert bool(bootstrap._NO.search(f"connection failed: {said}")) == is_no


def test_settings_that_are_no_good_are_told_without_a_traceback(tmp_path: Path) -> None:
    bootstrap = Bootstrap(tmp_path, environ(tmp_path, "a") | {"DATABASE_URL": "postgres://a:b/c@d"})
    assert bootstrap.process.wait(120) == 1
    assert bootstrap.said().startswith("DATABASE_URL must look like")


def applied() -> set[str]:
    with connect() as other:
        rows = other.execute("SELECT name FROM django_migrations WHERE app = 'ingestion'")
        return {name for (name,) in rows}


def index_is_valid() -> bool | None:
    with connect() as other:
        row = other.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('pack_small')"
        ).fetchone()
        return row[0] if row else None


@pytest.mark.parametrize("table", ["ingestion_run", "ingestion_mailbox"])
def test_a_migration_behind_a_long_transaction_keeps_nobody_and_ends_after_it(
    begin: Callable[[], Bootstrap], table: str
) -> None:
    """0034, which has the runs for itself, is one transaction; 0035 is none."""
    with connect(application_name="the nightly report") as long, connect(autocommit=True) as other:
        long.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        other.execute("SET statement_timeout = '20s'")  # behind one that waits, it would wait, too
        bootstrap = begin()
        took: list[float] = []
        while bootstrap.said().count(_LET_GO) < 3:
            assert bootstrap.process.poll() is None, bootstrap.said()
            assert len(took) < 2_000, bootstrap.said()
            began = time.monotonic()
            other.execute(f"UPDATE {table} SET id = id WHERE false")
            took.append(time.monotonic() - began)
            time.sleep(0.05)
        assert max(took) < 10
        assert sum(each < 0.5 for each in took) > 20
        said = bootstrap.said()
        pid = long.info.backend_pid
        assert (
            f"have {table} for itself yet: process {pid} (the nightly report, user postgres, in a"
            in said
        )
        assert " UTC, idle) has it." in said
        assert f"SELECT pg_terminate_backend({pid})" in said
        assert [f"in {n} s" in said for n in (1, 2, 4)] == [True] * 3
    bootstrap.ends_well()
    assert _LAST in applied()


def test_an_index_waits_for_long_transactions_and_one_that_was_killed_is_built_again(
    begin: Callable[[], Bootstrap],
) -> None:
    with connect(application_name="pg_dump") as long, connect(autocommit=True) as other:
        long.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        long.execute("SELECT 1")
        first = begin()
        first.wait_for("An index is built beside who writes. It waits for process")
        assert f"process {long.info.backend_pid} (pg_dump, user" in first.said()
        other.execute("UPDATE ingestion_pack SET id = id WHERE false")
        first.process.send_signal(signal.SIGKILL)
        second = begin()
        second.wait_for("An index is built beside who writes")  # once its session is gone
        assert index_is_valid() is False
        assert _LAST not in applied()
    second.ends_well()
    assert (index_is_valid(), _LAST in applied()) == (True, True)


def test_of_two_that_begin_at_once_one_migrates(
    begin: Callable[[], Bootstrap],
) -> None:
    """And who waits for the other is not what that one's index waits for."""
    with connect() as long:
        long.execute("LOCK TABLE ingestion_mailbox IN ROW EXCLUSIVE MODE")
        both = [begin(), begin()]
        wait_for(lambda: any("Another process migrates" in one.said() for one in both))
        wait_for(lambda: any(_LET_GO in one.said() for one in both))
    said = "".join(one.ends_well() for one in both)
    assert said.count("Made the first admin user") == 1
    assert _LAST in applied()


def migrate_older(migrate: Callable[[], None], *, say: Callable[[str], None]) -> None:
    """Migrate the database that `older` makes, here."""
    connection.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(connection.settings_dict, "NAME", "older")
        try:
            migrating.patiently(connection, migrate, say=say)
        finally:
            connection.close()


def test_what_a_migration_puts_off_to_its_end_is_waited_for_without_its_other_locks(
    older: None,
) -> None:
    """An index or a foreign key: Django would keep the transaction open, in which that failed."""
    tried: list[None] = []
    said: list[tuple[str, str]] = []

    with connect(application_name="report") as long:
        long.execute("CREATE TABLE wanted (id int)")
        long.commit()
        long.execute("SELECT * FROM wanted")

        def migrate() -> None:
            tried.append(None)
            with connection.schema_editor() as editor:
                editor.execute("CREATE TABLE made (id int)")
                editor.deferred_sql.append("ALTER TABLE wanted ADD COLUMN name text")

        def say(text: str) -> None:
            said.append((text, connection.connection.info.transaction_status.name))
            long.rollback()

        migrate_older(migrate, say=say)
        assert len(tried) == 2
        [(text, status)] = said
        assert status == "IDLE"
        assert "have wanted for itself yet" in text
        long.execute("SELECT name FROM wanted, made")


def test_a_migration_that_deadlocks_with_others_work_is_tried_again(older: None) -> None:
    tried: list[None] = []

    with connect() as other, concurrent.futures.ThreadPoolExecutor(1) as thread:
        other.execute("CREATE TABLE one (id int); CREATE TABLE two (id int)")
        other.commit()
        other.execute("SET LOCAL deadlock_timeout = '1h'")  # so that it is not the one
        other.execute("SELECT * FROM two")
        crossing = thread.submit(other.execute, ONCE_SOMEBODY_WAITS.format("SELECT FROM one"))

        def migrate() -> None:
            tried.append(None)
            with connection.schema_editor() as editor:
                editor.execute("ALTER TABLE one ADD COLUMN name text")
                editor.execute("ALTER TABLE two ADD COLUMN name text")

        def say(_: str) -> None:
            crossing.result()
            other.rollback()

        migrate_older(migrate, say=say)
        assert len(tried) == 2
        other.execute("SELECT one.name, two.name FROM one, two")


def test_while_it_migrates_no_statement_has_an_end_and_afterwards_each_has() -> None:
    def shown(name: str) -> str:
        with connection.cursor() as cursor:
            cursor.execute(f"SHOW {name}")
            return str(cursor.fetchone()[0])

    seen = []

    def look(**_: Any) -> None:
        seen.append((shown("statement_timeout"), shown("lock_timeout")))

    post_migrate.connect(look)
    try:
        call_command("migrate", verbosity=0)
    finally:
        post_migrate.disconnect(look)
    assert set(seen) == {("0", "2s")}
    assert (shown("statement_timeout"), shown("lock_timeout")) == ("10min", "1min")


def test_drafts_that_a_version_before_archived_lose_their_stable_id(db: None) -> None:
    owner = User.objects.create_user("owner")
    source = a_source(owner, provider="microsoft")
    other = a_source(owner, "Other")
    for one in (source, other):
        folder = a_folder(a_mailbox(one))
        archived(folder, b"a draft", b"a mail")
        placed = Placement.objects.filter(folder=folder)
        placed.update(stable_id=F("remote_id"))
        placed.filter(pk=placed.earliest("pk").pk).update(labels=["\\Draft", "\\Seen"])
    migration = importlib.import_module("ingestion.migrations.0039_drafts_have_no_stable_id")
    with connection.cursor() as cursor:
        cursor.execute(migration._DRAFTS)
    kept = Placement.objects.exclude(stable_id="")
    assert sorted(kept.values_list("folder__mailbox__source__provider", flat=True)) == [
        "generic_imap", "generic_imap", "microsoft",
    ]  # fmt: skip
