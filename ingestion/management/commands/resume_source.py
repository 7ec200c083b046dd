"""resume_source: let a paused source, or one in error, go on."""

from typing import Any

from ingestion import dispatching
from ingestion.management.base import Exit, SourceCommand
from ingestion.management.source_objects import source_object
from ingestion.models import IngestionSource
from ingestion.services.sources import verbs


class Command(SourceCommand):
    help = (
        "Let a source that is paused or in error go on from where it was. After an error its "
        "credentials are checked first. A source that runs is left alone."
    )
    example = 'manage.py resume_source "Alice"'

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        del options
        before = source.status
        source = verbs.resume(source, actor=self.actor)
        dispatching.on_commit(source)
        state = source.get_status_display().lower()
        text = f"{source.name} goes on: it is now {state}."
        if source.status == before:
            text = (
                f"{source.name} was neither paused nor in error, so nothing changed: it is {state}."
            )
        self.report(source_object(source), text)
        return Exit.OK
