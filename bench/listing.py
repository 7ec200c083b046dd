"""Measures what lists cost in the archive that VAR_DIR or DATABASE_URL names (`bench.corpus`).

A process of its own, for it needs Django's settings. `python -m bench.listing` prints JSON: each
list with its times, its queries and its bytes. To the archive's messages it adds a crowd of all
else (`crowd`), in a copy of the database that it does not keep. It is an ordinary day's, on which
one source in twenty is in trouble, and has a thousandth of a million messages as failures; then a
bad day's, on which no mail server answers, and twenty times as many failed, of all sources.
"""

import contextlib
import datetime as dt
import importlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from psycopg import sql

from bench.finding import Clock, turns
from ingestion_project import bootstrap

SOURCES = 1_000
_MAILBOXES_EACH, _FOLDERS_EACH, _RUNS_EACH, _OTHERS_EACH = 10, 4, 20, 20
_TROUBLED_IN, _RUNNING_IN = 20, 8
_BATCH = 5_000


def main() -> None:
    if bootstrap.main():
        raise SystemExit(1)
    importlib.import_module("ingestion_project.wsgi")  # as the process that answers has it
    with _copied("listing"):
        addresses = list(crowd(SOURCES))
        _vacuum()
        found = [{**_measured(address), "day": "ordinary"} for address in addresses]
        _make_a_bad_day()
        _vacuum()
        found += [{**_measured(address), "day": "bad"} for address in _judged()]
    print(json.dumps(found))


@contextlib.contextmanager
def _copied(name: str) -> Iterator[None]:
    """Work in a copy of the database: what lists are asked of is committed, as it is in a service.
    In a transaction that is open each row is looked at as one that may never have been."""
    params = connection.get_connection_params()
    drop = sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name))
    copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
        sql.Identifier(name), sql.Identifier(params.pop("dbname"))
    )
    connection.close()  # no session may be in what is copied
    with psycopg.connect(**params, dbname="postgres", autocommit=True) as server:
        server.execute(drop)
        server.execute(copy)
        # One session to the end: its CPU is counted.
        connection.settings_dict.update(NAME=name, CONN_MAX_AGE=None)
        try:
            yield
        finally:
            connection.close()
            server.execute(drop)


def _vacuum() -> None:
    """Do what autovacuum does within a minute."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")


def _measured(address: str) -> dict[str, Any]:
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()

    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.get(username="admin"))
    answer = client.get(address, follow=True)
    assert answer.status_code == 200, (address, answer.status_code)
    size = len(answer.getvalue())
    with CaptureQueriesContext(connection) as queries:
        client.get(address, follow=True).getvalue()
    count = len(queries)  # later requests forget them
    visitor = _Visitor(client, [address, *(where for where, _ in answer.redirect_chain)])
    clock, behind = Clock(), visitor.leave
    whole = turns(visitor.see_all, clock, behind=behind)["milliseconds"] if answer.streaming else []
    return {
        "address": address, "queries": count, "bytes": size, "whole_milliseconds": whole,
        **turns(visitor.begin, clock, behind=behind),
    }  # fmt: skip


class _Visitor:
    """Asks the application as its server does, which closes an answer once all of it is sent: what
    is done then (`memory.collect_cycles`), nobody waits for. Follows redirections."""

    def __init__(self, client: Client, addresses: list[str]) -> None:
        self._application = importlib.import_module("ingestion_project.wsgi").application
        cookies = client.cookies.output(header="", sep=";")
        make = RequestFactory(SERVER_NAME="localhost", HTTP_COOKIE=cookies)
        self._requests = [make.get(address).environ for address in addresses]
        self._answers: list[Any] = []

    def begin(self, _: int) -> None:
        for environ in self._requests:
            body = self._application(dict(environ), lambda *_: None)
            self._answers.append(body)
            next(iter(body))  # a page is there at once, a long list comes in parts

    def see_all(self, number: int) -> None:
        self.begin(number)
        for _part in self._answers[-1]:
            pass

    def leave(self) -> None:
        while self._answers:
            self._answers.pop().close()


def crowd(number: int) -> Iterator[str]:
    """Make rows of all that is listed, until there are so many sources, for the user "admin"; yield
    the addresses of the lists.

    PostgreSQL is told of the rows: what it knows of tables that were full once, and are empty,
    makes it join thousands with thousands as if each were one (a page took ten minutes)."""
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()

    from ingestion import models  # noqa: PLC0415 - as above
    from ingestion.states import RunStatus, SourceStatus  # noqa: PLC0415 - as above

    admin, now = User.objects.get(username="admin"), timezone.now()
    later, minute = now + dt.timedelta(days=30), dt.timedelta(minutes=1)
    sources = _made(
        models.IngestionSource(
            owner=admin,
            name=f"Source {n}",
            provider="generic_imap",
            config={"host": "imap.archive.example", "username": f"crowd{n}"},
            status=SourceStatus.ERROR if n % 50 == 0 else SourceStatus.ACTIVE,
            status_message="There is no such host." if n % 50 == 0 else "",
            proven_at=now,
            imported_at=now,
            next_sync_at=later,
        )
        for n in range(models.IngestionSource.objects.count(), number)
    )
    mailboxes = _made(
        models.Mailbox(
            source=source,
            remote_id=f"person{n}@archive.example",
            address=f"person{n}@archive.example",
            last_synced_at=now - n % 5 * minute,
        )
        # One source's at once, as they are found.
        for n, source in enumerate(one for one in sources for _ in range(_MAILBOXES_EACH))
    )
    troubled = {source.pk for source in sources[::_TROUBLED_IN]}
    _have_no_answer(models.Mailbox.objects.filter(source__in=troubled))
    folders = _made(
        models.Folder(mailbox=mailbox, remote_id=f"Folder {n}", path=f"Folder {n}")
        for mailbox in mailboxes
        for n in range(_FOLDERS_EACH)
    )
    _made(
        models.Run(
            source=source,
            kind="sync",
            actor="beat",
            status=RunStatus.COMPLETED,
            discovered_at=now - n * minute,
            started_at=now - n * minute,
            finished_at=now - n * minute,
            messages_new=n % 3,
        )
        for source in sources
        for n in range(_RUNS_EACH)
    )
    _made(
        models.Run(source=source, kind="sync", actor="beat", started_at=now, discovered_at=now)
        for source in sources[_RUNNING_IN // 2 :: _RUNNING_IN]
    )
    theirs = [folder for folder in folders if folder.mailbox.source_id in troubled]
    _have_failures(len(sources), theirs)
    _made(
        models.StatusChange(
            source=source,
            from_status="importing",
            to_status="active",
            actor="control",
            at=now - n * minute,
        )
        for n, source in enumerate(sources * _OTHERS_EACH)
    )
    _made(
        models.AuditEvent(
            actor="admin", action="mail_read", source_id=source.pk, at=now - n * minute, user=admin
        )
        for n, source in enumerate(sources * _OTHERS_EACH)
    )
    _made(models.Export(owner=admin, format="mbox", state="done", finished_at=now) for _ in sources)
    _made(
        models.WebhookEndpoint(
            owner=admin, url=f"https://example.com/{n}", events=[], ring_not_before=later
        )
        for n in range(len(sources))
    )
    _made(
        models.SavedSearch(owner=admin, name=f"Search {source.pk}", query="bill")
        for source in sources[:50]
    )
    _made(
        models.Alert(
            kind="source.attention", source=source, message="There is no such host.", ended_at=now
        )
        for source in sources
    )
    _made(
        models.AlertRule(owner=admin, name=f"Rule {n}", recipients=["ops@archive.example"])
        for n in range(len(sources))
    )
    for n in range(min(50, len(sources))):
        models.ApiKey.objects.create(user=admin, name=f"Program {n}", scopes=["read"])
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    yield from _addresses(sources[0].pk)


def _make_a_bad_day() -> None:
    from ingestion.models import Folder, Mailbox  # noqa: PLC0415 - after django.setup()

    _have_no_answer(Mailbox.objects.all())
    _have_failures(_OTHERS_EACH * SOURCES, list(Folder.objects.order_by("pk")))


def _have_no_answer(mailboxes: Any) -> None:
    """Have them be late by an hour."""
    gone = timezone.now() - dt.timedelta(hours=1)
    mailboxes.update(last_synced_at=gone, last_error="The server does not answer.")


def _have_failures(number: int, folders: Sequence[Any]) -> None:
    from ingestion.models import FailedMessage  # noqa: PLC0415 - after django.setup()

    later = timezone.now() + dt.timedelta(days=30)
    _made(
        FailedMessage(
            mailbox_id=folder.mailbox_id,
            folder=folder,
            remote_id=f"{number}:{n}",
            code="message_refused",
            reason="The server answered NO.",
            not_before=later,
        )
        for n, folder in zip(range(number), itertools.cycle(folders), strict=False)
    )


def _made(rows: Iterable[Any]) -> list[Any]:
    made = list(rows)
    type(made[0]).objects.bulk_create(made, batch_size=_BATCH)
    return made


def _judged() -> list[str]:
    """Return the addresses of the lists that tell how all sources are, or list what failed."""
    from django.urls import reverse  # noqa: PLC0415 - after django.setup()

    sources = reverse("admin:ingestion_ingestionsource_changelist")
    failed = reverse("admin:ingestion_failedmessage_changelist")
    judging = [reverse("admin:index"), sources, f"{sources}?show=attention"]
    return [*judging, reverse("ingestion-list"), failed, f"{failed}?q=person1"]


def _addresses(source: Any) -> Iterator[str]:
    from django.urls import get_resolver, reverse  # noqa: PLC0415 - after django.setup()

    yield reverse("admin:index")
    yield reverse("mail")
    names = {key for key in get_resolver().namespace_dict["admin"][1].reverse_dict if key}
    for name in sorted(key for key in names if str(key).endswith("_changelist")):
        yield reverse(f"admin:{name}")
        yield reverse(f"admin:{name}") + "?q=person1"
    yield reverse("admin:ingestion_ingestionsource_changelist") + "?show=attention"
    yield reverse("admin:ingestion_ingestionsource_change", args=[source])
    lists = {key for key in get_resolver().reverse_dict if isinstance(key, str)}
    for name in sorted(key for key in lists if key.endswith("-list")):
        yield reverse(name) + ("?wait=0" if name.startswith("changes") else "")
    for name in ("runs", "mailboxes", "failures", "stats"):
        yield reverse(f"ingestion-{name}", args=[source])


if __name__ == "__main__":
    main()
