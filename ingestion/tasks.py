"""Celery tasks: a few lines each. One only says which row to look at; losing it costs seconds."""

import importlib
import uuid

from celery import shared_task
from django.conf import settings

from ingestion.services.archive import compaction, restored
from ingestion.services.archive import housekeeping as housekeeper
from ingestion.services.archive.exports import jobs as exports
from ingestion.services.engine import clocks, due_work
from ingestion.services.operations import answered, webhooks
from ingestion.services.operations.alerting import outage, sending, watch

# Here, not in a package's __init__: a command that only looks sends none, and needs no Celery.
importlib.import_module(settings.TASKS_APP)

#: Bounds what gathers in a queue that nobody serves. Celery compares the sender's clock with the
#: worker's: by less than this they may differ (`doctor` tells), and no task is thrown away for it.
EXPIRES_SECONDS = 600


@shared_task(expires=EXPIRES_SECONDS)
def dispatch() -> None:
    for work in due_work.hand_out():
        _hand_out(work)


@shared_task(expires=EXPIRES_SECONDS)
def do(kind: str, pk: str) -> None:
    following, led_to_more = due_work.do(due_work.Work(kind, uuid.UUID(pk)))
    if following:
        _hand_out(following)
    if led_to_more:
        dispatch()


@shared_task(expires=EXPIRES_SECONDS)
def look_at_sources() -> None:
    watch.look_at_sources()


@shared_task(expires=EXPIRES_SECONDS)
def look_at_service() -> None:
    watch.look_at_service()


@shared_task(expires=EXPIRES_SECONDS)
def look_at_database() -> None:
    outage.look_at_database()


@shared_task(expires=EXPIRES_SECONDS)
def look_at_workers() -> None:
    watch.look_at_workers()


#: As it stands in line with what deletes sources: of no row.
_HOUSEKEEPING = due_work.Work("housekeeping", uuid.UUID(int=0))


@shared_task(expires=EXPIRES_SECONDS)
def housekeeping() -> None:
    with due_work.cleaning_up.taken("housekeeping", _HOUSEKEEPING) as free:
        if free:
            clocks.bring_back()
            restored.bring_back_feed()
            webhooks.forget_old()
            sending.forget_old()
            exports.expire()
            housekeeper.collect_when_due()
            answered.forget()
    if following := due_work.cleaning_up.next():
        _hand_out(following)


@shared_task(expires=EXPIRES_SECONDS)
def compact() -> None:
    compaction.work()


def _hand_out(work: due_work.Work) -> None:
    if work == _HOUSEKEEPING:
        housekeeping.apply_async(retry=False)
        return
    queue = due_work.KINDS[work.kind].queue
    do.apply_async((work.kind, str(work.pk)), queue=queue, retry=False)
