"""What was answered to a POST with an Idempotency-Key, for a day."""

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class AnsweredRequest(models.Model):
    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    fingerprint = models.BinaryField(max_length=32, help_text="Of the method, address and body.")
    status = models.SmallIntegerField(default=0)
    answer = models.JSONField(null=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "key"], name="answered_request_identity"),
        ]
        indexes = [models.Index(fields=["at"], name="answered_request_age")]

    def __str__(self) -> str:
        return f"{self.status} at {self.at:%Y-%m-%d %H:%M:%S}"
