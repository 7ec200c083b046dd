"""The button that mends: what somebody does next about a source that needs them.

The field of the settings where one is wrong, a sign-in where that is awaited, else a verb. One
answer for the first page and the source's own.
"""

import dataclasses
from typing import Any

from django.urls import reverse

from connectors import registry
from connectors.errors import NeedsReauth
from ingestion import explaining, freshness
from ingestion.admin import display, verbs
from ingestion.admin.source_form import field_name
from ingestion.states import SourceStatus


@dataclasses.dataclass(frozen=True, slots=True)
class Mend:
    """A link to `url`; with `posts`, a button that posts `verb` there."""

    label: str
    url: str
    icon: str
    posts: bool = False
    verb: str = ""


def of(source: Any) -> Mend | None:
    """Return what mends a source that `freshness.read` has read; None: it needs nobody, or
    nobody can do more than the import that goes on and tries it again."""
    if not freshness.needs_somebody(source):
        return None
    if mend := edit(source):
        return mend
    if verbs.is_to_sign_in(source):
        return _sign_in(source)
    return _link(source) if verbs.is_to_make_link(source) else _verb(source)


def edit(source: Any) -> Mend | None:
    """Return the link to the field that is wrong, where the status says of one that it is."""
    code = source.status_code
    if source.status not in (SourceStatus.ERROR, SourceStatus.PENDING_AUTH):
        # What worked until now is right, but for a password that was changed.
        row = explaining.failing(source) if source.fails else None
        code = row.last_error_code if row else ""
        if code != NeedsReauth.code:
            return None
    config = registry.get(source.provider).config
    wrong = config.mended_by(code)
    label = next((field.label for field in config.fields() if field.name == wrong), "")
    if not label:
        return None
    name = field_name(source.provider, wrong)
    return Mend(f"Edit {display.within(label)}", settings_of(source, field=name), "edit")


def settings_of(source: Any, *, field: str = "") -> str:
    """Return the address of a source's settings, with the cursor in a field."""
    return f"{display.page_of(source)}?tab=settings" + (f"&field={field}" if field else "")


def _sign_in(source: Any) -> Mend:
    label = f"Sign in with {registry.get(source.provider).label}"
    url = reverse("admin:ingestion_source_sign_in", args=(source.pk,))
    return Mend(label, url, "login", posts=True)


def _link(source: Any) -> Mend:
    url = reverse("admin:ingestion_source_consent_link", args=(source.pk,))
    return Mend("Link for its owner", url, "link", posts=True)


def _verb(source: Any) -> Mend | None:
    slug = verbs.next_step(source)
    is_reached = source.status == SourceStatus.ACTIVE and not freshness.is_unreached(source)
    if source.lacks_messages and is_reached:
        slug = "retry"
    if not slug:
        return None
    verb = verbs.VERBS[slug]
    url = reverse("admin:ingestion_source_verb", args=(source.pk,))
    return Mend(verb.label, url, verb.icon, posts=True, verb=slug)
