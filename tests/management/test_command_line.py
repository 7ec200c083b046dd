"""`ingestion` as people type it: the overview, Tab in a real bash and zsh, Ctrl-C, and a VAR_DIR that is none."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from ingestion.models import Mailbox, Message
from ingestion_project.command_line import OVERVIEW, overview
from tests.servers import imap_source
from tests.servers.command_line import CommandLine
from tests.servers.imap_script import Client, ImapScript
from tests.servers.stack import ROOT, wait_for

BINARIES = Path(sys.executable).parent


# -- the overview ------------------------------------------------------------------------------


def test_the_overview_has_every_command_and_only_such() -> None:
    known = get_commands()
    ours = {name for name, app in known.items() if app == "ingestion"}
    listed = [name for group in OVERVIEW.values() for name in group]
    assert len(listed) == len(set(listed))
    assert ours <= set(listed) <= set(known)
    assert max(map(len, overview("ingestion").splitlines())) <= 80


def test_it_is_there_where_the_settings_are_wrong() -> None:
    shown = subprocess.run(
        [BINARIES / "ingestion", "--help"], cwd="/", capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PORT": "none", "PATH": os.defpath},
    )  # fmt: skip
    assert "usage: ingestion COMMAND" in shown.stdout
    assert "source_status" in shown.stdout


def test_a_command_explains_itself_by_the_name_it_was_called_by(manage: CommandLine) -> None:
    shown = subprocess.run(
        [BINARIES / "ingestion", "runs", "--help"], cwd="/", capture_output=True, text=True,
        check=True, env=manage.env | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "ingestion runs" in shown.stdout.split("example:")[1]
    assert "manage.py" not in shown.stdout


def test_what_is_wrong_stands_below_one_line_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    command = load_command_class("ingestion", "add_source")
    vars(command)["_called_from_command_line"] = True
    with pytest.raises(SystemExit):
        command.create_parser("ingestion", "add_source").parse_args(["--provider", "pigeon"])
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: ingestion add_source [options] [NAME]"
    assert "'pigeon'" in error


# -- what only looks makes nothing -------------------------------------------------------------


@pytest.mark.parametrize("words", [["source_status"], ["doctor"], ["check"], ["create_api_key"]])
def test_a_directory_that_holds_no_service_is_said_to_hold_none_and_is_not_made(
    tmp_path: Path, words: list[str]
) -> None:
    nowhere = tmp_path / "mistyped"
    env = {**os.environ, "VAR_DIR": str(nowhere)}
    if words == ["create_api_key"]:
        words = ["create_api_key", "--user", "admin", "--name", "x"]
    refused = subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert f"There is no service in {nowhere}. Set VAR_DIR" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not nowhere.exists()


def test_help_needs_no_service_and_makes_none(tmp_path: Path) -> None:
    """Nor does any command load for it what asks the others: half of what its start would cost."""
    nowhere = tmp_path / "mistyped"
    story = """if True:
        import django, sys
        from django.core import management
        django.setup()
        for name, app in management.get_commands().items():
            if app == "ingestion":
                command = management.load_command_class(app, name)
                command.create_parser("manage.py", name).print_help()
        print(*sys.modules)
    """
    shown = subprocess.run(
        [sys.executable, "-c", story],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "VAR_DIR": str(nowhere),
             "DJANGO_SETTINGS_MODULE": "ingestion_project.settings"},
    )  # fmt: skip
    assert shown.stdout.count("exit codes:") > 30
    assert not nowhere.exists()
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert "ingestion.management.commands.doctor" in loaded
    assert not loaded & {"celery", "kombu", "redis", "requests", "msal", "rest_framework.views"}


# -- what is loaded ----------------------------------------------------------------------------


def test_a_command_that_only_looks_loads_neither_celery_nor_the_api(manage: CommandLine) -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "manage.py", "source_status"],
        cwd=ROOT, env=manage.env, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "ingestion.models.source" in loaded
    for heavy in ("celery", "kombu", "rest_framework.views", "ingestion.admin", "httpx", "msal"):
        assert heavy not in loaded


def test_workers_load_no_pages(manage: CommandLine) -> None:
    """Nor do their children, which are as large as they are."""
    story = (
        "import sys; from ingestion_project.celery import app;"
        "app.loader.import_default_modules(); print(*sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", story],
        cwd=ROOT, env=manage.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = told.stdout.split()
    assert "ingestion.services.engine.sync" in loaded
    for pages in ("ingestion_project.urls", "ingestion.admin", "ingestion.api.urls"):
        assert pages not in loaded


# -- Tab ---------------------------------------------------------------------------------------


#: How each is started without anybody's own files, and what loads the completion.
_SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(ingestion completion bash)"'),
    "zsh": (
        ["zsh", "--no-rcs", "-i"],
        'autoload -U compinit; compinit -D; eval "$(ingestion completion zsh)"',
    ),
}


class Shell:
    """An interactive shell with the completion loaded, as the README has it."""

    def __init__(self, name: str, env: dict[str, str]) -> None:
        words, loading = _SHELLS[name]
        pid, self._terminal = pty.fork()
        if pid == 0:
            os.execvpe(name, words, env)
        self.pid = pid
        self.says(f'{loading}; echo lo""aded\n', "loaded")

    def says(self, typed: str, wanted: str, timeout_seconds: float = 240) -> str:
        """Type it; return what the terminal shows once that holds `wanted`."""
        os.write(self._terminal, typed.encode())
        shown = ""
        while wanted not in shown:
            ready, _, _ = select.select([self._terminal], [], [], timeout_seconds)
            assert ready, f"No {wanted!r} in {shown!r}"
            shown += re.sub(r"\x1b\[\??[0-9;]*\w|\x07", "", os.read(self._terminal, 4096).decode())
        return shown

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


@pytest.fixture(params=_SHELLS)
def shell(request: pytest.FixtureRequest, manage: CommandLine) -> Iterator[Shell]:
    path = f"{BINARIES}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "PS1": "$ "}
    one = Shell(request.param, manage.env | own)
    yield one
    one.end()


def test_tab_completes_commands_options_and_names_of_sources(
    shell: Shell, server: ImapScript
) -> None:
    imap_source.create(server, name="Alice at work")
    shell.says("ingestion source_st\t", "source_status ")
    shell.says("--wat\t", "--watch ")
    shell.says("Ali\t", r"Alice\ at\ work ")
    shell.says("\x15ingestion re\t\t", "retry_failed")


def test_fish_gets_a_completion_of_its_own(manage: CommandLine) -> None:
    shown = manage.here("completion", "fish")
    assert shown.code == 0
    assert "complete --command ingestion" in shown.stdout


# -- where the output goes, and ends ------------------------------------------------------------


def test_a_terminal_that_lacks_a_sign_and_a_disk_that_is_full_are_no_bug(
    manage: CommandLine, server: ImapScript
) -> None:
    imap_source.create(server, name="Älice")
    arrow = manage("source_status", "Älice", PYTHONIOENCODING="ascii")
    assert (arrow.code, r"\xc4lice" in arrow.stdout) == (0, True)
    assert r"pending_auth \u2192 auth_success" in arrow.stdout
    with Path("/dev/full").open("w") as full:
        refused = subprocess.run(
            [sys.executable, "manage.py", "source_status"],
            cwd=ROOT, env=manage.env, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (refused.returncode, refused.stderr) == (1, "No space left on device.\n")


def test_ctrl_c_while_it_starts_ends_it_without_a_traceback(manage: CommandLine) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-X", "importtime", "manage.py", "source_status"],
        cwd=ROOT, env=manage.env, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - only sets a handler
    )  # fmt: skip
    assert starting.stderr is not None
    for line in starting.stderr:
        if line.endswith("django.conf\n"):
            starting.send_signal(signal.SIGINT)
            break
    _, rest = starting.communicate(timeout=300)
    assert (starting.returncode, "Traceback" in rest) == (130, False)


# -- Ctrl-C ------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_gives_its_mailbox_back_so_that_nobody_takes_it_for_a_death(
    manage: CommandLine, server: ImapScript, number: int
) -> None:
    source = imap_source.create(server, name="Alice")
    for uid in range(1, 401):
        server.inbox.deliver(b"Subject: %d\r\n\r\nbody\r\n" % uid)
    there, go_on = threading.Event(), threading.Event()

    def hang(_client: Client, uid: int) -> None:
        if uid == 300:
            there.set()
            go_on.wait(400)

    server.before_each_mail = hang
    process = manage.start("import_source", "Alice", "--now")
    assert there.wait(240), process.communicate()
    assert Mailbox.objects.get(source=source).lease_expires_at is not None
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    go_on.set()
    assert process.returncode == 130, stderr
    assert "What is archived is kept" in stderr
    assert "Traceback" not in stderr
    left = Mailbox.objects.get(source=source)
    assert left.lease_expires_at is None
    assert left.worker_deaths == 0
    server.before_each_mail = lambda _client, _uid: None
    assert manage.here("import_source", "Alice", "--now").code == 0
    assert Message.objects.count() == 400
    assert wait_for(lambda: server.open_connections == 0)
