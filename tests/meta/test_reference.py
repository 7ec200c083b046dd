"""The API that was asked for, quoted, against the tests that try it and the document that tells it."""

import re
from typing import Any

from tests.e2e import test_api

#: Endpoints and responses of the Ingestion Service API, word for word.
QUOTATION = """
All endpoints in this service require authentication.

POST /api/v1/ingestion
  201 Created: The newly created ingestion source.
  500 Internal Server Error: An unexpected error occurred.

GET /api/v1/ingestion
  200 OK: An array of ingestion source objects.
  500 Internal Server Error: An unexpected error occurred.

GET /api/v1/ingestion/:id
  200 OK: The ingestion source object.
  404 Not Found: Ingestion source not found.
  500 Internal Server Error: An unexpected error occurred.

PUT /api/v1/ingestion/:id
  200 OK: The updated ingestion source object.
  404 Not Found: Ingestion source not found.
  500 Internal Server Error: An unexpected error occurred.

DELETE /api/v1/ingestion/:id
  204 No Content: The ingestion source was deleted successfully.
  404 Not Found: Ingestion source not found.
  500 Internal Server Error: An unexpected error occurred.

POST /api/v1/ingestion/:id/import
  202 Accepted: The initial import was triggered successfully.
  404 Not Found: Ingestion source not found.
  500 Internal Server Error: An unexpected error occurred.

POST /api/v1/ingestion/:id/pause
  200 OK: The updated ingestion source object with a paused status.
  404 Not Found: Ingestion source not found.
  500 Internal Server Error: An unexpected error occurred.

POST /api/v1/ingestion/:id/sync
  202 Accepted: The force sync was triggered successfully.
  404 Not Found: Ingestion source not found.
  500 Internal Server Error: An unexpected error occurred.
"""


def quoted() -> set[tuple[str, str]]:
    """Return every (endpoint, response) of the quotation."""
    found, endpoint = set(), ""
    for line in QUOTATION.splitlines():
        if re.match(r"(GET|POST|PUT|DELETE) /", line):
            endpoint = line
        elif line.startswith("  "):
            found.add((endpoint, line.strip()))
    assert len(found) == 22
    return found


def document() -> dict[str, Any]:
    """Return the OpenAPI document that /api/schema serves."""
    from drf_spectacular.generators import SchemaGenerator

    generate: Any = SchemaGenerator  # untyped
    made: dict[str, Any] = generate().get_schema(request=None, public=True)
    return made


def test_every_endpoint_and_response_of_the_reference_is_tried_over_http() -> None:
    tried = {
        (re.sub(":(none|proven)", ":id", endpoint), quote)
        for endpoint, quote, _ in test_api.REFERENCE
    }
    # test_an_unexpected_error_is_a_500... goes through all of them
    tried |= {(endpoint, test_api.UNEXPECTED) for endpoint, _ in tried}
    assert tried == quoted()


def test_every_endpoint_is_tried_without_authentication() -> None:
    (parameters,) = [mark.args[1] for mark in test_api.test_access_authenticated.pytestmark]
    tried = {endpoint.replace(":proven", ":id") for endpoint in parameters}
    assert tried == {endpoint for endpoint, _ in quoted()}


def test_the_document_has_every_endpoint_with_its_responses() -> None:
    paths = document()["paths"]
    for endpoint, response in quoted():
        method, path = endpoint.split()
        operation = paths[path.replace(":id", "{id}")][method.lower()]
        assert response[:3] in operation["responses"], endpoint
        assert operation["security"] == [{"apiKey": []}, {"adminSession": []}]


def test_the_body_types_have_the_fields_and_states_of_the_reference() -> None:
    schemas = document()["components"]["schemas"]
    create, update = schemas["CreateIngestionSource"], schemas["UpdateIngestionSource"]
    assert set(create["required"]) == {"name", "provider", "providerConfig"}
    assert {"name", "provider", "providerConfig", "status"} <= set(update["properties"])
    assert "required" not in update
    assert schemas["SourceStatusEnum"]["enum"] == [
        *("pending_auth", "auth_success", "importing", "active", "paused", "error")
    ]
    assert "generic_imap" in schemas["ProviderEnum"]["enum"]


def test_each_post_that_makes_something_may_be_repeated() -> None:
    making = [
        (path, operation["parameters"])
        for path, verbs in document()["paths"].items()
        for verb, operation in verbs.items()
        if verb == "post" and "201" in operation["responses"]
    ]
    assert len(making) > 4
    for path, parameters in making:
        assert "Idempotency-Key" in [parameter["name"] for parameter in parameters], path
