"""How what was found divides: by sender, mailbox, folder, label, year, attachments and their types.

Counted over the newest hits, NEWEST of them.
"""

import uuid
from collections.abc import Callable
from typing import NamedTuple

from ingestion.models import Folder, Mailbox
from ingestion.search.conditions import Sql
from ingestion.search.pages import Search
from ingestion.search.query import QueryError, Term, parse, term
from ingestion.search.readings import ask

#: So many hits are looked at, which costs 40 us of each.
NEWEST = 1_000
#: So many values are told of each, the most frequent ones.
VALUES = 20


class Value(NamedTuple):
    """A value for people, how many hits have it, and the term that narrows a query to them."""

    text: str
    number: int
    query: str


class Facets(NamedTuple):
    """`of`: over how many hits; `more` where those are the newest of more. `values` by facet, each
    most frequent first; years newest first."""

    of: int
    more: bool
    values: dict[str, list[Value]]


def facets(search: Search) -> Facets:
    """Count what is found. Three statements besides the search."""
    hits = search.newest(NEWEST + 1)
    found = ask(Sql(_STATEMENT, (hits[:NEWEST], *([VALUES] * _STATEMENT.count("LIMIT %s")))))
    values: dict[str, list[Value]] = {name: [] for name in _TERMS}
    folders = Folder.objects.in_bulk([int(value) for name, value, _ in found if name == "folder"])
    mailboxes = Mailbox.objects.in_bulk(
        {uuid.UUID(value) for name, value, _ in found if name == "mailbox"}
        | {folder.mailbox_id for folder in folders.values()}
    )
    for name, value, number in found:
        text = value
        try:
            if name == "mailbox":
                text = mailboxes[uuid.UUID(value)].address
            elif name == "folder":
                folder = folders[int(value)]
                text = f"{folder.path} ({mailboxes[folder.mailbox_id].address})"
        except KeyError:  # it was deleted meanwhile
            continue
        if query := _query(name, value):
            values[name].append(Value(text, number, query))
    return Facets(len(hits[:NEWEST]), len(hits) > NEWEST, values)


def _query(name: str, value: str) -> str:
    """Return the term that narrows to a value; "" where the language has none for it: a stranger's
    address need not have a word, and may be longer than a query."""
    try:
        wanted = _TERMS[name](value)
        return str(wanted) if parse(str(wanted)) == wanted else ""
    except QueryError:
        return ""


#: Of each facet, the term of a value.
_TERMS: dict[str, Callable[[str], Term]] = {
    "sender": lambda value: term("from", value),
    "mailbox": lambda value: term("mailbox", value),
    "folder": lambda value: term("folder", value),
    "label": lambda value: term("label", value),
    "year": lambda value: term("on", value),
    "attachment": lambda value: term("has", value),
    "type": lambda value: term("type", value),
}

_STATEMENT = """
WITH hit AS MATERIALIZED (
    SELECT d.message_id, d.mailbox_id, d.sender_address, d.date, d.attachments
    FROM unnest(%s::uuid[]) found(message_id) JOIN ingestion_document d USING (message_id)
), file AS MATERIALIZED (
    SELECT DISTINCT hit.message_id, lower(file ->> 'type') AS type
    FROM hit, jsonb_array_elements(hit.attachments) file
    WHERE hit.attachments <> '[]' AND file -> 'inline' <> 'true'
), place AS MATERIALIZED (
    SELECT DISTINCT message_id, p.folder_id, p.labels
    FROM hit JOIN ingestion_placement p USING (message_id) WHERE p.removed_at IS NULL
)
(SELECT 'sender', sender_address, count(*) AS n FROM hit WHERE sender_address ~ '[[:alnum:]]'
 GROUP BY 2 ORDER BY n DESC, 2 LIMIT %s)
UNION ALL (SELECT 'mailbox', mailbox_id::text, count(*) AS n FROM hit
 GROUP BY 2 ORDER BY n DESC, 2 LIMIT %s)
UNION ALL (SELECT 'folder', folder_id::text, count(DISTINCT message_id) AS n FROM place
 GROUP BY 2 ORDER BY n DESC, 2 LIMIT %s)
UNION ALL (SELECT 'label', label, count(DISTINCT message_id) AS n FROM place, unnest(labels) label
 WHERE label ~ '[^[:space:]]' GROUP BY 2 ORDER BY n DESC, 2 LIMIT %s)
UNION ALL (SELECT 'year', to_char(date AT TIME ZONE 'UTC', 'YYYY'), count(*) AS n FROM hit
 WHERE date < '9999-01-01' GROUP BY 2 ORDER BY 2 DESC LIMIT %s)
UNION ALL (SELECT 'attachment', 'attachment', count(DISTINCT message_id) AS n FROM file
 HAVING count(*) > 0)
UNION ALL (SELECT 'type', type, count(*) AS n FROM file WHERE type <> ''
 GROUP BY 2 ORDER BY n DESC, 2 LIMIT %s)
"""
