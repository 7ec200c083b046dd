"""What a first visitor's browser fetches: little, compressed, ours, and once."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.models import User

from tests.e2e.conftest import ADMIN_PASSWORD, Visitor
from tests.e2e.rows import a_source

#: For the sign-in and the dashboard after it, with nothing in the browser's cache.
MAX_BYTES = 300_000
_TEXT = ("text/", "image/svg+xml")


class Traffic:
    """Answers that came over the network, and the bytes of each with its header fields."""

    def __init__(self, visitor: Visitor) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, int] = {}
        self._session = visitor.context.new_cdp_session(visitor.page)
        self._session.on("Network.responseReceived", self._received)
        self._session.on("Network.loadingFinished", self._finished)
        self._session.send("Network.enable")

    def _received(self, event: dict[str, Any]) -> None:
        response = event["response"]
        if not response["url"].startswith("data:") and not response["fromDiskCache"]:
            self.answers[event["requestId"]] = response

    def _finished(self, event: dict[str, Any]) -> None:
        self.sizes[event["requestId"]] = int(event["encodedDataLength"])

    def assets(self) -> list[tuple[dict[str, Any], int]]:
        """Return the answers of /static/ that were not taken from the cache in memory either."""
        return [
            (answer, self.sizes[key])
            for key, answer in self.answers.items()
            if "/static/" in answer["url"] and self.sizes.get(key)
        ]


def _fields(answer: dict[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in answer["headers"].items()}


def test_the_first_page_is_light_and_fetched_once(
    visit: Callable[[], Visitor], admin_user: User
) -> None:
    a_source(admin_user)
    visitor = visit()
    traffic = Traffic(visitor)
    visitor.log_in("admin", ADMIN_PASSWORD)
    visitor.page.wait_for_load_state("networkidle")
    sizes = {
        traffic.answers[key]["url"]: size
        for key, size in traffic.sizes.items()
        if key in traffic.answers
    }
    assert len(sizes) > 15
    assert sum(traffic.sizes.values()) < MAX_BYTES, sorted(sizes.items(), key=lambda one: -one[1])
    assert {urlsplit(url).netloc for url in sizes} == {urlsplit(visitor.url).netloc}
    fetched = [answer["url"] for answer, _ in traffic.assets()]
    assert len(set(fetched)) == len(fetched), "something was fetched twice"
    for answer in traffic.answers.values():
        fields = _fields(answer)
        if fields.get("content-type", "").startswith(_TEXT) and answer["status"] == 200:
            assert fields.get("content-encoding") == "gzip", answer["url"]
    for answer, _ in traffic.assets():
        assert "immutable" in _fields(answer)["cache-control"]
        assert re.search(r"/static/[0-9a-f]{12}/", answer["url"]), answer["url"]


def test_a_page_that_is_seen_again_fetches_no_asset_again(
    operator: Visitor, admin_user: User
) -> None:
    source = a_source(admin_user)
    traffic = Traffic(operator)
    for _ in range(2):
        operator.go(f"/admin/ingestion/ingestionsource/{source.pk}/change/")
        operator.page.wait_for_load_state("networkidle")
    assert sum("/change/" in answer["url"] for answer in traffic.answers.values()) == 2
    # Not "none the second time": the browser asks for the icon after the page, and leaves that
    # question when it leaves the page.
    fetched = [answer["url"] for answer, _ in traffic.assets()]
    assert sorted(set(fetched)) == sorted(fetched), "something was fetched twice"
