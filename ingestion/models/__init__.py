"""The tables. Only `ingestion.services` writes them."""

from ingestion.models.alert import Alert, AlertKind, AlertNotice, AlertRule
from ingestion.models.answered import AnsweredRequest
from ingestion.models.archived_day import ArchivedDay
from ingestion.models.audit import ApiKey, AuditEvent
from ingestion.models.consent_link import ConsentLink
from ingestion.models.document import INDEX_VERSION, AbsentMessage, Document
from ingestion.models.export import Export
from ingestion.models.feed import ArchiveChange
from ingestion.models.installation import Installation
from ingestion.models.mailbox import Folder, Mailbox
from ingestion.models.message import (
    SMALL_PACK_BYTES,
    FailedMessage,
    Message,
    Pack,
    Placement,
)
from ingestion.models.proof import Proof, ProofKind
from ingestion.models.run import Run
from ingestion.models.saved_search import SavedSearch
from ingestion.models.source import FEW_SOURCES, IngestionSource, StatusChange
from ingestion.models.webhook import WebhookDelivery, WebhookEndpoint

__all__ = [
    "FEW_SOURCES",
    "INDEX_VERSION",
    "SMALL_PACK_BYTES",
    "AbsentMessage",
    "Alert",
    "AlertKind",
    "AlertNotice",
    "AlertRule",
    "AnsweredRequest",
    "ApiKey",
    "ArchiveChange",
    "ArchivedDay",
    "AuditEvent",
    "ConsentLink",
    "Document",
    "Export",
    "FailedMessage",
    "Folder",
    "IngestionSource",
    "Installation",
    "Mailbox",
    "Message",
    "Pack",
    "Placement",
    "Proof",
    "ProofKind",
    "Run",
    "SavedSearch",
    "StatusChange",
    "WebhookDelivery",
    "WebhookEndpoint",
]
