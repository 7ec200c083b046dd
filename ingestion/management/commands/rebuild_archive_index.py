"""rebuild_archive_index: make database rows again from the packs."""

import uuid
from argparse import ArgumentParser
from typing import Any

from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.meanwhile import Meanwhile
from ingestion.models import IngestionSource
from ingestion.services.archive import rebuild


class Command(OperatorCommand):
    help = (
        "Add the rows that the archive's packs tell of and the database lacks: after a lost "
        "database, or one restored from a backup older than the archive. Changes nothing that is "
        "there; killed half-way it is run again. The next sync finds flags, moves and further "
        "copies; of those it downloads what lies in a second folder of a server that has no ids "
        "for mail across folders, and stores nothing twice. A source that the database has lost "
        "too is made anew with --recover; then give it its providerConfig. Ends with 1 where a "
        "pack is damaged."
    )
    example = (
        "manage.py rebuild_archive_index\n"
        "manage.py rebuild_archive_index --recover 8f14e45f-ceea-467f-a1d6-0d0e5d3bb1b6 "
        '--owner alice --name "Alice"'
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "sources", metavar="SOURCE", nargs="*", help="ids or names (default: all sources)"
        )
        parser.add_argument(
            "--recover",
            type=uuid.UUID,
            metavar="ID",
            help="make the source of this directory or prefix of the archive anew, and rebuild it",
        )
        parser.add_argument("--owner", metavar="USER", help="with --recover: whose it will be")
        parser.add_argument("--name", metavar="NAME", help="with --recover: what it will be called")
        parser.add_argument(
            "--provider",
            default="generic_imap",
            help="with --recover: of what kind it was (default generic_imap)",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        done = []
        damaged = 0
        for source in self._chosen(options):
            result = self._rebuild(source)
            damaged += result.damaged
            done.append(
                {
                    "sourceId": source.pk,
                    "name": source.name,
                    "packs": result.packs,
                    "messages": result.messages,
                    "messagesAdded": result.messages_added,
                    "messagesMoved": result.messages_moved,
                    "placementsAdded": result.placements_added,
                    "damaged": result.damaged,
                }
            )
        lines = [
            f"{one['name']}: {one['messages']:,} messages in {one['packs']:,} packs, "
            f"{one['messagesAdded']:,} added."
            for one in done
        ]
        if damaged:
            lines.append(f"{damaged:,} packs or messages are damaged: restore them from a backup.")
        unknown = [] if options["sources"] or options["recover"] else rebuild.unknown_sources()
        if unknown:
            lines.append(
                f"The archive also holds packs of {len(unknown):,} sources that the database does "
                f"not know: {', '.join(map(str, unknown[:20]))}. --recover makes them anew."
            )
        document = {"ok": not damaged, "sources": done, "unknownSources": unknown}
        self.report(document, lines or "There is no source.")
        return Exit.PROBLEM if damaged else Exit.OK

    def _chosen(self, options: dict[str, Any]) -> list[IngestionSource]:
        if options["recover"] is None:
            if options["owner"] or options["name"]:
                raise UsageError("--owner and --name belong to --recover.")
            chosen = [self.find_source(given) for given in options["sources"]]
            return chosen or list(IngestionSource.objects.filter(deleted_at=None))
        if options["sources"] or not options["owner"] or not options["name"]:
            raise UsageError("--recover ID takes --owner and --name, and no other source.")
        recovered = rebuild.recover(
            options["recover"],
            owner=self.find_user(options["owner"]),
            name=options["name"],
            provider=options["provider"],
            actor=self.actor,
        )
        return [recovered]

    def _rebuild(self, source: IngestionSource) -> rebuild.Rebuilt:
        with Meanwhile(f"Rebuilding {source.name}") as shown:
            return rebuild.rebuild(
                source,
                actor=self.actor,
                on_damage=lambda damage: self.say(damage.text),
                on_progress=lambda r: shown.count(
                    f"{r.packs:,} packs, {r.messages:,} messages, {r.messages_added:,} added"
                ),
            )
