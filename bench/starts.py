"""What it costs to start a command: whoever watches from a shell pays for it each time."""

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.results import BenchError, Row, Sample, alternate, at_most
from bench.stage import Stage

_BINARIES = Path(sys.executable).parent
#: CPU seconds. A person takes what is below for at once.
_AT_ONCE = 0.7
#: What each asks is little: it is about the start. The first is Django alone, with no settings.
_COMMANDS = {
    "django-admin version": ["django-admin", "version"],
    "ingestion --help": ["ingestion", "--help"],
    "ingestion list_keys": ["ingestion", "list_keys"],
    "ingestion runs --help": ["ingestion", "runs", "--help"],
    "ingestion source_status": ["ingestion", "source_status"],
    # Those that have most behind them.
    **{
        f"ingestion {name} --help": ["ingestion", name, "--help"]
        for name in ("add_source", "import_source", "export", "verify_archive", "doctor")
    },
}


def starts(stage: Stage) -> Iterator[Row]:
    """CPU seconds of commands from start to end, beside those of Django's own shortest."""
    env = stage.service.env
    stage.say("Starting commands, in turns")
    contenders = [
        (Row("command", name), functools.partial(_start, words, env))
        for name, words in _COMMANDS.items()
    ]
    for row in alternate(stage.plan.rounds + 2, contenders):
        if row.contender.startswith("ingestion"):
            seconds = row.median("cpu_seconds")
            row.checks = [at_most("CPU", seconds, _AT_ONCE, show="{:.2f} s".format)]
        yield row


def _start(words: Sequence[str], env: Mapping[str, str]) -> Sample:
    program = _BINARIES / words[0]
    actions = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    pid = os.posix_spawn(program, [str(program), *words[1:]], env, file_actions=actions)
    _, status, used = os.wait4(pid, 0)
    if status != 0:
        raise BenchError(f"{' '.join(words)} failed: {status}.")
    return Sample(cpu_seconds=used.ru_utime + used.ru_stime)
