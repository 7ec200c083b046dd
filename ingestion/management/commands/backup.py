"""backup: the database and all packs into a directory; read backups back."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from ingestion.amounts import counted
from ingestion.management.backups import place
from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.meanwhile import Meanwhile
from ingestion.management.presentation import Bytes, limit, size
from ingestion.services.operations.backup import checking, making
from ingestion.services.operations.backup.place import Manifest, Place

_NO_KEYS = (
    "The keys are not in it. Without them stored credentials are lost, mail is not: --keys FILE"
    " writes them."
)


class Command(OperatorCommand):
    help = (
        "Back up the database and all packs into a directory, while the service works. Packs never "
        "change: each is copied once, and read back. Killed half-way it is run again. Of databases "
        "the newest --keep are kept, and packs as long as one of those lists them. The encryption "
        "keys are not among it: --keys writes them elsewhere. --verify reads all backups of the "
        "directory back, --list tells what there is. Ends with 3 where a pack could not be had."
    )
    example = (
        "manage.py backup /media/backup --keys /safe/ingestion-keys.json\n"
        "manage.py backup /media/backup --verify"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="where backups are")
        parser.add_argument(
            "--packs", metavar="URL", help="where their packs are, if elsewhere: as ARCHIVE_URL is"
        )
        parser.add_argument(
            "--keep", type=limit, default=7, metavar="N", help="keep so many databases (default 7)"
        )
        parser.add_argument(
            "--keys",
            metavar="FILE",
            type=Path,
            help="write the keys into this file, which is apart",
        )
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--verify", action="store_true", help="read what is there back instead")
        what.add_argument(
            "--list", action="store_true", help="tell which backups there are instead"
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        backups = place(options["directory"], options["packs"])
        if options["list"]:
            return self._list(backups)
        return self._verify(backups) if options["verify"] else self._make(backups, options)

    def _make(self, backups: Place, options: dict[str, Any]) -> Exit:
        keys: Path | None = options["keys"]
        places = {backups.root.resolve(), Path(backups.packs.name).resolve()}
        if keys and places & {*keys.resolve().parents}:
            raise UsageError("--keys: who has both has every credential. Name a place elsewhere.")
        with Meanwhile("Beginning") as shown:
            done = making.make(
                backups,
                keep=options["keep"],
                actor=self.actor,
                on_progress=lambda m: shown.bytes(
                    m.stage,
                    m.size_bytes,
                    m.total_bytes,
                    f"{counted(m.packs, 'pack')}, database {size(m.dump_bytes)}",
                ),
            )
        if keys:
            making.write_keys(keys)
        assert done.manifest
        document = {
            **_object(done.manifest),
            "copied": done.copied,
            "differing": done.differing,
            "unreadable": done.unreadable,
            "removedBackups": done.removed_backups,
            "removedPacks": done.removed_packs,
            "keys": str(keys) if keys else None,
        }
        made = done.manifest
        lines = [
            (
                f"{made.name}: the database ({size(made.dump_bytes)}) and"
                f" {counted(made.packs, 'pack')} ({size(made.pack_bytes)}) are in {backups.root};"
                f" {counted(done.copied, 'pack')} copied now, and read back."
            ),
            *_wrong(done),
            f"The keys are in {keys}." if keys else _NO_KEYS,
        ]
        if done.removed_backups or done.removed_packs:
            lines.append(
                f"Removed: {counted(done.removed_backups, 'older backup')}, and"
                f" {counted(done.removed_packs, 'pack')} that none lists any more."
            )
        self.report(document, lines)
        wrong = done.lost or done.differing or done.unreadable
        return Exit.PARTIAL if wrong else Exit.OK

    def _verify(self, backups: Place) -> Exit:
        with Meanwhile("Beginning") as shown:
            done = checking.check(
                backups,
                on_progress=lambda c: shown.bytes(
                    c.stage, c.size_bytes, c.total_bytes, counted(c.packs, "pack")
                ),
            )
        document = {
            "ok": not done.problems,
            "backups": done.backups,
            "packs": done.packs,
            "bytes": done.size_bytes,
            "problems": done.problems,
        }
        what = (
            f"{counted(done.backups, 'backup')} with {counted(done.packs, 'pack')}"
            f" ({size(done.size_bytes)}) were read back:"
        )
        verdict = f"{counted(len(done.problems), 'problem')}." if done.problems else "all is well."
        self.report(document, [*done.problems, f"{what} {verdict}"])
        return Exit.PROBLEM if done.problems else Exit.OK

    def _list(self, backups: Place) -> Exit:
        unreadable: list[str] = []
        found = backups.manifests(on_damage=lambda error: unreadable.append(str(error)))
        rows = [
            (
                one.name,
                f"{one.taken_at:%Y-%m-%d %H:%M:%S}",
                Bytes(one.dump_bytes),
                one.messages,
                one.packs,
                Bytes(one.pack_bytes),
                len(one.lost),
            )
            for one in found
        ]
        self.report_rows(
            [_object(one) for one in found],
            ("Backup", "Taken (UTC)", "Database", "Messages", "Packs", "Size", "Missing"),
            rows,
            numbers={"Database", "Messages", "Packs", "Size", "Missing"},
            nothing=f"There is no complete backup in {backups.root}.",
        )
        for problem in unreadable:
            self.say(problem)
        return Exit.PROBLEM if unreadable else Exit.OK


def _wrong(done: making.Making) -> list[str]:
    return [
        *(
            f"pack {pack} is missing or damaged in the archive, and not in the backup:"
            " verify_archive --refetch."
            for pack in done.lost
        ),
        *(
            f"pack {pack} has other bytes in the backup than in the archive: verify_archive tells"
            " whether the latter is good; then remove the former."
            for pack in done.differing
        ),
        *(
            f"{problem} As long as its files are there, no pack is removed from the backup."
            for problem in done.unreadable
        ),
    ]


def _object(one: Manifest) -> dict[str, Any]:
    return {
        "backup": one.name,
        "takenAt": one.taken_at,
        "databaseBytes": one.dump_bytes,
        "messages": one.messages,
        "packs": one.packs,
        "bytes": one.pack_bytes,
        "missing": one.lost,
    }
