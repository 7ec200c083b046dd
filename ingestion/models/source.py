"""IngestionSource: one configured connection to a provider, and the history of its status.

Only `ingestion.services` writes these rows; status only through `sources.status.move`.
"""

import uuid

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from connectors.registry import PROVIDERS
from ingestion.crypto import EncryptedJSONField, Secrets
from ingestion.states import RUNNABLE, SourceStatus


def provider_choices() -> list[tuple[str, str]]:
    return [(p.slug, p.label) for p in PROVIDERS.values()]


#: As many sources as a page has. To name more of them in a query takes longer than to read also
#: what others have.
FEW_SOURCES = 100


class IngestionSource(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, related_name="ingestion_sources"
    )
    name = models.CharField(max_length=200)
    provider = models.CharField(max_length=32, choices=provider_choices)
    config = models.JSONField(default=dict, help_text="providerConfig without its secrets.")
    secrets = EncryptedJSONField(default=Secrets)
    options = models.JSONField(default=dict, help_text="See services/sources/options.py.")

    status = models.CharField(
        max_length=16, choices=SourceStatus.choices, default=SourceStatus.PENDING_AUTH
    )
    status_message = models.TextField(blank=True, help_text="Why the status is what it is.")
    status_code = models.CharField(
        max_length=64,
        blank=True,
        db_default="",
        help_text="Where that is an error of the provider's: its code (connectors.errors).",
    )
    # What is so whatever the status: where a pause, an error or a check returns to follows from it.
    proven_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="When these credentials worked; null: not proven.",
    )
    credentials_version = models.PositiveIntegerField(
        default=0,
        editable=False,
        help_text="Raised whenever credentials are to be proven anew.",
    )
    imported_at = models.DateTimeField(
        null=True, editable=False, help_text="When the first import was complete."
    )
    hold = models.BooleanField(
        default=False,
        help_text="Paused by somebody: a check of credentials returns to paused.",
    )
    auto_import = models.BooleanField(
        default=False,
        help_text="Start the import as soon as the credentials are proven.",
    )

    # The check of the credentials is work in this row: due when status is pending_auth.
    check_not_before = models.DateTimeField(db_default=Now())
    check_attempts = models.PositiveIntegerField(default=0)

    next_sync_at = models.DateTimeField(null=True, blank=True)
    last_sync_started_at = models.DateTimeField(null=True, blank=True)
    last_sync_finished_at = models.DateTimeField(null=True, blank=True)
    last_sync_status_message = models.TextField(blank=True)

    # Summed up after each commit of a mailbox, so that a list of sources counts nothing.
    message_count = models.BigIntegerField(default=0)
    archived_bytes = models.BigIntegerField(default=0, help_text="Sum of message sizes, unpacked.")

    handed_out_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="When work on this row was last handed out.",
    )
    deleted_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name", "id"]
        indexes = [
            models.Index(
                fields=["next_sync_at"],
                name="source_due_sync",
                condition=models.Q(status=SourceStatus.ACTIVE, deleted_at=None),
            ),
            models.Index(
                fields=["provider", "next_sync_at"],
                name="source_due_by_provider",
                condition=models.Q(status=SourceStatus.ACTIVE, deleted_at=None),
            ),
            models.Index(
                fields=["check_not_before"],
                name="source_due_check",
                condition=models.Q(status=SourceStatus.PENDING_AUTH, deleted_at=None),
            ),
            models.Index(
                fields=["deleted_at"],
                name="source_due_deletion",
                condition=models.Q(deleted_at__isnull=False),
            ),
            models.Index(fields=["owner", "name"], name="source_owner_name"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def runnable(self) -> bool:
        return self.deleted_at is None and self.status in RUNNABLE


class StatusChange(models.Model):
    """One move of a source's status: from, to, why, who. Written in the same transaction."""

    source = models.ForeignKey(IngestionSource, models.CASCADE, related_name="status_changes")
    from_status = models.CharField(max_length=16, choices=SourceStatus.choices)
    to_status = models.CharField(max_length=16, choices=SourceStatus.choices)
    reason = models.TextField(blank=True)
    actor = models.CharField(max_length=200, help_text="A user name, or the part of the service.")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.from_status} → {self.to_status}"
