"""Looks for packs without a row in the archive that the environment names, as housekeeping does.

A process of its own, for it needs Django's settings, and its memory is what is measured.

    python -m bench.collecting --fill 100000      # makes packs first, and a row for all but some
    python -m bench.collecting                    # prints JSON: seconds, CPU seconds, bytes, found

The packs are empty: bodies are not read, nor are headers of packs that have a row.
"""

import argparse
import concurrent.futures
import datetime as dt
import json
import os
import sys
import time
import uuid
from collections.abc import Iterable

from bench import processes
from ingestion_project import bootstrap

#: Packs are spread evenly over these; one in so many has no row.
SOURCES, WITHOUT_ROW = 10, 1_000
_AT_ONCE = 8
_BATCH = 5_000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.collecting", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--fill", type=int, default=0)
    fill = parser.parse_args(arguments).fill
    if bootstrap.main():
        return 1
    if fill:
        _fill(fill)
    else:
        print(json.dumps(_collected()))
    return 0


def _collected() -> dict[str, float]:
    from ingestion.services.archive import housekeeping  # noqa: PLC0415 - after django.setup()

    me = [os.getpid()]
    processes.forget_peaks(me)
    before, cpu, began = processes.peak_rss_bytes(me), time.process_time(), time.monotonic()
    found = housekeeping.collect_orphans(older_than=dt.timedelta())
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - cpu,
        "rss_bytes": (peak := processes.peak_rss_bytes(me)),
        "grown_bytes": peak - before,
        "found": found,
    }


def _fill(count: int) -> None:
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()

    from ingestion.models import INDEX_VERSION, IngestionSource, Pack  # noqa: PLC0415 - as above
    from ingestion.services.archive import storage  # noqa: PLC0415 - as above
    from ingestion.states import SourceStatus  # noqa: PLC0415 - as above

    storage.require()
    owner = User.objects.filter(is_superuser=True).earliest("pk")
    for number in range(SOURCES):
        source = IngestionSource.objects.create(
            owner=owner, name=f"Source {number}", provider="generic_imap",
            config={"host": "imap.archive.example", "username": f"person{number}"},
            status=SourceStatus.PAUSED, hold=True,
        )  # fmt: skip
        ids = [uuid.uuid4() for _ in range(count // SOURCES)]
        _write(source.pk, ids)
        rows = [
            Pack(pk=pk, source=source, size_bytes=100, message_count=0, index_version=INDEX_VERSION)
            for place, pk in enumerate(ids)
            if place % WITHOUT_ROW
        ]
        Pack.objects.bulk_create(rows, batch_size=_BATCH)


def _write(source_id: uuid.UUID, ids: Iterable[uuid.UUID]) -> None:
    """Put empty packs into the store, as many at once as make it quick."""
    from ingestion.packs.format import begin  # noqa: PLC0415 - after django.setup()
    from ingestion.packs.store import store  # noqa: PLC0415 - as above

    archive = store()

    def put(pack_id: uuid.UUID) -> None:
        with archive.copier(source_id, pack_id) as writer:
            begin(writer.file, pack_id, {"source": str(source_id)})
            writer.commit()

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(put, ids):
            pass


if __name__ == "__main__":
    sys.exit(main())
