"""Requests that may be repeated: who claimed a key first, and what was answered then."""

import datetime as dt
from typing import Any

from django.db import connection
from django.db.models.functions import Now

from ingestion.models import AnsweredRequest

#: A client that repeats a request does so within minutes.
KEPT = dt.timedelta(days=1)


def claim(user_id: int, key: str, fingerprint: bytes) -> AnsweredRequest | None:
    """Claim a key for a request; return what was answered where it came before.

    Call inside the transaction that does it: another with the same key waits for its end.
    """
    forget(user_id=user_id, key=key)
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO ingestion_answeredrequest (user_id, key, fingerprint, status)
               VALUES (%s, %s, %s, 0) ON CONFLICT (user_id, key) DO NOTHING""",
            (user_id, key, fingerprint),
        )
        if cursor.rowcount:
            return None
    return AnsweredRequest.objects.get(user=user_id, key=key)


def remember(user_id: int, key: str, status: int, answer: Any) -> None:
    """Keep what was answered, as JSON. Call in the transaction of `claim`."""
    AnsweredRequest.objects.filter(user=user_id, key=key).update(status=status, answer=answer)


def forget(**which: Any) -> int:
    """Delete what is older than KEPT; return how many rows."""
    return AnsweredRequest.objects.filter(at__lt=Now() - KEPT, **which).delete()[0]
