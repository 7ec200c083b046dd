"""What leaves for a Sentry and an OpenTelemetry collector, as it arrives on a socket."""

import gzip
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ingestion import tasks
from ingestion_project.supervisor import end_with_parent
from ingestion_project.telemetry import FIELDS
from tests.servers import receiver
from tests.servers.receiver import Came, Receiver
from tests.servers.stack import ROOT

CANARY = "canary@example.com"
QUEUE = "telemetry-of-the-tests"
#: All that a Sentry event may have, by path.
EVENT = (
    """
event_id timestamp platform level logger message release environment server_name
sdk.name sdk.version sdk.packages.name sdk.packages.version sdk.integrations
exception.values.type exception.values.module exception.values.stacktrace.frames.module
exception.values.stacktrace.frames.function exception.values.stacktrace.frames.lineno
exception.values.stacktrace.frames.in_app
""".split()
    + [f"tags.{name}" for name in FIELDS]
)
RESOURCE = {
    "service.name", "service.instance.id",
    "telemetry.sdk.name", "telemetry.sdk.version", "telemetry.sdk.language",
}  # fmt: skip
ATTRIBUTES = FIELDS | {"http.request.method", "http.response.status_code", "error.type"}
#: A web process, whose requests and errors name what must not leave.
WEB = f"""
import os
import django
django.setup()
import structlog
from django.http import Http404
from django.test import Client
from django.urls import path
from ingestion_project import urls

def broken(request):
    password = "{CANARY}"
    structlog.get_logger("x").error("check_bug", source="0-1", code="{CANARY}", address="{CANARY}")
    raise RuntimeError("{CANARY} " + password) from ValueError(password)

urls.urlpatterns.insert(0, path("api/broken-{CANARY}", broken))
client = Client(raise_request_exception=False)
asked = {{"HTTP_HOST": "localhost", "HTTP_USER_AGENT": "{CANARY}", "HTTP_X_REQUEST_ID": "asked-1"}}
parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
assert client.get("/api/v1/emails?q={CANARY}", HTTP_TRACEPARENT=parent, **asked).status_code == 401
assert client.get("/api/broken-{CANARY}?token={CANARY}", **asked).status_code == 500
"""


@pytest.fixture
def sentry() -> Iterator[Receiver]:
    with receiver.running() as server:
        yield server


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver.running() as server:
        server.status = 200
        yield server


@pytest.fixture
def env(transactional_db: None, sentry: Receiver, collector: Receiver) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "ingestion_project.settings",
        "SENTRY_DSN": sentry.url.replace("http://", "http://public@").replace("/hook", "/7"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url.removesuffix("/hook"),
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "no_proxy": "127.0.0.1",
    }


def unpacked(one: Came) -> bytes:
    match one.headers.get("Content-Encoding"):
        case "br":  # sentry_sdk, where brotli is there
            return bytes(brotli.decompress(one.body))
        case "gzip":
            return gzip.decompress(one.body)
    return one.body


def events(came: list[Came]) -> list[dict[str, Any]]:
    found = []
    for one in came:
        _, about, event = unpacked(one).splitlines()
        assert json.loads(about)["type"] == "event"
        found.append(json.loads(event))
    return found


def spans(came: list[Came]) -> list[Span]:
    found: list[Span] = []
    for one in came:
        assert one.path == "/v1/traces"
        body = unpacked(one)
        assert CANARY.encode() not in body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert {each.key for each in resource.resource.attributes} <= RESOURCE
            found += [span for scope in resource.scope_spans for span in scope.spans]
    for span in found:
        told = [*span.attributes, *(each for event in span.events for each in event.attributes)]
        assert {each.key for each in told} <= ATTRIBUTES
        assert not span.links
        assert not span.status.message
    return found


def paths(value: Any, at: str = "") -> set[str]:
    """Return where a document has values."""
    if isinstance(value, dict):
        return {path for name, one in value.items() for path in paths(one, f"{at}.{name}")}
    if isinstance(value, list):
        return {path for one in value for path in paths(one, at)}
    return {at.removeprefix(".")}


def test_requests_and_their_errors_are_told_without_what_they_were_about(
    env: dict[str, str], sentry: Receiver, collector: Receiver, wait_for: Callable[..., Any]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WEB], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wait_for(lambda: collector.came)  # both were told before the process ended

    told = events(sentry.came)
    for event in told:
        assert paths(event) <= set(EVENT), paths(event) - set(EVENT)
        assert CANARY not in json.dumps(event)
    assert told[0]["message"] == "check_bug"
    assert told[0]["tags"] == {"source": "0-1", "request_id": "asked-1"}
    thrown = [one for event in told if "exception" in event for one in event["exception"]["values"]]
    assert [one["type"] for one in thrown[:2]] == ["ValueError", "RuntimeError"]
    assert thrown[1]["stacktrace"]["frames"][-1]["function"] == "broken"

    listed, broken = spans(collector.came)
    assert (listed.name, listed.trace_id.hex()) == (
        "GET emails-list", "0af7651916cd43dd8448eb211c80319c",
    )  # fmt: skip
    assert broken.name == "GET __main__.broken"
    assert broken.events[0].name == "check_bug"


def test_a_real_worker_tells_of_its_tasks_and_of_those_that_break(
    env: dict[str, str],
    sentry: Receiver,
    collector: Receiver,
    wait_for: Callable[..., Any],
    tmp_path: Path,
) -> None:
    line = f"worker --queues {QUEUE} --pool prefork --concurrency 1 --hostname {QUEUE}@%h"
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "--app", "ingestion_project", *line.split()],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - only a prctl
        )
    try:
        tasks.do.apply_async(("mailbox", str(uuid.uuid4())), queue=QUEUE)
        tasks.do.apply_async((CANARY, str(uuid.uuid4())), queue=QUEUE)
        wait_for(lambda: sentry.came and len(spans(collector.came)) >= 2)
    finally:
        worker.terminate()
        worker.wait(240)
    done, broken = spans(collector.came)
    assert done.name == "ingestion.tasks.do mailbox"
    told = {each.key: each.value.string_value for each in broken.attributes}
    assert set(told) == {"row", "error.type"}
    assert told["error.type"] == "KeyError"
    [event] = events(sentry.came)
    assert paths(event) <= set(EVENT)
    assert event["logger"] == "celery.app.trace"
    assert event["exception"]["values"][-1]["type"] == "KeyError"
    assert CANARY not in json.dumps(event)


def test_where_nothing_is_set_nothing_of_it_is_loaded(env: dict[str, str]) -> None:
    """The client of Redis loads OpenTelemetry's interface by itself, where that is installed."""
    quiet = env | {"SENTRY_DSN": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}
    program = """
import sys, django
django.setup()
import ingestion_project.celery, ingestion_project.wsgi
ours = "sentry_sdk", "opentelemetry.exporter", "opentelemetry.sdk.trace", "ingestion_project.tel"
print(*[name for name in sys.modules if name.startswith(ours)])
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
