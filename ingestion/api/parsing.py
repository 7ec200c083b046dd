"""Strict JSON: what a database, log or page must not see is refused before anything reads it."""

import json
import math
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from django.http import UnreadablePostError
from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.parsers import JSONParser

from ingestion.api.errors import TooLarge

_MAX_DEPTH = 20
_MAX_DIGITS = 100
#: No object of ours has so many; each that is unknown costs an error in the answer.
_MAX_NAMES = 1_000
_UNSAFE = "Must not contain NUL or lone surrogates."


class StrictJSONParser(JSONParser):
    """JSON objects alone, in UTF-8, of at most settings.DATA_UPLOAD_MAX_MEMORY_SIZE bytes.

    No NaN or Infinity, no repeated names, not too many of them, no deep nesting; no text with NUL
    or a lone surrogate.
    """

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        try:
            body = stream.read(limit + 1)
        except UnreadablePostError as error:
            raise ParseError("The body ended before its announced length.") from error
        if len(body) > limit:
            raise TooLarge(f"The body is too large: at most {limit:,} bytes are accepted.")
        data = _load(body)
        if not isinstance(data, dict):
            raise ParseError("The body must be a JSON object.")
        errors = _unsafe_texts(data, 1)
        if errors:
            raise ValidationError(errors)
        return data


def _load(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ParseError(f"The body is not valid JSON: {error.msg} at {where}.") from error
    except UnicodeDecodeError as error:
        raise ParseError("The body is not valid JSON: it is not UTF-8.") from error
    except RecursionError as error:
        raise ParseError("The body is nested too deeply.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MAX_NAMES:
        raise ParseError(f"An object in the body has more than {_MAX_NAMES:,} names.")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ParseError(f"The name {json.dumps(name[:100])} stands twice in one object.")
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise ParseError(f"The body is not valid JSON: {name} is no JSON number.")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ParseError("A number in the body is too large.")
    return number


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ParseError(f"A number in the body has more than {_MAX_DIGITS} digits.")
    return int(text)


def _unsafe_texts(value: Any, depth: int) -> Any:
    """Return what is wrong with texts in `value`, in its own shape; empty where nothing is."""
    if depth > _MAX_DEPTH:
        raise ParseError("The body is nested too deeply.")
    if isinstance(value, str):
        return [_UNSAFE] if _is_unsafe(value) else []
    if isinstance(value, dict):
        if any(_is_unsafe(name) for name in value):
            return ["A name in it is not allowed: names must not contain NUL or lone surrogates."]
        entries = value.items()
    elif isinstance(value, list):
        entries = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return []
    found = {name[:100]: _unsafe_texts(item, depth + 1) for name, item in entries}
    return {name: errors for name, errors in found.items() if errors}


def _is_unsafe(text: str) -> bool:
    return "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
