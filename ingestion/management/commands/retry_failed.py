"""retry_failed: try messages again that could not be had."""

from argparse import ArgumentParser
from typing import Any

from ingestion.management.base import Exit
from ingestion.management.runs import RunCommand
from ingestion.models import FailedMessage, IngestionSource, Run
from ingestion.services.engine import failures
from ingestion.services.sources import verbs


class Command(RunCommand):
    help = (
        "Try again now what could not be had before (all of the source's failed messages, or those "
        "named with --id), by a sync. They are tried again by themselves too, after growing waits."
    )
    example = 'manage.py retry_failed "Alice" --follow\nmanage.py retry_failed "Alice" --id 17'

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument(
            "--id",
            dest="ids",
            type=int,
            action="append",
            metavar="N",
            help="only this failed message, as source_status numbers it; may be repeated",
        )

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        failed = FailedMessage.objects.filter(mailbox__source=source)
        if options["ids"] is not None:
            failed = failed.filter(pk__in=options["ids"])
        if not failed.exists():
            document = {"sourceId": source.pk, "retried": 0}
            self.report(document, f"{source.name} has no such failed message: nothing to retry.")
            return Exit.OK
        return super().perform_on(source, options)

    def start(self, source: IngestionSource, options: dict[str, Any]) -> Run:
        count = failures.retry(source, actor=self.actor, ids=options["ids"])
        self.say(f"{count:,} failed messages are tried again.")
        return verbs.start_sync(source, actor=self.actor)  # the one that retry started
