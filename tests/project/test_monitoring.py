"""What machines ask: /healthz, /readyz, /metrics, and the dashboard and rules that name metrics."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ingestion.models import FailedMessage, IngestionSource, Pack
from ingestion.services.archive import storage
from ingestion.services.operations.alerting import watch
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers.stack import ROOT, Service, wait_for

TOKEN = "a-token-of-the-tests"
_METRIC = re.compile(r"\bingestion_[a-z0-9_]+")
PAGES = ["docs/monitoring.md", "docs/monitoring/alerts.yml", "docs/monitoring/grafana.json"]


@pytest.fixture
def token(settings: Any) -> str:
    settings.METRICS_TOKEN = TOKEN
    return TOKEN


def asked() -> list[Sample]:
    answer = Client().get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return samples(answer.content.decode())


def samples(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(found: list[Sample], metric: str, /, **labels: str) -> float | None:
    matching = [s.value for s in found if s.name == metric and labels.items() <= s.labels.items()]
    assert len(matching) <= 1, matching
    return matching[0] if matching else None


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_who_asks_from_inside_knows_an_address_alone(
    token: str, settings: Any, path: str, archive_dir: Path
) -> None:
    settings.ALLOWED_HOSTS = ["mail.example.com"]
    settings.HTTPS = settings.SECURE_SSL_REDIRECT = True
    headers = {"Host": "10.1.2.3:8000", "Authorization": f"Bearer {TOKEN}"}
    assert Client().get(path, headers=headers).status_code == 200
    assert Client().get("/api/docs", headers=headers).status_code == 400


@pytest.mark.django_db
def test_metrics_say_what_the_rows_say(token: str, archive_dir: Path) -> None:
    source = a_source(owner=User.objects.create_user("owner"), name='A "name"')
    folder = a_folder(mailbox := a_mailbox(source))
    archived(folder, b"Subject: one\r\n\r\n")
    for n in range(3):
        FailedMessage.objects.create(
            mailbox=mailbox,
            folder=folder,
            remote_id=str(n),
            code="refused",
            not_before=timezone.now(),
        )
    IngestionSource.objects.update(status="error", message_count=7, archived_bytes=70)
    IngestionSource.objects.update(options={"credentialsExpireOn": "2030-01-01"})
    watch.look_at_sources()
    found = asked()
    name = {"source": str(source.pk)}
    assert value(found, "ingestion_source_status", status="error", name='A "name"') == 1
    assert value(found, "ingestion_source_messages_total", **name) == 7
    assert value(found, "ingestion_source_archived_bytes_total", **name) == 70
    assert value(found, "ingestion_failed_messages", code="refused", **name) == 3
    codes = {s.labels["code"] for s in found if s.name == "ingestion_source_needs_attention"}
    assert {"error", "messages_failing"} <= codes
    expire = "ingestion_source_credentials_expire_timestamp_seconds"
    assert value(found, expire, **name) == 1_893_456_000
    assert value(found, "ingestion_alerts", kind="source.attention") == 1
    assert value(found, "ingestion_alert_rules_failing") == 0
    assert value(found, "ingestion_packs") == Pack.objects.count()
    assert value(found, "ingestion_due_work", kind="mailbox") == 0
    IngestionSource.objects.update(deleted_at=timezone.now())
    assert value(asked(), "ingestion_source_status", **name) is None


@pytest.mark.django_db
def test_the_number_of_queries_does_not_grow(token: str, archive_dir: Path) -> None:
    owner = User.objects.create_user("owner")
    a_mailbox(a_source(owner=owner))
    with CaptureQueriesContext(connection) as few:
        asked()
    for n in range(5):
        a_mailbox(a_source(owner=owner, name=str(n)))
    with CaptureQueriesContext(connection) as more:
        asked()
    assert len(more) == len(few)


@pytest.mark.django_db
def test_of_an_archive_that_is_not_mounted_no_room_is_told(token: str, archive_dir: Path) -> None:
    """The disk beneath its mount point has some, which would be taken for the archive's."""
    storage.require()
    assert value(asked(), "ingestion_archive_free_bytes")
    (archive_dir / ".installation").unlink()
    assert value(asked(), "ingestion_archive_free_bytes") is None


@pytest.mark.django_db
def test_metrics_need_their_token(settings: Any) -> None:
    settings.METRICS_TOKEN = ""
    assert Client().get("/metrics").status_code == 404
    settings.METRICS_TOKEN = TOKEN
    for wrong in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}x"}):
        refused = Client().get("/metrics", headers=wrong)
        assert (refused.status_code, refused["WWW-Authenticate"]) == (401, "Bearer")
    assert Client().post("/metrics").status_code in (403, 405)


def scraped(service: Service) -> str:
    """Ask a service that is at work: the dispatcher has run."""
    headers = {"Authorization": f"Bearer {service.env['METRICS_TOKEN']}"}

    def text() -> str | None:
        answer = httpx.get(
            f"{service.url}/metrics", headers=headers, trust_env=False, timeout=60
        ).text
        return answer if "ingestion_dispatcher_age_seconds " in answer else None

    return wait_for(text)


def test_what_the_documents_name_is_there_and_what_there_is_is_documented(
    service: Service,
) -> None:
    storage.require()  # of an archive that is not there yet no room is told
    text = scraped(service)
    known = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
    for page in PAGES:
        named = set(_METRIC.findall((ROOT / page).read_text()))
        bare = {re.sub(r"_(bucket|count)$", "", name) for name in named}
        assert bare <= known, page
        assert len(bare) > 5, page
    assert known == set(_METRIC.findall((ROOT / PAGES[0]).read_text()))
    panels = json.loads((ROOT / PAGES[2]).read_text())["panels"]
    shown = [_METRIC.findall(target["expr"]) for panel in panels for target in panel["targets"]]
    assert all(shown)
    watched = set(_METRIC.findall((ROOT / PAGES[1]).read_text()))
    assert watched <= {name for names in shown for name in names}, "rules look at what none shows"
    again = samples(scraped(service))  # a request is counted once it is answered
    routes = {s.labels["route"] for s in again if s.name.endswith("_seconds_count")}
    assert "metrics" in routes


def test_ready_says_what_is_missing(service: Service, settings: Any) -> None:
    def ready() -> tuple[int, str]:
        answer = httpx.get(f"{service.url}/readyz", trust_env=False, timeout=60)
        return answer.status_code, answer.text

    assert ready() == (200, "ok\n")
    mark = Path(settings.ARCHIVE_DIR) / ".installation"
    aside = mark.rename(mark.with_suffix(".aside"))
    try:
        assert ready() == (503, "archive\n")
    finally:
        aside.rename(mark)
    assert ready() == (200, "ok\n")
