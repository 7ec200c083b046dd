"""The release before goes on while the database is migrated under it, and on the new tables then.

Its worker, index, control and beat run as processes, from the clone's own history, on a database
that its own migrations made. This version's come in the middle of an import.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from honcho.environ import parse_procfile

from ingestion.models import Document, IngestionSource, Mailbox, Message, Pack, Run
from ingestion.services.engine import commit, due_work
from ingestion.services.sources import verbs
from ingestion.states import RunStatus
from ingestion_project.embedded import Local
from ingestion_project.supervisor import end_with_parent
from tests.servers import imap_source
from tests.servers.dovecot import Account, Dovecot
from tests.servers.imap_source import ACTOR
from tests.servers.slow_link import SlowLink
from tests.servers.stack import ROOT, let_nobody_give_way

#: The commit of the release before this one. With each release, it becomes that of the tag just
#: made. (Before the first tag: the last commit before migration 0029.)
PREVIOUS = "da728008e033e11641d14b08aa5b618f3cd0044a"
_CODE = (
    *("connectors", "ingestion", "ingestion_project", "templates", "static"),
    *("Procfile", "manage.py"),
)
#: What its first source has, of 4 kB each, and how fast that comes until the database is migrated:
#: some minutes for what takes seconds, or a minute on a busy machine.
MESSAGES, BYTES_PER_SECOND = 200, 5_000
_ADD_SOURCE = """
import json, sys, django
django.setup()
from django.contrib.auth.models import User
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration
configuration.create(
    owner=User.objects.create_user("before"), name="Before", provider="generic_imap",
    provider_config=json.loads(sys.argv[1]), auto_import=True, actor=Actor.system("test"),
)
"""

pytestmark = pytest.mark.django_db(transaction=True)


def mail(number: int, size_bytes: int = 0) -> bytes:
    head = b"Subject: number %d\r\nFrom: a@example.com\r\n\r\nbody of %d\r\n" % (number, number)
    return head + b"x" * size_bytes + b"\r\n"


@pytest.fixture
def empty_database(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a database without a table be this test's: others need the one that is migrated."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE before")
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "NAME", "before")
        yield
        commit.close_idle()
        connection.close()
    with connection.cursor() as cursor:
        cursor.execute("DROP DATABASE before WITH (FORCE)")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it as a process manager does: who does not hear SIGTERM gets SIGKILL after a while."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def previous_release(
    directory: Path, archive_dir: Path, config: dict[str, Any]
) -> Iterator[Callable[[], str]]:
    """Have it migrate this test's database and run its processes on that and the archive, with one
    source; yield what reads all that they said.

    They have a Redis of their own: what this version's have in theirs is not for them.
    """
    code = directory / "release"
    code.mkdir()
    command = ["git", "archive", PREVIOUS, *_CODE]
    archived = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert archived.returncode == 0, (
        f"The history of this clone must go back to {PREVIOUS}: git fetch --unshallow. "
        + archived.stderr.decode()
    )
    subprocess.run(["tar", "-x"], cwd=code, input=archived.stdout, check=True)
    local = Local(directory / "var")
    local.var_dir.mkdir()
    local.make_socket_dir()
    database = settings.DATABASES["default"]
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(code),
        "VAR_DIR": str(local.var_dir),
        "ARCHIVE_DIR": str(archive_dir),
        "DATABASE_URL": f"postgres://postgres@/{database['HOST']}/{database['NAME']}",
        "REDIS_URL": local.redis_url,
        "SECRET_KEY": settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        "WORKER_CONCURRENCY": "1",
        "LOG_FORMAT": "console",
    }
    programs = parse_procfile((code / "Procfile").read_text()).processes
    del programs["web"]
    said = directory / "said"
    with contextlib.ExitStack() as running, said.open("wb") as out:

        def start(words: Sequence[str], where: Path) -> None:
            process = subprocess.Popen(
                words, cwd=where, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - only a prctl
            )  # fmt: skip
            running.callback(_end, process)

        for words in (
            ("manage.py", "migrate", "--verbosity=0"),
            ("-c", _ADD_SOURCE, json.dumps(config)),
        ):
            subprocess.run([sys.executable, *words], cwd=code, env=env, stdout=out, check=True)
        start(local.redis().command, local.var_dir)
        for line in programs.values():
            start(("/bin/sh", "-c", f"exec {line}"), code)
        yield lambda: said.read_text(errors="replace")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    account = dovecot.account(*(mail(n, 4_000) for n in range(MESSAGES - 11)))
    dovecot.append(account.name, "Work/2024", *(mail(n) for n in range(100, 110)), mail(1))
    return account


def test_the_release_before_is_the_one_that_was_tagged_last() -> None:
    """And it does not know of what the newest migrations made: else nothing would be tested."""

    def git(*words: str) -> list[str]:
        said = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True, text=True)
        return said.stdout.split()

    if git("tag", "--merged", "HEAD^"):
        tag = git("describe", "--tags", "--abbrev=0", "HEAD^")
        assert git("rev-list", "-n1", *tag) == [PREVIOUS], f"It is {tag} now: set PREVIOUS."
    else:
        there = git("ls-tree", "--name-only", PREVIOUS, "ingestion/migrations/")
        assert "ingestion/migrations/0029_documents_have_numbers.py" not in there


@pytest.mark.timeout(1_800)
@pytest.mark.long(seconds=40)
@pytest.mark.usefixtures("empty_database")
def test_the_release_before_imports_indexes_and_syncs_while_and_after_the_database_is_migrated(
    account: Account, dovecot: Dovecot, archive_dir: Path, tmp_path_factory: pytest.TempPathFactory,
    wait_for: Callable[..., Any],
) -> None:  # fmt: skip
    other = dovecot.account(*(mail(n) for n in range(400, 410)))

    def done(messages: int) -> bool:
        let_nobody_give_way(os.getpid())
        counted = sum(IngestionSource.objects.values_list("message_count", flat=True))
        return (
            Run.objects.filter(finished_at=None).count() == 0
            and Document.objects.count() == messages == counted
        )

    def goes_on() -> bool:
        return Message.objects.count() > had

    with SlowLink(dovecot.host, dovecot.port, bytes_per_second=BYTES_PER_SECOND) as link:
        config = imap_source.config(account, host=link.host, port=link.port)
        with previous_release(tmp_path_factory.mktemp("before"), archive_dir, config) as said:
            try:
                had = 11  # the other folder's, which is done with
                wait_for(goes_on, 500)
                call_command("migrate", interactive=False, verbosity=0)
                had = Message.objects.count()
                assert had < MESSAGES, "there was nothing left to import"
                wait_for(goes_on, 500)
                link.bytes_per_second = None
                wait_for(lambda: done(MESSAGES), 500)
                # What begins on the new tables: a sync, and an import.
                source = IngestionSource.objects.get()
                dovecot.append(account.name, "INBOX", *(mail(n) for n in range(200, 205)))
                verbs.start_sync(source, actor=ACTOR)
                another = imap_source.create(other)
                verbs.start_import(another, actor=ACTOR)
                wait_for(lambda: done(MESSAGES + 15), 500)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{said()}") from None
            assert "rror" not in said(), said()
            assert imap_source.archived(source) == dovecot.contents(account.name)
            assert imap_source.archived(another) == dovecot.contents(other.name)
            assert {*Run.objects.values_list("status", "messages_failed")} == {
                (RunStatus.COMPLETED, 0)
            }
            assert not Mailbox.objects.exclude(last_error="").exists()

        # And this version goes on from there.
        dovecot.append(account.name, "INBOX", mail(300))
        verbs.start_sync(IngestionSource.objects.get(pk=source.pk), actor=ACTOR)
        due_work.work_until_done(
            IngestionSource.objects.get(pk=source.pk), on_progress=lambda _: None
        )
        assert imap_source.archived(source) == dovecot.contents(account.name)
        assert Pack.objects.count() >= 3
