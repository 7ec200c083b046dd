"""delete_source: remove a source and everything archived from it."""

import sys
import time
from argparse import ArgumentParser
from typing import Any

from ingestion import dispatching
from ingestion.management.base import Exit, SourceCommand, UsageError
from ingestion.management.presentation import size
from ingestion.models import IngestionSource
from ingestion.services.sources import verbs

_POLL_SECONDS = 0.5


class Command(SourceCommand):
    help = (
        "Delete a source AND all mail archived from it. It is out of every answer at once; workers "
        "remove its rows and packs in the background, or this process does with --now. Nothing at "
        "the provider is touched. Asks first, unless told --yes. There is no way back but a backup."
    )
    example = 'manage.py delete_source "Alice" --yes --now'

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--yes", action="store_true", help="don't ask")
        parser.add_argument(
            "--now", action="store_true", help="remove rows and packs in this process, and wait"
        )

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        what = f"{source.message_count:,} archived messages ({size(source.archived_bytes)})"
        if not options["yes"] and not self._confirmed(source, what):
            self.say("Not deleted.")
            return Exit.PROBLEM
        verbs.delete(source, actor=self.actor)
        if options["now"]:
            # All that the engine can do: only who works here needs it.
            from ingestion.services.engine import due_work  # noqa: PLC0415 - see above

            while IngestionSource.objects.filter(pk=source.pk).exists():
                if not due_work.do_now(due_work.Work("delete", source.pk)):
                    time.sleep(_POLL_SECONDS)  # a worker is at it: wait until nothing is left
        else:
            dispatching.on_commit(source)
        rest = "is gone." if options["now"] else "is out of every answer. Workers remove the rest."
        self.report(
            {"sourceId": source.pk, "deleted": True, "removed": options["now"]},
            f"{source.name} with its {what} {rest}",
        )
        return Exit.OK

    def _confirmed(self, source: IngestionSource, what: str) -> bool:
        if not sys.stdin.isatty():
            raise UsageError(f"This deletes {what} of {source.name}. Say --yes to mean it.")
        self.say(f"This deletes {source.name} and its {what}, for good. Type its name to confirm:")
        return input().strip() == source.name
