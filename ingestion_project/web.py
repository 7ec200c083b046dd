"""Gunicorn's settings: threads, so that a slow client or an event stream holds no whole process."""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ingestion_project import embedded, run, settings, supervisor

bind = f"{settings.HOST}:{settings.PORT}"
# Loaded once and then forked: the port takes nobody before all pages are there to answer.
preload_app = True
worker_class = "gthread"
workers = 2
threads = 32  # what holds one for long has places: ingestion.places
timeout = 60
graceful_timeout = 5
keepalive = 5
# gunicorn itself takes no header for more than it is: what a proxy says is read with HTTPS and
# TRUSTED_PROXIES, by Django and by ingestion.addresses.
forwarded_allow_ips = ""
logconfig_dict = settings.LOGGING
accesslog = None  # django_structlog logs the requests, with their ids
control_socket_disable = True
limit_request_line = 8190  # a query may be long; more, gunicorn does not read


# Each process counts its requests in files here, and any of them answers for all (/metrics). They
# are mapped into memory: on a disk that is full a process would be killed where it writes (SIGBUS).
_alone = contextlib.ExitStack()
_counts = Path("/dev/shm") / embedded.own_name(settings.VAR_DIR)  # noqa: S108 - made with mode 0700
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_counts)


def on_starting(server: Any) -> None:
    """Begin with no counts: those of processes that are gone stay until then, and those of another
    `web` would go. So there is one for a VAR_DIR."""
    del server
    try:
        _alone.enter_context(run.only_one(settings.VAR_DIR / "web.lock"))
    except run.CannotStartError as error:
        sys.exit(str(error))
    shutil.rmtree(_counts, ignore_errors=True)
    try:
        _counts.mkdir(mode=0o700)
    except OSError as error:  # anybody can make it: another's is not written to
        sys.exit(
            f"{_counts} can't be made: {error.strerror}. Remove what is there, and start again."
        )


def on_exit(server: Any) -> None:
    del server
    shutil.rmtree(_counts, ignore_errors=True)


def post_fork(server: Any, worker: Any) -> None:
    """End the worker with its parent, also when that is killed."""
    del server
    _alone.close()  # the lock is the parent's
    supervisor.end_with_parent(parent=worker.ppid)
