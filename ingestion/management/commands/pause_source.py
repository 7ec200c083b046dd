"""pause_source: stop all work on a source, keeping what it has."""

from typing import Any

from ingestion.management.base import Exit, SourceCommand
from ingestion.management.source_objects import source_object
from ingestion.models import IngestionSource
from ingestion.services.sources import verbs


class Command(SourceCommand):
    help = (
        "Pause a source: nothing runs and nothing is scheduled until resume_source. Running work "
        "stops within one page and keeps all it has. Pausing twice is fine."
    )
    example = 'manage.py pause_source "Alice"'

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        del options
        source = verbs.pause(source, actor=self.actor)
        self.report(
            source_object(source),
            f"{source.name} is paused. resume_source lets it go on from where it was.",
        )
        return Exit.OK
