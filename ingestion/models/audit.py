"""Who changed what: AuditEvent; and ApiKey, the credential of programs."""

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from knox.models import AbstractAuthToken


class ApiKey(AbstractAuthToken):  # type: ignore[misc] # untyped base
    """A bearer key of a user: hashed at rest, named, expiring, revocable by deleting the row."""

    SCOPES = ("read", "write", "export")

    name = models.CharField(max_length=100)
    scopes = models.JSONField(default=list, help_text='Some of "read", "write", "export".')

    last_used_at = models.DateTimeField(null=True, editable=False, help_text="To within a minute.")

    class Meta:
        ordering = ["-created"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.token_key}…)"


class AuditEvent(models.Model):
    """One change, sign-in or look at mail by a person or program.

    `changes` holds names and old/new values, no secrets.
    """

    at = models.DateTimeField(db_default=Now())
    actor = models.CharField(max_length=200)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True)
    key = models.CharField(
        max_length=150,
        blank=True,
        default="",
        help_text="The API key that acted. Kept after it is revoked.",
    )
    address = models.GenericIPAddressField(null=True, help_text="Where the request came from.")
    action = models.CharField(max_length=64)
    source_id = models.UUIDField(null=True, help_text="Kept after the source is deleted.")
    changes = models.JSONField(default=dict)

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["source_id", "at"], name="audit_by_source")]

    def __str__(self) -> str:
        return f"{self.actor} {self.action}"
