"""A canary password goes through every path that can fail, and is seen nowhere but encrypted.

Looked through afterwards: every answer and page, the log of all processes, what commands print, all
that went to Redis, every column of every table, every pack.
"""

import base64
import contextlib
import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
import redis
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db import connection

from connectors import redaction
from ingestion.crypto import Secrets
from ingestion.models import IngestionSource, Mailbox
from ingestion.services.audit import Actor
from ingestion.services.engine import sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers import scripted_provider, stack
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot
from tests.servers.imap_script import MODERN, Client, ImapScript
from tests.servers.stack import free_port

if TYPE_CHECKING:
    from tests.servers.stack import Service

#: What is looked for: no escaping or quoting changes it. The password has what escaping changes, too.
CORE = "Qz7canaryKx93vW"
CANARY = f'p"{CORE}\\é<'
ACTOR = Actor.system("test")
_JSON = {"Content-Type": "application/json"}


def _base64_forms(text: bytes) -> list[str]:
    """Return the part of a base64 text that does not depend on what stands around `text`."""
    forms = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text).decode().rstrip("=")
        forms.append(encoded[4 if before else 0 : -2])
    return forms


FORMS = [CORE, *_base64_forms(CORE.encode())]


def assert_clean(text: str, where: str) -> None:
    for form in FORMS:
        at = text.find(form)
        assert at < 0, f"{where}: ...{text[max(0, at - 200) : at + 100]}..."


class Redis:
    """Everything that is said to Redis meanwhile, as MONITOR shows it."""

    def __init__(self) -> None:
        self.client = redis.Redis.from_url(django_settings.REDIS_URL)
        self.said: list[str] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        with self.client.monitor() as monitor:  # type: ignore[no-untyped-call] # of redis
            self._ready.set()
            for command in monitor.listen():
                if "END-OF-THE-TEST" in command["command"]:
                    return
                self.said.append(command["command"])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.echo("END-OF-THE-TEST")
        self._thread.join(10)
        self.client.close()


# -- servers that tell what they were told -----------------------------------------------------------

Hook = Callable[[Client, bytes, bytes], bool]
_SASL = base64.b64encode(f"\0me@example.com\0{CANARY}".encode())
_RAW = CANARY.encode()
_ECHOES = {
    "raw": _RAW,
    "quoted": b'"' + _RAW.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"',
    "base64": base64.b64encode(_RAW),
    "sasl": _SASL,
}


def _refuses_login(answer: bytes) -> Hook:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if not command.upper().startswith((b"LOGIN", b"AUTHENTICATE")):
            return False
        if command.upper().startswith(b"AUTHENTICATE"):
            client.send(b"+ \r\n")
            client.file.readline()
        client.send(answer.replace(b"TAG", tag) + b"\r\n")
        client.hang_up()
        return True

    return refuse


def _refuses(word: bytes, answer: bytes) -> Hook:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.upper().startswith(word):
            client.send(answer.replace(b"TAG", tag) + b"\r\n")
            return True
        return False

    return refuse


def misbehaving() -> Iterator[tuple[str, tuple[str, ...], bytes, Hook]]:
    """Yield (name, capabilities, greeting, hook) of servers that echo the password."""
    ready, none = b"* OK ready\r\n", _refuses(b"NEVER", b"")
    for name, echo in _ECHOES.items():
        for capabilities in (MODERN, (*MODERN, "AUTH=PLAIN")):
            for answer in (b"TAG NO [AUTHENTICATIONFAILED] no %s", b"TAG BAD %s", b"* BYE %s",
                           b"TAG NO [UNAVAILABLE] later %s", b"+ %s", b"%s"):  # fmt: skip
                yield name, capabilities, ready, _refuses_login(answer % echo)
        for greeting in (b"* BYE %s\r\n", b"* NO %s\r\n", b"%s\r\n"):
            yield name, MODERN, greeting % echo, none
        for word in (b"LIST", b"EXAMINE", b"ENABLE", b"CAPABILITY"):
            yield name, MODERN, ready, _refuses(word, b"TAG NO you said %s" % echo)


# -- places to look ------------------------------------------------------------------------------------


def every_column() -> str:
    """Return all rows of all tables as PostgreSQL writes them."""
    texts = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f'SELECT t::text FROM "{table}" t')
            texts += [f"{table}: {row}" for (row,) in cursor.fetchall()]
    return "\n".join(texts)


def every_pack() -> str:
    """Return all files of the archive as far as they are text, the headers of records among it."""
    found = []
    for path in Path(django_settings.ARCHIVE_DIR).rglob("*"):
        # The service runs beside: it renames and collects what was there a moment ago.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found.append(path.read_bytes().decode("latin-1"))
    return "\n".join(found)


@pytest.fixture
def admin(service: "Service", admin_user: User) -> Iterator[httpx.Client]:
    """The superuser's browser, without one: cookies and the CSRF token."""
    headers = {"Referer": f"{service.url}/admin/"}
    with stack.client(service.url, follow_redirects=True, headers=headers) as client:
        token = _csrf(client.get("/admin/login/").text)
        form = {"username": "admin", "password": "the-admin-of-the-tests"}
        page = client.post("/admin/login/", data={**form, "csrfmiddlewaretoken": token})
        assert page.status_code == 200
        assert "sessionid" in client.cookies
        yield client


def _csrf(page: str) -> str:
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert found
    return found[1]


# -- the tests -----------------------------------------------------------------------------------------


@pytest.mark.long(seconds=45)
def test_a_password_is_seen_nowhere(
    service: "Service",
    api: httpx.Client,
    admin: httpx.Client,
    admin_user: User,
    dovecot: Dovecot,
    wait_for: Callable[..., Any],
) -> None:
    answers: list[tuple[str, str]] = []

    def keep(name: str, answer: httpx.Response) -> httpx.Response:
        answers.append((name, f"{answer.headers}\n{answer.text}"))
        return answer

    with Redis() as monitored:
        for config in _wrong_configs():
            body = {"name": "Wrong", "provider": "generic_imap", "providerConfig": config}
            answer = api.post("/ingestion", content=json.dumps(body), headers=_JSON)
            assert keep("create", answer).status_code == 400
        broken = f'{{"name": "x", "providerConfig": {{"password": "{CORE}'
        assert keep("not JSON", api.post("/ingestion", content=broken, headers=_JSON)).is_error

        ids = [_create(api, keep, _unreachable(dovecot, case)) for case in range(4)]
        with contextlib.ExitStack() as servers:
            for name, capabilities, greeting, hook in misbehaving():
                script = servers.enter_context(ImapScript(capabilities=capabilities))
                script.password, script.greeting = CANARY, greeting
                script.hooks.append(hook)
                source_id = _create(api, keep, _config(script))
                keep(name, api.post(f"/ingestion/{source_id}/verify"))
                ids.append(source_id)
            ids.append(_imported(api, keep, servers.enter_context(ImapScript()), wait_for))
            _break_the_database(api, keep)
            for number, source_id in enumerate(ids):
                keep("source", api.get(f"/ingestion/{source_id}"))
                if number > 3 and number % 4:  # 19 ways by 4 echoes: each way once, and each echo
                    continue
                for path in ("/runs", "/mailboxes", "/failures", "/stats"):
                    keep(path, api.get(f"/ingestion/{source_id}{path}"))
                keep("PUT", api.put(f"/ingestion/{source_id}", json={"providerConfig": {
                    "port": "x", "password": CANARY}}))  # fmt: skip
                keep("page", admin.get(f"/admin/ingestion/ingestionsource/{source_id}/change/"))
            keep("history", admin.get(f"/admin/ingestion/ingestionsource/{ids[0]}/history/"))
            _admin_form(admin, keep)
            printed = _commands(service, ids[0])
        for page in ("", "ingestion/ingestionsource/", "ingestion/run/", "ingestion/auditevent/",
                     "ingestion/statuschange/", "ingestion/failedmessage/", "ingestion/mailbox/"):  # fmt: skip
            keep(page, admin.get(f"/admin/{page}"))
    for name, text in answers:
        assert_clean(text, name)
    for text in printed:
        assert_clean(text, "command")
    assert len(monitored.said) > 100
    assert any("ingestion.tasks.do" in said for said in monitored.said)
    assert_clean("\n".join(monitored.said), "Redis")
    rows = every_column()
    assert "ingestion_ingestionsource: (" in rows
    assert_clean(rows, "database")
    packs = every_pack()
    assert "remote_id" in packs
    assert_clean(packs, "pack")
    assert_clean(service.output(), "log")
    # And it is there, encrypted: what was looked for was there to be found.
    assert IngestionSource.objects.get(pk=ids[0]).secrets["password"] == CANARY


def _wrong_configs() -> list[dict[str, Any]]:
    good = {"host": "127.0.0.1", "username": "me", "password": CANARY}
    return [
        {**good, "port": "imap"},
        {**good, "nonsense": 1},
        {**good, "host": "imap://no"},
        {**good, "password": [CANARY]},
        {**good, "password": {"value": CANARY}},
        {**good, "password": CANARY * 1000},
        {**good, "password": CANARY + "\0"},
        {**good, "password": CANARY + "\ud800"},
        {**good, "accessToken": CANARY},
        {**good, "secure": True, "startTls": True},
        {"password": CANARY},
    ]


def _config(script: ImapScript) -> dict[str, Any]:
    return {
        "host": script.host, "port": script.port, "secure": False,
        "username": script.name, "password": CANARY,
    }  # fmt: skip


def _unreachable(dovecot: Dovecot, case: int) -> dict[str, Any]:
    """A wrong password, a closed port, an untrusted certificate, no TLS there."""
    port = (dovecot.port, free_port(), dovecot.tls_port, dovecot.port)[case]
    return {
        "host": dovecot.host, "port": port, "secure": case in (2, 3),
        "username": "user1@example.com", "password": CANARY,
    }  # fmt: skip


def _create(api: httpx.Client, keep: Callable[..., Any], config: dict[str, Any]) -> str:
    body = {"name": "Canary", "provider": "generic_imap", "providerConfig": config}
    answer = keep("create", api.post("/ingestion", json={**body, "autoImport": True}))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _imported(
    api: httpx.Client, keep: Callable[..., Any], script: ImapScript, wait_for: Callable[..., Any]
) -> str:
    """Import from a server that refuses one message in the words of the password."""
    script.password = CANARY
    for number in range(5):
        script.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
    script.inbox.mails[3].refusal = b"NO can't read it, " + _RAW
    source_id = _create(api, keep, _config(script))
    wait_for(lambda: api.get(f"/ingestion/{source_id}").json()["status"] == "active")
    [failure] = api.get(f"/ingestion/{source_id}/failures").json()
    assert "***" in failure["reason"]
    return source_id


def _break_the_database(api: httpx.Client, keep: Callable[..., Any]) -> None:
    """Have the INSERT of a source fail in the database: the answer is a 500."""
    table = "ingestion_ingestionsource"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT canary CHECK (name <> 'No') NOT VALID")
    try:
        body = {"name": "No", "provider": "generic_imap", "providerConfig": {
            "host": "127.0.0.1", "username": "me", "password": CANARY}}  # fmt: skip
        assert keep("500", api.post("/ingestion", json=body)).status_code == 500
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT canary")


def _admin_form(admin: httpx.Client, keep: Callable[..., Any]) -> None:
    url = "/admin/ingestion/ingestionsource/add/?way=any"
    token = _csrf(admin.get(url).text)
    form = {
        "csrfmiddlewaretoken": token, "name": "Admin", "provider": "generic_imap",
        "generic_imap__host": "not a host!", "generic_imap__username": "me",
        "generic_imap__password": CANARY,
    }  # fmt: skip
    refused = keep("form", admin.post(url, data=form))
    assert refused.status_code == 200
    assert "Must be a host name" in refused.text
    keep("form", admin.post(url, content=urllib.parse.urlencode(form)[:-3] + "%zz"))


def _commands(service: "Service", source_id: str) -> list[str]:
    manage = CommandLine(django_settings.ARCHIVE_DIR, service.env)
    host = ("--host", "127.0.0.1", "--port", "1", "--username", "me", "--owner", "admin")
    done = [
        manage("add_source", "C", *host, "--password-stdin", "--verify", stdin=CANARY),
        manage("add_source", "C", "--config-file", "-", stdin=f'{{"password": "{CORE}'),
        manage("add_source", "C", "--config-file", "-", "--owner", "admin",
               stdin=json.dumps({"host": "", "password": CANARY})),
        manage("verify_source", source_id),
        manage("source_status", source_id, "--json"),
    ]  # fmt: skip
    return [one.stdout + one.stderr for one in done]


# -- a bug, whose exception quotes the password --------------------------------------------------------


class _Lines(logging.Handler):
    """The lines that the service's own formatter makes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.lines: list[str] = []
        options = dict(config["formatters"]["line"])
        self.setFormatter(options.pop("()")(**options))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_traceback_of_a_bug_shows_no_secret(
    log_format: str, settings: Any, tmp_path: Path
) -> None:
    from ingestion_project import logs

    settings.ARCHIVE_DIR = tmp_path / "archive"
    handler = _Lines(logs.configure(log_format))
    logging.getLogger().addHandler(handler)
    try:
        with scripted_provider.installed() as server:
            source = configuration.create(
                owner=User.objects.create_user("bug"), name="Bug", provider=scripted_provider.SLUG,
                provider_config={"password": CANARY}, actor=ACTOR,
            )  # fmt: skip
            bug = ValueError(f"can't use {CANARY!r} nor {CANARY} nor {_SASL.decode()}")
            bug.__cause__ = KeyError(CANARY)
            server.check_error = bug
            verdict = credentials.check(source, actor=ACTOR)
            assert (verdict.ok, verdict.code) == (False, "internal_error")
            server.check_error = None
            run = verbs.start_import(source, actor=ACTOR)
            assert credentials.check(source, actor=ACTOR).ok
            discovery.discover(run.pk)
            server.open_error = bug
            sync.sync_mailbox(Mailbox.objects.get().pk)
    finally:
        logging.getLogger().removeHandler(handler)
        logs.configure(django_settings.LOG_FORMAT)
    lines = "\n".join(handler.lines)
    assert "check_bug" in lines
    assert "sync_bug" in lines
    assert "ValueError" in lines
    assert_clean(lines, "log")
    assert_clean(every_column(), "database")


def test_the_names_of_secrets_alone_are_shown() -> None:
    assert repr(Secrets({"password": CANARY})) == str(Secrets({"password": CANARY}))
    assert CORE not in repr(Secrets({"password": CANARY}))
    assert redaction.redact(f"a {CANARY} b {CANARY!r}") == "a *** b '***'"
    redaction.remember(["abc"])
    assert redaction.redact("abc") == "abc"  # a word of ordinary lines
