"""Secrets that a provider exchanges for new ones while connectors are at work: refresh tokens."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from django.db import connection, transaction

from ingestion.crypto import Secrets
from ingestion.models import IngestionSource
from ingestion.services.transactions import LASTS

#: Any number that nobody else takes as the first of two for an advisory lock in this database.
_LOCK_CLASS = 715_310


def exchanging(source: IngestionSource) -> Callable[[], AbstractContextManager[dict[str, str]]]:
    """Return Environment.exchanging for a connector made with `source`.

    It may be entered in any thread, outside transactions, and leaves the session of the thread that
    made it as it is: a lease goes with that. What was changed is durable when it is left. Nothing
    is given and nothing is stored where the source leads elsewhere by now; nor is a secret stored
    where somebody gave another in its place meanwhile: theirs counts.
    """
    pk, led_to = source.pk, (source.provider, dict(source.config))
    own_thread = threading.get_ident()

    @contextlib.contextmanager
    def exchange() -> Iterator[dict[str, str]]:
        try:
            # The one transaction in which a network is waited for, for up to a minute: it locks no
            # row meanwhile. (A lock of the session would be lost behind a pooler.)
            with transaction.atomic():
                _wait_for_turn(str(pk))
                row = IngestionSource.objects.filter(pk=pk).first()
                here = row is not None and (row.provider, row.config) == led_to
                stored = dict(row.secrets) if row is not None and here else {}
                secrets = dict(stored)
                yield secrets
                _store(pk, before=stored, after=secrets)
        finally:
            if threading.get_ident() != own_thread:
                connection.close()  # that thread's own, which nobody else would close

    return exchange


def _wait_for_turn(source_id: str) -> None:
    """Have this transaction be the only one that exchanges a secret of the source."""
    with connection.cursor() as cursor:
        cursor.execute(LASTS)  # one that ended meanwhile would lose a token that is good once
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK_CLASS, source_id))


def _store(pk: uuid.UUID, *, before: dict[str, str], after: dict[str, str]) -> None:
    changed = {name: after[name] for name in before if after[name] != before[name]}
    if not changed:
        return
    row = IngestionSource.objects.select_for_update().filter(pk=pk).first()
    if row is not None and all(row.secrets.get(name) == before[name] for name in changed):
        row.secrets = Secrets({**row.secrets, **changed})
        row.save(update_fields=["secrets"])
