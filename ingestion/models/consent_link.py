"""ConsentLink: an address by which a person without a login grants access to one source, once."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from ingestion.models.source import IngestionSource


class ConsentLink(models.Model):
    """Whoever has the token may grant access, until it is used, revoked or expired. It goes with
    the user who made it; `made_by` is null where that was on the command line."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(
        IngestionSource, models.CASCADE, related_name="consent_links", db_index=False
    )
    token_hash = models.CharField(max_length=64, unique=True, help_text="SHA-256, in hex.")
    made_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True)
    made_by_name = models.CharField(max_length=200)
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    used_from = models.GenericIPAddressField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["source"],
                condition=models.Q(used_at=None, revoked_at=None),
                name="consent_link_one_open",
            )
        ]

    def __str__(self) -> str:
        return f"Link for {self.source_id}"
