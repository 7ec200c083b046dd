"""sync_source: fetch what is new at the provider, now instead of on schedule."""

from typing import Any

from ingestion.management.runs import RunCommand
from ingestion.models import IngestionSource, Run
from ingestion.services.sources import verbs


class Command(RunCommand):
    help = (
        "Sync a source now: archive new mail, note moves, flags and removals. A source that was "
        "never imported is imported. Ends with 1 where the sync did not complete, or a message "
        "could not be had."
    )
    example = 'manage.py sync_source "Alice" --follow'

    def start(self, source: IngestionSource, options: dict[str, Any]) -> Run:
        del options
        return verbs.start_sync(source, actor=self.actor)
