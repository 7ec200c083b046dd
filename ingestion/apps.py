"""The Django application. Its checks are registered when it is ready."""

import contextlib
from typing import Any

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate


class IngestionConfig(AppConfig):
    name = "ingestion"
    verbose_name = "Email ingestion"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from ingestion import checks, moments  # noqa: F401, PLC0415 - listen and are registered
        from ingestion.services.operations import people  # noqa: F401, PLC0415 - listens to sign-ins

        post_migrate.connect(_make_groups_ready, sender=self)


def _make_groups_ready(apps: Any = apps, **_: Any) -> None:
    """Once there are permissions, which Django makes when all migrations are done."""
    from ingestion.services.operations import groups  # noqa: PLC0415 - models, so not before

    with contextlib.suppress(LookupError):  # it was migrated back to before that table
        if hasattr(apps.get_model("ingestion.Installation"), "groups"):
            groups.make_ready()
