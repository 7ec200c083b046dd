"""The Celery app and the whole beat schedule.

Three queues: `control` for short work that must never wait behind an import (dispatching, checks of
credentials, listing mailboxes, deletion), `sync` for the mailboxes themselves, `index` for making
what they brought findable, whose workers take only the time that is left. A task only says
which row to look at: what is due stands in PostgreSQL, so tasks are not retried, not acknowledged
late and expire where nobody takes them for minutes.
"""

import contextlib
import datetime as dt
import logging.config
import os
import time
import warnings
from pathlib import Path
from typing import Any

from celery import Celery
from celery.platforms import SecurityWarning  # type: ignore[attr-defined] # missing in its stubs
from celery.schedules import schedule
from celery.signals import (
    celeryd_init,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)
from celery.worker.control import inspect_command

from ingestion import memory
from ingestion_project import supervisor

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
# Django's checks load every page, half of what a start costs, and Celery looks at no answer of
# theirs. `bootstrap` asks them before anything starts, and refuses.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

# It warns of root because pickled messages could run anything; ours are JSON.
warnings.filterwarnings("ignore", category=SecurityWarning)

app = Celery("ingestion")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def _steady_now() -> dt.datetime:
    """Return a time that goes on whatever the machine's clock is set to."""
    return dt.datetime.fromtimestamp(time.monotonic(), dt.UTC)


def _every(seconds: float) -> schedule:
    """By the machine's clock beat would send nothing for as long as that was set back by."""
    return schedule(seconds, nowfun=_steady_now)


app.conf.beat_schedule = {
    "dispatch": {"task": "ingestion.tasks.dispatch", "schedule": _every(3)},
    "housekeeping": {"task": "ingestion.tasks.housekeeping", "schedule": _every(600)},
    # Reads and writes packs, for some 20 s: in the time that is left, as indexing is done.
    "compact": {
        "task": "ingestion.tasks.compact",
        "schedule": _every(60),
        "options": {"queue": "index"},
    },
    "look_at_sources": {"task": "ingestion.tasks.look_at_sources", "schedule": _every(10)},
    "look_at_service": {"task": "ingestion.tasks.look_at_service", "schedule": _every(30)},
    "look_at_database": {"task": "ingestion.tasks.look_at_database", "schedule": _every(10)},
    "look_at_workers": {"task": "ingestion.tasks.look_at_workers", "schedule": _every(10)},
}

#: Who imports this, and then forks a pool's processes.
_MAIN = os.getpid()
#: How far the processes of the queue `index` step back behind all others: on a machine that is
#: busy, 15 leaves them a thirtieth of a core each.
_NICENESS = 15


@celeryd_init.connect
def give_way(sender: str, **_: Any) -> None:
    if sender.startswith("index@"):
        os.nice(_NICENESS)
        # Where the kernel shares time out among sessions first, that one is what counts.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICENESS))


@worker_process_init.connect
def end_with_the_worker(**_: Any) -> None:
    """Leave no child behind when the worker's main process is killed."""
    supervisor.end_with_parent(parent=_MAIN)


@worker_process_init.connect
def keep_memory(**_: Any) -> None:
    memory.keep()


@task_prerun.connect
@task_postrun.connect
def keep_connection(**_: Any) -> None:
    """Let the next task have this thread's connection to the database, while it is good and not
    old, as Django does from request to request. Celery closes it after each, and a poll's smallest
    part is then the poll: a new session has to read the catalog, and plans all anew."""
    from django.db import close_old_connections  # noqa: PLC0415 - it needs the settings

    close_old_connections()


@worker_ready.connect
def begin_control(sender: Any, **_: Any) -> None:
    """Be told of new mail beside the short work, not beside the imports; and await the others."""
    if sender.hostname.startswith("control@"):
        from ingestion.services.engine import doorbells  # noqa: PLC0415 - it needs the settings
        from ingestion.services.operations import workers  # noqa: PLC0415 - likewise

        doorbells.start()
        workers.starting()


@inspect_command()
def wall_clock(_: Any) -> float:
    """Tell a worker's time to `manage.py doctor`."""
    return time.time()


@worker_shutting_down.connect
def give_leases_back(**_: Any) -> None:
    """SIGTERM: whoever copies a mailbox stops at the next message, and another worker goes on."""
    from ingestion.services.engine import lease  # noqa: PLC0415 - it needs the settings

    lease.leaving.set()


@setup_logging.connect
def log_as_everything_else(**_: Any) -> None:
    """Use the settings' LOGGING; a receiver here keeps Celery from its own set-up."""
    from django.conf import settings  # noqa: PLC0415 - this module is imported by the settings

    logging.config.dictConfig(settings.LOGGING)
