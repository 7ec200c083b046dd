"""restore: put a backup back into an empty database and an empty archive."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from ingestion.amounts import counted
from ingestion.management.backups import place
from ingestion.management.base import Exit, OperatorCommand
from ingestion.management.meanwhile import Meanwhile
from ingestion.management.presentation import size
from ingestion.services.operations.backup import restoring


class Command(OperatorCommand):
    help = (
        "Put a backup back: the database into an empty one, the packs into an empty archive, each "
        "compared by its SHA-256. Run it before the service is started for the first time; killed "
        "half-way it is run again. At its end it tells what is missing. Ends with 3 then."
    )
    example = "manage.py restore /media/backup\nmanage.py restore /media/backup --database-only"

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="where backups are")
        parser.add_argument(
            "--packs", metavar="URL", help="where their packs are, if elsewhere: as ARCHIVE_URL is"
        )
        parser.add_argument(
            "--backup", metavar="NAME", help="which one, as backup --list has it (default: newest)"
        )
        only = parser.add_mutually_exclusive_group()
        only.add_argument(
            "--database-only",
            action="store_const",
            const="database",
            dest="only",
            help="the archive is whole: put the database beside it",
        )
        only.add_argument(
            "--packs-only",
            action="store_const",
            const="packs",
            dest="only",
            help="the database is whole, or lost for good: fill the archive alone",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        with Meanwhile("Beginning") as shown:
            done = restoring.restore(
                place(options["directory"], options["packs"]),
                options["backup"],
                only=options["only"],
                actor=self.actor,
                on_progress=lambda r: shown.bytes(
                    r.stage, r.size_bytes, r.total_bytes, counted(r.packs, "pack")
                ),
            )
        document = {
            "backup": done.backup,
            "packs": done.packs,
            "bytes": done.size_bytes,
            "newerPacks": done.newer,
            "unreadableCredentials": done.unreadable_credentials,
            "missing": [
                {
                    "sourceId": one.source_id,
                    "packId": one.pack_id,
                    "messages": one.messages,
                    "text": one.why,
                }
                for one in done.missing
            ],
        }
        self.report(document, [*_missing(done), *_summary(done, options["only"])])
        return Exit.PARTIAL if done.missing or done.unreadable_credentials else Exit.OK


def _missing(done: restoring.Restoring) -> list[str]:
    return [
        f"pack {one.pack_id} of source {one.source_id} ({counted(one.messages, 'message')})"
        f" {one.why}."
        for one in done.missing
    ]


def _summary(done: restoring.Restoring, only: str | None) -> list[str]:
    packs = f"{counted(done.packs, 'pack')} ({size(done.size_bytes)})"
    back = {"database": f"the database of {done.backup}", "packs": f"{packs}, bit for bit"}
    parts = [back[only]] if only else [back["database"], back["packs"]]
    lines = [f"Restored: {' and '.join(parts)}."]
    if done.missing:
        lines.append(
            "What the provider still has of the missing packs, verify_archive --refetch fetches"
            " again once the service runs."
        )
    if done.newer:
        lines.append(
            f"{counted(done.newer, 'pack')} came after the database was dumped:"
            " rebuild_archive_index takes in what it does not know of them."
        )
    if done.unreadable_credentials:
        lines.append(
            f"{counted(done.unreadable_credentials, 'stored secret')} can't be read with the keys"
            " here: put those back that backup --keys wrote (as VAR_DIR/secrets.json, or as"
            " SECRET_KEY and ENCRYPTION_KEYS), or give the credentials anew."
        )
    lines.append("Start the service, then ask manage.py doctor and manage.py verify_archive.")
    return lines
