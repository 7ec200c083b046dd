"""The feed: what changed in the archive, in the order of commits. Reads only.

A time or a sequence does not do: a transaction that began earlier may commit later, behind a reader
who has passed by. So each row has the id of the transaction that wrote it, and only rows of
transactions before the *horizon* are read, the oldest that is still under way: nothing can come
there any more. A place in the feed is (transaction, id); a row that changes moves to its end.

Cursors are places of rows, never the horizon: what was committed is on the disk, and a server that
crashed gives no id again that is older, but may those of transactions that came to nothing.

A transaction of minutes that writes, in any database of the cluster, holds the feed up as long.
"""

import base64
import binascii
import dataclasses
import datetime as dt
import json
import operator
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from django.contrib.auth.models import User
from django.db import connection

from ingestion import queries

#: A page looks at so many rows of each table at most, visible or not.
_LOOKS_AT = 10_000
_NO_CURSOR = "not a cursor"
#: `after`: what comes from now on.
NOW = "now"


class OtherDatabase(Exception):
    """The cursor is of another database than this one."""


class Place(NamedTuple):
    """A place in the feed: a change stands there, or the reader does, after it."""

    xid: int
    id: int


_BEGINNING = Place(0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One change: what is true of a placement now, or of what `kind` names. None: not told."""

    kind: str
    place: Place
    cursor: str
    source_id: uuid.UUID
    placement_id: int | None = None
    message_id: uuid.UUID | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    mailbox_id: uuid.UUID | None = None
    mailbox: str | None = None
    folder_id: int | None = None
    folder: str | None = None
    labels: Sequence[str] | None = None
    first_seen_at: dt.datetime | None = None
    removed_at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """`cursor`: where to go on. `more`: whether there was more to look at already."""

    changes: Sequence[Change]
    cursor: str
    more: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Now:
    """This database as it is: which one, and up to where nothing can come any more."""

    epoch: str
    horizon: Place

    @classmethod
    def read(cls) -> Self:
        with connection.cursor() as cursor:
            cursor.execute(_NOW)
            horizon, epoch = cursor.fetchone()
        return cls(epoch, Place(int(horizon), 0))

    def cursor(self, place: Place) -> str:
        text = json.dumps([self.epoch, *place], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def place(self, cursor: str) -> Place:
        """Read a cursor. Raises ValueError, OtherDatabase."""
        if not cursor:
            return _BEGINNING
        epoch, place = _parsed(cursor)
        if epoch != self.epoch:
            raise OtherDatabase
        return place


#: What another database of the same content differs in: the cluster (a dump restored elsewhere),
#: its timeline (a backup restored to a point in time, a standby that took over), the database, the
#: table. In each of these cases transaction ids may name others than they did.
_NOW = """
SELECT pg_snapshot_xmin(pg_current_snapshot()),
       left(md5(concat_ws(' ', (SELECT system_identifier FROM pg_control_system()),
                          (SELECT timeline_id FROM pg_control_checkpoint()),
                          (SELECT oid FROM pg_database WHERE datname = current_database()),
                          'ingestion_placement'::regclass::oid)), 12)
"""

_RANGE = """(changed_xid, id) > (%(after_xid)s::xid8, %(after_id)s)
       AND (changed_xid, id) <= (%(until_xid)s::xid8, %(until_id)s)"""

#: The last of the rows that a page looks at, where there are so many; and the last of all.
_LAST_LOOKED_AT = f"""
SELECT changed_xid, id FROM {{table}} WHERE {_RANGE}
 ORDER BY changed_xid, id OFFSET %(looks_at)s - 1 LIMIT 1
"""
_LAST = f"""
SELECT changed_xid, id FROM {{table}} WHERE {_RANGE} ORDER BY changed_xid DESC, id DESC LIMIT 1
"""
_TABLES = ("ingestion_placement", "ingestion_archivechange")

#: Limited inside first, so that no plan can look at more; OFFSET 0: one look at a time.
_PLACEMENTS = f"""
SELECT CASE WHEN p.removed_at IS NOT NULL THEN 'placement.removed'
            WHEN p.ever_changed THEN 'placement.changed' ELSE 'message.placed' END,
       p.changed_xid, p.id, b.source_id, p.id, p.message_id, encode(m.sha256, 'hex'), m.size_bytes,
       p.mailbox_id, b.address, p.folder_id, f.path, p.labels, p.first_seen_at, p.removed_at
  FROM (SELECT * FROM (SELECT * FROM ingestion_placement WHERE {_RANGE}
                        ORDER BY changed_xid, id LIMIT %(looks_at)s) looked_at
         WHERE EXISTS (SELECT 1 FROM ingestion_mailbox b
                        WHERE b.id = mailbox_id AND b.source_id = ANY(%(sources)s))
         ORDER BY changed_xid, id LIMIT %(limit)s) p,
       LATERAL (SELECT * FROM ingestion_mailbox WHERE id = p.mailbox_id OFFSET 0) b,
       LATERAL (SELECT * FROM ingestion_folder WHERE id = p.folder_id OFFSET 0) f,
       LATERAL (SELECT * FROM ingestion_message WHERE id = p.message_id OFFSET 0) m
 ORDER BY p.changed_xid, p.id
"""

_OTHERS = f"""
SELECT c.kind, c.changed_xid, c.id, c.source_id, NULL, c.message_id, encode(c.sha256, 'hex'),
       c.size_bytes, c.mailbox_id, b.address, c.folder_id, f.path, NULL::text[], NULL, NULL
  FROM (SELECT * FROM ingestion_archivechange
         WHERE {_RANGE} AND (%(source)s::uuid IS NULL OR source_id = %(source)s)
           AND (source_id = ANY(%(sources)s)
                OR kind = 'source.deleted' AND (%(all)s OR owner_id = %(user)s))
         ORDER BY changed_xid, id LIMIT %(limit)s) c
  LEFT JOIN ingestion_mailbox b ON b.id = c.mailbox_id
  LEFT JOIN ingestion_folder f ON f.id = c.folder_id
 ORDER BY c.changed_xid, c.id
"""


def page(user: User, *, after: str, limit: int, source: uuid.UUID | None = None) -> Page:
    """Return up to `limit` changes that a user may see after a cursor; "" is the beginning.

    It may have none and yet not be the end, where others' changes stand. Costs the same at any
    depth. Raises ValueError for what is no cursor, OtherDatabase for one of another database.
    """
    now = _Now.read()
    if after == NOW:
        return Page((), now.cursor(_last(_BEGINNING, now.horizon)), more=False)
    begin = now.place(after)
    end, more = _end(begin, now.horizon)
    found = _between(now, begin, end, user, source, limit=limit + 1)
    if len(found) > limit:
        end, more = found[limit - 1].place, True
    return Page(found[:limit], now.cursor(end), more)


def news(user: User, after: Place) -> tuple[bool, Place, str]:
    """Tell whether a user may see any change after a place, up to where that is known now, and the
    cursor of that. What follows in the feed is looked at when it is asked again from there."""
    now = _Now.read()
    found, more, end = False, True, after
    while more and not found:  # others' mail comes faster than one page in some seconds
        begin = end
        end, more = _end(begin, now.horizon)
        found = bool(_between(now, begin, end, user, None, limit=1))
    if found:
        end = last()
    return found, end, now.cursor(end)


def last() -> Place:
    """Return where the feed ends now."""
    return _last(_BEGINNING, _Now.read().horizon)


def _between(
    now: _Now, begin: Place, end: Place, user: User, source: uuid.UUID | None, *, limit: int
) -> list[Change]:
    """Return the first changes that a user may see; a few more than the limit, maybe."""
    sources = queries.sources_of_mail(user)
    if source is not None:
        sources = sources.filter(pk=source)
    parameters = {
        **_range(begin, end),
        "sources": list(sources.values_list("pk", flat=True)),
        "source": source,
        "all": queries.sees_all_mail(user),
        "user": user.pk,
        "limit": limit,
    }
    found = _changes(now, _PLACEMENTS, parameters) + _changes(now, _OTHERS, parameters)
    return sorted(found, key=operator.attrgetter("place"))


def _range(after: Place, until: Place) -> dict[str, Any]:
    return {
        "looks_at": _LOOKS_AT,
        "after_xid": str(after.xid),
        "after_id": after.id,
        "until_xid": str(until.xid),
        "until_id": until.id,
    }


def _end(begin: Place, horizon: Place) -> tuple[Place, bool]:
    """Return up to where a page looks, and whether there is more behind that. By statements of
    their own, before: what leaves that part meanwhile stands behind the horizon, and nothing comes
    into it."""
    full = _places(_LAST_LOOKED_AT, begin, horizon)
    if full:
        return min(full), True
    return _last(begin, horizon), False


def _last(begin: Place, horizon: Place) -> Place:
    return max(_places(_LAST, begin, horizon), default=begin)


def _places(query: str, begin: Place, horizon: Place) -> list[Place]:
    """Return what the query finds in each table."""
    found = []
    for table in _TABLES:
        with connection.cursor() as cursor:
            cursor.execute(query.format(table=table), _range(begin, horizon))
            found += [Place(int(xid), pk) for xid, pk in cursor.fetchall()]
    return found


def _changes(now: _Now, query: str, parameters: dict[str, Any]) -> list[Change]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        rows = cursor.fetchall()
    changes = []
    for kind, xid, pk, *told in rows:
        place = Place(int(xid), pk)
        changes.append(Change(kind, place, now.cursor(place), *told))
    return changes


def _parsed(cursor: str) -> tuple[str, Place]:
    padded = cursor + "=" * (-len(cursor) % 4)
    try:
        told = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise ValueError(_NO_CURSOR) from error
    match told:
        case [str(epoch), int(xid), int(pk)] if 0 <= xid < 2**63 and 0 <= pk < 2**63:
            return epoch, Place(int(xid), int(pk))
    raise ValueError(_NO_CURSOR)
