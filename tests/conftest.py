"""What every test can ask for: PostgreSQL and Redis, the service, users, an API client, Dovecot.

The two servers start before Django reads its settings, once per process that runs tests, in a
throwaway VAR_DIR. This is why pyproject.toml does not name the settings: pytest-django would read them before this file.
"""

import atexit
import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests import differences
from tests.scheduling import Scheduling
from tests.servers import plugins

if TYPE_CHECKING:
    from django.contrib.auth.models import User

    from ingestion_project.demo.object_store import ObjectStoreServer
    from tests.servers.command_line import CommandLine
    from tests.servers.dovecot import Dovecot
    from tests.servers.gmail import Gmail
    from tests.servers.graph import GraphServer
    from tests.servers.smtp import Mailbox
    from tests.servers.stack import Service, Supervised

#: Settings of the developer's own shell must not change what the tests see.
_OWN_SETTINGS = (
    *("ADMIN_PASSWORD", "ALLOWED_HOSTS", "API_REQUESTS_PER_MINUTE", "ARCHIVE_DIR"),
    *("ARCHIVE_URL", "ARCHIVE_LOCK_DAYS"),
    "ALERT_IDLE_HOURS",
    *(
        "CSRF_TRUSTED_ORIGINS",
        "DATABASE_URL",
        "DEBUG",
        "DEFAULT_FROM_EMAIL",
        "EMAIL_URL",
        "ENCRYPTION_KEYS",
        "EXPORT_DIR",
        "EXTRA_CA_FILE",
    ),
    *("FORBID_PRIVATE_ADDRESSES", "HOST", "HTTPS", "IMAP_CONNECTIONS_PER_ACCOUNT", "LOG_FORMAT"),
    "METRICS_TOKEN",
    *("MAX_MESSAGE_BYTES", "NETWORK_TIMEOUT_SECONDS", "PORT", "REDIS_URL", "SECRET_KEY"),
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "SENTRY_DSN"),
    "PUBLIC_URL",
    *(
        "TRUSTED_PROXIES",
        "VAR_DIR",
        "WORKER_CONCURRENCY",
        "GOOGLE_GMAIL_URL",
        "GOOGLE_DIRECTORY_URL",
        "GOOGLE_PUBSUB_URL",
    ),
    *("GOOGLE_AUTH_URL", "GOOGLE_TOKEN_URL", "GOOGLE_QUOTA", "GOOGLE_UNITS_PER_USER"),
    *("GOOGLE_UNITS_PER_PROJECT", "GOOGLE_CONNECTIONS_PER_MAILBOX", "MICROSOFT_LOGIN_URL"),
    *("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_NAME", "OIDC_GROUPS"),
    *("OIDC_GROUPS_CLAIM", "OIDC_DEFAULT_GROUP", "SSO_ONLY", "REQUIRE_SECOND_FACTOR"),
    *("MICROSOFT_GRAPH_URL", "MICROSOFT_REQUESTS_PER_MAILBOX", "MICROSOFT_CONNECTIONS_PER_MAILBOX"),
)
_started: dict[str, Any] = {}


def _start_servers() -> None:
    var_dir = Path(tempfile.mkdtemp(prefix="ingestion-tests-"))
    os.environ["VAR_DIR"] = str(var_dir)
    plugins.install(var_dir / "site", maildir_root=var_dir / "maildirs")
    from tests.servers import migrated  # after VAR_DIR
    from tests.servers.stack import Supervised

    migrated.copy_to(var_dir)

    servers = Supervised.start(
        "--only-services", "--no-fsync", env=os.environ, log=var_dir / "services.log"
    )
    _started.update(var_dir=var_dir, servers=servers)
    atexit.register(_stop_servers)  # also where pytest itself ends badly
    servers.wait_for_line("are ready")
    os.environ["DJANGO_SETTINGS_MODULE"] = "ingestion_project.settings"
    from django.conf import settings  # after VAR_DIR

    assert var_dir == settings.VAR_DIR, "The settings were read too early."
    # Each test's client has a WhiteNoise of its own, which would look at all files first.
    settings.WHITENOISE_AUTOREFRESH = True


def _stop_servers() -> None:
    servers: Supervised = _started["servers"]
    servers.stop()
    shutil.rmtree(_started["var_dir"], ignore_errors=True)


#: `-n`: this process only hands the tests out to others, which have servers of their own.
_HANDS_OUT = "PYTEST_XDIST_WORKER" not in os.environ and any(
    argument.startswith(("-n", "--numprocesses")) for argument in sys.argv
)
for _name in _OWN_SETTINGS:
    os.environ.pop(_name, None)
if not _HANDS_OUT:
    _start_servers()  # at import, so that test modules may import models


def pytest_configure(config: pytest.Config) -> None:
    if _HANDS_OUT:  # to those who must not read the settings before their own VAR_DIR is set
        os.environ.pop("DJANGO_SETTINGS_MODULE", None)
        if not config.option.collectonly:
            from tests.servers import migrated

            database = contextlib.ExitStack()
            database.enter_context(migrated.made())
            config.add_cleanup(database.close)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    _started["scheduling"] = scheduling = Scheduling(config, log)
    return scheduling


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "scheduling" in _started:
        terminalreporter.section("processes")
        for line in _started["scheduling"].endings():
            terminalreporter.write_line(line)


def pytest_collection() -> None:
    """Where several processes share the tests, have each compile other modules than the rest first.

    To rewrite all asserts of a fresh clone takes a process ten seconds. So it does a part, and finds
    in the cache what the others did.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER")
    if name is None:
        return
    tests = Path(__file__).parent
    paths = sorted(tests.glob("**/test_*.py"))
    number, count = int(name.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in paths[number::count]:
        # What can't be imported is told where it is collected, which imports it again.
        with contextlib.suppress(Exception):
            importlib.import_module(".".join(path.relative_to(tests.parent).with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, have them end together: what is long comes first,
    then what waits for the service beside what computes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    waiting = [item for item in items if "service" in _fixtures(item)]
    computing = [item for item in items if "service" not in _fixtures(item)]
    place = {item: at / len(each) for each in (waiting, computing) for at, item in enumerate(each)}

    def order(item: pytest.Item) -> tuple[float, float]:
        long = item.get_closest_marker("long")
        return -long.kwargs["seconds"] if long else 0, place[item]

    items.sort(key=order)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Where `archived == held` does not hold, name the messages instead of showing all of them."""
    contents = differences.are_contents
    if op == "==" and contents(left) and contents(right):
        return ["archived == held", *differences.differences(left, right)]
    return None


def _fixtures(item: pytest.Item) -> Mapping[str, Sequence[pytest.FixtureDef[Any]]]:
    assert isinstance(item, pytest.Function)
    return item._fixtureinfo.name2fixturedefs


@pytest.fixture(scope="session")
def var_dir() -> Path:
    """The throwaway VAR_DIR of this run."""
    path: Path = _started["var_dir"]
    return path


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Give the test database the name that the service uses, so that its processes find it."""
    import psycopg
    from django.conf import settings

    from tests.servers import migrated

    database = settings.DATABASES["default"]
    database["TEST"]["NAME"] = database["NAME"]
    if migrated.is_there():
        return
    with psycopg.connect(
        host=database["HOST"], user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(f'DROP DATABASE "{database["NAME"]}"')  # Django makes its own


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Whether the test database is there already, migrated."""
    from tests.servers import migrated

    return migrated.is_there()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> None:
    """Have a transactional test end with a database that is emptied our way, which is cheaper."""
    from django.test import TransactionTestCase

    from tests.servers import stack

    TransactionTestCase._fixture_teardown = lambda _: stack.empty_database()  # type: ignore[attr-defined] # Django's own hook


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """`wait_for(predicate)` returns the first true answer, or fails."""
    from tests.servers import stack

    return stack.wait_for


@pytest.fixture(scope="session")
def running_google() -> Iterator["Gmail"]:
    """The scripted Google that `service` is pointed at; a test adds people of its own."""
    from tests.servers.gmail import Gmail

    with Gmail() as server:
        yield server


@pytest.fixture(scope="session")
def running_microsoft() -> Iterator["GraphServer"]:
    """The scripted Microsoft that `service` is pointed at; a test adds users of its own."""
    from tests.servers.graph import GraphServer

    with GraphServer() as server:
        yield server


@pytest.fixture(scope="session")
def running_mail() -> Iterator["Mailbox"]:
    """The mail server that `service` sends alerts by."""
    from tests.servers import smtp

    with smtp.running() as mailbox:
        yield mailbox


@pytest.fixture(scope="session")
def _processes(
    django_db_setup: None,
    django_db_blocker: Any,
    tmp_path_factory: pytest.TempPathFactory,
    running_google: "Gmail",
    running_microsoft: "GraphServer",
    running_mail: "Mailbox",
) -> Iterator["Service"]:
    from tests.servers.stack import Service

    log = tmp_path_factory.mktemp("service") / "service.log"
    with django_db_blocker.unblock():
        settings = {
            **running_google.settings,
            **running_microsoft.settings,
            "EMAIL_URL": running_mail.url,
        }
        service = Service.start(env={**os.environ, **settings}, log=log)
    yield service
    service.stop()


@pytest.fixture
def service(_processes: "Service", transactional_db: None) -> Iterator["Service"]:
    """The service as real processes (web, worker, control, index, beat) on the test database."""
    _processes.wait_for_web()  # which the test before may have killed
    with _processes.at_work():
        yield _processes


@pytest.fixture(autouse=True)
def _unmarked_archive() -> Iterator[None]:
    """The archive by default is nobody's again: the database that marked it is emptied."""
    yield
    if "var_dir" in _started:
        for directory in ("archive", "exports"):
            (_started["var_dir"] / directory / ".installation").unlink(missing_ok=True)


@pytest.fixture
def owner(db: None) -> "User":
    """A user who may own sources."""
    from tests.servers import people

    return people.user("owner")


@pytest.fixture
def other_user(db: None) -> "User":
    """A user who owns nothing of `owner`'s."""
    from tests.servers import people

    return people.user("other")


@pytest.fixture
def admin_user(db: None) -> "User":
    """The superuser `admin` with the password "the-admin-of-the-tests"."""
    from django.contrib.auth.models import User

    from tests.servers import people

    made_by_the_service = User.objects.filter(username="admin").first()
    if made_by_the_service:
        return made_by_the_service
    return people.superuser("admin")


@pytest.fixture
def make_key() -> Callable[..., str]:
    """`make_key(user, scopes=("read", "write", "export"))` returns a new bearer key."""

    def make(user: "User", scopes: tuple[str, ...] = ("read", "write", "export")) -> str:
        from ingestion.models import ApiKey

        _, key = ApiKey.objects.create(user=user, name="tests", scopes=list(scopes))
        return str(key)

    return make


@pytest.fixture
def api(service: "Service", owner: "User", make_key: Callable[..., str]) -> Iterator[httpx.Client]:
    """An HTTP client of the API with a key of `owner` that may do everything."""
    from tests.servers import stack

    headers = {"Authorization": f"Bearer {make_key(owner)}"}
    with stack.client(f"{service.url}/api/v1", headers=headers) as client:
        yield client


@pytest.fixture
def archive_dir(settings: Any, tmp_path: Path) -> Path:
    """An archive of the test's own."""
    settings.ARCHIVE_DIR = tmp_path / "archive"
    return tmp_path / "archive"


@pytest.fixture
def manage(transactional_db: None, archive_dir: Path) -> "CommandLine":
    """`manage("source_status", "--json")` runs manage.py as a process."""
    from tests.servers.command_line import CommandLine

    return CommandLine(archive_dir)


@pytest.fixture(autouse=True)
def no_idle_connections() -> Iterator[None]:
    """Close what a worker keeps for its next mailbox: pytest-django drops the database, and restarts
    of it are tested."""
    yield
    from ingestion.services.engine import commit

    commit.close_idle()


@pytest.fixture(scope="session")
def dovecot(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Dovecot"]:
    """A real Dovecot on loopback, for the whole run; ask it for an account of the test's own."""
    if shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.fail("These tests need a real Dovecot: apt-get install dovecot-imapd", pytrace=False)
    from tests.servers.dovecot import Dovecot

    with Dovecot() as instance:
        yield instance


@pytest.fixture(scope="session")
def object_store() -> Iterator["ObjectStoreServer"]:
    """A real S3 server on loopback, for the whole run, with a bucket `archive`."""
    from ingestion_project.demo.object_store import ObjectStoreServer

    with ObjectStoreServer() as server:
        server.make_bucket("archive")
        yield server
