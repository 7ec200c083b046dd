"""Keeps the verdicts of verifications and reconciliations, for people to see when the archive was
last proven. Proves nothing itself."""

import uuid

from ingestion.models import IngestionSource, Proof, ProofKind


def remember(kind: ProofKind, source_id: uuid.UUID | None, *, messages: int, problems: int) -> None:
    """Keep a verdict, of the whole archive where `source_id` is None. Nothing is kept of a source
    that was deleted meanwhile."""
    if source_id is None or IngestionSource.objects.filter(pk=source_id, deleted_at=None).exists():
        Proof.objects.create(kind=kind, source_id=source_id, messages=messages, problems=problems)
