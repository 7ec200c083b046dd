"""Warns where an account is archived by another source already: its mail would be kept twice.

It is no refusal: a move from one way of access to another has two sources for a while.
"""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User

from connectors import registry
from ingestion import queries
from ingestion.models import IngestionSource


class Known:
    """The accounts that are archived, read once for each provider: for one question, or many.

    `user`: who is told; None is whoever has the machine.
    """

    def __init__(self, user: User | None) -> None:
        self._user = user
        self._of_provider: dict[str, dict[str, list[IngestionSource]]] = {}

    def warnings(
        self,
        provider: str,
        config: Mapping[str, Any],
        *,
        is_proven: bool = False,
        stored: IngestionSource | None = None,
    ) -> list[str]:
        """Return a sentence for each other source of the same account.

        Of a source that the user may not see they are told once the account is proven to be theirs
        (`is_proven`), and not its name: else anybody could ask whose mail is archived here.
        `stored`: the source that the configuration is of.
        """
        own = registry.get(provider).config.account(config)
        if not own:
            return []
        if provider not in self._of_provider:
            self._of_provider[provider] = self._read(provider)
        same = [s for s in self._of_provider[provider].get(own, []) if s != stored]
        seen = self._seen(same)
        told = [f"The source “{source.name}” archives this account too" for source in seen]
        if is_proven and len(seen) < len(same):
            told.append("A source that you may not see archives this account too")
        is_or_would_be = "is" if stored else "would be"
        return [f"{text}: its mail {is_or_would_be} kept twice." for text in told]

    def _read(self, provider: str) -> dict[str, list[IngestionSource]]:
        config = registry.get(provider).config
        found: dict[str, list[IngestionSource]] = {}
        rows = IngestionSource.objects.filter(provider=provider, deleted_at=None)
        for source in rows.only("name", "config").order_by("name", "pk"):
            found.setdefault(config.account(source.config), []).append(source)
        return found

    def _seen(self, same: list[IngestionSource]) -> list[IngestionSource]:
        if self._user is None or not same:
            return same
        visible = queries.visible_sources(self._user).filter(pk__in=[s.pk for s in same])
        seen = set(visible.values_list("pk", flat=True))
        return [source for source in same if source.pk in seen]


def of_source(source: IngestionSource, *, user: User | None) -> list[str]:
    """Return what there is to say of a stored source."""
    return Known(user).warnings(
        source.provider,
        source.config,
        is_proven=source.proven_at is not None,
        stored=source,
    )
