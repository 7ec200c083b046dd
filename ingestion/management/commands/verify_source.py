"""verify_source: check a source's credentials at the provider, now."""

from typing import Any

from ingestion import dispatching
from ingestion.management.base import Exit, SourceCommand
from ingestion.models import IngestionSource
from ingestion.services.sources import credentials


class Command(SourceCommand):
    help = (
        "Check now that the source's mail can be read, not only that the login works; takes at "
        "most 15 s. Moves the status accordingly: a source that waits for its credentials, or is "
        "in error, goes on when they work. Ends with 1 where they don't."
    )
    example = 'manage.py verify_source "Alice"'

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        del options
        verdict = credentials.check(source, actor=self.actor)
        dispatching.on_commit(source)
        source.refresh_from_db()
        document = {
            "sourceId": source.pk,
            "ok": verdict.ok,
            "code": verdict.code,
            "message": verdict.message,
            "status": source.status,
        }
        word = "The credentials work." if verdict.ok else f"The check failed ({verdict.code})."
        state = source.get_status_display().lower()
        self.report(document, f"{word} {verdict.message}\n{source.name} is now {state}.")
        return Exit.OK if verdict.ok else Exit.PROBLEM
