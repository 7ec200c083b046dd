"""migrate: Django's own, which lets others go on while it waits for a lock."""

from typing import Any

from django.core.management.commands import migrate
from django.db import connections

from ingestion.services.operations import migrating


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        migrating.patiently(
            connections[options["database"]],
            lambda: super(Command, self).handle(*args, **options),
            say=lambda text: self.stderr.write(text, style_func=str),  # no error: not in red
        )
