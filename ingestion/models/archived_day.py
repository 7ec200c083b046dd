"""How much was archived of a source on a day: ArchivedDay."""

from django.db import models

from ingestion.models.source import IngestionSource


class ArchivedDay(models.Model):
    """Moved with the source's counters (`engine.counters`), so that a chart counts no mail: over
    all days it is what they grew by."""

    source = models.ForeignKey(
        IngestionSource, models.CASCADE, related_name="archived_days", db_index=False
    )
    day = models.DateField(help_text="In UTC.")
    messages = models.BigIntegerField(default=0)
    size_bytes = models.BigIntegerField(default=0, help_text="Sum of message sizes, unpacked.")

    class Meta:
        ordering = ["day"]
        constraints = [
            models.UniqueConstraint(fields=["source", "day"], name="archived_day_identity"),
        ]
        indexes = [models.Index(fields=["day"], name="archived_day")]

    def __str__(self) -> str:
        return f"{self.day}: {self.messages:,}"
