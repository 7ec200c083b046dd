"""reindex: have archived mail indexed, again or at last."""

from argparse import ArgumentParser
from typing import Any

from ingestion import index_health
from ingestion.amounts import counted
from ingestion.management.base import Exit, OperatorCommand
from ingestion.management.meanwhile import Meanwhile
from ingestion.models import IngestionSource
from ingestion.services.archive import indexing


class Command(OperatorCommand):
    help = (
        "Have archived mail indexed, which search, lists by date and threads need. That happens by "
        "itself as it is archived; this has packs that could not be read tried at once, such as "
        "those that are restored now, and with --all everything read again: header fields, words "
        "and threads become what the present version reads. The archive's bytes never change. The "
        "process `index` does it in the background, or with --now this command. May run while the "
        "service works; killed, it is run again. Ends with 1 where packs can't be read."
    )
    example = 'manage.py reindex\nmanage.py reindex "Alice" --all --now'

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "sources", metavar="SOURCE", nargs="*", help="ids or names (default: all sources)"
        )
        parser.add_argument(
            "--all", action="store_true", help="also what is indexed: read all of it again"
        )
        parser.add_argument("--now", action="store_true", help="do it here, without a worker")

    def perform(self, options: dict[str, Any]) -> Exit:
        chosen = [self.find_source(given).pk for given in options["sources"]] or None
        due = indexing.owe(chosen, everything=options["all"])
        if options["now"]:
            with Meanwhile("Indexing") as shown:
                indexing.index_now(
                    chosen, on_progress=lambda count: shown.count(counted(count, "message"))
                )
        sources = IngestionSource.objects.filter(deleted_at=None)
        if chosen is not None:
            sources = sources.filter(pk__in=chosen)
        health = index_health.in_all(sources)
        lines = [f"{health}."]
        if not options["now"] and due:
            lines.append(f"{counted(due, 'pack')} are due: the process `index` goes on with them.")
        if health.unreadable_packs:
            lines.append("manage.py verify_archive names the packs: restore them from a backup.")
        self.report({"packsDue": due, **index_health.as_object(health)}, lines)
        return Exit.PROBLEM if health.unreadable_packs else Exit.OK
