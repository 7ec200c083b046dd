"""update_source: change a source's name, credentials or options."""

from argparse import ArgumentParser
from typing import Any

from ingestion import dispatching
from ingestion.management import given
from ingestion.management.base import Exit, SourceCommand, UsageError
from ingestion.management.source_objects import source_object
from ingestion.models import IngestionSource
from ingestion.services.sources import configuration, credentials


class Command(SourceCommand):
    help = (
        "Change a source: what is not given stays as it is. Changed credentials are checked in the "
        "background, or now with --verify (then it ends with 1 where they don't work). A stored "
        "secret goes only to the server that it was given for: a changed host or user name asks "
        "for it again."
    )
    example = (
        'manage.py update_source "Alice" --password-env IMAP_PASSWORD --verify\n'
        'manage.py update_source "Alice" --rename "Alice Smith" --sync-interval-seconds 900'
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--rename", dest="name", metavar="NAME", help="what it is called from now on"
        )
        parser.add_argument(
            "--verify", action="store_true", help="check changed credentials now, within 15 s"
        )
        given.add_arguments(parser)

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        changes: dict[str, Any] = {}
        if options["name"] is not None:
            changes["name"] = options["name"]
        if config := given.config(options, source.provider, self.say):
            changes["providerConfig"] = config
        if chosen := given.chosen_options(options):
            changes["options"] = chosen
        if not changes:
            raise UsageError("Say what to change: --help lists what there is.")
        source = configuration.update(source, changes=changes, actor=self.actor)
        if options["verify"] and config:
            verdict = credentials.check(source, actor=self.actor)
            source.refresh_from_db()
            if not verdict.ok:
                dispatching.on_commit(source)
                self.say(f"The credentials don't work ({verdict.code}): {verdict.message}")
                self.report(source_object(source), f"Changed {source.name}.")
                return Exit.PROBLEM
        dispatching.on_commit(source)
        state = source.get_status_display().lower()
        self.report(source_object(source), f"Changed {source.name}: it is {state}.")
        return Exit.OK
