"""Search in an archive of a million generated messages, beside notmuch and plain ILIKE."""

import contextlib
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import corpus, generated
from bench.asked import PAGE, Query, queries
from bench.results import BenchError, Row, Sample, at_most
from bench.service import clean_environ
from bench.stage import Stage
from tests.servers.stack import ROOT, Supervised

TARGET_MILLISECONDS = 100.0
#: Peers have a tenth of the mail: notmuch reads files, which takes its time to write.
_PEERS_SHARE = 10
_NOTMUCH_TURNS = 2
#: What a corpus is made of: one that others wrote is written anew. Migrations are run on it.
_SOURCES = (
    *("bench/generated.py", "bench/archive.py", "ingestion/search/words.py"),
    *(f"ingestion/models/{name}.py" for name in ("document", "message")),
)
#: What each index is for; the others are what their names say.
_FOR = {
    "ingestion_message": "the rows: header fields, SHA-256, where in which pack",
    "ingestion_placement": "the rows: folder, labels, when seen and removed",
    "ingestion_document": "the rows: words with positions, pairs, preview, attachments' names",
    "ingestion_message_pack_id_c703b20e": "the messages of a pack",
    "ingestion_placement_message_id_1ef13ddc": "where a message is",
    "ingestion_message_pkey": "a message by its id",
    "message_identity": "the bytes of a mailbox are archived once",
    "message_by_time": "a mailbox's newest archived",
    "message_newest": "newest archived of all",
    "ingestion_placement_pkey": "a placement by its id",
    "placement_identity": "a place is known once; what lies in a folder",
    "placement_feed": "the feed of changes",
    "placement_stable": "mail that moved, by the provider's own id",
    "placement_labels": "label:",
    "ingestion_document_pkey": "a document by its message",
    "document_newest": "lists by date; a search's look through the newest",
    "document_of_source": "the same, for those who may see some sources",
    "document_of_mailbox": "the same, in a mailbox",
    "document_thread": "the messages of a conversation",
    "document_message_key": "threads: a message by its Message-ID",
    "document_search": "words, phrases, from:, has: and the like; months",
    "document_unnumbered": "documents before version 3",
    "document_unread": "documents whose bytes can't be read",
}


def search(stage: Stage) -> Iterator[Row]:
    """Pages of 50 from the archive, each kind of question in ten wordings."""
    messages = stage.plan.corpus
    subset = messages // _PEERS_SHARE
    found = _ours(stage, messages, subset)
    theirs = {(row["name"], row["contender"]): row for row in found["queries"]}
    for query, timed in _notmuch(stage, subset):
        theirs[query.name, "notmuch"] = timed
    for query in queries(messages):
        row = _row(query, theirs[query.name, "ours"], "ours")
        row.checks = [
            at_most(
                "p95",
                _p95(row.samples),
                TARGET_MILLISECONDS,
                show="{:.1f} ms".format,
            )
        ]
        yield row
        for contender in ("notmuch", "ILIKE"):
            if (query.name, contender) in theirs:
                peer = _row(query, theirs[query.name, contender], contender)
                peer.note = f"p95 {_p95(peer.samples):.1f} ms, {peer.note}; of {subset:,} messages"
                yield peer
    yield from _sizes(found["tables"], messages)


def _row(query: Query, timed: Mapping[str, Any], contender: str) -> Row:
    row = Row(query.name, contender)
    cpu = timed.get("cpu_milliseconds") or [None] * len(timed["milliseconds"])
    row.samples = [
        Sample(page_milliseconds=taken, page_cpu_milliseconds=used)
        for taken, used in zip(timed["milliseconds"], cpu, strict=True)
    ]
    parts = [f"{len(row.samples)} times", f"p50 {statistics.median(timed['milliseconds']):.1f} ms"]
    if timed.get("cpu_milliseconds") and contender == "ours":
        ordered = sorted(timed["cpu_milliseconds"])
        parts.append(f"CPU {statistics.median(ordered):.1f}, p95 {percentile(ordered):.1f} ms")
    row.note = ", ".join([*parts, *([timed["hits"]] if timed.get("hits") else [])])
    return row


def _p95(samples: Sequence[Sample]) -> float:
    return percentile([s.page_milliseconds for s in samples if s.page_milliseconds is not None])


def percentile(values: Sequence[float]) -> float:
    """Return the 95th percentile: the value that one of twenty is above."""
    return sorted(values)[max(0, -(-19 * len(values) // 20) - 1)]


# -- ours ----------------------------------------------------------------------------------------


def _ours(stage: Stage, messages: int, subset: int) -> dict[str, Any]:
    with generated_archive(stage, messages) as env:
        stage.say("Searching")
        said = run(env, "bench.finding", str(messages), str(subset))
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


@contextlib.contextmanager
def generated_archive(stage: Stage, messages: int) -> Iterator[Mapping[str, str]]:
    """Run the database of an archive of so many messages, written where it is not there; yield the
    environment of a process that asks it."""
    directory = stage.directory.parent / f"corpus-{messages}"
    mark, made_of = directory / "made-of", _made_of(messages)
    if not mark.exists() or mark.read_text() != made_of:
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    env = clean_environ(VAR_DIR=str(directory))
    servers = Supervised.start("--only-services", env=env, log=directory / "services.log")
    try:
        servers.wait_for_line("are ready", 120)
        if not mark.exists():
            stage.say(f"Writing an archive of {messages:,} messages")
            started = time.monotonic()
            run(env, "bench.corpus", "--messages", str(messages))
            stage.say(f"... which took {(time.monotonic() - started) / 60:.0f} minutes")
            mark.write_text(made_of)
        yield env
    finally:
        servers.stop()


def _made_of(messages: int) -> str:
    digest = hashlib.sha256(str(messages).encode())
    for path in _SOURCES:
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()


def run(env: Mapping[str, str], module: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{module} failed: {done.stderr[-2000:]}")
    return done.stdout


# -- notmuch -------------------------------------------------------------------------------------


def _notmuch(stage: Stage, subset: int) -> Iterator[tuple[Query, dict[str, Any]]]:
    """Ask notmuch for such pages: a program that starts each time."""
    if shutil.which("notmuch") is None:
        stage.say("notmuch is not installed: not measured")
        return
    root = stage.directory / "notmuch"
    stage.say(f"Letting notmuch read {subset:,} files")
    corpus.write_files(generated.blocks(subset), root / "mail", seed=1)
    config = root / "config"
    config.write_text(f"[database]\npath={root / 'mail'}\n[new]\ntags=\n[search]\nexclude_tags=\n")
    env = clean_environ(NOTMUCH_CONFIG=str(config), HOME=str(root))
    _ask_notmuch(env, "new", "--quiet")
    for query in queries(subset):
        if query.as_reader or query.counted or query.faceted or query.sort != "-date":
            continue
        text = query.notmuch or query.text
        if text(0).startswith(("in:", "label:")):
            continue
        taken = []
        for turn in range(-1, _NOTMUCH_TURNS):
            for number in range(10):
                words = ["search", "--output=messages", f"--limit={PAGE}"]
                words += [f"--offset={query.skipped}"] if query.skipped else []
                started = time.perf_counter()
                _ask_notmuch(env, *words, text(number))
                if turn >= 0:
                    taken.append((time.perf_counter() - started) * 1000)
        yield query, {"milliseconds": taken}


def _ask_notmuch(env: Mapping[str, str], *words: str) -> None:
    done = subprocess.run(
        ["notmuch", *words], env=dict(env), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"notmuch {words[0]} failed: {done.stderr[-1000:]}")


# -- bytes ---------------------------------------------------------------------------------------


def _sizes(tables: Sequence[tuple[str, str | None, int]], messages: int) -> Iterator[Row]:
    scenario = "bytes per message"
    for table, index, size in tables:
        name = index or table
        purpose = next((text for known, text in _FOR.items() if name == known), "")
        indent = "  " if index else ""
        yield Row(scenario, f"{indent}{name}", note=f"{size / messages:,.0f} {purpose}".rstrip())
    total = sum(size for *_, size in tables)
    yield Row(scenario, "all", note=f"{total / messages:,.0f}")
