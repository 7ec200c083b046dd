"""What reading the header fields of a message costs: capture does it with each."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from email.parser import BytesHeaderParser
from hashlib import sha256

from bench.mail import message
from bench.results import Row, Sample, at_least, ratio
from bench.stage import Stage
from ingestion.mail.headers import head_of, parse_headers

_MESSAGES = 2_000
#: 3.2 is what it was before fields were read as RFC 6532 and the Encoding standard say.
_AS_BEFORE = 3


def headers(stage: Stage) -> Iterator[Row]:
    """CPU per message of capture's header fields, beside the standard library and hashing."""
    raw = [message(number) for number in range(_MESSAGES)]
    heads = [head_of(one) for one in raw]
    ours = Row("header fields", "ours, parsed and decoded")
    standard = Row("header fields", "email.parser", note="fields apart, none decoded")
    hashed = Row("header fields", "SHA-256 of the message")
    parser = BytesHeaderParser()
    contenders: list[tuple[Row, Callable[[bytes], object], Sequence[bytes]]] = [
        (ours, parse_headers, heads),
        (standard, parser.parsebytes, heads),
        (hashed, lambda one: sha256(one).digest(), raw),
    ]
    stage.say("Reading header fields, in turns")
    for _ in range(stage.plan.rounds + 2):
        for row, reads, those in contenders:
            started = time.process_time()
            for one in those:
                reads(one)
            used = time.process_time() - started
            row.samples.append(Sample(cpu_seconds=used, messages=_MESSAGES))
    for row in (ours, standard, hashed):
        median = statistics.median(s.cpu_seconds or 0.0 for s in row.samples)
        said = f"{median / _MESSAGES * 1e6:.0f} us a message"
        row.note = f"{said}; {row.note}" if row.note else said
    share = ratio(standard, ours, figure="cpu_seconds")
    ours.checks = [at_least("times as fast as email.parser", share, _AS_BEFORE)]
    yield from (ours, standard, hashed)
