"""connectors.outages: ten refusals in a row are an outage, and leave no message failed."""

import pytest

from connectors.errors import MessageGone, MessageRefused, Unavailable
from connectors.outages import MAX_IN_A_ROW, RefusalGuard
from connectors.types import MessageRef, Missing, RawMessage


def missing(number: int, *, of_item: bool = False) -> Missing:
    return Missing(MessageRef(str(number)), MessageRefused("Not today.", of_item=of_item))


def test_a_few_refusals_are_told_when_a_body_comes_or_at_the_end() -> None:
    guard, first, second = RefusalGuard(), missing(1), missing(2)
    assert guard.refused(first) == []
    assert guard.delivered() == [first]
    assert guard.delivered() == []
    assert guard.refused(second) == []
    assert guard.end() == [second]


def test_ten_in_a_row_are_an_outage_and_none_of_them_is_told() -> None:
    guard = RefusalGuard()
    told = [guard.refused(missing(number)) for number in range(MAX_IN_A_ROW - 1)]
    assert told == [[]] * (MAX_IN_A_ROW - 1)
    with pytest.raises(Unavailable, match="Not today"):
        guard.refused(missing(MAX_IN_A_ROW))


def test_a_body_between_begins_the_count_again() -> None:
    guard = RefusalGuard()
    for number in range(3 * MAX_IN_A_ROW):
        guard.refused(missing(number))
        assert len(guard.delivered()) == 1


def test_a_body_without_a_byte_is_a_refusal_and_does_not_begin_the_count_again() -> None:
    guard = RefusalGuard()
    empty = [RawMessage(MessageRef(str(number)), b"") for number in range(MAX_IN_A_ROW)]
    assert guard.take(empty[0]) == []
    whole = RawMessage(MessageRef("whole"), b"Subject: 1\r\n\r\n1")
    refused, told = guard.take(whole)
    assert isinstance(refused, Missing)
    assert (refused.ref, getattr(refused.error, "code", "")) == (empty[0].ref, "empty")
    assert told is whole
    *held, last = [missing(n) if n % 2 else empty[n] for n in range(MAX_IN_A_ROW)]
    assert [guard.take(answer) for answer in held] == [[]] * len(held)
    with pytest.raises(Unavailable):
        guard.take(last)


def test_what_is_wrong_with_the_item_itself_never_counts() -> None:
    guard = RefusalGuard()
    for number in range(3 * MAX_IN_A_ROW):
        item = missing(number, of_item=True)
        assert guard.refused(item) == [item]


def test_a_message_that_is_gone_is_no_refusal() -> None:
    gone = Missing(MessageRef("1"), MessageGone("Deleted."))
    assert RefusalGuard().refused(gone) == [gone]
