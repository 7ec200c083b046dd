"""mailboxes: the mailboxes of a source, and up to when each is archived."""

from typing import Any

from ingestion.management.base import Exit, SourceCommand
from ingestion.management.presentation import Bytes, mailbox_object
from ingestion.models import IngestionSource


class Command(SourceCommand):
    help = (
        "List the mailboxes of a source: how each is, how much of it is archived and when it was "
        "last synced to the end, with the reason where one could not be read."
    )
    example = "manage.py mailboxes Contoso\nmanage.py mailboxes Contoso | grep unavailable"

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        del options
        found = list(source.mailboxes.all())
        self.report_rows(
            {"mailboxes": [mailbox_object(mailbox) for mailbox in found]},
            ("Mailbox", "State", "Messages", "Size", "Last synced", "Reason"),
            [
                (
                    mailbox.address,
                    mailbox.state,
                    mailbox.message_count,
                    Bytes(mailbox.archived_bytes),
                    mailbox.last_synced_at,
                    mailbox.last_error or mailbox.state_reason,
                )
                for mailbox in found
            ],
            numbers={"Messages", "Size"},
            spare=("Size",),
            nothing=f"{source.name} has no mailbox yet: an import lists them.",
        )
        return Exit.OK
