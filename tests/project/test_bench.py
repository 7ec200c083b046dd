"""`make bench` is not run by the tests; these keep its parts from rotting."""

import io
import socket
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bench import chart, generated, native, page, report, searching
from bench.__main__ import SCENARIOS, parser
from bench.asked import queries
from bench.mail import Pool, message
from bench.peers import Peers
from bench.results import Row, Sample, alternate, at_least, at_most, ratio
from bench.service import Account
from ingestion.search.query import parse
from tests.servers.dovecot import Dovecot


@pytest.fixture
def rows() -> list[Row]:
    ours, theirs = Row("2 × 8 kB", "ours"), Row("2 × 8 kB", "<other> & co | more")
    seconds = iter([1.0, 4.0, 2.0, 6.0])
    alternate(
        2, [(row, lambda: Sample(seconds=next(seconds), messages=12)) for row in (ours, theirs)]
    )
    ours.checks = [
        at_least("of the other", ratio(ours, theirs), 3.25),
        at_most("peak RSS", 150, 200),
        at_most("commands", None, 5),
    ]
    return [ours, theirs, Row("dispatch", "not installed", note="not measured")]


def test_contenders_take_turns_and_a_ratio_is_of_a_round(rows: list[Row]) -> None:
    assert [[s.seconds for s in row.samples] for row in rows[:2]] == [[1.0, 2.0], [4.0, 6.0]]
    assert ratio(rows[0], rows[1]) == 3.5  # the median of 4 and 3
    assert ratio(rows[0], rows[2]) is None


def test_a_target_is_missed_where_nothing_was_measured(rows: list[Row]) -> None:
    assert [check.reached for check in rows[0].checks] == [True, True, False]
    assert not at_least("of the floor", 0.2, 0.25).reached
    assert not at_most("commands", 6, 5).reached
    assert at_most("commands", 5, 5).reached


def test_the_table_shows_every_figure_and_target(rows: list[Row]) -> None:
    out = io.StringIO()
    report.show(rows, Console(width=200, file=out))
    shown = out.getvalue()
    for text in (" 9 ", " 2 ", "✓ of the other: 3.50 (≥ 3.25)", "✗ commands: not measured (≤ 5)"):
        assert text in shown
    assert "not measured" in shown.splitlines()[-2]
    assert "peak MB" not in shown  # no row has it


def test_the_page_changes_only_between_its_marks(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.START}\nold\n{page.END}\nafter\n")
    page.update(path, rows, {"cpu": "Some CPU"})
    page.update(path, rows, {"cpu": "Another CPU"})
    text = path.read_text()
    assert text.startswith(f"before\n{page.START}\n")
    assert text.endswith(f"{page.END}\nafter\n")
    assert "old" not in text
    assert "Some CPU" not in text
    assert "| <other> & co \\| more | 5.00 |" in text
    path.write_text("no marks")
    with pytest.raises(ValueError, match="must have the lines"):
        page.update(path, rows, {})


@pytest.mark.parametrize(
    ("update", "start", "end", "line"),
    [
        (
            *(page.update_search, page.SEARCH, page.SEARCH_END),
            "| 2 × 8 kB | ours | ✓ of the other: 3.50 (≥ 3.25)<br>",
        ),
        (
            *(page.update_lists, page.LISTS, page.LISTS_END),
            "| ours | ✓ of the other: 3.50 (≥ 3.25)<br>",
        ),
        (
            *(page.update_object_store, page.OBJECT_STORE, page.OBJECT_STORE_END),
            "| 2 × 8 kB | ours | 1.50 | 9 | ✓ of the other: 3.50 (≥ 3.25)<br>",
        ),
    ],
)
def test_search_lists_and_object_store_have_sections_of_their_own(
    rows: list[Row], tmp_path: Path, update: Callable[..., None], start: str, end: str, line: str
) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"{page.START}\nold\n{page.END}\n{start}\nold\n{end}\n")
    update(path, rows, {"cpu": "Some CPU"})
    first, second = path.read_text().split(start)
    assert "old" in first
    assert "old" not in second
    assert line in second


def test_what_is_asked_of_a_generated_archive_are_queries() -> None:
    asked = queries(1_000_000)
    assert len({query.name for query in asked}) == len(asked)
    for query in asked:
        for number in range(10):
            parse(query.text(number))
    fourth = next(query for query in asked if query.name == "word in every fourth mail")
    block = generated.Block(0, 0, 0, 2_000, 2_000)
    texts = [mail.digest.text.split() for mail in generated.mails(block, seed=1)]
    having = sum(1 for text in texts if fourth.text(0) in text)
    assert 0.2 < having / len(texts) < 0.3


def test_one_of_twenty_is_above_the_95th_percentile() -> None:
    assert searching.percentile([float(n) for n in range(1, 101)]) == 95
    assert searching.percentile([1.0, 3.0, 2.0]) == 3


def test_the_page_in_the_repository_has_the_marks() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    for mark in (
        *(page.START, page.END),
        *(page.SEARCH, page.SEARCH_END),
        *(page.LISTS, page.LISTS_END),
    ):
        assert mark in text


def test_the_chart_is_valid_and_escaped(rows: list[Row]) -> None:
    drawn = ET.fromstring(chart.draw(rows))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "<other> & co | more" in texts
    assert "3.50 (≥ 3.25)" in texts
    ET.fromstring(chart.draw([]))


def test_every_scenario_can_be_chosen() -> None:
    assert parser().parse_args(["--only", "sparse"]).only == ["sparse"]
    assert parser().parse_args(["--quick"]).quick
    assert all(name in parser().format_help() for name in SCENARIOS)


def test_the_mail_is_about_8_kb_and_always_the_same() -> None:
    made = [message(number) for number in range(300)]
    assert made == [message(number) for number in range(300)]
    assert len(set(made)) == 300
    assert 7_000 < sum(map(len, made)) / 300 < 9_000
    assert all(b"\n" not in body.replace(b"\r\n", b"") for body in made)


def test_the_floor_reads_through_the_proxy_what_was_put_on_the_server(
    dovecot: Dovecot, tmp_path: Path
) -> None:
    user, password = dovecot.user()
    mail = dovecot.root / "mail"
    status = mail.stat()
    pool = Pool(mail / "pool", owner=(status.st_uid, status.st_gid))
    count, size = pool.fill(dovecot.maildir(user), pool.messages(20), first_uid=2_000_001)
    account = Account(user, password, count, size)
    peers = Peers(tmp_path, floor=native.build("floor", tmp_path), server_pid=dovecot.pid)
    log = tmp_path / "said"
    with native.proxy(native.build("proxy", tmp_path), dovecot.port, log=log) as port:
        sample = peers.floor(account, port=port)  # raises where it did not read everything
    assert sample.messages == 20
    assert native.commands(log) == ["LOGIN", "EXAMINE", "UID FETCH", "LOGOUT"]
    found = dovecot.contents(user)
    assert {place.partition(":")[2] for _, place in found} == {
        str(2_000_001 + n) for n in range(20)
    }
    assert set(found.values()) == {message(number) for number in range(20)}


def test_the_proxy_delays_each_way_and_changes_nothing(tmp_path: Path) -> None:
    sent = bytes(range(256)) * 20_000
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(65_536):
                    connection.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        port = server.getsockname()[1]
        program = native.build("proxy", tmp_path)
        with (
            native.proxy(program, port, each_way_seconds=0.05) as delayed,
            socket.create_connection(("127.0.0.1", delayed), 10) as client,
        ):
            started = time.monotonic()
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert time.monotonic() - started >= 0.1
            sender = threading.Thread(target=client.sendall, args=(sent,))
            sender.start()
            received = b""
            while len(received) < len(sent):
                received += client.recv(1_000_000)
            sender.join()
    assert received == sent
