"""doctor, rotate_credentials_key and create_api_key: what an operator learns and may do."""

import datetime as dt
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection

from ingestion.errors import CredentialsUnreadable, NotAllowedNow
from ingestion.models import ApiKey, AuditEvent, IngestionSource, Pack, WebhookEndpoint
from ingestion.services.audit import Actor
from ingestion.services.engine import due_work, heartbeat, looking
from ingestion.services.operations import credential_keys, webhooks, workers
from ingestion.services.sources import configuration
from tests.servers import people
from tests.servers.command_line import CommandLine, Result
from tests.servers.stack import ROOT, wait_for

if TYPE_CHECKING:
    from tests.servers.stack import Service

ACTOR = Actor.system("test")
SECRET = "canary-s3cret"
OLD, NEW, OTHER = (f"{word}-key-of-the-tests-0123456789-abcdef" for word in ("old", "new", "other"))


@pytest.fixture
def root(transactional_db: None) -> User:
    return people.superuser("root")


def make_source(owner: User, name: str = "Alice") -> IngestionSource:
    return configuration.create(
        owner=owner,
        name=name,
        provider="generic_imap",
        provider_config={
            "host": "127.0.0.1",
            "port": 1,
            "secure": False,
            "username": "alice",
            "password": SECRET,
        },
        actor=ACTOR,
    )


@pytest.fixture
def keys(settings: Any) -> Iterator[Callable[..., None]]:
    """`keys(NEW, OLD)` makes this process one that was started with these ENCRYPTION_KEYS."""
    fields = [m._meta.get_field("secrets") for m in (IngestionSource, WebhookEndpoint)]

    def forget() -> None:
        for field in fields:
            for name in ("keys", "fernet_keys", "fernet", "names_in"):
                field.__dict__.pop(name, None)  # cached for the life of a process

    def use(*given: str) -> None:
        settings.ENCRYPTION_KEYS = settings.FERNET_KEYS = list(given)
        forget()

    yield use
    forget()


def findings(manage: CommandLine, *, code: int) -> dict[str, dict[str, str]]:
    done = manage.here("doctor", "--json")
    assert done.code == code, done.stdout
    found = done.json()
    assert found["ok"] is (code == 0)
    return {finding["name"]: finding for finding in found["findings"]}


# -- doctor ------------------------------------------------------------------------------------


def test_a_sound_deployment_is_told_so(service: "Service", settings: Any) -> None:
    manage = CommandLine(settings.ARCHIVE_DIR)  # the service's own: another has no mark
    parts = ("database", "clock", "keys", "broker", "queue sync", "queue control", "queue index",
             "beat", "storage", "exposure", "settings")  # fmt: skip

    def is_well(done: Result) -> bool:
        return done.code == 0 and all(f"ok       {part}:" in done.stdout for part in parts)

    # The workers may still be starting, and on a busy machine miss the time for an answer.
    wait_for(lambda: is_well(manage.here("doctor")), 240)
    # And a process of its own.
    done = wait_for(lambda: tried if is_well(tried := manage("doctor")) else None, 240)
    assert "All is well." in done.stdout


def test_without_workers_and_beat_each_is_named_with_what_to_start(manage: CommandLine) -> None:
    cache.clear()
    found = findings(manage, code=1)
    for name, entry in (
        *(("queue sync", "worker"), ("queue control", "control"), ("queue index", "index")),
        ("beat", "beat"),
    ):
        assert found[name]["state"] == "problem"
        assert f"'{entry}'" in found[name]["advice"]
    assert found["database"]["state"] == found["broker"]["state"] == "ok"


@pytest.mark.parametrize("ago_seconds", [100, -150], ids=["stopped", "and the clock set back"])
def test_a_beat_that_stopped_is_told_with_its_age(manage: CommandLine, ago_seconds: int) -> None:
    cache.set(heartbeat._AT, time.time() - ago_seconds)
    assert re.search(r"last seen 1\d\d s ago", findings(manage, code=1)["beat"]["message"])


def test_a_broker_that_is_silent_is_waited_for_once(manage: CommandLine, settings: Any) -> None:
    """One that takes connections and never answers, as a stopped Redis does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        found = findings(manage, code=1)
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert workers.PING_SECONDS < 5
    assert found["broker"]["state"] == "problem"
    assert "Timeout" in found["broker"]["message"]
    assert "Nothing is lost" in found["broker"]["advice"]
    assert not found.keys() & {
        "queue sync",
        "queue control",
        "queue index",
        "beat",
    }  # it can't know
    assert found["storage"]["state"] == "ok"


def test_a_database_that_is_away_is_told_and_the_rest_is_examined(manage: CommandLine) -> None:
    done = manage(
        *("doctor", "--json"),
        DATABASE_URL="postgres://nobody@127.0.0.1:1/none",
        SECRET_KEY="x" * 50,
        ENCRYPTION_KEYS="y" * 40,
    )
    assert done.code == 1
    found = {finding["name"]: finding for finding in done.json()["findings"]}
    assert found["database"]["state"] == "problem"
    assert "DATABASE_URL" in found["database"]["advice"]
    assert found["broker"]["state"] == "ok"
    assert "no mark of an installation" in found["storage"]["message"]  # whose, it can't ask


def test_keys_that_read_nothing_are_a_problem_and_stop_only_what_needs_them(
    manage: CommandLine, root: User, keys: Callable[..., None]
) -> None:
    keys(OLD)
    source = make_source(root)
    keys(OTHER)
    found = findings(manage, code=1)["keys"]
    assert str(source.pk) in found["message"]
    assert "ENCRYPTION_KEYS" in found["advice"]
    with pytest.raises(CredentialsUnreadable):
        dict(IngestionSource.objects.get().secrets)
    # What does not need the credentials works.
    assert manage.here("verify_archive").code == 0
    status = manage.here("source_status", "Alice", "--json").json()["sources"][0]
    assert status["providerConfig"]["passwordSet"] is False
    checked = manage.here("verify_source", "Alice")
    assert checked.code == 1
    assert "None of ENCRYPTION_KEYS reads" in checked.stdout + checked.stderr
    assert "None of ENCRYPTION_KEYS" in manage.here("reconcile_source", "Alice").stderr
    source.refresh_from_db()
    assert source.status == "pending_auth"  # tried again later: the key may come back
    # And new credentials can be given.
    config = {"host": "127.0.0.1", "port": 1, "secure": False, "username": "alice"}
    configuration.update(source, changes={"name": "Renamed"}, actor=ACTOR)
    changed = configuration.update(
        source, changes={"providerConfig": {**config, "password": "new"}}, actor=ACTOR
    )
    assert (changed.name, dict(changed.secrets)) == ("Renamed", {"password": "new"})
    keys()
    assert "ENCRYPTION_KEYS is empty" in findings(manage, code=1)["keys"]["message"]
    assert manage.here("source_status", "Renamed").code in (0, 1)


def test_one_unreadable_source_holds_up_no_other(
    root: User, keys: Callable[..., None], client: Any
) -> None:
    keys(OLD)
    lost = make_source(root, "Lost")
    keys(NEW)
    fine = make_source(root, "Fine")
    IngestionSource.objects.update(
        status="active", next_sync_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    )
    assert {work.kind for work in due_work.hand_out()} == {"look"}
    for source in (lost, fine):
        looking.work(source.pk)
    assert fine.runs.count() == lost.runs.count() == 1
    client.force_login(root)
    shown = client.get("/api/v1/ingestion")
    assert shown.status_code == 200
    assert [s["providerConfig"]["passwordSet"] for s in shown.json()] == [True, False]


def test_an_archive_that_is_not_there_is_told(
    manage: CommandLine, root: User, archive_dir: Path
) -> None:
    """An ARCHIVE_DIR that is wrong, or a disk that is not mounted, looks like an empty one."""
    source = make_source(root)
    Pack.objects.create(pk=uuid.uuid4(), source=source, size_bytes=1, message_count=1)
    found = findings(manage, code=1)["storage"]
    assert "is its volume mounted?" in found["message"]
    assert "Mount it" in found["advice"]
    assert not archive_dir.exists()


def test_an_archive_that_cannot_be_written_is_told(manage: CommandLine, archive_dir: Path) -> None:
    archive_dir.write_text("in the way")
    found = findings(manage, code=1)
    assert "can't be written" in found["storage"]["message"]
    assert found["settings"]["state"] == "problem"  # the system check says the same


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"WORKER_CONCURRENCY": "many"}, "WORKER_CONCURRENCY has no usable value"),
        ({"DATABASE_URL": "postgres://x/y", "VAR_DIR": "{tmp}"}, "Set the SECRET_KEY"),
        ({"DATABASE_URL": "postgres://x:kD3f/9@y/z"}, "DATABASE_URL must look like postgres://"),
        ({"DATABASE_URL": "postgres://x:12?kD3f@y/z"}, "DATABASE_URL must look like postgres://"),
        ({"REDIS_URL": "redis://:kD3f/9@y/0"}, "REDIS_URL must look like redis://"),
    ],
)
def test_settings_that_are_no_good_are_named(
    tmp_path: Path, env: dict[str, str], said: str
) -> None:
    manage = CommandLine(tmp_path / "archive")
    done = manage("doctor", **{k: v.format(tmp=tmp_path) for k, v in env.items()})
    assert done.code == 1
    assert said in done.stderr
    assert "kD3f" not in done.stderr, "a part of a password"


def test_names_may_have_blanks_between_them(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "VAR_DIR": str(tmp_path),
        "OIDC_GROUPS": "mail-admins=Administrator, mail-auditors=Auditor",
        "ALLOWED_HOSTS": "a.example.com, b.example.com",
        "TRUSTED_PROXIES": "127.0.0.1, ::1",
    }
    program = (
        "import json; from ingestion_project import settings as s;"
        "print(json.dumps([s.OIDC_GROUPS, s.ALLOWED_HOSTS, s.TRUSTED_PROXIES]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == [
        {"mail-admins": "Administrator", "mail-auditors": "Auditor"},
        ["a.example.com", "b.example.com"],
        ["127.0.0.1", "::1"],
    ]


# -- rotate_credentials_key --------------------------------------------------------------------


def test_credentials_change_to_the_newest_key_and_the_old_one_can_go(
    manage: CommandLine, root: User, keys: Callable[..., None]
) -> None:
    cache.clear()
    keys(OLD)
    for number in range(3):
        make_source(root, f"Source {number}")
    keys(NEW, OLD)
    make_source(root, "Made since")
    assert "3 of 4" in findings(manage, code=1)["keys"]["message"]
    rotated = manage.here("rotate_credentials_key", "--json").json()
    assert rotated == {
        "sources": 4,
        "webhooks": 0,
        "reencrypted": 3,
        "unreadable": [],
        "restartNeeded": False,
    }
    assert manage.here("rotate_credentials_key", "--json").json()["reencrypted"] == 0
    keys(NEW)
    assert all(source.secrets["password"] == SECRET for source in IngestionSource.objects.all())
    assert AuditEvent.objects.filter(action="credentials.rotate").count() == 1
    assert SECRET not in str(list(AuditEvent.objects.values()))


def test_secrets_of_webhooks_change_to_the_newest_key_too(
    manage: CommandLine, root: User, keys: Callable[..., None]
) -> None:
    cache.clear()
    keys(OLD)
    url = "https://hooks.example.com/"
    made, secret = webhooks.create(root, url=url, events=["run.finished"], actor=ACTOR)
    keys(NEW, OLD)
    rotated = manage.here("rotate_credentials_key")
    assert "1 of 1 webhook were re-encrypted" in rotated.stdout
    keys(NEW)
    assert WebhookEndpoint.objects.get().secrets["secret"] == secret
    keys(OTHER)
    assert "No key" in webhooks.test(WebhookEndpoint.objects.get(), actor=ACTOR).text
    assert findings(manage, code=1)["keys"]["message"].endswith(f"1 webhook: {made.pk}.")


def test_a_rotation_that_dies_half_way_leaves_everything_readable(
    root: User, keys: Callable[..., None], manage: CommandLine
) -> None:
    keys(OLD)
    first = make_source(root)
    columns = ", ".join(str(f.column) for f in IngestionSource._meta.local_fields[1:])  # all but id
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO ingestion_ingestionsource (id, {columns}) SELECT gen_random_uuid(), "
            f"{columns} FROM ingestion_ingestionsource, generate_series(1, 299) WHERE id = %s",
            [first.pk],
        )
    keys(NEW, OLD)
    done = []

    def die_later(rotation: credential_keys.Rotation) -> None:
        done.append(rotation.sources)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        credential_keys.rotate(actor=ACTOR, on_progress=die_later)
    half = credential_keys.survey()
    assert (half.sources, half.reencrypted, half.unreadable) == (300, 100, [])
    assert manage.here("rotate_credentials_key", "--json").json()["reencrypted"] == 100
    keys(NEW)
    assert credential_keys.survey() == credential_keys.Rotation(sources=300)


def test_what_no_key_reads_is_left_alone_and_told(
    manage: CommandLine, root: User, keys: Callable[..., None]
) -> None:
    keys(OTHER)
    lost = make_source(root, "Lost")
    keys(OLD)
    make_source(root, "Kept")
    keys(NEW, OLD)
    rotated = manage.here("rotate_credentials_key")
    assert rotated.code == 1
    assert "1 of 2 sources were re-encrypted" in rotated.stdout
    assert str(lost.pk) in rotated.stdout
    keys(OTHER)
    assert IngestionSource.objects.get(name="Lost").secrets["password"] == SECRET


def test_a_running_service_that_lacks_the_newest_key_is_not_cut_off(
    service: "Service", manage: CommandLine, api: httpx.Client, settings: Any
) -> None:
    """Re-encrypting under its feet would leave it unable to read any credentials."""
    assert api.post("/ingestion", json=_body()).status_code == 201
    service_keys = ",".join(settings.ENCRYPTION_KEYS)
    list(due_work.hand_out())
    with_new = {"ENCRYPTION_KEYS": f"{NEW},{service_keys}"}
    refused = manage("rotate_credentials_key", **with_new)
    assert refused.code == 1
    assert "Restart all of its processes" in refused.stderr
    assert api.get("/ingestion").json()[0]["providerConfig"]["passwordSet"] is True
    doctor = manage("doctor", "--json", **with_new)
    found = {finding["name"]: finding for finding in doctor.json()["findings"]}
    assert found["keys"]["state"] == "warning"
    assert "without the first" in found["keys"]["message"]


def test_a_new_key_of_its_own_is_made_in_one_step(
    manage: CommandLine, root: User, settings: Any, tmp_path: Path, keys: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cache.clear()
    monkeypatch.delenv("ENCRYPTION_KEYS", raising=False)
    settings.VAR_DIR = tmp_path
    kept = tmp_path / "secrets.json"
    kept.write_text(json.dumps({"SECRET_KEY": "s", "ENCRYPTION_KEYS": [OLD]}))
    keys(OLD)
    make_source(root)
    done = manage.here("rotate_credentials_key", "--new-key", "--json")
    assert done.code == 0, done.stderr
    assert (done.json()["reencrypted"], done.json()["restartNeeded"]) == (1, False)
    written = json.loads(kept.read_text())
    assert written["SECRET_KEY"] == "s"
    new, old = written["ENCRYPTION_KEYS"]
    assert old == OLD
    assert kept.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.glob("secrets*")] == ["secrets.json"]
    keys(new)
    assert IngestionSource.objects.get().secrets["password"] == SECRET


def test_of_many_who_make_a_new_key_at_once_each_that_is_made_is_kept(
    settings: Any, tmp_path: Path, keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else credentials would be encrypted by a key that is nowhere."""
    monkeypatch.delenv("ENCRYPTION_KEYS", raising=False)
    settings.VAR_DIR = tmp_path
    kept = tmp_path / "secrets.json"
    kept.write_text(json.dumps({"SECRET_KEY": "s", "ENCRYPTION_KEYS": [OLD]}))
    keys(OLD)
    together = threading.Barrier(8)

    def make() -> list[str]:
        together.wait()
        return credential_keys.add_managed_key()

    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(make) for _ in range(8)]
    refused = [error for error in (one.exception() for one in tries) if error]
    made = {one.result()[0] for one in tries if not one.exception()}
    assert made
    assert made <= set(json.loads(kept.read_text())["ENCRYPTION_KEYS"])
    assert {type(error) for error in refused} <= {NotAllowedNow}
    assert all("were changed" in str(error) for error in refused)


def test_keys_of_the_environment_are_not_changed_here(
    manage: CommandLine, keys: Callable[..., None]
) -> None:
    keys(OTHER)
    refused = manage.here("rotate_credentials_key", "--new-key")
    assert refused.code == 1
    assert "come from the environment variable" in refused.stderr
    keys()
    assert "ENCRYPTION_KEYS is empty" in manage.here("rotate_credentials_key").stderr


# -- create_api_key ----------------------------------------------------------------------------


def test_a_key_is_printed_alone_and_works(
    service: "Service", manage: CommandLine, admin_user: User
) -> None:
    made = manage("create_api_key", "--user", "admin", "--name", "laptop")
    assert made.code == 0, made.stderr
    key = made.stdout.removesuffix("\n")
    assert key.isalnum()
    assert "not shown again" in made.stderr
    url = f"{service.url}/api/v1/ingestion"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    assert (answer.status_code, answer.json()) == (200, [])
    row = ApiKey.objects.get()
    assert key not in str(vars(row))  # hashed at rest
    assert (row.name, list(row.scopes)) == ("laptop", ["read", "write", "export"])
    assert abs(row.expiry - row.created - dt.timedelta(days=365)) < dt.timedelta(seconds=10)
    assert row.last_used_at is not None


def test_a_key_can_be_narrowed_and_expire(manage: CommandLine, root: User) -> None:
    made = manage.here(
        *("create_api_key", "--user", "root", "--name", "n"),
        *("--scopes", "read", "--expires-days", "1.5"),
    )
    assert made.code == 0
    row = ApiKey.objects.get()
    assert list(row.scopes) == ["read"]
    assert row.expiry is not None
    assert abs(row.expiry - row.created - dt.timedelta(days=1.5)) < dt.timedelta(seconds=10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user", "roto", "--name", "n"], "Did you mean 'root'?"),
        (["--user", "root", "--name", " "], "name: Must have 1 to 100"),
        (["--user", "root", "--name", "a\x1bb"], "control characters"),
        (["--user", "root", "--name", "n", "--scopes", "all"], "invalid choice: 'all'"),
        (["--user", "root", "--name", "n", "--expires-days", "-1"], "number of days"),
        (["--user", "root", "--name", "n", "--expires-days", "nan"], "number of days"),
        (["--user", "root", "--name", "n", "--expires-days", "1e300"], "number of days"),
        (["--user", "root"], "--name"),
    ],
)
def test_a_wrong_key_is_refused_by_name(
    manage: CommandLine, root: User, arguments: list[str], said: str
) -> None:
    refused = manage.here("create_api_key", *arguments)
    assert refused.code == 2
    assert said in refused.stderr
    assert refused.stdout == ""
    assert not ApiKey.objects.exists()


def _body() -> dict[str, Any]:
    config = {"host": "127.0.0.1", "port": 1, "secure": False, "username": "u", "password": SECRET}
    return {"name": "Mail", "provider": "generic_imap", "providerConfig": config}
