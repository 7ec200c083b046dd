"""Fills the database of VAR_DIR with IMAP accounts that are followed. A process of its own, for it
needs Django's settings.

`python -m bench.crowd ACCOUNTS PORT NAME` makes ACCOUNTS sources as they are after their import:
each is the account of `bench.polling` at PORT, with all of its folders listed to their end. Nothing
is due for a day.
"""

import datetime as dt
import sys

import django

from bench.polling import FOLDERS, MESSAGES, PASSWORD, USER
from ingestion_project import bootstrap

_BATCH = 1_000


def main(accounts: int, port: int, name: str) -> None:
    if bootstrap.main():
        raise SystemExit(1)
    django.setup()
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()
    from django.db import connection  # noqa: PLC0415 - as above
    from django.utils import timezone  # noqa: PLC0415 - as above

    from ingestion.crypto import Secrets  # noqa: PLC0415 - as above
    from ingestion.models import Folder, IngestionSource, Mailbox  # noqa: PLC0415 - as above

    owner, now = User.objects.get(username="admin"), timezone.now()
    server = {"host": "127.0.0.1", "port": port, "secure": False, "username": USER}
    sources = [
        IngestionSource(
            owner=owner,
            name=f"{name} {number}",
            provider="generic_imap",
            config=server,
            options={"syncIntervalSeconds": 300},
            status="active",
            proven_at=now,
            imported_at=now,
            next_sync_at=now + dt.timedelta(days=1),
            check_not_before=now,
        )
        for number in range(accounts)
    ]
    for source in sources:
        source.secrets = Secrets({"password": PASSWORD})
    IngestionSource.objects.bulk_create(sources, batch_size=_BATCH)
    mailboxes = [
        Mailbox(source=source, remote_id=USER, address=USER, last_synced_at=now)
        for source in sources
    ]
    Mailbox.objects.bulk_create(mailboxes, batch_size=_BATCH)
    cursor = {"v": 1, "n": MESSAGES + 1, "u": MESSAGES + 1, "m": MESSAGES + 1, "c": MESSAGES}
    Folder.objects.bulk_create(
        (
            Folder(
                mailbox=mailbox,
                remote_id=path,
                path=path,
                role="inbox" if path == "INBOX" else "",
                cursor={**cursor, "t": int(now.timestamp()), "done": True},
                listed_at=now,
                remote_count=MESSAGES,
            )
            for mailbox in mailboxes
            for path in FOLDERS
        ),
        batch_size=_BATCH,
    )
    with connection.cursor() as database:
        database.execute("ANALYZE")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
