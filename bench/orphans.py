"""The look for packs without a row, which housekeeping takes hourly: among 100,000 packs beside
10,000, in a directory and in an object store on this machine."""

import dataclasses
import json
from collections.abc import Iterator, Mapping

from bench import collecting, processes
from bench.results import BenchError, Row, Sample, at_most
from bench.searching import run
from bench.service import clean_environ
from bench.stage import Stage
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.servers.stack import Supervised

_FEW, _MANY = 10_000, 100_000
#: What the process may have grown by, however many packs there are.
_GROWS_BYTES = 16_000_000


def orphans(stage: Stage) -> Iterator[Row]:
    for kind in ("a directory", "S3"):
        for count in (_FEW, _MANY):
            yield _among(stage, count, kind)


def _among(stage: Stage, count: int, kind: str) -> Row:
    directory = stage.directory / f"{count}-packs-in-{kind.replace(' ', '-')}"
    directory.mkdir()
    if kind != "S3":
        return _row(stage, count, kind, clean_environ(VAR_DIR=str(directory)), None)
    with ObjectStoreServer(directory / "store") as server:
        server.make_bucket("archive")
        url = server.url("archive")
        env = clean_environ(VAR_DIR=str(directory), **server.env, ARCHIVE_URL=url)
        return _row(stage, count, kind, env, server)


def _row(
    stage: Stage, count: int, kind: str, env: dict[str, str], server: ObjectStoreServer | None
) -> Row:
    servers = Supervised.start("--only-services", env=env, log=stage.directory / "services.log")
    try:
        servers.wait_for_line("are ready", 120)
        stage.say(f"Writing {count:,} packs into {kind}")
        run(env, "bench.collecting", "--fill", str(count))
        stage.say(f"Looking for those without a row among {count:,} in {kind}")
        row = Row("packs without a row", f"among {count:,} in {kind}")
        wanted = count // collecting.WITHOUT_ROW
        grown = []
        for _ in range(stage.plan.rounds):
            sample, grew, found = _looked(env, servers, server)
            if found != wanted:
                raise BenchError(f"{found} packs without a row were found, not {wanted}.")
            row.samples.append(sample)
            grown.append(grew)
            wanted = 0  # they are gone
    finally:
        servers.stop()
    row.checks = [
        at_most("grown by", max(grown), _GROWS_BYTES, show=lambda value: f"{value / 1e6:.1f} MB")
    ]
    return row


def _looked(
    env: Mapping[str, str], servers: Supervised, server: ObjectStoreServer | None
) -> tuple[Sample, int, int]:
    """Return what it took, how many bytes the process grew by, and how many it found."""
    database = servers.children()["postgres"]
    pids = [database, *([server.process.pid] if server else [])]
    before = [processes.cpu_seconds(pid) for pid in pids]
    told = json.loads(run(env, "bench.collecting").splitlines()[-1])  # after what bootstrap says
    after = [processes.cpu_seconds(pid) for pid in pids]
    used = [later - earlier for later, earlier in zip(after, before, strict=True)]
    grew, found = told.pop("grown_bytes"), told.pop("found")
    sample = Sample(**told, database_cpu_seconds=used[0])
    if server:
        sample = dataclasses.replace(sample, server_cpu_seconds=used[1])
    return sample, int(grew), int(found)
