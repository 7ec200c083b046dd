"""What the OpenAPI document says of logins and of the errors that only we have."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_standardized_errors.openapi_serializers import ClientErrorEnum
from rest_framework import serializers


class _Bearer(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.access.BearerKey"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}


class _Session(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call] # untyped base
    target_class = "ingestion.api.access.Session"
    name = "adminSession"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


class Error409(serializers.Serializer[Any]):
    code = serializers.CharField()
    detail = serializers.CharField()
    attr = serializers.CharField(allow_null=True)


class ErrorResponse409(serializers.Serializer[Any]):
    """The source's state forbids this now; the detail says what to do first."""

    type = serializers.ChoiceField(choices=ClientErrorEnum.choices)
    errors = Error409(many=True)  # type: ignore[assignment] # the format's own name


def without_trailing_slash(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Name the paths as the reference does; the spelling with a slash answers the same."""
    result["paths"] = {path.rstrip("/"): item for path, item in result["paths"].items()}
    return result
