"""Bodies of strangers: parsed in linear time, and answered briefly."""

import io
import json
import time
from typing import Any

import pytest
from rest_framework.exceptions import ErrorDetail, ParseError, ValidationError

from ingestion.api.errors import MAX_ERRORS, Formatter
from ingestion.api.parsing import StrictJSONParser


def parse(body: bytes) -> object:
    return StrictJSONParser().parse(io.BytesIO(body))


@pytest.mark.parametrize("nested", [False, True])
def test_many_names_with_one_twice_cost_no_more_than_reading_them(nested: bool) -> None:
    names = [*(f"n{number}" for number in range(80_000)), "n0"]
    body = "{" + ",".join(f'"{name}":1' for name in names) + "}"
    if nested:
        body = f'{{"providerConfig": {body}}}'
    began = time.process_time()
    with pytest.raises(ParseError, match="names"):
        parse(body.encode())
    assert time.process_time() - began < 1  # it took 260 s


def test_a_name_twice_is_named() -> None:
    with pytest.raises(ParseError, match='"host" stands twice'):
        parse(b'{"host": 1, "port": 2, "host": 3}')


def test_of_many_errors_the_first_are_told() -> None:
    wrong = {f"n{number}": [ErrorDetail("Unknown.", "unknown")] for number in range(900)}
    error = ValidationError(wrong)
    context: Any = {}
    told = Formatter(error, context, error).get_errors()
    assert len(told) == MAX_ERRORS + 1
    assert "880 more" in told[-1].detail


def test_a_list_of_unsafe_texts_is_read_in_linear_time() -> None:
    body = json.dumps({"options": {"includeFolders": ["\ud800"] * 90_000}}).encode()
    began = time.process_time()
    with pytest.raises(ValidationError):
        parse(body)
    assert time.process_time() - began < 3
