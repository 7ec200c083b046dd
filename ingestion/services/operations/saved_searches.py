"""Searches that a user keeps under a name: save one, rename one, delete one.

They are their owner's alone: interfaces find them by `user.saved_searches`.
"""

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from ingestion.errors import InvalidInput, LostRace
from ingestion.models import SavedSearch
from ingestion.search import query as language
from ingestion.services.audit import Actor, audit

_MAX_NAME_CHARS = 100
_MAX_OF_A_USER = 200


def save(user: User, *, name: str, query: str, actor: Actor) -> SavedSearch:
    """Keep a query under a name that the user has not used yet. Raises InvalidInput. Opens its own
    transaction."""
    errors = _wrong_with_name(name)
    try:
        language.parse(query)
    except language.QueryError as error:
        errors["query"] = [f"{error} (at character {error.position + 1})"]
    if not errors and user.saved_searches.count() >= _MAX_OF_A_USER:
        errors["name"] = [f"You have {_MAX_OF_A_USER} saved searches. Delete one first."]
    if errors:
        raise InvalidInput(errors)
    return _written(SavedSearch(owner=user, name=name.strip(), query=query.strip()), actor, "save")


def rename(saved: SavedSearch, *, name: str, actor: Actor) -> SavedSearch:
    """Give it another name. Raises InvalidInput, and LostRace where it was deleted. Opens its own
    transaction."""
    errors = _wrong_with_name(name)
    if errors:
        raise InvalidInput(errors)
    with transaction.atomic():
        if not SavedSearch.objects.select_for_update().filter(pk=saved.pk).first():
            raise LostRace("The saved search was deleted.")
        saved.name = name.strip()
        return _written(saved, actor, "rename")


def delete(saved: SavedSearch, *, actor: Actor) -> None:
    """Forget it; the mail that it finds stays. Opens its own transaction."""
    with transaction.atomic():
        audit(actor, "search.delete", None, {"name": saved.name})
        saved.delete()


def _wrong_with_name(name: str) -> dict[str, list[str]]:
    if not name.strip() or len(name) > _MAX_NAME_CHARS:
        return {"name": [f"Must have 1 to {_MAX_NAME_CHARS} characters."]}
    if not name.isprintable():
        return {"name": ["Must not contain control characters."]}
    return {}


def _written(saved: SavedSearch, actor: Actor, verb: str) -> SavedSearch:
    try:
        with transaction.atomic():
            saved.save()
            audit(actor, f"search.{verb}", None, {"name": saved.name})
    except IntegrityError:
        raise InvalidInput({"name": ["You have a saved search of this name."]}) from None
    return saved
