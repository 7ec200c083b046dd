"""Packs in an object store beside packs in a directory: importing, reading, verifying.

The store is SeaweedFS on this machine, on the same disk, which it does not sync: what is compared
is what the service pays for it, not how fast a provider is. Its cores are this machine's too.
"""

import contextlib
from collections.abc import Iterator

from bench import processes, scenarios
from bench.results import Row, Sample, alternate, at_least, ratio
from bench.service import Service, Source
from bench.stage import Stage
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.servers.faulty_proxy import FaultyProxy

_READ = 300
_WAIT_SECONDS = 0.050


def object_store(stage: Stage) -> Iterator[Row]:
    """Local and S3 in turns; then S3 far away; then what each asks of the store."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ObjectStoreServer(stage.directory / "object-store"))
        server.make_bucket("archive")
        here = stack.enter_context(stage.another_service())
        there = stack.enter_context(_service(stage, server, server.url("archive", "near")))
        yield from _compared(stage, here, there, server)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ObjectStoreServer(stage.directory / "distant-store"))
        server.make_bucket("archive")
        yield from _counted(stage, server, stack)


def _service(stage: Stage, server: ObjectStoreServer, url: str) -> Service:
    return stage.another_service(**server.env, ARCHIVE_URL=url)


def _compared(
    stage: Stage, here: Service, there: Service, server: ObjectStoreServer
) -> Iterator[Row]:
    account, port = stage.main, stage.dovecot.port
    name = f"packs of {account.messages:,} × {account.size / account.messages / 1000:.0f} kB"
    services = {"in a directory": here, "in S3": there}
    imported = {contender: Row(f"{name}: import", contender) for contender in services}
    stage.say("Importing into a directory and into a bucket, in turns")
    before = processes.cpu_seconds(server.process.pid)
    alternate(
        stage.plan.rounds,
        [(imported[c], scenarios.ours(s, account, port=port)) for c, s in services.items()],
    )
    used = processes.cpu_seconds(server.process.pid) - before
    each = 1e6 * used / (account.messages * stage.plan.rounds)
    far, near = imported["in S3"], imported["in a directory"]
    far.checks = [at_least("of a directory's rate", ratio(far, near), 0.8)]
    far.note = f"beside it the store's own CPU: {each:,.0f} us a message"
    yield from (near, far)
    sources = {c: s.connect(account, port=port) for c, s in services.items()}
    for contender, source in sources.items():
        services[contender].measure(source)
    for verb, measure in (("read", _read), ("verify", Service.verify)):
        rows = {contender: Row(f"{name}: {verb}", contender) for contender in services}
        stage.say(f"To {verb}, in turns")
        alternate(
            stage.plan.rounds,
            [
                (rows[c], lambda s=s, c=c, measure=measure: measure(s, sources[c]))  # type: ignore[misc] # bound now
                for c, s in services.items()
            ],
        )
        share = ratio(rows["in S3"], rows["in a directory"])
        rows["in S3"].note = f"{share:.2f} of a directory's rate" if share else ""
        yield from rows.values()


def _read(service: Service, source: Source) -> Sample:
    return service.read(service.some_messages(source, _READ))


def _counted(stage: Stage, server: ObjectStoreServer, stack: contextlib.ExitStack) -> Iterator[Row]:
    """Count requests and bytes, and see what an import loses where each PUT takes longer."""
    account, port = stage.main, stage.dovecot.port
    proxy = stack.enter_context(FaultyProxy(server.endpoint))
    url = f"s3://archive/counted?endpoint={proxy.endpoint}&region=us-east-1"
    service = stack.enter_context(_service(stage, server, url))
    name = f"asked of S3 by {account.messages:,} messages"
    stage.say("Counting requests")
    source = service.connect(account, port=port)
    proxy.clear()
    sample = service.measure(source)
    yield _asked(f"{name}: import", proxy, sample)
    proxy.clear()
    yield _asked(f"{name}: read", proxy, _read(service, source))
    proxy.clear()
    yield _asked(f"{name}: verify", proxy, service.verify(source))
    proxy.fault("wait", "PUT", times=10**6, seconds=_WAIT_SECONDS)
    far = service.measure(service.connect(account, port=port))
    row = Row(f"{name}: import", f"each PUT {_WAIT_SECONDS * 1e3:.0f} ms longer", [far])
    if far.seconds and sample.seconds:
        row.note = f"{sample.seconds / far.seconds:.2f} of the rate without, by the same proxy"
    yield row


def _asked(name: str, proxy: FaultyProxy, sample: Sample) -> Row:
    assert sample.messages
    per = 1_000 / sample.messages
    requests = ", ".join(
        f"{method} {proxy.count(method) * per:,.1f}"
        for method in ("PUT", "GET", "POST", "DELETE")
        if proxy.count(method)
    )
    note = (
        f"for 1,000 messages: {requests}; {proxy.bytes_in * per / 1e6:,.1f} MB sent,"
        f" {proxy.bytes_out * per / 1e6:,.1f} MB received"
    )
    return Row(name, "through a proxy that counts", [sample], note=note)
