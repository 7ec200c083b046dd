"""Stores secrets that a provider exchanged for new ones while a connector was at work."""

import threading
from collections.abc import Callable, Mapping

from django.db import connection, transaction

from ingestion.crypto import Secrets
from ingestion.models import IngestionSource


def keeper(source: IngestionSource) -> Callable[[Mapping[str, str]], None]:
    """Return Environment.keep_secrets for a connector made with `source`'s secrets.

    What it stores is durable when it returns. It stores nothing where the secret is no longer the
    one that the connector was made with: somebody gave new credentials, or another worker was
    first; theirs count. It may be called from any thread, outside transactions.
    """
    pk, used = source.pk, dict(source.secrets)
    own_thread = threading.get_ident()

    def keep(changed: Mapping[str, str]) -> None:
        try:
            with transaction.atomic():
                row = IngestionSource.objects.select_for_update().filter(pk=pk).first()
                if row is None or any(row.secrets.get(k) != used.get(k) for k in changed):
                    return
                row.secrets = Secrets({**row.secrets, **changed})
                row.save(update_fields=["secrets"])
            used.update(changed)
        finally:
            if threading.get_ident() != own_thread:
                connection.close()  # that thread's own, which nobody else would close

    return keep
