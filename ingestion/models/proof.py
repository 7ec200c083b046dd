"""That the archive was proven: Proof, the verdict of a verification or a reconciliation."""

from django.db import models
from django.db.models.functions import Now

from ingestion.models.source import IngestionSource


class ProofKind(models.TextChoices):
    VERIFICATION = "verification", "Read back and compared with its SHA-256"
    RECONCILIATION = "reconciliation", "Compared with the provider, message by message"


class Proof(models.Model):
    """What was looked at, when, and whether all of it was as it should be."""

    kind = models.CharField(max_length=16, choices=ProofKind.choices)
    source = models.ForeignKey(
        IngestionSource,
        models.CASCADE,
        null=True,
        related_name="proofs",
        help_text="Null: the whole archive.",
    )
    at = models.DateTimeField(db_default=Now(), help_text="When it was done.")
    messages = models.BigIntegerField(help_text="Looked at.")
    problems = models.BigIntegerField(help_text="Of any kind; 0: all is well.")

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["kind", "-at"], name="proof_latest")]

    def __str__(self) -> str:
        return f"{self.kind} {self.at:%Y-%m-%d %H:%M}"

    @property
    def ok(self) -> bool:
        return not self.problems
