"""failures: the messages of a source that could not be had."""

from argparse import ArgumentParser
from typing import Any

from ingestion.management.base import Exit, SourceCommand
from ingestion.management.presentation import failure_object, limit
from ingestion.models import FailedMessage, IngestionSource


class Command(SourceCommand):
    help = (
        "List the messages of a source that could not be had: why, how often each was tried and "
        "when it is tried again. retry_failed tries them now."
    )
    example = "manage.py failures Alice\nmanage.py failures Alice | cut -f 4 | sort | uniq -c"

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--limit", type=limit, default=1000, metavar="N", help="at most so many (default: 1000)"
        )

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        rows = FailedMessage.objects.filter(mailbox__source=source)
        found = list(rows.select_related("folder", "mailbox")[: options["limit"]])
        self.report_rows(
            {"failures": [failure_object(failure) for failure in found]},
            ("Id", "Mailbox", "Folder", "Code", "Reason", "Tries", "Next try"),
            [
                (
                    str(failure.pk),
                    failure.mailbox.address,
                    failure.folder.path,
                    failure.code,
                    failure.reason,
                    failure.attempts,
                    failure.not_before,
                )
                for failure in found
            ],
            numbers={"Id", "Tries"},
            spare=("Tries", "Code"),
            nothing=f"{source.name} has no failed message.",
        )
        return Exit.OK
