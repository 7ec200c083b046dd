#!/usr/bin/env python
"""Django's command line: `manage.py help` lists the commands."""

import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
    try:
        assert settings.INSTALLED_APPS  # read here: Django takes bad settings for unknown commands
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"The settings are not complete: {error}")
    except PermissionError as error:
        sys.exit(f"This user may not use {error.filename}. Run this as the service's user.")


if __name__ == "__main__":
    main()
