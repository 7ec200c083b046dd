"""verify_archive: re-hash every archived message."""

import uuid
from argparse import ArgumentParser
from typing import Any

from ingestion.amounts import counted
from ingestion.management.base import Exit, OperatorCommand
from ingestion.management.meanwhile import Meanwhile
from ingestion.management.presentation import size
from ingestion.models import IngestionSource
from ingestion.services.archive import refetch, verify

#: More problems than this are counted, not listed, in the JSON; the text lists all of them.
_MAX_LISTED = 1_000
_LOST: tuple[verify.Kind, ...] = ("missing_pack", "corrupt_message")
_FROM_BACKUP: tuple[verify.Kind, ...] = ("missing_pack", "corrupt_message", "corrupt_pack")


class Command(OperatorCommand):
    help = (
        "Read every archived message back and compare it with its SHA-256, and each row with the "
        "pack's own record of it. Reports packs that are missing, damaged messages and records, "
        "rows that are missing, and packs without a row (orphans). Changes nothing, may run while "
        "the service works. With --refetch, lost and damaged messages are then fetched again from "
        "the provider, where it still has the same bytes. Ends with 1 where anything was wrong."
    )
    example = 'manage.py verify_archive\nmanage.py verify_archive "Alice" --json'

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "sources", metavar="SOURCE", nargs="*", help="ids or names (default: the whole archive)"
        )
        parser.add_argument(
            "--refetch",
            action="store_true",
            help="fetch again what is lost; what the provider does not have stays as it is",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        chosen = [self.find_source(given) for given in options["sources"]] or None
        listed: list[verify.Problem] = []
        lost: dict[uuid.UUID, set[uuid.UUID]] = {}

        def on_problem(problem: verify.Problem) -> None:
            if len(listed) < _MAX_LISTED:
                listed.append(problem)
            if problem.kind in _LOST:
                lost.setdefault(problem.source_id, set()).add(problem.pack_id)
            if not self.as_json:
                self.stdout.write(f"{problem.kind}: {problem.text}")

        with Meanwhile("Verifying") as shown:
            result = verify.verify_archive(
                chosen,
                on_problem=on_problem,
                on_progress=lambda v: shown.count(
                    f"{v.messages:,} messages, {size(v.size_bytes)}, {v.found.total()} problems"
                ),
            )
        document = {
            "ok": result.ok,
            "packs": result.packs,
            "messages": result.messages,
            "bytes": result.size_bytes,
            "missingPacks": result.found["missing_pack"],
            "unreadablePacks": result.found["unreadable_pack"],
            "corruptMessages": result.found["corrupt_message"],
            "corruptPacks": result.found["corrupt_pack"],
            "missingRows": result.found["missing_rows"],
            "orphanPacks": result.found["orphan_pack"],
            "problems": [_object(problem) for problem in listed],
        }
        checked = (
            f"{counted(result.messages, 'message')} in {counted(result.packs, 'pack')} "
            f"({size(result.size_bytes)})"
        )
        lines = [f"{checked} were read back: {_verdict(result)}"]
        if options["refetch"]:
            done = self._refetch(lost)
            document |= {
                "refetched": done.fetched,
                "notRefetched": done.left,
                "packsNotAskedFor": done.packs_not_asked_for,
            }
            lines.append(
                f"{counted(done.fetched, 'lost message')} fetched again, {done.left:,} not."
                " Run verify_archive once more."
            )
        elif lost:
            lines.append("What the provider still has of it, --refetch fetches again.")
        self.report(document, lines)
        return Exit.OK if result.ok else Exit.PROBLEM

    def _refetch(self, lost: dict[uuid.UUID, set[uuid.UUID]]) -> refetch.Refetched:
        total = refetch.Refetched()
        for source in IngestionSource.objects.filter(pk__in=lost, deleted_at=None):
            done = refetch.refetch(source, lost[source.pk], actor=self.actor, on_left=self.say)
            total.fetched += done.fetched
            total.left += done.left
            total.packs_not_asked_for += done.packs_not_asked_for
            if done.refused:  # others may have another provider
                self.say(f"{source.name}: {done.refused}")
            if done.packs_not_asked_for:
                packs = counted(done.packs_not_asked_for, "more pack")
                self.say(f"{source.name}: what is lost of {packs} was not asked for.")
            if done.refused or done.left:
                self.say(
                    f"{source.name}: what is left is not tried again by itself. Where it is not"
                    " gone for good, run this again once what kept it from being fetched is over."
                )
        return total


def _verdict(result: verify.Verification) -> str:
    if result.ok:
        return "all are what was archived, bit for bit."
    verdict = f"{counted(result.found.total(), 'problem')}, listed above."
    if any(result.found[kind] for kind in _FROM_BACKUP):
        verdict += " Restore missing and damaged packs from a backup."
    if result.found["missing_rows"]:
        verdict += " Run rebuild_archive_index for rows that are missing."
    return verdict


def _object(problem: verify.Problem) -> dict[str, Any]:
    return {
        "kind": problem.kind,
        "sourceId": problem.source_id,
        "packId": problem.pack_id,
        "messageId": problem.message_id,
        "messages": problem.messages,
        "text": problem.text,
    }
