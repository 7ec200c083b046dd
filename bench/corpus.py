"""An archive of a million generated messages, in minutes: rows by COPY, as capture and the index
stage write them.

    python -m bench.corpus                     # into the database that VAR_DIR or DATABASE_URL name
    python -m bench.corpus --messages 20000 --packs        # and their bytes, into ARCHIVE_DIR
    python -m bench.corpus --messages 100000 --maildir m   # no archive: mail of that kind as files

It makes sources, mailboxes, folders, packs, messages, placements and documents, the same for the
same seed but for the ids that the database gives. Without --packs, packs are rows alone: lists and
search work, and nothing that reads a message does (its text, highlights, export, verification).
Sources are paused, so nobody tries to follow them. Those with even numbers are the superuser's; of
the others `reader` is the owner, who is no staff and sees these alone.

It takes an empty archive and refuses any other: indexes are dropped, and built in the end. The
database has to run, and nothing else of the service: `python -m ingestion_project.run
--only-services` starts it so where VAR_DIR has it. Where it was killed it begins anew, with a
database that is empty.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import django

from bench import generated
from bench.generated import Block
from ingestion_project import bootstrap


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    blocks = list(generated.blocks(options.messages))
    if options.maildir:
        write_files(blocks, options.maildir, seed=options.seed)
        return 0
    if bootstrap.main():
        return 1
    django.setup()
    from bench import archive  # noqa: PLC0415 - after django.setup()

    try:
        places = archive.prepare()
    except archive.NotEmpty as error:
        print(error, file=sys.stderr)
        return 1
    generated.warm()  # once for all processes
    with archive.without_indexes():
        jobs = [(block, options.seed, places, options.packs) for block in blocks]
        with multiprocessing.get_context("fork").Pool(options.processes) as pool:
            _follow(pool.imap_unordered(archive.write, jobs), options.messages)
        print("Building the indexes ...", flush=True)
    archive.finish()
    return 0


def write_files(blocks: Iterable[Block], maildir: Path, *, seed: int) -> None:
    """Write the messages of blocks into a Maildir, some thousand to a directory."""
    for block in blocks:
        directory = maildir / f"{block.before:08}" / "cur"
        for sub in ("cur", "new", "tmp"):
            (directory.parent / sub).mkdir(parents=True, exist_ok=True)
        for mail in generated.mails(block, seed=seed):
            # as programs store mail on Unix
            (directory / f"{mail.id}:2,S").write_bytes(mail.raw.replace(b"\r\n", b"\n"))


def _follow(written: Iterable[int], total: int) -> None:
    started, done, told = time.monotonic(), 0, 0.0
    for count in written:
        done += count
        now = time.monotonic() - started
        if now - told > 5 or done == total:
            print(f"{done:,} of {total:,} messages, {done / now:,.0f} a second", flush=True)
            told = now


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.corpus", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--messages", type=int, default=1_000_000)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--processes", type=int, default=os.cpu_count())
    made.add_argument("--packs", action="store_true", help="write the messages' bytes too")
    made.add_argument("--maildir", type=Path, help="write files instead, into this directory")
    return made


if __name__ == "__main__":
    sys.exit(main())
