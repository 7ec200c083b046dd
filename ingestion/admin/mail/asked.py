"""What the mail view is asked for: all of its state stands in the address."""

import dataclasses
import uuid
from typing import Any
from urllib.parse import urlencode

from django.http import Http404, QueryDict
from django.urls import reverse

from ingestion.admin import display
from ingestion.search import query as language

#: The operators that say where, in the order in which they stand before the words.
_PLACE = ("mailbox", "folder", "label")


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of an address. Empty ones narrow nothing, and don't stand in it."""

    q: str = ""
    mailbox: uuid.UUID | None = None
    folder: int | None = None
    label: str = ""
    sort: str = ""
    page: str = ""  # the cursor of a page after the first
    show: str = ""  # "places": on a narrow screen, in the list's place. "facets": over the list

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
        changed = dataclasses.replace(self, **changes)
        state = ((field.name, getattr(changed, field.name)) for field in dataclasses.fields(self))
        query = urlencode([(name, value) for name, value in state if value])
        path = reverse("mail", args=[message]) if message else display.address("mail")
        return f"{path}?{query}" if query else path

    @classmethod
    def of_query(cls, text: str) -> "Asked":
        """Return what `query` made a text of: the place is taken out of it again."""
        try:
            node = language.parse(text)
        except language.QueryError:  # the language was another when it was saved: the list says so
            return cls(q=text)
        terms = node.nodes if isinstance(node, language.AllOf) else (node,)
        place = {}
        for term in terms:
            if not isinstance(term, language.Term) or term.name not in _PLACE or term.name in place:
                break
            place[term.name] = term.value
        try:
            mailbox = uuid.UUID(place["mailbox"])
        except (KeyError, ValueError):  # of a mailbox by its address, say
            return cls(q=text)
        folder = int(place["folder"]) if "folder" in place else None
        q = str(language.all_of(*terms[len(place) :]))
        return cls(q=q, mailbox=mailbox, folder=folder, label=place.get("label", ""))

    def query(self) -> language.Node:
        """Return what the list is of, in the query language. Raises QueryError (of `q`)."""
        place = ((name, getattr(self, name)) for name in _PLACE)
        terms = [language.term(name, str(value)) for name, value in place if value]
        return language.all_of(*terms, language.parse(self.q))

    def narrowed(self, term: str) -> "Asked":
        """Return this with one more term."""
        if term.startswith("mailbox:"):
            return dataclasses.replace(self.of_query(f"{term} {self.q}"), show=self.show)
        return dataclasses.replace(self, q=f"{self.q} {term}".strip(), page="")

    def is_list_of(self, other: "Asked") -> bool:
        """Tell whether both are of the same messages, in whatever order and at whatever page."""
        return dataclasses.replace(self, sort=other.sort, page=other.page, show=other.show) == other

    def at(self, mailbox: uuid.UUID, *, folder: int | None = None, label: str = "") -> str:
        """Return the address of a place, in the order of now, without the words of now."""
        return Asked(mailbox=mailbox, folder=folder, label=label, sort=self.sort).url()
