"""`make run` as people run it: what dies comes back, and nothing outlives it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from django.conf import settings

from ingestion_project.embedded import own_name
from tests.servers.stack import ROOT, Service, Supervised, descendants, free_port, wait_for

pytestmark = pytest.mark.long(seconds=60)
NAMES = {"web", "worker", "control", "index", "beat", "postgres", "redis"}


@pytest.fixture(scope="module")
def short_dir() -> Iterator[Path]:
    """A directory that only its owner may enter, as VAR_DIR's parent often is."""
    path = Path(tempfile.mkdtemp(prefix="run-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(short_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """`start(*arguments, **environ)` runs the supervisor on a VAR_DIR of the module's own."""
    started: list[Supervised] = []

    def run(*arguments: str, **environ: str) -> Supervised:
        own = {**os.environ, "VAR_DIR": str(short_dir / "var"), "PORT": str(free_port()), **environ}
        log = tmp_path / f"run-{len(started)}.log"
        one = Supervised.start(*arguments, env=own, log=log)
        started.append(one)
        return one

    yield run
    for one in started:
        if one.process.poll() is None:
            one.stop()


def alive(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def all_end(pids: list[int]) -> bool:
    return not [pid for pid in pids if alive(pid)]


def manage(*arguments: str, env: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout


@pytest.mark.parametrize("name", ["web", "worker", "control", "index", "beat"])
def test_a_killed_process_is_started_again_and_leaves_no_child(service: Service, name: str) -> None:
    old = service.pid(name)
    children = descendants(old)
    service.kill(name)
    wait_for(lambda: service.supervised.children().get(name, old) != old)
    assert wait_for(lambda: all_end([old, *children]))
    assert f"{name} was killed by SIGKILL; starting it again" in service.output()


def test_a_killed_web_server_answers_again(service: Service) -> None:
    service.kill("web")

    def answers() -> bool:
        try:
            return httpx.get(f"{service.url}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    assert wait_for(answers)


def test_the_database_and_the_broker_come_back_and_keep_what_they_had(
    start: Callable[..., Supervised], short_dir: Path
) -> None:
    running = start(ADMIN_PASSWORD="")
    running.wait_for_line("Ready: ")
    assert set(running.children()) == NAMES
    assert running.output().count("Made the first admin user") == 1
    assert "password: " in running.output()
    env = {**os.environ, "VAR_DIR": str(short_dir / "var")}
    names = (
        "from django.contrib.auth.models import User as U; "
        "print(*U.objects.values_list('username', flat=True))"
    )
    count = ("shell", "-v0", "-c", names)
    # manage.py beside a running service finds the same database
    assert manage(*count, env=env).split() == ["admin"]
    for name in ("postgres", "redis"):
        old = running.children()[name]
        os.kill(old, signal.SIGKILL)
        assert wait_for(lambda n=name, o=old: running.children().get(n, o) != o)  # type: ignore[misc] # a lambda's defaults
    assert wait_for(lambda: _finds_admin(count, env))


def _finds_admin(command: tuple[str, ...], env: dict[str, str]) -> bool:
    try:
        return manage(*command, env=env).split() == ["admin"]
    except subprocess.CalledProcessError:
        return False


SERVERS = {"postgres", "redis"}


@pytest.mark.parametrize(
    ("number", "arguments", "names"),
    [
        (signal.SIGINT, (), NAMES),
        (signal.SIGKILL, (), NAMES),
        (signal.SIGTERM, ("--only-services",), SERVERS),  # heard as SIGINT is
    ],
)
def test_everything_ends_with_the_supervisor(
    start: Callable[..., Supervised],
    number: signal.Signals,
    arguments: tuple[str, ...],
    names: set[str],
) -> None:
    running = start(*arguments)
    running.wait_for_line("are ready" if arguments else "Ready: ")
    pids = wait_for(lambda: set(running.children()) == names and descendants(running.process.pid))
    assert isinstance(pids, list)
    running.process.send_signal(number)
    assert running.process.wait(240) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    assert wait_for(lambda: all_end(pids))


def test_it_starts_on_what_a_killed_one_left(start: Callable[..., Supervised]) -> None:
    first = start("--only-services", "--no-fsync")
    first.wait_for_line("are ready")
    first.process.kill()
    second = start("--only-services", "--no-fsync")  # the old servers may still be shutting down
    second.wait_for_line("are ready")


def test_a_lock_of_a_pid_that_is_now_somebody_else_is_no_obstacle(
    start: Callable[..., Supervised], short_dir: Path
) -> None:
    first = start("--only-services", "--no-fsync")
    first.wait_for_line("are ready")
    lock = short_dir / "var/postgres/postmaster.pid"
    left = lock.read_text().splitlines()
    first.stop()
    # Of PostgreSQL's own user: it holds somebody else's pid for stale by itself.
    user = {"user": 65534, "group": 65534} if os.getuid() == 0 else {}
    with subprocess.Popen(["sleep", "500"], **user) as stranger:  # type: ignore[call-overload] # keywords in a dict
        left[0] = str(stranger.pid)
        lock.write_text("\n".join(left) + "\n")
        second = start("--only-services", "--no-fsync")
        second.wait_for_line("are ready")
        stranger.kill()


def test_a_second_instance_on_the_same_data_is_refused(start: Callable[..., Supervised]) -> None:
    first = start("--only-services", "--no-fsync")
    first.wait_for_line("are ready")
    second = start()
    assert second.process.wait(240) == 2
    assert "already runs" in second.output()
    assert str(first.process.pid) in second.output()
    assert first.process.poll() is None


def test_a_second_web_server_on_the_same_data_is_refused(service: Service) -> None:
    """It would take away what the first one counted: in memory, as who writes to a file that is
    mapped from a full disk is killed."""
    var_dir = Path(os.environ["VAR_DIR"])
    counted = Path("/dev/shm") / own_name(var_dir)
    assert counted.stat().st_mode & 0o777 == 0o700
    counts = set(counted.iterdir())
    assert counts
    env = {**os.environ, **service.env, "PORT": str(free_port())}
    command = [str(Path(sys.executable).with_name("gunicorn")), "--config"]
    command += ["python:ingestion_project.web", "ingestion_project.wsgi"]
    second = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert second.returncode == 1
    assert f"already runs on {var_dir}" in second.stderr
    assert counts <= set(counted.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_a_web_server_answers_where_the_disk_of_its_var_dir_is_full(tmp_path: Path) -> None:
    """Also what nobody asked for before, and it counts for the first time."""
    port, where = free_port(), settings.DATABASES["default"]
    env = {
        **os.environ,
        "VAR_DIR": str(tmp_path),
        "PORT": str(port),
        "DATABASE_URL": f"postgres://postgres@/{where['HOST']}/{where['NAME']}",
        "REDIS_URL": settings.REDIS_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
    }
    command = [str(Path(sys.executable).with_name("gunicorn")), "--config"]
    command += ["python:ingestion_project.web", "ingestion_project.wsgi"]

    def status(path: str) -> int:
        with contextlib.suppress(httpx.ConnectError):
            return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code
        return 0

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(tmp_path)], check=True)
    web = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: status("/healthz") == 200)
        with contextlib.suppress(OSError):
            (tmp_path / "fill").write_bytes(b"\0" * 1_000_000)
        assert [status(path) for path in ("/healthz", "/admin/login/", "/no")] == [200, 200, 404]
    finally:
        web.terminate()
        web.wait(60)
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_busy_port_is_told_before_anything_starts(start: Callable[..., Supervised]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = start(PORT=str(port))
        assert refused.process.wait(240) == 2
    assert f"Can't listen on 127.0.0.1:{port}: Address already in use." in refused.output()
    assert "PORT=" in refused.output()
    assert "postgres" not in refused.output()


def test_a_database_that_cannot_be_prepared_ends_the_start(
    start: Callable[..., Supervised],
) -> None:
    failing = start(ARCHIVE_DIR="relative", DJANGO_SETTINGS_MODULE="no_such_settings")
    assert failing.process.wait(240) == 2
    assert "can't start here" in failing.output()
    assert not descendants(failing.process.pid)


@pytest.mark.parametrize("content", [None, "no certificate\n"], ids=["missing", "not_pem"])
def test_certificates_that_cannot_be_read_are_told_in_a_sentence(
    start: Callable[..., Supervised], tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    failing = start(EXTRA_CA_FILE=str(tmp_path / "ca.pem"))
    assert failing.process.wait(240) == 2
    assert "ca.pem can't be used" in failing.output()
    assert "Traceback" not in failing.output()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_run_it(tmp_path: Path) -> None:
    """As `nobody`, with only the right to enter this checkout, wherever root keeps it."""
    own = Path(tempfile.mkdtemp(prefix="run-"))
    shutil.chown(own, 65534, 65534)
    log = tmp_path / "nobody.log"
    command = [
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
        "--securebits=+no_setuid_fixup",  # or access(2) would ignore that capability
        *(sys.executable, "-m", "ingestion_project.run", "--only-services"),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "VAR_DIR": str(own / "var"), "HOME": str(own)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    running = Supervised(process, log)
    try:
        running.wait_for_line("are ready")
        assert (own / "var/postgres").stat().st_uid == 65534
    finally:
        running.stop()
        shutil.rmtree(own)
