"""connectors.parallel: the pool of every provider's downloads, without a provider."""

import collections
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connectors import parallel
from connectors.errors import ConnectorError, MessageRefused, RateLimited, Unavailable
from connectors.outages import MAX_IN_A_ROW
from connectors.parallel import Answer, Pool, Stopped, Worker
from connectors.types import SPOOL_BYTES, MessageRef, Missing, RawMessage, SpooledBody

#: What comes, comes sooner, on a machine that others keep busy too; what never comes fails by it.
LONG_SECONDS = 300.0


def refs(count: int) -> list[MessageRef]:
    return [MessageRef(str(number)) for number in range(count)]


def ids(answers: Iterator[Answer] | list[Answer]) -> list[int]:
    return [int(answer.ref.remote_id) for answer in answers]


def refused(ref: MessageRef) -> Missing:
    return Missing(ref, MessageRefused("Not today."))


def spooled(ref: MessageRef) -> RawMessage:
    return RawMessage(ref, SpooledBody(tempfile.TemporaryFile(), 9_000_000))


def one_by_one(answer: Callable[[MessageRef], Answer]) -> Callable[[Worker], None]:
    def work(worker: Worker) -> None:
        for ref in worker.one_by_one():
            worker.add(answer(ref))

    return work


def small(ref: MessageRef) -> Answer:
    return RawMessage(ref, b"x")


def pool(count: int, work: Callable[[Worker], None], workers: int = 4, **options: Any) -> Pool:
    return Pool(refs(count), work, name="pool", workers=workers, **options)


def outcome(pool: Pool) -> tuple[list[Answer], BaseException | None]:
    """Return what came, and what was raised after it."""
    got: list[Answer] = []
    try:
        got += pool.answers()
    except ConnectorError as error:
        return got, error
    return got, None


def close(answers: Iterator[Answer]) -> None:
    answers.close()  # type: ignore[attr-defined] # a generator


def reach(condition: Callable[[], bool], seconds: float = LONG_SECONDS) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    return condition()


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "pool"]


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_every_reference_is_answered_once(workers: int) -> None:
    assert sorted(ids(pool(1_000, one_by_one(small), workers).answers())) == list(range(1_000))


def test_one_worker_answers_in_the_order_of_the_references() -> None:
    def in_chunks(worker: Worker) -> None:
        while taken := worker.take(200):
            for ref in taken:
                worker.add(small(ref))

    assert ids(pool(1_000, in_chunks, workers=1).answers()) == list(range(1_000))


def test_nothing_is_begun_for_nothing() -> None:
    def never(_: Worker) -> None:
        raise AssertionError

    assert list(pool(0, never).answers()) == []


def test_a_group_is_as_large_as_its_sizes_say_or_those_that_came_before() -> None:
    groups: list[int] = []

    def work(worker: Worker) -> None:
        while taken := worker.take(3, 1_000):
            groups.append(len(taken))
            for ref in taken:
                worker.add(RawMessage(ref, b"x" * 100))
            worker.flush()

    sizes = [600, 600, 600, 1, 1, 1, 1, None, None, None, 2_000, 1]
    listed = [MessageRef(str(number), size) for number, size in enumerate(sizes)]
    assert len(list(Pool(listed, work, name="pool", workers=1).answers())) == len(sizes)
    # Those of unknown size are taken for 600, which is 100 and what an answer has beside them.
    assert groups == [2, 3, 3, 2, 1, 1]


# -- what waits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_waits_is_bounded_in_bytes_on_disk_too(on_disk: bool) -> None:
    begun: list[MessageRef] = []
    room = 1 if on_disk else 3  # so many of these fit

    def large(ref: MessageRef) -> Answer:
        begun.append(ref)
        return spooled(ref) if on_disk else RawMessage(ref, b"x" * 1_000_000)

    answers = pool(40, one_by_one(large), workers=2).answers()
    next(answers).close()  # type: ignore[union-attr] # none is missing
    assert reach(lambda: len(begun) >= room + 2)  # each worker has one more in hand
    assert not reach(lambda: len(begun) > 1 + room + 2, seconds=0.2)
    for answer in answers:
        answer.close()  # type: ignore[union-attr] # none is missing
    assert len(begun) == 40


def test_one_that_is_larger_than_all_that_may_wait_comes_too() -> None:
    body = b"x" * (2 * SPOOL_BYTES)
    answers = pool(3, one_by_one(lambda ref: RawMessage(ref, body)), workers=1).answers()
    assert ids(answers) == [0, 1, 2]


# -- errors ----------------------------------------------------------------------------------------


def test_the_first_error_stops_all_and_is_raised_after_what_came_whole() -> None:
    together = threading.Barrier(3)

    def work(worker: Worker) -> None:
        for ref in worker.one_by_one():
            together.wait(LONG_SECONDS)
            if ref.remote_id == "0":
                raise Unavailable("the first")
            assert worker.stop.wait(LONG_SECONDS)
            assert not worker.left.is_set()
            worker.add(small(ref))
            if ref.remote_id == "1":
                raise RateLimited("the second")

    got, error = outcome(pool(100, work, workers=3))
    assert sorted(ids(got)) == [1, 2]
    assert str(error) == "the first"


def test_an_error_that_is_of_one_worker_ends_that_alone() -> None:
    def work(worker: Worker) -> None:
        for ref in worker.one_by_one():
            if ref.remote_id == "1":
                raise Unavailable("Its connection broke.")
            worker.add(small(ref))

    got, error = outcome(pool(50, work, workers=2, stopped_by=RateLimited))
    assert sorted(ids(got)) == [0, *range(2, 50)]
    assert str(error) == "Its connection broke."


def test_a_worker_that_fails_ends_what_it_had_under_way() -> None:
    ended: list[int] = []

    def work(worker: Worker) -> None:
        worker.can_be_interrupted(lambda: ended.append(worker.number))
        worker.take()
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(pool(1, work).answers())
    assert ended == [0]


# -- refusals --------------------------------------------------------------------------------------


def test_many_refusals_in_a_row_are_an_outage_and_what_came_before_is_kept() -> None:
    kept = [spooled(MessageRef("0")), spooled(MessageRef("99"))]
    files = [answer.body.file for answer in kept if isinstance(answer.body, SpooledBody)]

    def work(worker: Worker) -> None:
        worker.add(kept[0])
        for ref in worker.take(MAX_IN_A_ROW):
            worker.add(refused(ref))
        worker.add(kept[1])

    got, error = outcome(pool(MAX_IN_A_ROW, work, workers=1))
    assert got == kept[:1]
    assert isinstance(error, Unavailable)
    assert "Not today" in str(error)
    assert [file.closed for file in files] == [False, True]
    kept[0].close()


def test_few_refusals_are_told_with_the_next_body_or_at_the_end() -> None:
    def every_other(ref: MessageRef) -> Answer:
        return small(ref) if int(ref.remote_id) % 2 else refused(ref)

    answers = pool(4 * MAX_IN_A_ROW + 1, one_by_one(every_other), workers=1).answers()
    assert ids(answers) == list(range(4 * MAX_IN_A_ROW + 1))


# -- the end ---------------------------------------------------------------------------------------


def test_a_caller_who_leaves_ends_the_workers_and_frees_what_waits() -> None:
    files: list[Any] = []
    reasons: collections.Counter[str] = collections.Counter()
    interrupted = threading.Event()

    def work(worker: Worker) -> None:
        if worker.number == 1:
            worker.can_be_interrupted(interrupted.set)
            assert interrupted.wait(LONG_SECONDS)
            reasons["interrupted"] += 1
            return
        try:
            for ref in worker.one_by_one():
                answer = spooled(ref)
                files.append(answer.body.file)  # type: ignore[union-attr] # it is spooled
                worker.add(answer)
        except Stopped:
            reasons["no room"] += 1
            raise

    answers = pool(50, work, workers=3).answers()
    first = next(answers)
    assert reach(lambda: len(files) == 1 + 1 + 2)  # taken, waiting, and one in each worker's hands
    close(answers)
    assert reasons == {"interrupted": 1, "no room": 2}
    assert [file.closed for file in files].count(False) == 1
    first.close()  # type: ignore[union-attr] # it is not missing


def test_a_caller_who_leaves_within_a_chunk_frees_the_rest_of_it() -> None:
    rest = spooled(MessageRef("1"))

    def work(worker: Worker) -> None:
        worker.take()
        worker.add(small(MessageRef("0")))
        worker.add(rest)

    answers = pool(1, work, workers=1).answers()
    assert next(answers).ref.remote_id == "0"
    close(answers)
    assert isinstance(rest.body, SpooledBody)
    assert rest.body.file.closed


def test_who_says_too_late_how_it_is_interrupted_is_interrupted_at_once() -> None:
    begun, interrupted = threading.Event(), threading.Event()
    at_once: list[bool] = []

    def work(worker: Worker) -> None:
        worker.take()
        if worker.number == 0:
            assert begun.wait(LONG_SECONDS)
            raise Unavailable("Told to wait.")
        begun.set()
        assert worker.stop.wait(LONG_SECONDS)
        worker.can_be_interrupted(interrupted.set)
        at_once.append(interrupted.is_set())

    with pytest.raises(Unavailable, match="Told to wait"):
        list(pool(2, work, workers=2).answers())
    assert at_once == [True]


# -- how many workers ------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PATIENCE_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
def test_another_begins_where_the_caller_waits() -> None:
    numbers: set[int] = set()

    def work(worker: Worker) -> None:
        numbers.add(worker.number)
        for ref in worker.one_by_one():
            time.sleep(0.005)  # the server
            worker.add(small(ref))

    assert len(list(pool(100, work, workers=2, begin=1).answers())) == 100
    assert numbers == {0, 1}


@pytest.mark.usefixtures("impatient")
def test_no_other_begins_where_the_caller_is_what_takes_the_time() -> None:
    numbers: set[int] = set()

    def work(worker: Worker) -> None:
        numbers.add(worker.number)
        for ref in worker.one_by_one():
            worker.add(RawMessage(ref, b"x" * 1_000_000))

    answers = pool(20, work, workers=2, begin=1).answers()
    began, waited = time.monotonic(), 0.0
    for _ in range(20):
        asked = time.monotonic()
        next(answers)
        waited += time.monotonic() - asked
        while time.monotonic() - began < 0.1 + 3 * waited:
            time.sleep(0.005)  # the archive
    assert list(answers) == []
    assert numbers == {0}


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_one_that_is_not_needed_any_more() -> None:
    hangs, ended = threading.Event(), threading.Event()

    def work(worker: Worker) -> None:
        if worker.number:
            worker.can_be_interrupted(ended.set)
            hangs.set()
            assert ended.wait(LONG_SECONDS)  # a login
            return
        for ref in worker.one_by_one():
            time.sleep(0.005)  # the server
            if ref.remote_id == "99":
                assert hangs.wait(LONG_SECONDS)
            worker.add(small(ref))

    assert len(list(pool(100, work, workers=2, begin=1).answers())) == 100
    assert ended.is_set()
