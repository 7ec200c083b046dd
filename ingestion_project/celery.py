"""The Celery app and the whole beat schedule.

Two queues: `control` for short work that must never wait behind an import (dispatching, checks of
credentials, listing mailboxes, deletion), `sync` for the mailboxes themselves. A task is only a
doorbell: what is due stands in PostgreSQL, so tasks are not retried, not acknowledged late and
expire when nobody took them before the dispatcher rings again.
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")

app = Celery("ingestion")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
