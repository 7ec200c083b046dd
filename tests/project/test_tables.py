"""The tables are as the models say, also where Django believes that they are."""

import importlib

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction

from ingestion.models import IngestionSource, Mailbox, Run

pytestmark = pytest.mark.django_db(transaction=True)


def test_every_index_and_constraint_is_in_the_database() -> None:
    """A migration that drops a column's index may take another with it, and nobody is told."""
    lacking = set()
    with connection.cursor() as cursor:
        for model in apps.get_app_config("ingestion").get_models():
            there = connection.introspection.get_constraints(cursor, model._meta.db_table)
            wanted = {str(one.name) for one in (*model._meta.indexes, *model._meta.constraints)}
            lacking |= {(model.__name__, name) for name in wanted - there.keys()}
    assert not lacking


def test_of_runs_beside_each_other_one_goes_on() -> None:
    owner = User.objects.create_user("p")
    source = IngestionSource.objects.create(owner=owner, name="x", provider="generic_imap")
    migration = importlib.import_module("ingestion.migrations.0034_runs_are_one_at_a_time")
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX one_unfinished_run_per_source")
        try:
            first, second = (Run.objects.create(source=source, kind="sync") for _ in range(2))
            for number, run in enumerate((first, second)):
                Mailbox.objects.create(source=source, remote_id=str(number), run=run)
        finally:
            with transaction.atomic():
                cursor.execute(migration.BRING_BACK)
    assert Run.objects.get(finished_at=None) == first
    assert Run.objects.get(status="stopped") == second
    assert Mailbox.objects.filter(run=first).count() == 2
    with pytest.raises(IntegrityError):
        Run.objects.create(source=source, kind="sync")
