"""The Django application. Its checks are registered when it is ready."""

from django.apps import AppConfig


class IngestionConfig(AppConfig):
    name = "ingestion"
    verbose_name = "Email ingestion"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from ingestion import checks  # noqa: F401, PLC0415 - registers the system checks
