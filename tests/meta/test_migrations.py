"""Each migration leaves the workers of the version before at work: expand now, contract later.

`manage.py migrate` runs while they write. What they do not know of must be filled in for them, and
nothing that they read or write may go, or take less than before, until a release later.
"""

from collections.abc import Iterator

import pytest
from django.contrib.postgres import operations as postgres
from django.db import connection, migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

#: The rule is younger than these.
FREE_UNTIL = "0028_alerts"

#: (migration, operation) -> why the version before does not mind, or nobody runs it any more.
ALLOWED: dict[tuple[str, str], str] = {
    ("0031_references_are_checked_together", "Raw SQL operation"): (
        "triggers check what foreign keys did; everybody writes a pack before its messages, and"
        " those before their placements"
    ),
    ("0034_runs_are_one_at_a_time", "Raw SQL operation"): (
        "the version before believes that this constraint is there"
    ),
    ("0039_drafts_have_no_stable_id", "Raw SQL operation"): (
        "a placement without a stable id is what any provider without one has; what they still give"
        " one, the version after does not recognise by it"
    ),
    ("0041_single_sign_on_names_the_issuer", "Raw SQL operation"): (
        "the rows that it reads stay as they are"
    ),
}

_HARMLESS = (
    migrations.CreateModel,
    migrations.AlterModelOptions,
    migrations.AlterModelManagers,
    migrations.RemoveIndex,  # also RemoveIndexConcurrently
    migrations.RenameIndex,
    migrations.RemoveConstraint,
    postgres.AddIndexConcurrently,
    postgres.CreateExtension,
)


def test_no_migration_breaks_the_workers_of_the_version_before() -> None:
    refused = {
        (migration.name, operation.describe()): why
        for migration, operation, before in _operations()
        if (why := _breaks(migration, operation, before))
    }
    assert refused.keys() == ALLOWED.keys(), refused


def _operations() -> Iterator[tuple[Migration, Operation, ProjectState]]:
    """Yield what is done after FREE_UNTIL, with the models as they are before."""
    loader = MigrationLoader(None, ignore_no_migrations=True)
    [last] = loader.graph.leaf_nodes("ingestion")
    plan = [key for key in loader.graph.forwards_plan(last) if key[0] == "ingestion"]
    assert ("ingestion", FREE_UNTIL) in plan
    state = loader.project_state(("ingestion", FREE_UNTIL))
    for key in plan[plan.index(("ingestion", FREE_UNTIL)) + 1 :]:
        migration = loader.graph.nodes[key]
        for operation in migration.operations:
            yield migration, operation, state.clone()
            operation.state_forwards("ingestion", state)


def _breaks(migration: Migration, operation: Operation, before: ProjectState) -> str:
    """Say what the version before would stumble over; "" where there is nothing."""
    if isinstance(operation, _HARMLESS):
        return ""
    if isinstance(operation, migrations.AddField):
        return _unfilled(operation.field)
    if isinstance(operation, migrations.AlterField):
        old = before.apps.get_model("ingestion", operation.model_name)._meta.get_field(
            operation.name
        )
        after = before.clone()
        operation.state_forwards("ingestion", after)
        new = after.apps.get_model("ingestion", operation.model_name)._meta.get_field(
            operation.name
        )
        assert isinstance(old, models.Field)
        assert isinstance(new, models.Field)
        return _narrower(old, new)
    if isinstance(operation, migrations.AddIndex):
        new_here = {
            o.name_lower for o in migration.operations if isinstance(o, migrations.CreateModel)
        }
        if operation.model_name_lower in new_here:
            return ""
        return "nobody can write to the table until it is built: AddIndexConcurrently"
    return "it takes something away, forbids something, or can't be judged by its looks"


def _unfilled(field: "models.Field[object, object]") -> str:
    if field.null or field.has_db_default() or field.many_to_many:
        return ""
    return "its rows, written without it, are refused: give it a db_default, or null=True"


def _narrower(old: "models.Field[object, object]", new: "models.Field[object, object]") -> str:
    if old.column != new.column:
        return "its column has another name"
    if old.null and not new.null:
        return "it takes no NULL any more"
    if new.unique and not old.unique:
        return "it takes no value twice any more"
    if old.has_db_default() and _unfilled(new):
        return _unfilled(new)
    kinds = old.db_type(connection), new.db_type(connection)
    if kinds[0] != kinds[1] and not _wider(*kinds):
        return f"what was {kinds[0]} is {kinds[1]}"
    return ""


def _wider(old: str | None, new: str | None) -> bool:
    """Whether a text may be longer than before. (Numbers grow by rewriting the table.)"""
    if not (old or "").startswith("varchar("):
        return False
    return new == "text" or ((new or "").startswith("varchar(") and _length(new) >= _length(old))


def _length(kind: str | None) -> int:
    return int((kind or "").strip("varch()"))


# -- the rule itself -------------------------------------------------------------------------------

_TEXT = models.CharField(max_length=10)


@pytest.mark.parametrize(
    ("operation", "refused"),
    [
        (migrations.AddField("thing", "a", models.TextField(default="")), True),
        (migrations.AddField("thing", "a", models.TextField(db_default="")), False),
        (migrations.AddField("thing", "a", models.TextField(null=True)), False),
        (migrations.RemoveField("thing", "text"), True),
        (migrations.RenameField("thing", "text", "words"), True),
        (migrations.DeleteModel("thing"), True),
        (migrations.AlterField("thing", "text", models.CharField(max_length=9)), True),
        (migrations.AlterField("thing", "text", models.CharField(max_length=11)), False),
        (migrations.AlterField("thing", "text", models.TextField()), False),
        (migrations.AlterField("thing", "text", models.IntegerField()), True),
        (migrations.AlterField("thing", "maybe", models.TextField()), True),
        (migrations.AlterField("thing", "filled", models.TextField()), True),
        (
            migrations.AlterField("thing", "text", models.CharField(max_length=10, unique=True)),
            True,
        ),
        (migrations.AddIndex("thing", models.Index(fields=["text"], name="slow")), True),
        (migrations.RunSQL("SELECT 1"), True),
    ],
    ids=lambda value: value.describe() if isinstance(value, Operation) else str(value),
)
def test_what_is_refused(operation: Operation, refused: bool) -> None:
    state = ProjectState()
    migrations.CreateModel(
        "Thing",
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("text", _TEXT),
            ("maybe", models.TextField(null=True)),
            ("filled", models.TextField(db_default="")),
        ],
    ).state_forwards("ingestion", state)
    assert bool(_breaks(Migration("another", "ingestion"), operation, state)) is refused
