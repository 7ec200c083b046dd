"""`manage.py export` and /api/v1/exports: files, pipes, links, ranges, who may, and what is told."""

import io
import json
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from rest_framework.test import APIClient

from ingestion.api import exports as api
from ingestion.models import AuditEvent, Export, IngestionSource, Message
from ingestion.services.audit import SYSTEM
from ingestion.services.engine import due_work
from ingestion.services.operations import api_keys
from tests.servers.command_line import CommandLine
from tests.servers.scripted_source import body

pytestmark = pytest.mark.django_db(transaction=True)


def program(user: User, *scopes: str) -> APIClient:
    _, plain = api_keys.create(user, name="p", scopes=scopes or ("export",), actor=SYSTEM)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {plain}")
    return client


def mails(data: bytes) -> set[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {archive.read(name) for name in archive.namelist() if name.endswith(".eml")}


# -- the command -------------------------------------------------------------------------------


def test_the_command_writes_a_whole_file_or_none(
    archived: IngestionSource, manage: CommandLine, tmp_path: Path
) -> None:
    to = tmp_path / "out.zip"
    words = ("export", "--format", "eml", "--source", "Scripted", "--to", str(to))

    done = manage.here(*words)

    assert (done.code, done.stdout) == (0, "")
    assert "30 messages" in done.stderr
    assert mails(to.read_bytes()) == {body(n) for n in range(30)}
    assert manage.here(*words).code == 2, "there is such a file"
    [event] = AuditEvent.objects.filter(action="export.stream")
    assert event.changes == {"query": f"source:{archived.pk}", "how": "eml"}

    for pack in (settings.ARCHIVE_DIR / str(archived.pk)).rglob("*.pack"):
        pack.unlink()
    new = tmp_path / "lost.zip"
    lost = manage.here("export", "--format=eml", f"--to={new}", "--json")
    assert lost.code == 1
    assert json.loads(lost.stdout)["unreadable"] == 30


def test_two_exports_do_not_write_into_one_file(
    archived: IngestionSource, manage: CommandLine, tmp_path: Path
) -> None:
    others = tmp_path / ".out.zip.partial"
    others.write_bytes(b"half of it")
    second = manage.here("export", "--format=eml", f"--to={tmp_path}/out.zip")
    assert second.code == 2
    assert "another export is writing it" in second.stderr
    assert others.read_bytes() == b"half of it"


def test_an_export_whose_reader_broke_off_is_no_success(
    archived: IngestionSource, manage: CommandLine
) -> None:
    with manage.start("export", "--format=eml", "--to=-") as cut:
        assert cut.stdout is not None
        assert cut.stderr is not None
        cut.stdout.close()
        assert "is cut" in cut.stderr.read()
    assert cut.returncode == 1


def test_the_command_takes_only_what_a_user_may_see_and_knows_what_is_wrong(
    archived: IngestionSource, manage: CommandLine, tmp_path: Path, other_user: User
) -> None:
    to = str(tmp_path / "out.zip")
    mine = manage.here("export", "--format=eml", f"--to={to}", "--user=other")
    assert "0 messages" in mine.stderr
    for wrong in (
        ("--format=eml",),
        ("--format=eml", "--to=/nowhere/x.zip"),
        ("--format=eml", "--to=x", "--query=frm:x"),
        ("--format=tape", "--to=x"),
        ("--format=eml", "--to=-", "--json"),
    ):
        assert manage.here("export", *wrong).code == 2


def test_standard_output_has_the_file_alone_and_ctrl_c_leaves_nothing(
    archived: IngestionSource, manage: CommandLine, tmp_path: Path
) -> None:
    words = manage._words(("export", "--format=eml", "--to=-"))
    piped = subprocess.run(
        words, cwd=Path(__file__).parents[3], env=manage.env, capture_output=True, check=True
    )
    assert len(mails(piped.stdout)) == 30
    assert b"30 messages" in piped.stderr

    to = tmp_path / "empty"
    to.mkdir()
    process = manage.start("export", "--format=eml", f"--to={to}/x.zip", "--query=source:scripted")
    while process.poll() is None and not list(to.iterdir()):
        pass  # until it began to write
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    # It may have been done before the signal came: then the file is whole.
    assert [path.name for path in to.iterdir()] == (["x.zip"] if process.returncode == 0 else [])
    assert process.returncode in (0, 130)


# -- the API -----------------------------------------------------------------------------------


def test_a_job_is_asked_for_followed_downloaded_and_deleted(archived: IngestionSource) -> None:
    client = program(archived.owner)

    answer, again = (
        client.post(
            "/api/v1/exports",
            {"q": "", "format": "eml"},
            format="json",
            headers={"Idempotency-Key": "one"},
        )
        for _ in range(2)
    )
    assert answer.status_code == 201, answer.json()
    assert again.json() == answer.json()
    assert (answer.json()["state"], answer.json()["downloadUrl"]) == ("waiting", None)
    address = f"/api/v1/exports/{answer.json()['id']}"
    assert client.get(f"{address}/download").status_code == 409
    due_work.do_now(due_work.Work("export", Export.objects.get().pk))

    export = client.get(address).json()
    assert (export["state"], export["messagesDone"]) == ("done", 30)
    assert client.get("/api/v1/exports").json()[0]["id"] == export["id"]
    whole = client.get(f"{address}/download")
    data = b"".join(whole.streaming_content)  # type: ignore[attr-defined] # a file
    whole.close()
    assert len(mails(data)) == 30
    assert whole["X-Content-Type-Options"] == "nosniff"
    assert int(whole["Content-Length"]) == export["sizeBytes"] == len(data)
    link = export["downloadUrl"].removeprefix("http://testserver")
    part = APIClient().get(link, HTTP_RANGE="bytes=10-19")
    assert (part.status_code, b"".join(part.streaming_content)) == (206, data[10:20])  # type: ignore[attr-defined] # a file
    part.close()
    told = AuditEvent.objects.filter(action="export.download").order_by("id")
    assert [event.changes["how"] for event in told] == ["signed in", "link"]
    assert client.delete(address).status_code == 204
    assert APIClient().get(link).status_code == 409


def test_nobody_has_anothers_export_and_a_key_needs_the_scope(
    archived: IngestionSource, other_user: User, admin_user: User
) -> None:
    mine = program(archived.owner)
    answer = mine.post("/api/v1/exports", {"format": "mbox"}, format="json").json()
    address = f"/api/v1/exports/{answer['id']}"
    for stranger in (other_user, admin_user):
        client = program(stranger)
        assert client.get("/api/v1/exports").json() == []
        for path in (address, f"{address}/download"):
            assert client.get(path).status_code == 404
        assert client.delete(address).status_code == 404
    for path in ("/api/v1/exports", address, f"{address}/download"):
        assert APIClient().get(path).status_code == 401
        assert program(archived.owner, "read", "write").get(path).status_code == 403
    reader = program(archived.owner, "read", "write")
    assert reader.post("/api/v1/exports", {"format": "mbox"}, format="json").status_code == 403
    assert reader.get("/api/v1/emails/export?format=eml").status_code == 403
    assert APIClient().get(f"{address}/download?token=x").status_code == 409
    for wrong in ({}, {"format": "tape"}, {"format": "eml", "q": "frm:x"}):
        assert mine.post("/api/v1/exports", wrong, format="json").status_code == 400
    for wrong_q in (
        mine.post("/api/v1/exports", {"format": "eml", "q": "frm:x"}, format="json"),
        mine.get("/api/v1/emails/export?format=eml&q=frm:x"),
    ):
        assert [error["attr"] for error in wrong_q.json()["errors"]] == ["q"]


def test_what_is_small_comes_at_once_and_more_is_a_job(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch, other_user: User
) -> None:
    address = "/api/v1/emails/export?format=eml"

    def got(client: APIClient) -> Any:
        answer = client.get(address)
        data = b"".join(answer.streaming_content)  # type: ignore[attr-defined] # a file
        answer.close()
        return mails(data)

    assert got(program(archived.owner)) == {body(n) for n in range(30)}
    assert got(program(other_user)) == set()
    assert AuditEvent.objects.filter(action="export.stream").count() == 2
    monkeypatch.setattr(api, "MAX_STREAMED_MESSAGES", 29)
    refused = program(archived.owner).get(address)
    assert refused.status_code == 409
    assert "Make a job" in refused.json()["errors"][0]["detail"]
    assert Message.objects.count() == 30


def test_one_that_fails_before_its_first_byte_takes_nobody_s_place(
    archived: IngestionSource,
) -> None:
    client = program(archived.owner)
    client.raise_request_exception = False
    broken = "ALTER TABLE ingestion_auditevent ADD CONSTRAINT broken CHECK (false) NOT VALID"
    with connection.cursor() as cursor:
        cursor.execute(broken)
        try:
            answers = [client.get("/api/v1/emails/export?format=eml") for _ in range(3)]
        finally:
            cursor.execute("ALTER TABLE ingestion_auditevent DROP CONSTRAINT broken")
    assert [answer.status_code for answer in answers] == [500, 500, 500]
