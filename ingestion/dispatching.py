"""Has what a source owes looked for at once, by whoever changed it: not at the next beat.

Celery and the tasks are loaded by who rings, and not before: a command's `--help` needs neither.
"""

import structlog
from django.db import transaction

from ingestion.models import IngestionSource

log = structlog.get_logger(__name__)


def on_commit(source: IngestionSource) -> None:
    """Have what the source owes found when this transaction is through. Safe to lose."""
    transaction.on_commit(lambda: _dispatch(source))


def _dispatch(source: IngestionSource) -> None:
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - see above

    from ingestion import tasks  # noqa: PLC0415 - see above

    try:
        tasks.dispatch.apply_async(retry=False)
    except OperationalError:
        log.warning("dispatch_not_sent", source=str(source.pk))  # beat does within seconds
