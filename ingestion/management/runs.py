"""What the commands that start a run have in common: --follow, --now, and how they end."""

from argparse import ArgumentParser
from typing import Any

from ingestion import dispatching
from ingestion.management import progress
from ingestion.management.base import Exit, SourceCommand
from ingestion.management.presentation import run_object
from ingestion.models import FailedMessage, IngestionSource, Run
from ingestion.states import RunStatus


class RunCommand(SourceCommand):
    """A command that starts a run. Write `start`, which returns it."""

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--follow",
            action="store_true",
            help="stay until it is done, with live progress on stderr; Ctrl-C leaves it running",
        )
        how.add_argument(
            "--now",
            action="store_true",
            help="do the work in this process, without worker or Redis, with live progress",
        )

    def start(self, source: IngestionSource, options: dict[str, Any]) -> Run:
        """Start the run, or return the one that is under way."""
        raise NotImplementedError

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        run = self.start(source, options)
        try:
            if options["now"]:
                # All that the engine can do: only who works here needs it.
                from ingestion.services.engine import due_work  # noqa: PLC0415 - see above

                with progress.shown_meanwhile(run.pk):
                    run = due_work.work_until_done(source, on_progress=lambda _: None)
            else:
                dispatching.on_commit(source)
                if not options["follow"]:
                    return self._started(source, run)
                run = progress.follow(run.pk)
        except progress.Ended as end:
            self.say(str(end))
            return Exit.PROBLEM
        except KeyboardInterrupt:
            self.say(_INTERRUPTED_NOW if options["now"] else _INTERRUPTED_FOLLOWING)
            return Exit.INTERRUPTED
        return self._ended(source, run)

    def _started(self, source: IngestionSource, run: Run) -> Exit:
        self.report(
            {"sourceId": source.pk, "run": run_object(run)},
            f"The {run.kind} of {source.name} is under way. source_status shows how far it is.",
        )
        if progress.nobody_works():
            self.say("No worker is running, so it waits: start the service, or use --now.")
        return Exit.OK

    def _ended(self, source: IngestionSource, run: Run) -> Exit:
        run.refresh_from_db()
        failed = FailedMessage.objects.filter(mailbox__source=source).count()
        lines = [f"The {run.kind} of {source.name} {_ENDS[RunStatus(run.status)]}: {run.message}"]
        if failed:
            lines.append(
                f"{failed:,} messages could not be had so far: source_status says why. They are "
                "tried again by themselves, or now with retry_failed."
            )
        document = {"sourceId": source.pk, "run": run_object(run), "failedMessageCount": failed}
        self.report(document, lines)
        return Exit.OK if run.status == RunStatus.COMPLETED and not failed else Exit.PROBLEM


_ENDS = {
    RunStatus.RUNNING: "goes on",
    RunStatus.COMPLETED: "is done",
    RunStatus.INCOMPLETE: "is done, as far as it could be had",
    RunStatus.STOPPED: "was stopped",
    RunStatus.FAILED: "failed",
}
_INTERRUPTED_FOLLOWING = "No longer following. The work goes on in the background."
_INTERRUPTED_NOW = (
    "Stopped. What is archived is kept: start it again, or let the workers go on from there."
)
