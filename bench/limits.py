"""What must stay small however large the rest is: commands, memory, the database's time."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench import native, scenarios
from bench.results import BenchError, Row, Sample, at_most
from bench.service import Account, clean_environ
from bench.stage import Stage
from tests.servers.stack import ROOT, Supervised

_FOLDERS = 1_000
_HUGE_BYTES = 150_000_000
_HUGE_MEMORY_BYTES = 350_000_000
_SOURCES, _DUE = 10_000, 100


def no_change(stage: Stage) -> Iterator[Row]:
    """A sync of 1,000 folders in which nothing is new."""
    user, password = stage.dovecot.user()
    maildir = stage.dovecot.maildir(user)
    stage.say(f"Making {_FOLDERS:,} folders")
    messages = size = 0
    for number in range(_FOLDERS):
        folder = maildir / f"Folder {number:04}" if number else maildir
        made = stage.pool.fill(folder, stage.pool.messages(1, start=number))
        messages, size = messages + made[0], size + made[1]
    account = Account(user, password, messages, size)
    row = Row(f"{_FOLDERS:,} folders", "ours, nothing new")
    log = stage.directory / "no-change"
    with stage.proxy(log=log) as port:
        source = stage.service.connect(account, port=port)
        stage.say(f"Importing {_FOLDERS:,} folders")
        stage.service.measure(source)
        for _ in range(stage.plan.rounds):
            native.forget_commands(log)
            sample = stage.service.measure(source, verb="sync")
            row.samples.append(_counted(row, sample, log))
    row.checks = [
        at_most("commands", row.median("commands"), 5),
        at_most("seconds", row.median("seconds"), 1, show="{:.2f}".format),
    ]
    yield row


def sparse(stage: Stage) -> Iterator[Row]:
    """40 messages at UID 2,000,001 and up: nobody may ask for the two million before them."""
    account = stage.account(stage.pool.messages(40), first_uid=2_000_001)
    row = Row("UID 2,000,001 and up", "ours, 40 messages")
    log = stage.directory / "sparse"
    with stage.proxy(log=log) as port:
        for _ in range(stage.plan.rounds):
            source = stage.service.connect(account, port=port)
            native.forget_commands(log)  # the check's own login
            row.samples.append(_counted(row, stage.service.measure(source), log))
    row.checks = [at_most("commands", row.median("commands"), 10)]
    yield row


def _counted(row: Row, sample: Sample, log: Path) -> Sample:
    said = native.commands(log)
    row.note = ", ".join(verb if n == 1 else f"{verb} ×{n}" for verb, n in Counter(said).items())
    return dataclasses.replace(sample, commands=len(said))


def huge(stage: Stage) -> Iterator[Row]:
    """One message of 150 MB among others."""
    stage.say("Writing a message of 150 MB")
    files = itertools.chain([stage.pool.huge(_HUGE_BYTES)], stage.pool.messages(200))
    account = stage.account(files)
    row = Row("150 MB in one message", "ours", note="and 200 of 8 kB")
    with stage.another_service() as service:  # no memory that earlier imports left
        source = service.connect(account, port=stage.dovecot.port)
        row.samples.append(service.measure(source))
    scenarios.memory(row, _HUGE_MEMORY_BYTES)
    yield row


def dispatch(stage: Stage) -> Iterator[Row]:
    """A beat with 10,000 sources of which 100 are due, by a PostgreSQL that has them all."""
    scenario = f"{_DUE} of {_SOURCES:,} sources due"
    due, idle = Row(scenario, "a beat that starts"), Row(scenario, "the next beat")
    directory = stage.directory / "dispatch"
    directory.mkdir()
    env = clean_environ(VAR_DIR=str(directory))
    stage.say(f"Making {_SOURCES:,} sources")
    servers = Supervised.start("--only-services", env=env, log=directory / "services.log")
    try:
        servers.wait_for_line("are ready")
        words = ["-m", "bench.beats", str(_SOURCES), str(_DUE), str(stage.plan.rounds + 2)]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
    finally:
        servers.stop()
    if done.returncode:
        raise BenchError(f"The beats could not be measured: {done.stderr[-2000:]}")
    for beat in json.loads(done.stdout.splitlines()[-1]):
        row = due if beat["handed_out"] else idle
        row.samples.append(Sample(database_milliseconds=beat["milliseconds"]))
        row.note = f"{beat['statements']} statements"
    for row, label in ((due, "database"), (idle, "database, next")):
        taken = row.median("database_milliseconds")
        row.checks = [at_most(label, taken, 50, show="{:.1f} ms".format)]
    yield from (due, idle)
