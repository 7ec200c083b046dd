"""An archive of so many messages' rows and nothing else: ten million in an hour, in 20 GB.

    python -m bench.many_rows --messages 1000000      # into the database that VAR_DIR names

Sources, mailboxes, folders, packs, messages and placements, as an import writes them, the same each
time; made in the database, a mailbox at a time. No bytes: what imports and syncs look up is there,
and what the feed and a message's own page show; reading fails. Documents have the words of a header
alone (`bench.corpus` has texts, at six times the bytes), and are dated over ten years, as search
goes through time by the month. It takes an empty archive. Most indexes are built in the end.
"""

import argparse
import datetime as dt
import sys
import time
import uuid
from typing import Any

import django

from ingestion_project import bootstrap

#: A mailbox, and a pack, of an archive that grew by and by.
MAILBOX, PACK = 100_000, 1_000
_SPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")

_PACKS = """
INSERT INTO ingestion_pack (id, source_id, size_bytes, message_count, index_version)
SELECT md5(%(source)s::text || 'p' || n)::uuid, %(source)s, 4000000, %(pack)s, %(version)s
  FROM generate_series(0, (%(count)s - 1) / %(pack)s) n"""

#: Ten a second since 2015.
_MADE = """generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1) n,
       LATERAL (SELECT md5(n::text) AS h, to_timestamp(1420070400 + n / 10.0) AS at) made"""
#: A UUIDv7, as capture makes them: what is archived together lies together.
_ID = """(lpad(to_hex(1420070400000 + 100 * n), 12, '0') || '7' || substr(h, 1, 3) || '8'
        || substr(h, 4, 15))::uuid"""
_MESSAGES = f"""
INSERT INTO ingestion_message
       (id, mailbox_id, sha256, size_bytes, pack_id, pack_offset, pack_length, received_at,
        archived_at, subject, sender, recipients, sent_at, message_id, defects)
SELECT {_ID},
       %(mailbox)s, sha256(n::text::bytea), 2000 + n %% 12000,
       md5(%(source)s::text || 'p' || (n - %(first)s) / %(pack)s)::uuid, (n %% %(pack)s) * 4500,
       4000, at, at, 'About ' || substr(h, 1, 9) || ' and what we said of it in ' || n %% 97,
       'Person ' || n %% 5000 || ' <person' || n %% 5000 || '@company' || n %% 300 || '.example>',
       'Ada <ada@archive.example>, Grace <grace@archive.example>', at,
       '<' || h || '@company' || n %% 300 || '.example>', '{{}}'
  FROM {_MADE}"""

_PLACEMENTS = f"""
INSERT INTO ingestion_placement (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id,
                                 labels, first_seen_at)
SELECT %(mailbox)s, %(folder)s, {_ID}, '1:' || n, '', '',
       CASE WHEN n %% 3 = 0 THEN '{{}}'::text[] ELSE ARRAY['\\Seen'] END, at
  FROM {_MADE}"""

#: What search is asked for: a word of every fourth mail, one of twenty in all, one of every tenth
#: mail of the first years and of none since.
EVERY_FOURTH, RARE, OLD = "fourth{}", "rare{}", "gazette"
_IN_RARE = 20
_TEN_YEARS = 315_360_000
_DOCUMENTS = f"""
INSERT INTO ingestion_document
       (message_id, source_id, mailbox_id, version, date, words, numbers, sender_address,
        message_key, thread, preview, fields, attachments, defects)
SELECT {_ID}, %(source)s, %(mailbox)s, %(version)s, dated,
       (format($$'=source:%%1$s' '=mailbox:%%2$s' '=size:14' '=subject:about' '=subject:%%3$s'
                 '=from:person%%4$s@company%%5$s.example' '=from:person%%4$s' '=from:company%%5$s'
                 '=from:company%%5$s.example' '=from:example' 'about':2A '%%3$s':3A 'what':4A
                 'said':5A 'person%%4$s':7B 'company%%5$s':8B 'example':9B 'fourth%%6$s':11
                 'rare%%7$s':12 $$,
               replace(%(source)s::text, '-', ''), replace(%(mailbox)s::text, '-', ''),
               substr(h, 1, 9), n %% 5000, n %% 300, n %% 4, n %% (%(all)s / {_IN_RARE} + 1))
        || CASE WHEN n < %(all)s * 0.4 AND n %% 10 = 0 THEN '{OLD}:13' ELSE '' END)::tsvector,
       ARRAY[%(month)s + 12 * date_part('year', dated) + date_part('month', dated),
             %(year)s + date_part('year', dated)]::smallint[],
       'person' || n %% 5000 || '@company' || n %% 300 || '.example',
       ('x' || substr(h, 1, 16))::bit(64)::bigint, ('x' || substr(h, 17))::bit(64)::bigint,
       'We said of it what there is to say in ' || n %% 97, '{{}}', '[]', '{{}}'
  FROM {_MADE},
       LATERAL (SELECT to_timestamp(1420070400 + n * ({_TEN_YEARS}.0 / %(all)s)) AS dated) d"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.many_rows", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--messages", type=int, default=1_000_000)
    messages = parser.parse_args(arguments).messages
    if bootstrap.main():
        return 1
    django.setup()
    from bench import archive  # noqa: PLC0415 - after django.setup()
    from ingestion.models import IngestionSource  # noqa: PLC0415 - as above

    if IngestionSource.objects.exists():
        print("This archive is not empty. Set VAR_DIR to one that is.", file=sys.stderr)
        return 1
    started = time.monotonic()
    with archive.without_indexes():
        for first in range(0, messages, MAILBOX):
            _write(first, min(MAILBOX, messages - first), messages)
            seconds = time.monotonic() - started
            print(
                f"{min(first + MAILBOX, messages):,} of {messages:,}, {seconds:,.0f} s", flush=True
            )
        print("Building the indexes ...", flush=True)
    archive.finish()
    print(f"It took {time.monotonic() - started:,.0f} s.")
    return 0


def _write(first: int, count: int, messages: int) -> None:
    """Write a source with its mailbox, of so many messages in all, in a transaction of its own."""
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()
    from django.db import connection, transaction  # noqa: PLC0415 - as above

    from ingestion.models import (  # noqa: PLC0415 - as above
        INDEX_VERSION,
        Folder,
        IngestionSource,
        Mailbox,
    )
    from ingestion.search.words import date_numbers  # noqa: PLC0415 - as above
    from ingestion.states import SourceStatus  # noqa: PLC0415 - as above

    address = f"person{first // MAILBOX}@archive.example"
    with transaction.atomic(), connection.cursor() as cursor:
        source = IngestionSource.objects.create(
            id=uuid.uuid5(_SPACE, address),
            owner=User.objects.filter(is_superuser=True).earliest("pk"),
            name=address,
            provider="generic_imap",
            config={"host": "imap.archive.example", "username": address},
            status=SourceStatus.PAUSED,
            hold=True,
        )
        mailbox = Mailbox.objects.create(
            id=uuid.uuid5(source.pk, address), source=source, remote_id=address, address=address
        )
        folder = Folder.objects.create(mailbox=mailbox, remote_id="INBOX", path="INBOX")
        month, year = date_numbers(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
        given: dict[str, Any] = {
            "source": source.pk, "mailbox": mailbox.pk, "folder": folder.pk, "pack": PACK,
            "version": INDEX_VERSION, "first": first, "count": count, "all": messages,
            "month": month - 12 * 1970 - 1, "year": year - 1970,
        }  # fmt: skip
        cursor.execute("SET LOCAL statement_timeout = 0")
        for query in (_PACKS, _MESSAGES, _PLACEMENTS, _DOCUMENTS):
            cursor.execute(query, given)


if __name__ == "__main__":
    sys.exit(main())
