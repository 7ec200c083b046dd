"""What the mail view is asked for: all of its state stands in the address."""

import dataclasses
import uuid
from typing import Any
from urllib.parse import urlencode

from django.http import Http404, QueryDict
from django.urls import reverse

from ingestion.search import query as language


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of an address. Empty ones narrow nothing, and don't stand in it."""

    q: str = ""
    mailbox: uuid.UUID | None = None
    folder: int | None = None
    label: str = ""
    sort: str = ""
    page: str = ""  # the cursor of a page after the first
    show: str = ""  # "places": what a narrow screen shows, beside a message or the list

    @classmethod
    def of(cls, given: QueryDict) -> "Asked":
        """Read an address. Raises Http404 for an id that is none."""
        mailbox, folder = given.get("mailbox"), given.get("folder")
        try:
            return cls(
                q=given.get("q", "").strip(),
                mailbox=uuid.UUID(mailbox) if mailbox else None,
                folder=int(folder) if folder else None,
                label=given.get("label", ""),
                sort=given.get("sort", ""),
                page=given.get("page", ""),
                show=given.get("show", ""),
            )
        except ValueError as error:
            raise Http404 from error

    def url(self, message: uuid.UUID | None = None, **changes: Any) -> str:
        """Return the address of this with some of it changed, and of a message to read there."""
        changed = dataclasses.asdict(dataclasses.replace(self, **changes))
        query = urlencode({name: value for name, value in changed.items() if value})
        path = reverse("mail", args=[message] if message else [])
        return f"{path}?{query}" if query else path

    def query(self) -> language.Node:
        """Return what the list is of, in the query language. Raises QueryError (of `q`)."""
        place = [
            language.term(name, str(value))
            for name, value in (
                ("mailbox", "" if self.folder else self.mailbox),  # a folder is of one mailbox
                ("folder", self.folder),
                ("label", self.label),
            )
            if value
        ]
        return language.all_of(*place, language.parse(self.q))

    def at(self, mailbox: uuid.UUID, *, folder: int | None = None, label: str = "") -> str:
        """Return the address of a place, in the order of now, without the words of now."""
        return Asked(mailbox=mailbox, folder=folder, label=label, sort=self.sort).url()
