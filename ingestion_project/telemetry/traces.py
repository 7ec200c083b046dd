"""Traces for an OpenTelemetry collector: a span for each request and each task.

Lines that our own code logs meanwhile are the span's events. The SDK's settings
(OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and so on) hold; what is told, see `telemetry`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from celery.signals import task_postrun, task_prerun, worker_process_shutdown
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict, WrappedLogger

from ingestion_project.telemetry import allowed

_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())


@functools.lru_cache(maxsize=1)
def _provider(_process: int) -> TracerProvider:
    """Return the provider of this process: its thread does not survive a fork."""
    name = os.environ.get("OTEL_SERVICE_NAME", "ingestion")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextlib.contextmanager
def _span(name: str, kind: SpanKind, parent: str = "") -> Iterator[Span]:
    """`parent`: what a client says as `traceparent` (W3C Trace Context)."""
    tracer = _provider(os.getpid()).get_tracer("ingestion")
    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    with tracer.start_as_current_span(
        name, context, kind, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


class Requests:
    """Middleware: a span for each request, named by the view that answered it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        method = request.method if request.method in _METHODS else "_OTHER"
        with _span(method, SpanKind.SERVER, request.headers.get("traceparent", "")) as span:
            response = self._get_response(request)
            view = request.resolver_match.view_name if request.resolver_match else ""
            span.update_name(f"{method} {view}".rstrip())
            span.set_attributes(
                {"http.request.method": method, "http.response.status_code": response.status_code}
            )
            span.set_attributes(allowed({"request_id": response.headers.get("X-Request-ID")}))
            if response.status_code >= 500:
                span.set_status(StatusCode.ERROR)
        return response


#: Of the tasks that run in this process, by their ids: what ends their spans.
_open: dict[str, tuple[contextlib.ExitStack, Span]] = {}


@task_prerun.connect
def _begin(task_id: str, task: Any, args: Any, **_: Any) -> None:
    work = allowed(dict(zip(("kind", "row"), args, strict=False)))
    stack = contextlib.ExitStack()
    name = f"{task.name} {work.get('kind', '')}".rstrip()
    span = stack.enter_context(_span(name, SpanKind.CONSUMER))
    span.set_attributes(work)
    _open[task_id] = stack, span


@task_postrun.connect
def _end(task_id: str, state: str | None = None, retval: Any = None, **_: Any) -> None:
    stack, span = _open.pop(task_id, (None, None))
    if stack is None or span is None:
        return
    if state == "FAILURE":
        span.set_status(StatusCode.ERROR)
        span.set_attribute("error.type", type(retval).__name__)
    stack.close()


@worker_process_shutdown.connect
def _flush(**_: Any) -> None:
    """A worker's child ends without the exit handlers of a process."""
    _provider(os.getpid()).shutdown()


def note(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor of structlog: add our own line to the span that is under way."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(str(event.get("event", "")), allowed(event))
    return event
