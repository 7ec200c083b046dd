"""What is measured for speed, and what each must reach. `limits` has what is not about speed.

A scenario is a function of the stage that returns its rows. All contenders of a scenario take
turns, so that what else the machine does falls on all of them.
"""

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping

from bench.results import BenchError, Row, Sample, alternate, at_least, at_most, ratio
from bench.service import Account, Service
from bench.stage import Stage
from tests.servers.imap_script import ImapScript

_MB = 1_000_000
_ADDED_SECONDS = 0.020
MEMORY_BYTES = 200 * _MB
#: Bytes per second and connection: far below what one core handles, as over the internet.
_PROVIDERS_PACE = 3 * _MB
_MAILBOXES = 40
#: Of CPU for a message, in all processes of the service, on any processor.
_CPU_SECONDS = 180e-6


def _megabytes(value: float) -> str:
    return f"{value / _MB:,.0f} MB"


def memory(row: Row, target: int = MEMORY_BYTES) -> None:
    """Check the peak memory of a worker: the highest of all samples, not the median."""
    peak = max((s.rss_bytes or 0 for s in row.samples), default=0)
    row.checks.append(at_most("peak RSS", peak, target, show=_megabytes))


def _cpu(row: Row) -> None:
    """Check what a message takes of CPU in all, and say by which process."""
    each = cpu_of_a_message(row)
    row.checks.append(
        at_most("CPU a message", sum(each.values()), _CPU_SECONDS, show=_microseconds)
    )
    row.note = told(each)


def cpu_of_a_message(row: Row) -> dict[str, float]:
    """Return the CPU seconds that each process took for a message: medians of all samples."""
    each: dict[str, list[float]] = {}
    for sample in row.samples:
        for name, seconds in sample.cpu_by_process.items():
            each.setdefault(name, []).append(seconds / (sample.messages or 1))
    return {name: statistics.median(seconds) for name, seconds in each.items()}


def told(each: Mapping[str, float]) -> str:
    """Say in words what took how much of CPU, without what took none."""
    shown = ", ".join(f"{name} {s * 1e6:,.0f}" for name, s in each.items() if round(s * 1e6))
    return f"CPU a message: {shown} us"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"


def ours(
    service: Service, account: Account, *, port: int, **config: object
) -> Callable[[], Sample]:
    """Import the account by a new source each time."""

    def run() -> Sample:
        return service.measure(service.connect(account, port=port, **config))

    return run


def imports(stage: Stage) -> Iterator[Row]:
    """The import beside its peers."""
    quick = stage.plan.quick
    account, port, peers = stage.main, stage.dovecot.port, stage.peers
    name = f"{account.messages:,} × {account.size / account.messages / 1000:.0f} kB"
    us, floor = Row(name, "ours"), Row(name, "floor", note="reads and discards")
    synced = Row(name, "mbsync, fsync")
    contenders = [
        (us, ours(stage.service, account, port=port)),
        (floor, lambda: peers.floor(account, port=port)),
    ]
    version = peers.version("mbsync")
    rows = [synced]
    if version is None:
        synced.note = "isync is not installed: not measured"
    else:
        synced.note = version
        contenders.insert(1, (synced, lambda: peers.mbsync(account, port=port, fsync=True)))
        if not quick:
            fast = Row(name, "mbsync, no fsync", note=version)
            rows.append(fast)
            contenders.insert(2, (fast, lambda: peers.mbsync(account, port=port, fsync=False)))
    stage.say("Importing, in turns")
    alternate(stage.plan.rounds, contenders)
    us.checks = [
        at_least("of mbsync with fsync", ratio(us, synced), 3),
        at_least("of the floor", ratio(us, floor), 0.25),
    ]
    memory(us)
    _cpu(us)
    yield us
    yield from rows
    if not quick:
        yield _offlineimap(stage, name)
    yield floor


def _offlineimap(stage: Stage, scenario: str) -> Row:
    version = stage.peers.version("offlineimap")
    row = Row(scenario, "offlineimap, fsync")
    if version is None:
        row.note = "offlineimap3 is not installed: not measured"
        return row
    stage.say("Letting offlineimap have its turn")
    account = stage.warm(stage.account(stage.pool.messages(stage.plan.subset)))
    row.note = f"{version}; {account.messages:,} of them, as it is slow; once"
    row.samples.append(stage.peers.offlineimap(account, port=stage.dovecot.port))
    return row


def latency(stage: Stage) -> Iterator[Row]:
    """The same import with 20 ms more to each round trip."""
    account, port = stage.main, stage.dovecot.port
    name = f"+{_ADDED_SECONDS * 1000:.0f} ms round trip"
    near, far = Row(name, "ours, directly"), Row(name, "ours, delayed")
    near_floor, far_floor = Row(name, "floor, directly"), Row(name, "floor, delayed")
    with stage.proxy(each_way_seconds=_ADDED_SECONDS / 2) as distant:
        stage.say("Importing over a long line, in turns")
        alternate(
            stage.plan.rounds,
            [
                (near, ours(stage.service, account, port=port)),
                (far, ours(stage.service, account, port=distant)),
                (near_floor, lambda: stage.peers.floor(account, port=port)),
                (far_floor, lambda: stage.peers.floor(account, port=distant)),
            ],
        )
    far.checks = [at_least("of our rate without", ratio(far, near), 0.8)]
    room = ratio(far_floor, far)
    if room is not None:
        far_floor.note = f"{room:.0f} times ours: the proxy is not what limits it"
    yield from (near, far, near_floor, far_floor)


def large(stage: Stage) -> Iterator[Row]:
    """Messages of about 100 kB."""
    account = stage.warm(stage.account(stage.pool.messages(2_000, size=100_000)))
    port, peers = stage.dovecot.port, stage.peers
    name = f"{account.messages:,} × {account.size / account.messages / 1000:.0f} kB"
    us, floor = Row(name, "ours"), Row(name, "floor")
    contenders = [(us, ours(stage.service, account, port=port))]
    synced = Row(name, "mbsync, fsync")
    if peers.version("mbsync") is None:
        synced.note = "isync is not installed: not measured"
    else:
        contenders.append((synced, lambda: peers.mbsync(account, port=port, fsync=True)))
    contenders.append((floor, lambda: peers.floor(account, port=port)))
    stage.say("Importing large messages, in turns")
    alternate(stage.plan.rounds, contenders)
    memory(us)
    shares = {"mbsync": ratio(us, synced), "the floor": ratio(us, floor)}
    us.note = ", ".join(f"{share:.2f} of {name}" for name, share in shares.items() if share)
    yield from (us, synced, floor)


def tls(stage: Stage) -> Iterator[Row]:
    """The same import over TLS, the certificate checked."""
    account = stage.main
    plain, encrypted = Row("TLS", "ours, plain"), Row("TLS", "ours, TLS")
    with stage.another_service(EXTRA_CA_FILE=str(stage.dovecot.root / "cert.pem")) as service:
        stage.say("Importing over TLS, in turns")
        alternate(
            stage.plan.rounds,
            [
                (plain, ours(service, account, port=stage.dovecot.port)),
                (encrypted, ours(service, account, port=stage.dovecot.tls_port, secure=True)),
            ],
        )
    share = ratio(encrypted, plain)
    encrypted.note = "" if share is None else f"{share:.2f} of the rate without"
    yield from (plain, encrypted)


def workers(stage: Stage) -> Iterator[Row]:
    """Four accounts at once, by one worker process and by two: from a server that gives as much as
    it can, where the cores are the limit, and from one that gives as much as providers do."""
    alone = stage.another_service(WORKER_CONCURRENCY="1")
    both = stage.another_service(WORKER_CONCURRENCY="2")
    with alone, both, stage.proxy(bytes_per_second=_PROVIDERS_PACE) as slow:
        one, two = _by_one_and_two(
            stage, "four accounts at once", stage.dovecot.port, 5_000, alone=alone, both=both
        )
        share = ratio(two, one)
        two.note = f"{share:.2f} of one worker, {two.note}" if share else two.note
        memory(two)
        yield from (one, two)
        pace = f"{_PROVIDERS_PACE / _MB:.0f} MB/s a connection"
        one, two = _by_one_and_two(stage, f"…, {pace}", slow, 2_000, alone=alone, both=both)
        two.checks = [at_least("of one worker", ratio(two, one), 1.8)]
        yield from (one, two)


def silent(stage: Stage) -> Iterator[Row]:
    """Forty mailboxes at once: all of them answer, or one says nothing."""
    name = f"{_MAILBOXES} mailboxes at once"
    each = 20 if stage.plan.quick else 200
    accounts = [
        stage.warm(stage.account(stage.pool.messages(each, start=each * number)))
        for number in range(_MAILBOXES)
    ]
    with stage.another_service(WORKER_CONCURRENCY="2") as service:

        def others(accounts: list[Account]) -> Sample:
            port = stage.dovecot.port
            return service.measure(*[service.connect(account, port=port) for account in accounts])

        def beside_a_silent_one() -> Sample:
            with ImapScript() as script:
                mute = Account(script.name, script.password, 0, 0)
                source = service.connect(mute, port=script.port)
                listened = threading.Event()
                ended = threading.Event()

                def say_nothing(*_: object) -> bool:
                    listened.set()
                    ended.wait()
                    return True

                script.hooks.append(say_nothing)
                service.begin(source)
                if not listened.wait(60):
                    raise BenchError("Nobody called the server that says nothing.")
                try:
                    return others(accounts[1:])
                finally:
                    service.delete(source)
                    ended.set()

        all_answer, one_silent = Row(name, "all answer"), Row(name, "one says nothing")
        stage.say("Importing beside a server that says nothing, in turns")
        alternate(
            stage.plan.rounds,
            [(all_answer, lambda: others(accounts)), (one_silent, beside_a_silent_one)],
        )
    one_silent.checks = [at_least("of the rate without", ratio(one_silent, all_answer), 0.4)]
    one_silent.note = "until the 39 others are done, by two workers"
    yield from (all_answer, one_silent)


def _by_one_and_two(
    stage: Stage, name: str, port: int, messages: int, *, alone: Service, both: Service
) -> tuple[Row, Row]:
    accounts = [
        stage.warm(stage.account(stage.pool.messages(messages, start=messages * number)))
        for number in range(4)
    ]

    def all_at_once(service: Service) -> Callable[[], Sample]:
        return lambda: service.measure(*[service.connect(a, port=port) for a in accounts])

    one, two = Row(name, "one worker"), Row(name, "two")
    stage.say("Importing four accounts at once, in turns")
    alternate(stage.plan.rounds, [(one, all_at_once(alone)), (two, all_at_once(both))])
    for row in (one, two):
        row.note = _busy(row)
    return one, two


def _busy(row: Row) -> str:
    """Say how many cores were in use: two workers can't be faster than the machine."""
    shares = [
        (s.cpu_seconds + s.server_cpu_seconds + s.database_cpu_seconds) / s.seconds
        for s in row.samples
        if s.seconds
        and s.cpu_seconds is not None
        and s.server_cpu_seconds is not None
        and s.database_cpu_seconds is not None
    ]
    return f"{sum(shares) / len(shares):.1f} cores busy" if shares else ""
