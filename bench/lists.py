"""Lists of the admin and the API where there is very much of everything."""

import json
import statistics
from collections.abc import Iterator

from bench.results import Row, Sample, at_most
from bench.searching import generated_archive, percentile, run
from bench.stage import Stage

TARGET_MILLISECONDS = 150.0


def lists(stage: Stage) -> Iterator[Row]:
    """The first byte of each list in an archive of 1,000,000 messages, of 10,000 mailboxes of 1,000
    sources, without the network and the web server: on an ordinary day, and those that tell how
    sources are once more on a bad one (`bench.listing`)."""
    messages = stage.plan.corpus
    with generated_archive(stage, messages) as env:
        stage.say("Making a crowd, and listing it")
        said = run(env, "bench.listing")
    for page in json.loads(said.splitlines()[-1]):
        is_bad_day = page["day"] == "bad"
        told = f"{page['address']} on a bad day" if is_bad_day else page["address"]
        row = Row(f"lists at {messages:,} messages", told)
        row.samples = [
            Sample(page_milliseconds=taken, page_cpu_milliseconds=used)
            for taken, used in zip(page["milliseconds"], page["cpu_milliseconds"], strict=True)
        ]
        p95 = percentile(page["milliseconds"])
        row.checks = [at_most("p95", p95, TARGET_MILLISECONDS, show="{:.0f} ms".format)]
        row.note = (
            f"p50 {statistics.median(page['milliseconds']):.0f} ms, "
            f"CPU {statistics.median(page['cpu_milliseconds']):.0f} ms, "
            f"{page['queries']} queries, {page['bytes'] / 1000:,.0f} kB"
        )
        if page["whole_milliseconds"]:
            row.note += f", all of it after {statistics.median(page['whole_milliseconds']):.0f} ms"
        yield row
