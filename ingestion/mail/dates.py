"""Dates of mail (RFC 5322 sections 3.3 and 4.3), and those of scripts (ISO 8601). Pure, linear.

Right or None: a date that is off by half a day without a word is worse evidence than none.
"""

import datetime as dt
import functools
import re

_MONTHS = {
    name: number
    for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)
}
#: RFC 5322 section 4.3: all others, the military letters among them, say nothing: -0000.
_ZONES = {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}
#: What nearly all mail has, in a tenth of the time.
_PLAIN = re.compile(
    rb"(?:[A-Za-z]{3}, )?([0-9]{1,2} [A-Z][a-z]{2} [0-9]{4}) ([0-9]{2}:[0-9]{2}:[0-5][0-9])"
    rb" ([+-][01][0-9][0-5][0-9]|GMT|UTC)(?: \([A-Za-z0-9_]*\))?[ \t\r]*"
)
_DAY = r"(?:[A-Za-z]{3,9}\.?,?\s*)?"
_TIME = r"(\d\d?)\s*:\s*(\d\d)(?:\s*:\s*(\d\d)(?:[.,]\d{1,9})?)?"
_HALF = r"(?:\s*([AaPp])\.?[Mm]\b\.?)?"
_ZONE = (
    r"([+-])(\d\d):?(\d\d)(?!\d)"
    r"|(?:GMT|UTC?)([+-])(\d\d?)(?::?(\d\d))?(?!\d)"
    r"|([A-Za-z]{1,5})(?![A-Za-z])"
)
_USUAL = re.compile(
    rf"{_DAY}(\d\d?)[\s-]+([A-Za-z]{{3}})[a-z]*\.?[\s-]+(\d{{2,4}}),?\s+"
    rf"{_TIME}{_HALF}(?:\s*(?:{_ZONE}))?\s*(.?)"
)
#: As C's asctime writes it: the year comes last, the zone before it or behind.
_ASCTIME = re.compile(
    rf"{_DAY}([A-Za-z]{{3}})[a-z]*\.?\s+(\d\d?),?\s+{_TIME}{_HALF}(?:\s+(?:{_ZONE}))?\s+(\d{{4}})(?!\d)"
    rf"(?:\s*(?:{_ZONE}))?\s*(.?)"
)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,]\d{1,9})?\s*(Z|[+-]\d\d:?\d\d)?\s*"
)
_COMMENT_MARK = re.compile(r"\\.|[()]", re.DOTALL)
_FIRST_YEAR = 1900
_MAX_CHARS = 200


def parse(text: str) -> dt.datetime | None:
    """Return the instant, aware and in UTC; None where nobody can say which it is."""
    try:
        text = " ".join(_without_comments(text[:_MAX_CHARS]).split())
        return _usual(text) or _asctime(text) or _iso(text)
    except (ValueError, OverflowError):
        return None


def plain(raw: bytes) -> dt.datetime | None:
    """Return the instant where a date is written as nearly all are; None: `parse` may know it."""
    found = _PLAIN.fullmatch(raw)
    if found is None:
        return None
    date, time, zone = found.groups()
    try:
        local = dt.datetime.fromisoformat(f"{_plain_day(date)}T{time.decode()}+00:00")
        return local - _plain_offset(zone)
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=2_000)
def _plain_day(date: bytes) -> str:
    """Return a day as ISO 8601 has it; "" where it is none."""
    day, month, year = date.decode().split()
    number = _MONTHS.get(month.lower())
    return f"{year}-{number:02}-{day:>02}" if number and int(year) >= _FIRST_YEAR else ""


@functools.lru_cache(maxsize=200)
def _plain_offset(zone: bytes) -> dt.timedelta:
    if zone.isalpha():
        return dt.timedelta()
    minutes = 60 * int(zone[1:3]) + int(zone[3:])
    return dt.timedelta(minutes=-minutes if zone[:1] == b"-" else minutes)


def _without_comments(text: str) -> str:
    """Take comments out, also nested ones; one that never ends goes to the end."""
    if "(" not in text:
        return text
    kept, depth, at = [], 0, 0
    for mark in _COMMENT_MARK.finditer(text):
        if mark[0] == "(":
            if depth == 0:
                kept.append(text[at : mark.start()])
            depth += 1
        elif mark[0] == ")" and depth:
            depth -= 1
            at = mark.end()
    if depth == 0:
        kept.append(text[at:])
    return " ".join(kept)


def _usual(text: str) -> dt.datetime | None:
    match = _USUAL.match(text)
    if match is None:
        return None
    day, month, year, hour, minute, second, half = match.group(1, 2, 3, 4, 5, 6, 7)
    zone, rest = match.group(8, 9, 10, 11, 12, 13, 14), match[15]
    if rest and zone[0] is None:  # what was not understood may be the zone
        return None
    return _instant((_year(year), month, day), _time(hour, minute, second, half), zone)


def _asctime(text: str) -> dt.datetime | None:
    match = _ASCTIME.match(text)
    if match is None:
        return None
    month, day, hour, minute, second, half = match.group(1, 2, 3, 4, 5, 6)
    before, year = match.group(7, 8, 9, 10, 11, 12, 13), match[14]
    behind, rest = match.group(15, 16, 17, 18, 19, 20, 21), match[22]
    if any(before) and any(behind):
        return None
    zone = before if any(before) else behind
    if rest and zone[0] is None:  # as above
        return None
    return _instant((int(year), month, day), _time(hour, minute, second, half), zone)


def _iso(text: str) -> dt.datetime | None:
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    found = dt.datetime.fromisoformat(f"{match[1]}T{match[2]}{match[3] or '+00:00'}")
    return found.astimezone(dt.UTC) if found.year >= _FIRST_YEAR else None


def _year(digits: str) -> int:
    """RFC 5322 section 4.3: two digits are of 1950 to 2049, three count from 1900."""
    year = int(digits)
    if len(digits) == 2:
        return year + (2000 if year < 50 else 1900)
    return year + 1900 if len(digits) == 3 else year


def _time(hour: str, minute: str, second: str | None, half: str | None) -> dt.time:
    """Raises ValueError."""
    hours = int(hour)
    if half and hours <= 12:
        hours = hours % 12 + (12 if half in "pP" else 0)
    # A leap second is legal (section 3.3), and datetime does not have it.
    return dt.time(hours, int(minute), 59 if second == "60" else int(second or 0))


def _instant(
    day: tuple[int, str, str], time: dt.time, zone: tuple[str | None, ...]
) -> dt.datetime | None:
    year, month, number = day
    offset = _offset(zone)
    if year < _FIRST_YEAR or offset is None:
        return None
    date = dt.date(year, _MONTHS.get(month.lower(), 0), int(number))
    return dt.datetime.combine(date, time, dt.UTC) - offset


def _offset(zone: tuple[str | None, ...]) -> dt.timedelta | None:
    sign, hours, minutes, gmt_sign, gmt_hours, gmt_minutes, name = zone
    sign, hours, minutes = (sign or gmt_sign, hours or gmt_hours, minutes or gmt_minutes)
    if hours:
        if int(hours) > 23 or int(minutes or 0) > 59:
            return None
        offset = dt.timedelta(hours=int(hours), minutes=int(minutes or 0))
        return -offset if sign == "-" else offset
    return dt.timedelta(hours=_ZONES.get((name or "").upper(), 0))
