"""The WSGI application that the Procfile's web process serves."""

import importlib
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from ingestion import memory

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
application = get_wsgi_application()
importlib.import_module(settings.ROOT_URLCONF)  # all pages now: the first visitor waits for none
memory.keep_objects()
