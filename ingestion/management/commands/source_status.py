"""source_status: how the sources are, or all about one."""

import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ingestion import explaining, freshness, index_health
from ingestion.amounts import counted, moment
from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.presentation import (
    Bytes,
    duration,
    failure_object,
    fitted,
    mailbox_object,
    printable,
    run_object,
    size,
    table,
    terminal_columns,
    when,
)
from ingestion.management.source_objects import source_objects
from ingestion.models import Alert, FailedMessage, IngestionSource, Run, StatusChange
from ingestion.services.archive import housekeeping

_MAX_FAILURES = 1_000
_WATCH_SECONDS = 2.0
_SHOWN_FAILURES = 20
_SHOWN_HISTORY = 5


class Command(OperatorCommand):
    help = (
        "Show how the sources are: status, progress, counts, last and next sync. Named ones are "
        "shown in full, with what is left out, failed messages and history. Ends with 1 where one "
        "needs somebody: in error, its check failing, a sign-in awaited, nothing but failures for "
        "half a minute, not archived for longer than 3 of its intervals (at least 15 minutes), "
        "with mailboxes, folders or messages that could not be had; a named one also where its "
        "archive holds mail that the database does not know, and the list where the service "
        "does: no worker, no room."
    )
    example = (
        'manage.py source_status --watch\nmanage.py source_status "Alice"\n'
        "manage.py source_status --json | jq '.sources[] | select(.attention != []).name'"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "sources", metavar="SOURCE", nargs="*", help="ids or names (default: a list of all)"
        )
        parser.add_argument(
            "--watch",
            action="store_true",
            help="stay, and show it anew every 2 s, until Ctrl-C; needs a terminal",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        if options["watch"]:
            return self._watch(options["sources"])
        chosen = [self.find_source(given) for given in options["sources"]]
        if chosen:
            objects = self._show_in_full(chosen)
        else:
            chosen = list(IngestionSource.objects.filter(deleted_at=None))
            objects = _objects(chosen)
            alerts = _of_the_service()
            text = [*_overview(objects, chosen), *_service_lines(alerts)]
            self.report({"sources": objects, "service": alerts}, text)
            if alerts:
                return Exit.PROBLEM
        wrong = any(shown["attention"] or shown.get("unknownPack") for shown in objects)
        return Exit.PROBLEM if wrong else Exit.OK

    def _watch(self, given: list[str]) -> Exit:
        if self.as_json or not sys.stdout.isatty():
            raise UsageError("--watch is for a terminal, and not beside --json.")
        sources = IngestionSource.objects.filter(deleted_at=None)
        if given:
            sources = sources.filter(pk__in=[self.find_source(one).pk for one in given])
        try:
            with Live(console=Console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
                while True:
                    chosen = list(sources.all())
                    lines = _overview(source_objects(chosen), chosen)
                    shown = "\n".join([*lines, *_service_lines(_of_the_service())])
                    text = fitted(shown, terminal_columns(sys.stdout))
                    live.update(Text(text), refresh=True)
                    time.sleep(_WATCH_SECONDS)
        except KeyboardInterrupt:  # it has no other end
            return Exit.OK

    def _show_in_full(self, chosen: list[IngestionSource]) -> list[dict[str, Any]]:
        objects = _objects(chosen)
        for shown, source in zip(objects, chosen, strict=True):
            shown["mailboxes"] = [mailbox_object(m) for m in source.mailboxes.all()]
            shown["failures"] = [failure_object(f) for f in _failures(source)[:_MAX_FAILURES]]
            shown["runs"] = [run_object(run) for run in _runs(source)]
            shown["unknownPack"] = housekeeping.unknown_pack(source.pk)
        text = "\n\n".join(
            "\n".join(_in_full(source, shown))
            for source, shown in zip(chosen, objects, strict=True)
        )
        self.report({"sources": objects}, text)
        return objects


def _objects(chosen: list[IngestionSource]) -> list[dict[str, Any]]:
    objects = source_objects(chosen)
    ours = IngestionSource.objects.filter(pk__in=[shown["id"] for shown in objects])
    counted_by_packs = index_health.with_health(ours).in_bulk()
    for shown in objects:
        shown["index"] = index_health.as_object(index_health.of(counted_by_packs[shown["id"]]))
    return objects


def _overview(objects: list[dict[str, Any]], chosen: list[IngestionSource]) -> Iterator[str]:
    if not chosen:
        yield "There is no source yet. add_source makes one."
        return
    columns = (
        "Name",
        "Status",
        "Messages",
        "Size",
        "Failed",
        "Archived up to",
        "Last try",
        "Next",
        "Now",
    )
    rows = [
        (
            source.name,
            source.status,
            source.message_count,
            Bytes(source.archived_bytes),
            shown["failedMessageCount"],
            shown["archivedUpTo"],
            source.last_sync_finished_at,
            source.next_sync_at or "",
            _now(shown),
        )
        for shown, source in zip(objects, chosen, strict=True)
    ]
    yield table(
        columns,
        rows,
        numbers={"Messages", "Size", "Failed"},
        spare=("Size", "Next", "Last try", "Failed"),
    )
    ours = IngestionSource.objects.filter(pk__in=[s.pk for s in chosen])
    yield printable(explaining.summary(freshness.verdicts(ours)).text)
    yield f"For search: {index_health.in_all(ours)}."
    for shown in objects:
        if shown["attention"]:
            yield f"{printable(shown['name'])} needs attention:"
            yield from _attention(shown)


def _of_the_service() -> list[str]:
    """Return what needs somebody and is of no source: no worker, no room, no index."""
    alerts = Alert.objects.filter(source=None, ended_at=None)
    return list(alerts.values_list("message", flat=True))


def _service_lines(messages: Sequence[str]) -> Iterator[str]:
    if messages:
        yield "The service needs attention:"
        yield from (f"  {printable(message)}" for message in messages)


def _attention(shown: dict[str, Any]) -> Iterator[str]:
    for reason in shown["attention"]:
        since = f" Since {moment(reason['since'])}." if reason["since"] else ""
        yield f"  {printable(reason['message'] + since)}"


def _now(shown: dict[str, Any]) -> str:
    run = shown["currentRun"]
    if run is None:
        return ""
    total = f"/{run['messagesTotal']:,}" if run["messagesTotal"] else ""
    rate = f", {run['messagesPerSecond']:,.0f} msg/s" if run["messagesPerSecond"] else ""
    eta = f", ETA {duration(run['etaSeconds'])}" if run["etaSeconds"] else ""
    return f"{run['kind']} {run['messagesDone']:,}{total}{rate}{eta}"


def _in_full(source: IngestionSource, shown: dict[str, Any]) -> Iterator[str]:
    state = source.get_status_display()
    reason = f": {source.status_message}" if source.status_message else ""
    facts = {
        "Source": f"{source.name}  ({source.pk})",
        "Provider": f"{source.get_provider_display()}, owned by {source.owner.get_username()}",
        "Status": f"{state}{reason}",
        "Archived": f"{counted(source.message_count, 'message')}, {size(source.archived_bytes)}, "
        f"in {counted(shown['mailboxCount'], 'mailbox')}",
        "Indexed": index_health.in_all(IngestionSource.objects.filter(pk=source.pk)).told(),
        "Failed": counted(shown["failedMessageCount"], "message"),
        "Up to": when(shown["archivedUpTo"]),
        "Last try": ": ".join(
            filter(None, [when(source.last_sync_finished_at), source.last_sync_status_message])
        ),
        "Next sync": when(source.next_sync_at) if source.next_sync_at else "not scheduled",
    }
    if shown["credentialsExpireOn"]:
        facts["Expires"] = f"the credentials, on {shown['credentialsExpireOn']}"
    if shown["currentRun"]:
        facts["Now"] = f"{_now(shown)} {shown['currentRun']['warning']}"
    for label, value in facts.items():
        yield f"{label + ':':<11}{printable(value.strip())}"
    if shown["attention"]:
        yield "\nNeeds attention:"
        yield from _attention(shown)
    if shown["unknownPack"]:
        yield (
            f"\nThe archive holds mail that the database does not know, in the pack "
            f"{shown['unknownPack']}: was the database restored from an older backup? "
            "rebuild_archive_index takes in what it lacks."
        )
    yield from _left_out(shown)
    yield from _failure_lines(source)
    yield from _history(source)


def _left_out(shown: dict[str, Any]) -> Iterator[str]:
    rows = [
        (
            one["mailbox"],
            one["folder"] or "",
            one["code"],
            one["message"],
            one["since"],
            one["retryAt"] or "at the next sync",
        )
        for one in shown["incomplete"]
    ]
    if rows:
        yield "\nMailboxes and folders that could not be read:"
        columns = ("Mailbox", "Folder", "Code", "Reason", "Since", "Next try")
        yield table(columns, rows, numbers=set())


def _failure_lines(source: IngestionSource) -> Iterator[str]:
    failures = list(_failures(source)[: _SHOWN_FAILURES + 1])
    if not failures:
        return
    yield "\nFailed messages (retry_failed tries them now):"
    rows = [
        (
            str(f.pk),
            f.folder.path,
            f.remote_id,
            f.code,
            f.reason,
            f.attempts,
            f.not_before,
        )
        for f in failures[:_SHOWN_FAILURES]
    ]
    columns = ("Id", "Folder", "Remote id", "Code", "Reason", "Tries", "Next try")
    yield table(columns, rows, numbers={"Id", "Tries"})
    if len(failures) > _SHOWN_FAILURES:
        yield f"... and more: --json lists the first {_MAX_FAILURES:,}."


def _history(source: IngestionSource) -> Iterator[str]:
    yield "\nRuns:"
    rows = [(r.started_at, r.kind, r.status, r.message or r.warning) for r in _runs(source)]
    yield table(("Started", "Kind", "Status", "Message"), rows, numbers=set())
    yield "\nStatus changes:"
    changes = StatusChange.objects.filter(source=source)[:_SHOWN_HISTORY]
    moved = [(c.at, f"{c.from_status} → {c.to_status}", c.actor, c.reason) for c in changes]
    yield table(("When", "Change", "By", "Reason"), moved, numbers=set())


def _runs(source: IngestionSource) -> list[Run]:
    return list(Run.objects.filter(source=source)[:_SHOWN_HISTORY])


def _failures(source: IngestionSource) -> Any:
    return FailedMessage.objects.filter(mailbox__source=source).select_related("folder", "mailbox")
