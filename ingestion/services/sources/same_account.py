"""Warns where an account is archived by another source already: its mail would be kept twice.

It is no refusal: a move from one way of access to another has two sources for a while.
"""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User

from connectors import registry
from ingestion import queries
from ingestion.models import IngestionSource


def warnings(
    provider: str,
    config: Mapping[str, Any],
    *,
    user: User | None,
    is_proven: bool = False,
    stored: IngestionSource | None = None,
) -> list[str]:
    """Return a sentence for each other source of the same account. One query.

    `user`: who is told; None is whoever has the machine. Of a source that they may not see they are
    told once the account is proven to be theirs (`is_proven`), and not its name: else anybody could
    ask whose mail is archived here. `stored`: the source that the configuration is of.
    """
    own = registry.get(provider).config.account(config)
    if not own:
        return []
    found = IngestionSource.objects.filter(provider=provider, deleted_at=None)
    found = found.exclude(pk=stored.pk) if stored else found
    same = [s for s in found.only("name", "config") if _account(provider, s) == own]
    if not same:
        return []
    seen = same
    if user is not None:
        visible = set(queries.visible_sources(user).values_list("pk", flat=True))
        seen = [source for source in same if source.pk in visible]
    told = [f"The source “{source.name}” archives this account too" for source in seen]
    if is_proven and len(seen) < len(same):
        told.append("A source that you may not see archives this account too")
    return [f"{text}: its mail is kept twice." for text in told]


def of_source(source: IngestionSource, *, user: User | None) -> list[str]:
    """Return what there is to say of a stored source."""
    return warnings(
        source.provider,
        source.config,
        user=user,
        is_proven=source.proven_at is not None,
        stored=source,
    )


def _account(provider: str, source: IngestionSource) -> str:
    return registry.get(provider).config.account(source.config)
