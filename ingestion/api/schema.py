"""The OpenAPI document: what it says of logins, errors and the fields of providers.

The error format is one component for all codes; which codes an operation has follows from its
method, path and body. The fields of providerConfig and options come from where they are checked.
"""

import datetime as dt
from typing import Any

from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import Direction, OpenApiParameter, OpenApiResponse
from rest_framework import serializers

from connectors.config import Field
from connectors.registry import PROVIDERS, Provider
from ingestion.services.sources import options

# -- errors ------------------------------------------------------------------------------------


class ErrorItem(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable, for programs.")
    detail = serializers.CharField(help_text="For people: what is wrong and what to do.")
    attr = serializers.CharField(allow_null=True, help_text="The field's path, if one is wrong.")


ERROR_TYPES = ("validation_error", "client_error", "server_error")


class ErrorOut(serializers.Serializer[Any]):
    """Every answer that is not a 2xx or 304."""

    type = serializers.ChoiceField(choices=ERROR_TYPES)
    errors = ErrorItem(many=True)  # type: ignore[assignment] # a field named as a property


_MEANINGS = {
    "400": "The input is wrong: `attr` names the field.",
    "401": "No key or session, or one that is not valid any more.",
    "403": "The key lacks the scope, the user the permission, or a session the CSRF token.",
    "404": "There is no such thing, or it is somebody else's.",
    "409": "The state forbids this now: the text says what is possible.",
    "412": "It is of another version than If-Match names.",
    "413": "The body is too large.",
    "414": "The address is too long for a web server, or for a proxy before it. It is no JSON.",
    "415": "The body is not application/json.",
    "422": "The Idempotency-Key came with another request before.",
    "429": "Too many requests: wait as long as Retry-After says.",
    "500": "An unexpected error occurred. The operator can find it by the id in the text.",
    "503": "Nothing is wrong with the request: send it again when Retry-After says. Ask for less"
    " where the code is `took_too_long`.",
}
_RETRY_AFTER = ("Retry-After", {"type": "integer", "minimum": 1})
_HEADERS = {
    "401": ("WWW-Authenticate", {"type": "string", "enum": ["Bearer"]}),
    "429": _RETRY_AFTER,
    "503": _RETRY_AFTER,
}


class Schema(AutoSchema):
    """Adds to every operation the refusals that it can answer with.

    The first line of a view's docstring is the summary that stands beside the path.
    """

    def get_summary(self) -> str:
        return self._paragraphs()[0]

    def get_description(self) -> str:  # type: ignore[override] # spectacular's, not DRF's
        return self._paragraphs()[1]

    def _paragraphs(self) -> tuple[str, str]:
        first, _, rest = super().get_description().partition("\n\n")
        return " ".join(first.split()).rstrip("."), rest

    def _get_response_bodies(self, direction: Direction = "response") -> Any:
        answers = super()._get_response_bodies(direction=direction)
        for code in self._refusals():
            shape, kinds = (OpenApiTypes.STR, ["text/html"]) if code == "414" else (ErrorOut, None)
            error = OpenApiResponse(shape, description=_MEANINGS[code])
            made = self._get_response_for_code(error, code, kinds, direction)  # type: ignore[no-untyped-call] # untyped base
            answers[code] = made
            if code in _HEADERS:
                name, kind = _HEADERS[code]
                answers[code]["headers"] = {name: {"schema": kind, "required": True}}
        return answers

    def get_override_parameters(self) -> list[Any]:
        if self.method != "POST" or not getattr(self.view, "idempotent", False):
            return []
        about = "Repeated with the same key within a day, it is done once and answered alike."
        return [
            OpenApiParameter("Idempotency-Key", str, OpenApiParameter.HEADER, description=about)
        ]

    def _refusals(self) -> list[str]:
        codes = {"401", "403", "429", "500", "503"}
        headers = {p["name"] for p in self._get_parameters() if p["in"] == "header"}
        codes |= {"412"} if "If-Match" in headers else set()
        codes |= {"422"} if "Idempotency-Key" in headers else set()
        has_id = "{" in self.path
        if self.method in ("POST", "PUT"):
            codes |= {"400", "413", "415"}
        if any(parameter["in"] == "query" for parameter in self._get_parameters()):
            codes.add("400")
        if any(parameter["name"] == "q" for parameter in self._get_parameters()):
            codes.add("414")
        if has_id:
            codes.add("404")
        if self.method == "POST" or (has_id and self.method != "GET"):
            codes.add("409")
        return sorted(codes)


def paths_of_the_reference(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Name the paths as the reference does; the spelling with a slash answers the same."""
    result["paths"] = {path.rstrip("/"): item for path, item in result["paths"].items()}
    return result


# -- logins ------------------------------------------------------------------------------------


class _Bearer(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.access.BearerKey"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        about = "An API key. Scopes: read (look), write (change, start), export (the mail itself)."
        return {"type": "http", "scheme": "bearer", "description": about}


class _Session(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.access.Session"
    name = "adminSession"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        about = "The admin's login. Unsafe methods need the header X-CSRFToken."
        return {"type": "apiKey", "in": "cookie", "name": "sessionid", "description": about}


# -- what bodies may hold ----------------------------------------------------------------------


class _Strict(OpenApiSerializerExtension):  # type: ignore[no-untyped-call] # untyped base
    """Says what `inputs.Strict` does: nothing but the fields that are named."""

    target_class = "ingestion.api.inputs.Strict"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Direction) -> dict[str, Any]:
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)  # noqa: SLF001 - the documented way
        return {**schema, "additionalProperties": False}


class _Name(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.inputs.Name"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        pattern = r"^[^\u0000-\u001f]*[^\u0000-\u001f\s][^\u0000-\u001f]*$"
        return {"type": "string", "maxLength": self.target.max_length, "pattern": pattern}


# -- the fields of providers and options -------------------------------------------------------

_TYPES = {str: "string", int: "integer", bool: "boolean"}


class _ProviderConfig(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.inputs.ProviderConfig"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        field: serializers.Field[Any, Any, Any, Any] = self.target
        if field.read_only:
            kind, made = "Out", _config_out
        elif field.required:
            kind, made = "", _config_in
        else:
            kind, made = "Update", _config_update
        refs = [
            _component(auto_schema, f"{_camel(provider.slug)}Config{kind}", made(provider))
            for provider in PROVIDERS.values()
        ]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}


class _SourceOptions(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.inputs.SourceOptions"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        properties = {field.name: _option(field) for field in options.describe()}
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if self.target.read_only:
            return _component(auto_schema, "Options", schema | {"required": list(properties)})
        return _component(auto_schema, "OptionsIn", schema | {"additionalProperties": False})


def _component(auto_schema: Any, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    made = ResolvedComponent(  # type: ignore[no-untyped-call] # untyped package
        name=name, type=ResolvedComponent.SCHEMA, schema=schema, object=f"ingestion.{name}"
    )
    auto_schema.registry.register_on_missing(made)
    reference: dict[str, Any] = made.ref
    return reference


def _camel(slug: str) -> str:
    return "".join(part.capitalize() for part in slug.split("_"))


def _config_properties(provider: Provider) -> dict[str, Any]:
    properties: dict[str, Any] = {"type": {"type": "string", "pattern": f"^{provider.slug}$"}}
    for field in provider.config.fields():
        about: dict[str, Any] = {"type": _TYPES[field.type], "title": field.label}
        if field.help:
            about["description"] = field.help
        if field.type is str:
            about["maxLength"] = field.max_length
        if field.type is str and field.required:
            about["minLength"] = 1
        if field.choices:
            about["enum"] = list(field.choices)
        about |= _limits(field)
        if field.secret:
            about["writeOnly"] = True
            about["format"] = "password"
        elif field.default is not None:
            about["default"] = field.default
        if field.takes_object:
            text = {name: about.pop(name) for name in ("type", "maxLength", "format")}
            about["oneOf"] = [text, {"type": "object"}]
        properties[field.name] = about
    return properties


def _config_in(provider: Provider) -> dict[str, Any]:
    required = [field.name for field in provider.config.fields() if field.required]
    return {
        "type": "object",
        "properties": _config_properties(provider),
        **({"required": required} if required else {}),  # OpenAPI 3.0 has no empty one
        "additionalProperties": False,
    }


def _config_update(provider: Provider) -> dict[str, Any]:
    properties = _config_properties(provider)
    for about in properties.values():
        about.pop("default", None)  # what is left out keeps its stored value
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _config_out(provider: Provider) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in provider.config.fields():
        if field.secret:
            about = f"Whether there is a stored value of {field.name}."
            properties[f"{field.name}Set"] = {"type": "boolean", "description": about}
        else:
            properties[field.name] = {"type": _TYPES[field.type], "title": field.label}
            if field.default is None:
                properties[field.name]["nullable"] = True  # of a source recovered from its archive
    return {"type": "object", "properties": properties, "required": list(properties)}


def _option(field: options.OptionField) -> dict[str, Any]:
    about: dict[str, Any] = {"title": field.label, "description": field.help}
    if field.type is list:
        items = {"type": "string", "minLength": 1, "maxLength": 500}
        return about | {"type": "array", "items": items, "maxItems": 200}
    if field.type is dt.date:
        return about | {"type": "string", "format": "date", "nullable": True}
    return about | {"type": _TYPES[field.type], "default": field.default} | _limits(field)


def _limits(field: Field | options.OptionField) -> dict[str, int]:
    limits = {"minimum": field.min_value, "maximum": field.max_value}
    return {name: value for name, value in limits.items() if value is not None}
