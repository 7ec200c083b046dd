"""The WSGI application that the Procfile's web process serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
application = get_wsgi_application()
