"""What a mail about alerts says: all that is owed, bundled by what is the same."""

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django.urls import reverse
from django.utils import timezone

from ingestion.amounts import moment
from ingestion.models import Alert, AlertKind, AlertNotice, AlertRule, IngestionSource
from ingestion.services.operations.alerting.mail import Mail, one_line

Kind, Change = AlertKind, AlertNotice.Change

#: So many of what is the same are named, each with its link.
_NAMED = 10
_REASON_CHARS = 500
#: What the result of a try that failed ends with.
TRIED_AGAIN = " It is tried again."
#: What is told later than this is old, and says so.
_OLD = dt.timedelta(minutes=15)
#: Of each kind: how a section is headed, and what a subject says of one and of several.
_SAID: dict[str, tuple[str, str, str]] = {
    Kind.SOURCE_ATTENTION: ("Needs somebody", "{} needs somebody", "{} sources need somebody"),
    Kind.SOURCE_FAILURES: ("Not archived in whole", "{} has failures", "{} sources have failures"),
    Kind.SECRET_EXPIRES: (
        *("Credentials expire", "the credentials of {} expire"),
        "credentials of {} sources expire",
    ),
    Kind.IMPORT_FINISHED: ("Imports finished", "{} is imported", "{} sources are imported"),
    Kind.ARCHIVE_CORRUPT: (
        *("Damaged or missing", "archived mail of {} is damaged or missing"),
        "archived mail of {} sources is damaged or missing",
    ),
    Kind.ARCHIVE_STORAGE: ("Storage", "the archive's disk needs somebody", ""),
    Kind.ARCHIVE_IDLE: ("Nothing archived", "nothing is archived any more", ""),
    Kind.INDEX_STUCK: ("Search", "archived mail can't be found", ""),
    Kind.WORKERS_SILENT: ("Workers", "nobody does the work", ""),
}
_SERVICE = "the service"


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """Something of a source or of the service, and when. `path`: its page in the admin."""

    name: str
    when: str
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """What is the same of several: said once."""

    text: str
    lines: list[Line]
    more: int


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """`is_good`: whether it is news to be glad of."""

    title: str
    groups: list[Group]
    is_good: bool


def of_notices(rule: AlertRule, owed: Sequence[AlertNotice]) -> Mail:
    """Bundle what a rule owes into one mail."""
    over_before = {n.alert_id for n in owed if n.change == Change.ENDED and n.alert_id}
    came = [n for n in owed if n.change != Change.ENDED and n.alert_id not in over_before]
    came = list({n.alert_id or f"notice {n.pk}": n for n in came}.values())  # the newest of each
    told_before = {n.alert_id for n in owed if n.change == Change.BEGAN}
    over = [n for n in owed if n.change == Change.ENDED and n.alert_id not in told_before]
    passed = [n for n in owed if n.change == Change.ENDED and n.alert_id in told_before]
    first = min(notice.created_at for notice in owed)
    why = rule.last_result.removesuffix(TRIED_AGAIN) if rule.attempts else ""
    late = moment(first) if timezone.now() - first > _OLD else ""
    sections = [*_sections(came), *_closed("Well again", over), *_closed("Came and went", passed)]
    return Mail(
        subject=_subject(came, over or passed),
        template="alerts",
        about={"rule": rule.name, "sections": sections, "late": late, "why": why},
        key=f"{rule.pk} {sorted(notice.pk for notice in owed)}",
    )


def of_test(rule: AlertRule, opened: Sequence[Alert]) -> Mail:
    """Say that it was only a test, and what a rule would have been told of what is open."""
    sections = [*_sections(_as_notice(alert) for alert in opened)]
    about = {"rule": rule.name, "sections": sections, "is_test": True}
    return Mail("A test", "alerts", about, key=f"{rule.pk} {timezone.now().isoformat()}")


def of_delivery(rule: AlertRule, owed: Sequence[AlertNotice]) -> dict[str, Any]:
    """Say the same to a program: each notice by itself, in the order in which it came."""
    return {
        "rule": rule.name,
        "notices": [
            {
                "change": notice.change,
                "kind": notice.kind,
                "alert": str(notice.alert_id) if notice.alert_id else None,
                "sourceId": str(notice.source_id) if notice.source_id else None,
                "sourceName": notice.source.name if notice.source else None,
                "message": one_line(notice.message, _REASON_CHARS),
                "at": notice.created_at.isoformat(),
            }
            for notice in owed
        ],
    }


def of_ping(opened: Sequence[Alert]) -> str:
    """Say what is wrong in a few plain lines, for who keeps what is sent with a ping."""
    lines = [f"{_name(alert.source)}: {one_line(alert.message, 200)}" for alert in opened[:_NAMED]]
    more = len(opened) - len(lines)
    return "\n".join([*lines, f"and {more:,} more"] if more else lines)


def _as_notice(alert: Alert) -> AlertNotice:
    return AlertNotice(
        alert=alert,
        kind=alert.kind,
        change=Change.BEGAN,
        source=alert.source,
        message=alert.message,
        created_at=alert.began_at,
    )


def _sections(came: Iterable[AlertNotice]) -> Iterator[Section]:
    by_kind: dict[str, list[AlertNotice]] = {kind: [] for kind in _SAID}
    for notice in came:
        by_kind[notice.kind].append(notice)
    for kind, notices in by_kind.items():
        if notices:
            title = _SAID[kind][0]
            number = f" ({len(notices):,})" if len(notices) > 1 else ""
            is_good = kind == Kind.IMPORT_FINISHED
            yield Section(f"{title}{number}", _grouped(notices, _since), is_good)


def _closed(title: str, notices: Sequence[AlertNotice]) -> Iterator[Section]:
    if notices:
        number = f" ({len(notices):,})" if len(notices) > 1 else ""
        yield Section(f"{title}{number}", _grouped(notices, _from_to), is_good=True)


def _grouped(notices: Sequence[AlertNotice], when: Callable[[AlertNotice], str]) -> list[Group]:
    groups: dict[str, list[AlertNotice]] = {}
    for notice in notices:
        text = notice.message
        if notice.change == Change.ENDED and notice.alert is not None:
            text = f"{notice.message} It was: {notice.alert.message}"
        groups.setdefault(one_line(text, _REASON_CHARS), []).append(notice)
    return [
        Group(
            text=text,
            lines=[Line(_name(n.source), when(n), _path(n.source)) for n in same[:_NAMED]],
            more=max(0, len(same) - _NAMED),
        )
        for text, same in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _since(notice: AlertNotice) -> str:
    if notice.alert is None:
        return moment(notice.created_at)
    back = notice.alert.relapses
    again = f"; it came back {back} {'time' if back == 1 else 'times'} within a day" if back else ""
    return f"since {moment(notice.alert.began_at)}{again}"


def _from_to(notice: AlertNotice) -> str:
    assert notice.alert is not None
    ended = notice.alert.ended_at or notice.created_at
    return f"{notice.alert.began_at:%Y-%m-%d %H:%M} to {moment(ended)}"


def _subject(came: Sequence[AlertNotice], over: Sequence[AlertNotice]) -> str:
    phrases = []
    for kind, (_, one, several) in _SAID.items():
        names = [_name(notice.source) for notice in came if notice.kind == kind]
        if len(names) > 1:
            phrases.append((several or one).format(f"{len(names):,}"))
        elif names:
            phrases.append(one.format(names[0]))
    if over:
        number = len(over)
        one = _name(over[0].source)
        phrases.append(f"{one} is well again" if number == 1 else f"{number:,} alerts are over")
    shown = "; ".join(phrases[:2])
    more = f"; and {len(phrases) - 2} more" if len(phrases) > 2 else ""
    return f"{shown[:1].upper()}{shown[1:]}{more}"


def _name(source: IngestionSource | None) -> str:
    return one_line(source.name) if source is not None else _SERVICE


def _path(source: IngestionSource | None) -> str:
    if source is None:
        return reverse("admin:index")
    return reverse("admin:ingestion_ingestionsource_change", args=[source.pk])
