"""Sets of message ids, and how an answer of Gmail is taken apart."""

import base64
import json
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.google.bodies import Unreadable, read
from connectors.google.ids import Ids, order
from connectors.google.listing import Listing
from connectors.types import SPOOL_BYTES, SpooledBody, Wanted

GMAILS = st.integers(0, 2**64 - 1).map(lambda number: format(number, "x"))
ANY = GMAILS | st.text(max_size=20) | st.sampled_from(["0", "00", "A", "-1", "1" * 17, "msg_1"])


@given(st.lists(ANY), st.lists(ANY), ANY)
def test_ids_are_a_set(first: list[str], more: list[str], other: str) -> None:
    ids = Ids(first)
    assert (other in ids) == (other in first)
    ids.update(more)
    everything = set(first) | set(more)
    assert list(ids) == sorted(everything, key=order)
    assert all(name in ids for name in everything)
    assert (other in ids) == (other in everything)


def answer(raw: str) -> bytes:
    return json.dumps({"id": "1", "labelIds": ["A"], "raw": raw, "threadId": "2"}).encode()


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_bytes_come_out_as_they_went_in(body: bytes, padded: bool, escaped: bool) -> None:
    text = base64.urlsafe_b64encode(body).decode()
    content = answer(text if padded else text.rstrip("="))
    if escaped:
        content = content.replace(b"=", b"\\u003d")
    got = read(content)
    assert got.body == body
    assert got.about == {"id": "1", "labelIds": ["A"], "raw": None, "threadId": "2"}


def test_a_large_body_is_decoded_to_a_file_piece_by_piece() -> None:
    body = bytes(range(251)) * (SPOOL_BYTES // 100)
    got = read(bytearray(answer(base64.urlsafe_b64encode(body).decode())))
    assert isinstance(got.body, SpooledBody)
    assert got.size == got.body.size == len(body)
    assert b"".join(got.body.chunks()) == body
    got.body.close()


@pytest.mark.parametrize(
    "content",
    [
        b'{"id": "1"}',
        answer("a"),
        answer("ab*d"),
        answer("ab=d"),
        answer("abcd\n"),
        b'{"raw": "ab',
        b'{"raw": "ab" "id"',
        b'{"raw": "ab\xff"}',
    ],
)
def test_what_is_no_message_is_refused_not_guessed(content: bytes) -> None:
    with pytest.raises(Unreadable):
        read(content)


def test_a_message_that_is_deleted_and_restored_within_a_page_of_the_history_is_there() -> None:
    message = {"id": "1", "threadId": "1", "labelIds": ["INBOX"]}
    records: list[dict[str, Any]] = [
        {"messagesDeleted": [{"message": {"id": "1"}}]},
        {"messagesAdded": [{"message": message}]},
    ]
    mailbox: Any = types.SimpleNamespace(label_names=tuple)
    page = Listing(mailbox, now="2", wanted=Wanted())._page_of(records, {})
    assert [ref.remote_id for ref in page.added] == ["1"]
    assert not page.removed
