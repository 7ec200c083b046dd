"""INTERNALDATE as servers write it: what can't be read costs a message its date and nothing more."""

import datetime as dt

import pytest

from connectors.generic_imap.describing import reference


@pytest.mark.parametrize(
    ("date", "received_at"),
    [
        (b'"17-Jul-2024 02:44:25 -0700"', dt.datetime(2024, 7, 17, 9, 44, 25, tzinfo=dt.UTC)),
        (b'" 1-Jan-2024 00:00:00 +1400"', dt.datetime(2023, 12, 31, 10, tzinfo=dt.UTC)),
        (b'" 1-Jan-2024 00:00:00 +1500"', None),
        (b'" 1-Jan-2024 00:00:00 -9900"', None),
        (b'("17-Jul-2024 02:44:25 -0700")', None),
        (b"(17-Jul-2024 (02:44:25))", None),
        (b"NIL", None),
        (b'""', None),
        (b'"yesterday"', None),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_date_is_read_or_left_out(
    date: bytes, received_at: dt.datetime | None, plain: bool
) -> None:
    response = [b"1 FETCH (UID 7 RFC822.SIZE 5 INTERNALDATE " + date + b" FLAGS (\\Seen))\r\n"]
    uid, ref = reference(response, 1, plain=plain)
    assert uid == 7
    assert ref is not None
    assert (ref.received_at, ref.size_bytes, ref.labels) == (received_at, 5, ("\\Seen",))
