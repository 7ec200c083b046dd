"""A comparison of mail that fails names the messages, and shows none of them."""

import pytest

HELD = {("INBOX", f"1:{uid}"): b"x" * 100_000 + b"%d" % uid for uid in range(20)}


def test_each_kind_of_difference_is_told_with_ids() -> None:
    archived = HELD | {("INBOX", "2:7"): b"", ("INBOX", "1:3"): b"x" * 100_000 + b"4"}
    for uid in range(10, 17):
        del archived["INBOX", f"1:{uid}"]
    with pytest.raises(AssertionError) as failed:
        assert archived == HELD
    told = str(failed.value)
    assert "7 missing: ('INBOX', '1:10'), ('INBOX', '1:11')" in told
    assert "'1:14') and 2 more" in told
    assert "1 not held: ('INBOX', '2:7')" in told
    assert "1 altered: ('INBOX', '1:3') (100001 bytes of 100001, other from byte 100000 on)" in told
    assert len(told) < 2_000
