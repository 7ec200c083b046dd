"""reconcile_source: compare the provider's folders with the archive, by id."""

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from ingestion.management.base import Exit, SourceCommand
from ingestion.management.meanwhile import Meanwhile
from ingestion.management.presentation import Cell, printable, table
from ingestion.models import IngestionSource
from ingestion.services.archive import reconcile
from ingestion.services.sources import verbs

_COLUMNS = ("Mailbox", "Folder", "Server", "Present", "Missing", "Failed", "Left out", "Note")


class Command(SourceCommand):
    help = (
        "List every folder at the provider and compare it with the archive, message by message: "
        "present, missing, failed. Downloads and changes nothing. Mail that came since the last "
        "sync counts as missing: sync first. With --repair, a sync lists folders that lack mail "
        "from the beginning and fetches it. Ends with 1 where anything is missing or failed, or a "
        "folder can't be read."
    )
    example = (
        'manage.py sync_source "Alice" --follow && manage.py reconcile_source "Alice"\n'
        "manage.py reconcile_source \"Alice\" --json | jq '.folders[] | select(.missing > 0)'"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--max-ids",
            type=int,
            default=1_000,
            metavar="N",
            help="list at most so many missing and failed ids per folder (default 1000)",
        )

        parser.add_argument(
            "--repair",
            action="store_true",
            help="start a sync that lists folders that lack mail anew, and fetches what is missing",
        )

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        reports = []
        with Meanwhile("Comparing") as shown:
            for report in reconcile.reconcile(
                source, max_ids=max(0, options["max_ids"]), repair=options["repair"]
            ):
                reports.append(report)
                shown.count(f"{len(reports):,} folders, {sum(r.listed for r in reports):,} listed")
        totals = {
            name: sum(getattr(r, name) for r in reports if r.wanted)
            for name in ("listed", "present", "missing", "failed", "excluded")
        }
        ok = all(report.ok for report in reports)
        repairs = options["repair"] and totals["missing"] > 0
        if repairs:
            verbs.start_sync(source, actor=self.actor)
        document = {
            "sourceId": source.pk,
            "ok": ok,
            **totals,
            "repairing": repairs,
            "folders": [_object(report) for report in reports],
        }
        self.report(document, self._lines(reports, totals, ok=ok, repairs=repairs))
        return Exit.OK if ok else Exit.PROBLEM

    def _lines(
        self,
        reports: list[reconcile.FolderReport],
        totals: dict[str, int],
        *,
        ok: bool,
        repairs: bool,
    ) -> Iterable[str]:
        yield table(_COLUMNS, map(_row, reports), numbers=set(_COLUMNS[2:7]))
        for report in reports:
            for word, ids in (("missing", report.missing_ids), ("failed", report.failed_ids)):
                if ids:
                    shown = ", ".join(printable(one) for one in ids)
                    yield f"{word} in {printable(report.path)}: {shown}"
        yield (
            f"{totals['listed']:,} at the provider: {totals['present']:,} present, "
            f"{totals['missing']:,} missing, {totals['failed']:,} failed, "
            f"{totals['excluded']:,} left out by the options."
        )
        if ok:
            yield "Nothing is missing."
        elif repairs:
            yield "A sync fetches what is missing: compare again when source_status calls it done."
        elif totals["missing"]:
            yield (
                "Run sync_source: what came meanwhile is no longer missing then. What still is, "
                "reconcile_source --repair fetches."
            )
        elif totals["failed"]:
            yield "source_status says why messages failed; retry_failed tries them again."


def _row(report: reconcile.FolderReport) -> tuple[Cell, ...]:
    note = report.error
    if not report.wanted:
        return (report.mailbox, report.path, report.listed, *[""] * 4, "left out by options")
    if report.unlisted:
        note = f"{report.unlisted:,} more in the server's own count than in its listing"
    elif report.kept and not note:
        note = f"{report.kept:,} archived, no longer there"
    numbers = (report.listed, report.present, report.missing, report.failed, report.excluded)
    return (report.mailbox, report.path, *numbers, note)


def _object(report: reconcile.FolderReport) -> dict[str, Any]:
    return {
        "mailbox": report.mailbox,
        "path": report.path,
        "remoteId": report.remote_id,
        "wanted": report.wanted,
        "listed": report.listed,
        "present": report.present,
        "missing": report.missing,
        "failed": report.failed,
        "excluded": report.excluded,
        "unlisted": report.unlisted,
        "noLongerListed": report.kept,
        "missingIds": report.missing_ids,
        "failedIds": report.failed_ids,
        "error": report.error,
    }
