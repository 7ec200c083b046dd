"""Mail that somebody takes out of the archive in the background: Export."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from ingestion.states import ExportState


class Export(models.Model):
    """What its owner asked for, how far it is, and until when the file is there.

    The file is `<EXPORT_DIR>/<id>.<extension>`, its owner's alone.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="exports")
    query = models.TextField(blank=True, help_text="In the query language; empty for all mail.")
    format = models.CharField(max_length=16)
    of_all_mail = models.BooleanField(
        default=False, help_text="Its owner might see everybody's mail when it was asked for."
    )
    state = models.CharField(
        max_length=16, choices=ExportState.choices, default=ExportState.WAITING
    )
    message = models.TextField(blank=True, help_text="What came of it, or why it waits.")
    messages_total = models.BigIntegerField(null=True)
    messages_done = models.BigIntegerField(default=0)
    messages_unreadable = models.BigIntegerField(default=0)
    size_bytes = models.BigIntegerField(default=0, help_text="Of the file, up to now.")
    created_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True, help_text="When the file is deleted.")

    # Where a worker goes on, whatever became of the last one.
    checkpoint = models.JSONField(null=True, editable=False)
    attempts = models.PositiveSmallIntegerField(
        default=0, editable=False, help_text="Begun since the last checkpoint."
    )
    not_before = models.DateTimeField(db_default=Now(), editable=False)
    handed_out_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(
                fields=["not_before"],
                name="export_due",
                condition=models.Q(state__in=["waiting", "running"]),
            )
        ]

    def __str__(self) -> str:
        return self.query or "all mail"
