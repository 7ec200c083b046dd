"""find: search the archive by the query language, on a terminal or into another program."""

import itertools
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import User

from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.presentation import Bytes
from ingestion.models import Message
from ingestion.search import pages
from ingestion.search import query as language
from ingestion.services.operations import people

_PAGE = 500
_SHOWN_CHARS = 60


class Command(OperatorCommand):
    help = (
        "Find archived emails, newest first, by words and operators such as from:, subject:, in:, "
        "after: and has:attachment; README has the language. Ends with 1 where nothing is found."
    )
    example = (
        "manage.py find 'from:example.com subject:invoice after:2024 has:attachment'\n"
        "manage.py find --user alice --limit 1000 '\"annual report\" -draft' | cut -f1\n"
        "manage.py find -- -in:inbox"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "query", metavar="QUERY", nargs="+", help="what to find; several words are one query"
        )
        parser.add_argument(
            "--limit", type=int, default=50, metavar="N", help="find at most N (default: 50)"
        )
        parser.add_argument(
            "--user", metavar="NAME", help="find what this user may see (default: everything)"
        )
        parser.add_argument(
            "--sort",
            choices=("-date", "date", "relevance"),
            default="-date",
            help="newest first (default), oldest first, or the best of the 1,000 newest",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        if options["limit"] < 1:
            raise UsageError("--limit must be 1 or more.")
        text = " ".join(options["query"])
        try:
            node = language.parse(text)
        except language.QueryError as error:
            pointed = f"  {text}\n  {' ' * error.position}^"
            raise UsageError(f"{error}\n{pointed}") from None
        user = self.find_user(options["user"]) if options["user"] else _everybody()
        search = pages.Search(user, node)
        found = list(itertools.islice(_all(search, options["sort"]), options["limit"]))
        people.mail_listed(query=text, how="find", shown=len(found), actor=self.actor)
        self.report_rows(
            {"emails": [_object(message) for message in found]},
            ("Id", "Date", "Mailbox", "From", "Subject", "Size"),
            [
                (
                    str(message.pk),
                    f"{message.document.date:%Y-%m-%d %H:%M}",
                    message.mailbox.address,
                    message.sender[:_SHOWN_CHARS],
                    message.subject[:_SHOWN_CHARS],
                    Bytes(message.size_bytes),
                )
                for message in found
            ],
            numbers={"Id", "Size"},  # whole
            spare=("Size", "Mailbox", "Date", "From"),
            nothing="Nothing is found among what is indexed.",
        )
        return Exit.OK if found else Exit.PROBLEM


def _object(message: Message) -> dict[str, Any]:
    """Return an email with names of the API."""
    return {
        "id": str(message.pk),
        "date": message.document.date.isoformat().replace("+00:00", "Z"),
        "sourceId": str(message.mailbox.source_id),
        "mailbox": message.mailbox.address,
        "sender": message.sender,
        "recipients": message.recipients,
        "subject": message.subject,
        "sizeBytes": message.size_bytes,
        "sha256": message.sha256_hex,
        "folders": sorted({p.folder.path for p in message.placements.all() if not p.removed_at}),
    }


def _everybody() -> User:
    """Return one who may see all: whoever has the command line has the archive."""
    return User(username="command line", is_active=True, is_staff=True, is_superuser=True)


def _all(search: pages.Search, sort: str) -> Iterator[Message]:
    cursor = ""
    while True:
        page = search.page(sort=sort, cursor=cursor, size=_PAGE)
        yield from page.messages
        cursor = page.next
        if not cursor:
            return
