"""The WSGI application that the Procfile's web process serves."""

import importlib
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from ingestion import memory

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
# Whoever waits for a page waits no longer, nor does their proxy; a plan that is bad holds a thread
# and a core no longer either. Each statement has the time, so that what is streamed may take hours.
_options = settings.DATABASES["default"]["OPTIONS"]
_options["options"] = _options["options"].replace(
    "statement_timeout=10min", "statement_timeout=30s"
)
application = get_wsgi_application()
# All pages now, and what they send: the first visitor waits for none.
importlib.import_module(settings.ROOT_URLCONF)
importlib.import_module("ingestion.tasks")
memory.keep_objects()
