"""What Google says of its own API: the discovery documents inside google-api-python-client.

A request with an unknown path or parameter is refused as Google would; an answer that the document
does not describe is a defect of the scripted server, and fails the test.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from googleapiclient.discovery_cache import get_static_doc

_KINDS: dict[str, type] = {"string": str, "boolean": bool, "integer": int}


class Api:
    """One API's methods by path, and the shape of their answers."""

    def __init__(self, name: str, version: str) -> None:
        text = get_static_doc(name, version)
        assert text is not None
        self._document: dict[str, Any] = json.loads(text)
        self._schemas: dict[str, Any] = self._document["schemas"]
        self._routes: list[tuple[str, re.Pattern[str], dict[str, Any]]] = []
        self._collect(self._document)

    def _collect(self, node: Mapping[str, Any]) -> None:
        for method in node.get("methods", {}).values():
            path = "/" + self._document["servicePath"] + method.get("flatPath", method["path"])
            pattern = re.sub(r"\{\+?(\w+)\}", r"(?P<\1>[^/]+)", path)
            self._routes.append((method["httpMethod"], re.compile(pattern), method))
        for child in node.get("resources", {}).values():
            self._collect(child)

    def find(self, verb: str, path: str) -> tuple[dict[str, Any], dict[str, str]] | None:
        """Return the method of a path, and the parameters in the path."""
        for method_verb, pattern, method in self._routes:
            match = pattern.fullmatch(path) if method_verb == verb else None
            if match:
                return method, match.groupdict()
        return None

    def problem(self, method: Mapping[str, Any], query: Mapping[str, list[str]]) -> str:
        """Tell what is wrong with a query, or ""."""
        known = self._document["parameters"] | method.get("parameters", {})
        for name, values in query.items():
            about = known.get(name)
            if about is None:
                return f'Invalid JSON payload received. Unknown name "{name}"'
            if len(values) > 1 and not about.get("repeated"):
                return f"{name} given more than once"
            for value in values:
                if about["type"] == "integer" and not value.isdigit():
                    return f"Invalid value at '{name}'"
                if "enum" in about and value not in about["enum"]:
                    return f"Invalid value at '{name}'"
                if about["type"] == "integer" and int(value) > int(about.get("maximum", 1 << 31)):
                    return f"Invalid value '{value}'. Values must be within the range"
        return ""

    def masked(self, method: Mapping[str, Any], answer: Any, fields: str | None) -> Any:
        """Return the parts of an answer that `fields` selects. ValueError: an unknown field."""
        schema = self._schemas[method["response"]["$ref"]]
        self._check(answer, schema, method["id"])
        return answer if fields is None else self._select(answer, schema, _parsed_fields(fields))

    def _check(self, value: Any, schema: Mapping[str, Any], where: str) -> None:
        schema = self._schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = schema.get("type")
        if kind == "object":
            known = schema.get("properties", {})
            assert isinstance(value, dict), f"{where}: not an object"
            for name, inner in value.items():
                assert name in known, f"{where}: Google's answers have no {name}"
                self._check(inner, known[name], f"{where}.{name}")
        elif kind == "array":
            assert isinstance(value, list), f"{where}: not an array"
            assert value, f"{where}: Google leaves empty arrays out"
            for inner in value:
                self._check(inner, schema["items"], f"{where}[]")
        elif kind in _KINDS:
            assert isinstance(value, _KINDS[kind]), f"{where}: not a {kind}"
            if schema.get("format") in {"uint64", "int64"}:
                assert str(value).isdigit(), f"{where}: not a number in a string"

    def _select(self, value: Any, schema: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
        schema = self._schemas[schema["$ref"]] if "$ref" in schema else schema
        if schema.get("type") == "array":
            return [self._select(inner, schema["items"], wanted) for inner in value or ()]
        known = schema.get("properties", {})
        unknown = wanted.keys() - known.keys()
        if unknown:
            raise ValueError(f"Invalid field selection {min(unknown)}")
        chosen: dict[str, Any] = {}
        for name, inner in wanted.items():
            if inner:
                found = self._select((value or {}).get(name), known[name], inner)
            else:
                found = (value or {}).get(name)
            if found not in (None, [], {}):
                chosen[name] = found
        return chosen


@functools.cache
def _parsed_fields(text: str) -> dict[str, Any]:
    """Parse "a,b/c,d(e,f)" to {"a": {}, "b": {"c": {}}, "d": {"e": {}, "f": {}}}."""
    position = 0

    def group() -> dict[str, Any]:
        nonlocal position
        found: dict[str, Any] = {}
        while position < len(text) and text[position] != ")":
            found |= item()
            if position < len(text) and text[position] == ",":
                position += 1
        return found

    def item() -> dict[str, Any]:
        nonlocal position
        match = re.compile(r"\w+").match(text, position)
        if match is None:
            raise ValueError("Invalid field selection")
        position = match.end()
        inner: dict[str, Any] = {}
        if text[position : position + 1] == "/":
            position += 1
            inner = item()
        elif text[position : position + 1] == "(":
            position += 1
            inner = group()
            position += 1
        return {match[0]: inner}

    return group()


@functools.cache
def gmail() -> Api:
    return Api("gmail", "v1")


@functools.cache
def directory() -> Api:
    return Api("admin", "directory_v1")


@functools.cache
def pubsub() -> Api:
    return Api("pubsub", "v1")
