"""The release before goes on while the database is the new one already: an import, and a sync.

Its worker, index, control and beat run as processes, from the clone's own history, on the tables
that this version's migrations made.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from honcho.environ import parse_procfile

from ingestion.models import Document, IngestionSource, Mailbox, Pack, Run
from ingestion.services.engine import due_work
from ingestion.services.sources import verbs
from ingestion.states import RunStatus
from ingestion_project.embedded import Local
from ingestion_project.supervisor import end_with_parent
from tests.servers import imap_source
from tests.servers.dovecot import Account, Dovecot
from tests.servers.imap_source import ACTOR
from tests.servers.stack import ROOT

#: The commit of the release before this one. With each release, it becomes that of the tag just
#: made. (Before the first tag: the last commit before migration 0029.)
PREVIOUS = "da728008e033e11641d14b08aa5b618f3cd0044a"
_CODE = ("connectors", "ingestion", "ingestion_project", "templates", "static", "Procfile")

pytestmark = pytest.mark.django_db(transaction=True)


def mail(number: int) -> bytes:
    return b"Subject: number %d\r\nFrom: a@example.com\r\n\r\nbody of %d\r\n" % (number, number)


@contextlib.contextmanager
def previous_release(directory: Path, archive_dir: Path) -> Iterator[Callable[[], str]]:
    """Run its processes on this test's database and archive; yield what reads all that they said.

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
            running.callback(process.wait)
            running.callback(process.terminate)

        start(local.redis().command, local.var_dir)
        for line in programs.values():
            start(("/bin/sh", "-c", f"exec {line}"), code)
        yield lambda: said.read_text(errors="replace")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    account = dovecot.account(*(mail(n) for n in range(40)))
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


def test_the_release_before_imports_indexes_and_syncs_on_the_new_tables(
    account: Account, dovecot: Dovecot, archive_dir: Path, tmp_path_factory: pytest.TempPathFactory,
    wait_for: Callable[..., Any],
) -> None:  # fmt: skip
    source = imap_source.create(account)

    def done(messages: int) -> bool:
        return (
            Run.objects.filter(finished_at=None).count() == 0
            and Document.objects.count() == messages == source_now().message_count
        )

    def source_now() -> IngestionSource:
        return IngestionSource.objects.get(pk=source.pk)

    with previous_release(tmp_path_factory.mktemp("before"), archive_dir) as said:
        verbs.start_import(source, actor=ACTOR)
        try:
            wait_for(lambda: done(50), 240)
            dovecot.append(account.name, "INBOX", *(mail(n) for n in range(200, 205)))
            verbs.start_sync(source_now(), actor=ACTOR)
            wait_for(lambda: done(55), 240)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{said()}") from None
    assert "rror" not in said(), said()
    assert imap_source.archived(source) == dovecot.contents(account.name)
    assert {*Run.objects.values_list("status", "messages_failed")} == {(RunStatus.COMPLETED, 0)}
    assert not Mailbox.objects.exclude(last_error="").exists()

    # And this version goes on from there.
    dovecot.append(account.name, "INBOX", mail(300))
    verbs.start_sync(source_now(), actor=ACTOR)
    due_work.work_until_done(source_now(), on_progress=lambda _: None)
    assert imap_source.archived(source) == dovecot.contents(account.name)
    assert Pack.objects.count() >= 3
