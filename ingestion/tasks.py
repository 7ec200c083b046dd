"""Celery tasks: a few lines each. A task is a doorbell; losing one costs seconds, never mail."""

import uuid

import structlog
from celery import shared_task
from django.db import transaction
from kombu.exceptions import OperationalError

from ingestion.models import IngestionSource
from ingestion.services.archive import housekeeping as housekeeper
from ingestion.services.engine import clocks
from ingestion.services.engine import due_work as dispatching

log = structlog.get_logger(__name__)

#: Bounds what gathers in a queue that nobody serves. Celery compares the sender's clock with the
#: worker's: by less than this they may differ (`doctor` tells), and no task is thrown away for it.
EXPIRES_SECONDS = 600


@shared_task
def dispatch() -> None:
    for bell in dispatching.due():
        _ring(bell)


@shared_task
def check_source(pk: str) -> None:
    _do("check", pk)


@shared_task
def discover(pk: str) -> None:
    _do("discover", pk)
    dispatch()


@shared_task
def sync_mailbox(pk: str) -> None:
    _do("mailbox", pk)


@shared_task
def delete_source(pk: str) -> None:
    _do("delete", pk)


@shared_task
def housekeeping() -> None:
    with dispatching.cleaning_up.taken("housekeeping") as free:
        if free:
            clocks.bring_back()
            housekeeper.collect_orphans()


_TASKS = {
    "check": check_source,
    "discover": discover,
    "mailbox": sync_mailbox,
    "delete": delete_source,
}


def _do(kind: dispatching.Kind, pk: str) -> None:
    if bell := dispatching.do(dispatching.Doorbell(kind, uuid.UUID(pk))):
        _ring(bell)


def _ring(bell: dispatching.Doorbell) -> None:
    _TASKS[bell.kind].apply_async((str(bell.pk),), expires=EXPIRES_SECONDS, retry=False)


def ring(source: IngestionSource) -> None:
    """Have what the source owes found now instead of at the next beat. Safe to lose."""

    def send() -> None:
        try:
            dispatch.apply_async(expires=EXPIRES_SECONDS, retry=False)
        except OperationalError:
            log.warning("doorbell_lost", source=str(source.pk))  # beat rings within seconds

    transaction.on_commit(send)
