"""A statement that does not end: whoever asked for a page is told within moments, and the rest goes
on; what is streamed may take longer than any statement."""

import concurrent.futures
import hashlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from ingestion.models import Message
from tests.servers import imap_source, stack
from tests.servers.dovecot import Dovecot

if TYPE_CHECKING:
    from tests.servers.stack import Service

_SIZE_BYTES = 8_000_000
_STREAM_SECONDS = 36


@pytest.mark.long(seconds=45)
def test_a_request_has_half_a_minute_for_a_statement_and_a_download_all_it_takes(
    service: "Service", api: httpx.Client, admin_user: User,
    dovecot: Dovecot, wait_for: Callable[..., Any],
) -> None:  # fmt: skip
    mail = b"Subject: large\r\n\r\n" + random.Random(20261129).randbytes(_SIZE_BYTES).hex().encode()
    body = {
        "name": "Mail", "provider": "generic_imap", "autoImport": True,
        "providerConfig": imap_source.config(dovecot.account(mail)),
    }  # fmt: skip
    url = f"/ingestion/{api.post('/ingestion', json=body).json()['id']}"
    wait_for(lambda: api.get(url).json()["status"] == "active")
    message = Message.objects.get()

    def taken_slowly() -> tuple[float, bytes]:
        """Read a bit every now and then, as a bad line does."""
        began, digest, size = time.monotonic(), hashlib.sha256(), 0
        with api.stream("GET", f"/emails/{message.pk}/raw") as answer:
            for chunk in answer.iter_raw(65_536):
                digest.update(chunk)
                size += len(chunk)
                left = began + _STREAM_SECONDS * size / message.size_bytes - time.monotonic()
                time.sleep(max(0, left))
        return time.monotonic() - began, digest.digest()

    signed_in = Client()
    signed_in.force_login(admin_user)
    cookies = {name: morsel.value for name, morsel in signed_in.cookies.items()}
    database = settings.DATABASES["default"]
    with (
        stack.client(service.url, cookies=cookies) as browser,
        psycopg.connect(host=database["HOST"], user="postgres", dbname=database["NAME"]) as other,
        concurrent.futures.ThreadPoolExecutor(3) as at_once,
    ):
        other.execute("LOCK TABLE ingestion_savedsearch IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        streamed = at_once.submit(taken_slowly)
        listed = at_once.submit(api.get, "/searches")
        page = at_once.submit(browser.get, reverse("mail"))
        answer, shown = listed.result(), page.result()
        took = time.monotonic() - began
        assert 29 < took < 59, "half a minute for a statement, and a minute for a lock"
        assert answer.status_code == 503, answer.text
        [error] = answer.json()["errors"]
        assert error["code"] == "took_too_long"
        assert answer.headers["Link"] == '</api/docs/errors#took_too_long>; rel="help"'
        assert (shown.status_code, "This takes too long" in shown.text) == (503, True)
        assert "Traceback" not in shown.text
        seconds, sha256 = streamed.result()
    assert seconds > 33
    assert sha256 == hashlib.sha256(mail).digest() == bytes(message.sha256)
    assert api.get("/searches").status_code == 200
