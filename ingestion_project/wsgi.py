"""The WSGI application that the Procfile's web process serves."""

import importlib
import os

from django.conf import settings
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application

from ingestion import memory

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
application = get_wsgi_application()
# All pages now, and what they send: the first visitor waits for none.
importlib.import_module(settings.ROOT_URLCONF)
importlib.import_module("ingestion.tasks")
memory.keep_objects()
request_finished.connect(memory.collect_cycles)
