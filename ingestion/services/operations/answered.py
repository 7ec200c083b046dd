"""Requests that may be repeated: who claimed a key first, and what was answered then."""

import datetime as dt
import json
from typing import Any

from django.db import connection
from django.db.models.functions import Now

from ingestion import crypto
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


def remember(user_id: int, key: str, status: int, answer: Any, *, sealed: bool) -> None:
    """Keep what was answered, as JSON; `sealed`: encrypted, for it holds a secret. Call in the
    transaction of `claim`."""
    kept = crypto.encrypted(json.dumps(answer)) if sealed else answer
    AnsweredRequest.objects.filter(user=user_id, key=key).update(status=status, answer=kept)


def answer_of(row: AnsweredRequest) -> Any:
    """Return what was answered. Raises CredentialsUnreadable where that was sealed, and its key has
    been taken away since."""
    # An answer is an object, or nothing: a text is one that is sealed.
    return json.loads(crypto.decrypted(row.answer)) if isinstance(row.answer, str) else row.answer


def forget(**which: Any) -> int:
    """Delete what is older than KEPT; return how many rows."""
    return AnsweredRequest.objects.filter(at__lt=Now() - KEPT, **which).delete()[0]
