"""import_source: copy everything the source has into the archive."""

from typing import Any

from ingestion.management.runs import RunCommand
from ingestion.models import IngestionSource, Run
from ingestion.services.sources import verbs


class Command(RunCommand):
    help = (
        "Import a source: copy all its mail into the archive. An import that is under way is "
        "joined, not started twice; one that was interrupted goes on from where it was. Ends with "
        "1 where the import did not complete, or a message could not be had."
    )
    example = (
        'manage.py import_source "Alice" --follow\n'
        'manage.py import_source "Alice" --now --json > import.json'
    )

    def start(self, source: IngestionSource, options: dict[str, Any]) -> Run:
        del options
        return verbs.start_import(source, actor=self.actor)
