"""Why a source needs somebody, and how all of them are, in words for people: of what
`ingestion.freshness` has judged and read."""

import collections
import dataclasses
import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from django.utils import timezone

from ingestion.amounts import moment, time_of
from ingestion.freshness import (
    MAX_LEFT_OUT,
    Verdict,
    is_unreached,
    judged_before,
    needs_somebody,
)
from ingestion.models import Mailbox, Run
from ingestion.states import MailboxState, SourceStatus

_NAMED = 3

Tone = Literal["success", "warning", "danger", "neutral"]


@dataclasses.dataclass(frozen=True, slots=True)
class LeftOut:
    """A mailbox, or a folder of it, that is not archived now. `since`: up to when it is archived,
    or its first failure. `retry_at`: None where nothing is planned before the next sync."""

    mailbox: str
    folder: str | None
    code: str
    message: str
    since: dt.datetime | None
    retry_at: dt.datetime | None

    def __str__(self) -> str:
        where = self.mailbox if self.folder is None else f"{self.folder} ({self.mailbox})"
        return f"{where}: {self.message}".rstrip(".")


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why a source needs somebody. `code` is for programs."""

    code: str
    text: str
    since: dt.datetime | None = None
    retry_at: dt.datetime | None = None

    def __str__(self) -> str:
        said = [self.text]
        now = timezone.now()
        if self.retry_at is not None and self.retry_at > now:
            said.append(f"The next try is at {time_of(self.retry_at, now)}.")
        if self.since is not None:
            said.append(f"Since {moment(self.since)}.")
        return " ".join(said)


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """How all sources are, in a sentence. `tone` is that of a badge."""

    tone: Tone
    text: str


def left_out(source: Any) -> list[LeftOut]:
    """Return what of a source that `read` has read is not archived now: mailboxes that are
    unavailable or fail, then folders. At most MAX_LEFT_OUT of each, those that had most time to
    succeed first. Messages that failed have lists of their own."""
    mailboxes = [
        LeftOut(
            mailbox=mailbox.address,
            folder=None,
            code=mailbox.last_error_code or mailbox.state,
            message=mailbox.state_reason or mailbox.last_error,
            since=mailbox.archived_up_to or mailbox.last_synced_at or mailbox.created_at,
            retry_at=mailbox.not_before if mailbox.run_id else None,
        )
        for mailbox in source.troubled_mailboxes
        if mailbox.last_error or mailbox.state == MailboxState.UNAVAILABLE
    ]
    folders = [
        LeftOut(
            mailbox=mailbox.address,
            folder=folder.path,
            code=folder.last_error_code,
            message=folder.last_error,
            since=folder.failing_since,
            retry_at=folder.not_before,
        )
        for mailbox in source.troubled_mailboxes
        for folder in mailbox.failing_folders
    ]
    return [*mailboxes[:MAX_LEFT_OUT], *folders[:MAX_LEFT_OUT]]


def reasons(source: Any) -> list[Reason]:
    """Say why a source that `read` has read needs somebody, worst first; [] where nobody."""
    if not needs_somebody(source):
        return []
    missing = left_out(source)
    mailboxes = [one for one in missing if one.folder is None]
    folders = [one for one in missing if one.folder is not None]
    told = []
    if source.status == SourceStatus.ERROR:
        told.append(Reason("error", source.status_message))
    if source.check_fails:
        told.append(Reason("check_failing", source.status_message))
    if source.awaits_sign_in:
        told.append(Reason("sign_in_awaited", source.status_message))
    if source.fails:
        told.append(_failure(source))
    if source.is_late:
        why = f": {mailboxes[0].message if mailboxes else 'no sync has succeeded.'}"
        why = "." if source.fails else why  # which has said it
        told.append(Reason("late", f"Not up to date{why}", source.archived_up_to))
    if source.lacks_mailboxes:
        told.append(Reason("mailboxes_unavailable", _listed(mailboxes, "mailbox", "mailboxes")))
    if source.lacks_folders:
        told.append(Reason("folders_failing", _listed(folders, "folder", "folders")))
    if source.lacks_messages:
        text = "Some messages could not be fetched; they are tried again."
        told.append(Reason("messages_failing", text))
    return told


def failing(source: Any) -> Mailbox | Run | None:
    """Return what tells why a source fails: the run that can't list its mailboxes, or the mailbox
    that began last, for one that always fails says nothing of the others. None where a success
    came meanwhile, or others are told of."""
    listings = [run for run in source.unfinished_runs if run.cannot_list]
    found: list[Mailbox | Run] = [
        row for row in (listings or source.troubled_mailboxes) if row.failing_since is not None
    ]
    return max(found, key=lambda row: row.failing_since or row.not_before, default=None)


def _why(row: Mailbox | Run | None) -> str:
    if row is None:
        return "Each try fails."
    return row.warning if isinstance(row, Run) else row.last_error


def _failure(source: Any) -> Reason:
    row = failing(source)
    what = "Nothing is archived now"
    if isinstance(row, Run):
        what = "Its mailboxes can't be listed to the end, and the rest is not archived now"
    text = f"{what}: {_why(row)} It is tried again by itself."
    if row is None:
        return Reason("failing", text)
    return Reason("failing", text, row.failing_since, row.not_before)


def _listed(missing: Sequence[LeftOut], noun: str, plural: str) -> str:
    """Say "1 folder could not be read: Shared (alice@example.com): No permission."."""
    number = f"{len(missing)}{'+' if len(missing) == MAX_LEFT_OUT else ''}"
    named = "; ".join(map(str, missing[:_NAMED]))
    more = f"; and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    noun = noun if len(missing) == 1 else plural
    return f"{number} {noun} could not be read: {named}{more}."


def summary(found: Sequence[Verdict]) -> Summary:
    """Say up to when all sources are archived, or which is not, since when and why."""
    return summed_up(found, judged_before(found, named_by_summary(found)))


def named_by_summary(found: Iterable[Verdict]) -> list[uuid.UUID]:
    """Return the id of the source that a summary names: the latest of all that are not reached."""
    late = sorted((one for one in found if is_unreached(one)), key=Verdict.age)
    return [one.pk for one in late[:1]]


def summed_up(found: Sequence[Verdict], rows: Mapping[uuid.UUID, Any]) -> Summary:
    """Say the summary of verdicts. `rows`: at least what `named_by_summary` asks for."""
    followed = [one for one in found if one.status == SourceStatus.ACTIVE]
    late = [one for one in found if is_unreached(one)]
    counts = collections.Counter(one.status for one in found)
    beside, in_error = _beside(counts), counts[SourceStatus.ERROR]
    if late:
        (worst,) = (rows[pk] for pk in named_by_summary(found))
        expected = sum(one.fails or one.status == SourceStatus.ACTIVE for one in found)
        return Summary("danger", f"{_late(len(late), expected, worst)}{beside}")
    tone: Tone = "danger" if in_error else "success" if followed else "neutral"
    if not followed:
        return Summary(tone, f"No source is followed yet.{beside}")
    every = "" if beside else "All "  # in front of a number that is not that of all
    noun = "The source is" if len(followed) == 1 else f"{every}{len(followed):,} sources are"
    whole = [one.archived_up_to for one in followed if one.archived_up_to is not None]
    if not whole:
        return Summary(tone, f"{noun} being copied for the first time.{beside}")
    if len(whole) < len(followed):
        noun = f"{len(whole):,} of {len(followed):,} sources are"
        beside = f" Mailboxes of the others are copied for the first time.{beside}"
    return Summary(tone, f"{noun} archived up to {moment(min(whole))}.{beside}")


def _late(late: int, expected: int, worst: Any) -> str:
    text = f"{worst.name} {_unreached(worst)}"
    if late > 1:
        return f"{late:,} of {expected:,} sources are not up to date. {text}"
    return text


def _unreached(source: Any) -> str:
    if source.fails:
        row = failing(source)
        since = row and row.failing_since
        return f"has been failing since {moment(since or timezone.now())}: {_why(row)}"
    missing = left_out(source)
    since = source.archived_up_to or source.created_at
    why = f": {missing[0].message}" if missing else "."
    return f"has not been reached since {moment(since)}{why}"


#: In this order beside those that are followed.
_OTHERS = (
    ((SourceStatus.ERROR,), "in error"),
    ((SourceStatus.PENDING_AUTH, SourceStatus.AUTH_SUCCESS), "not imported yet"),
    ((SourceStatus.IMPORTING,), "being imported"),
    ((SourceStatus.PAUSED,), "paused"),
)


def _beside(counts: Mapping[str, int]) -> str:
    parts = []
    for statuses, words in _OTHERS:
        number = sum(counts.get(status, 0) for status in statuses)
        if number:
            parts.append(f"{number:,} {'is' if number == 1 else 'are'} {words}")
    return f" {', '.join(parts)}." if parts else ""
