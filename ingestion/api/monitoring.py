"""What machines ask about the service: is this process there, can it work, how is all of it.

/healthz asks nothing else; /readyz asks what a request stands on; /metrics is Prometheus's and
needs METRICS_TOKEN. All answers say the same to everybody who may ask, and name no mail.
"""

import os
import secrets
import time
from collections.abc import Callable

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from django.http.response import HttpResponseBase
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ingestion.services.archive import storage
from ingestion.services.operations import metrics as rows

_SECONDS = Histogram(
    "ingestion_http_request_seconds",
    "How long requests took, by the address's pattern.",
    labelnames=("method", "route", "status"),
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class RequestTimes:
    """Measures every request until its answer begins. Labels are patterns, never addresses."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        began = time.perf_counter()
        response = self._get_response(request)
        route = request.resolver_match.route if request.resolver_match else "none"
        method = request.method if request.method in _METHODS else "other"
        _SECONDS.labels(method, route, response.status_code).observe(time.perf_counter() - began)
        return response


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@require_safe
def healthz(_: HttpRequest) -> HttpResponse:
    """Tell that this process answers; `manage.py doctor` looks at the rest."""
    return HttpResponse("ok\n", content_type="text/plain")


@require_safe
def readyz(_: HttpRequest) -> HttpResponse:
    """Tell whether this process can work: 200, or 503 with what is missing, in a word each."""
    missing = list(_missing())
    text = "".join(f"{one}\n" for one in missing) or "ok\n"
    return HttpResponse(text, content_type="text/plain", status=503 if missing else 200)


def _missing() -> list[str]:
    try:
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return ["migrations"]
        storage.require()
    except DatabaseError:
        return ["database"]
    except OSError:
        return ["archive"]
    return []


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer Prometheus: what the rows say, and the times of all web processes' requests."""
    if not settings.METRICS_TOKEN:
        return HttpResponseNotFound("Set METRICS_TOKEN to have metrics.\n", "text/plain")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(given.encode(), settings.METRICS_TOKEN.encode()):
        refused = HttpResponse("Send METRICS_TOKEN as Bearer.\n", "text/plain", status=401)
        refused["WWW-Authenticate"] = "Bearer"
        return refused
    registry = CollectorRegistry()
    registry.register(rows.Rows())
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # set by ingestion_project.web
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # partly typed
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
