"""runs: the imports and syncs of a source, newest first."""

from argparse import ArgumentParser
from typing import Any

from ingestion.management.base import Exit, SourceCommand
from ingestion.management.presentation import limit, run_object
from ingestion.models import IngestionSource, Run


class Command(SourceCommand):
    help = "List the imports and syncs of a source, newest first, with what came of each."
    example = "manage.py runs Alice --limit 5"

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--limit", type=limit, default=50, metavar="N", help="at most so many (default: 50)"
        )

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        found = list(Run.objects.filter(source=source)[: options["limit"]])
        self.report_rows(
            {"runs": [run_object(run) for run in found]},
            ("Started", "Kind", "Status", "New", "Failed", "Message"),
            [
                (
                    run.started_at,
                    run.kind,
                    run.status,
                    run.messages_new,
                    run.messages_failed,
                    run.message or run.warning,
                )
                for run in found
            ],
            numbers={"New", "Failed"},
            nothing=f"{source.name} had no import yet. import_source starts one.",
        )
        return Exit.OK
