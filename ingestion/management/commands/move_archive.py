"""move_archive: move the packs to another directory or bucket."""

from argparse import ArgumentParser
from typing import Any

from ingestion.amounts import counted
from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.meanwhile import Meanwhile
from ingestion.management.presentation import size
from ingestion.packs.store import at, store
from ingestion.services.operations import moving


class Command(OperatorCommand):
    help = (
        "Copy every pack to another directory or bucket, read both back and compare them by "
        "SHA-256, and have that be the archive. May run while the service works; killed half-way "
        "it is run again, and copies nothing twice. At its end the old place takes no mail any "
        "more, so restart every process with the setting that it tells. Removes nothing."
    )
    example = (
        'manage.py move_archive "s3://mail/archive?endpoint=https://s3.example.com&region=eu-1"\n'
        "manage.py move_archive file:///mnt/archive"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("to", metavar="URL", help="where to: as ARCHIVE_URL is written")

    def perform(self, options: dict[str, Any]) -> Exit:
        here = store().fresh()
        try:
            there = at(options["to"]).fresh()
        except ValueError as error:
            raise UsageError(f"URL: {error}.") from None
        with Meanwhile("Beginning") as shown:
            moved = moving.move(
                here,
                there,
                actor=self.actor,
                on_progress=lambda m: shown.bytes(
                    "Waiting for workers" if m.waiting else "Copying and comparing",
                    m.size_bytes,
                    m.total_bytes,
                    counted(m.packs, "pack"),
                ),
            )
        document = {
            "packs": moved.packs,
            "bytes": moved.size_bytes,
            "copied": moved.copied,
            "missing": moved.missing,
            "from": here.name,
            "to": there.name,
        }
        done = (
            f"{counted(moved.packs, 'pack')} ({size(moved.size_bytes)}) lie in {there.name} as in"
            f" {here.name}, bit for bit; {moved.copied:,} were copied now."
        )
        next_step = (
            f"From now on {there.name} is the archive. Set ARCHIVE_URL={options['to']} in place of"
            " what it or ARCHIVE_DIR is, restart every process, and ask manage.py doctor."
            f" {here.name} is left as it is: remove it when you trust the new one."
        )
        self.report(document, [done, *_missing(moved.missing), next_step])
        return Exit.PARTIAL if moved.missing else Exit.OK


def _missing(packs: int) -> list[str]:
    text = (
        f"In neither place: {counted(packs, 'pack')} that the database names. verify_archive tells"
        " of them once the service runs there, and --refetch fetches again what the provider still"
        " has."
    )
    return [text] if packs else []
