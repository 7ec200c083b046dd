"""HTML of strangers in a real browser: nothing runs, nothing is fetched, nothing moves.

Two walls are around it: what is sanitised, and the frame. Each holds without the other.
"""

import http.server
import threading
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, Route, expect

from ingestion.models import Message
from tests.e2e.conftest import Visitor
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.messages import RICH

#: T is a server of another site that writes down who asks.
HOSTILE = """<html><head><base href="T/base/"><meta http-equiv="refresh" content="0;url=T/refresh">
<link rel="stylesheet" href="T/sheet.css"><link rel="prefetch" href="T/prefetch">
<link rel="preload" as="image" href="T/preload"><link rel="icon" href="T/icon">
<style>@import "T/import.css"; @font-face { font-family: f; src: url(T/font) }
 body { background: url(T/background); font-family: f } p::after { content: url(T/after) }
 .over { position: fixed; inset: 0; z-index: 9999 }</style>
<script>top.document.title = parent.name = "ran"; fetch("T/script"); alert(1)</script></head>
<body onload="fetch('T/onload'); alert(2)" background="T/body">
<p>Dear customer</p><script src="T/script.js"></script>
<img src="x" onerror="alert(3); top.location = 'T/onerror'"><img src="T/pixel"><img srcset="T/set 1x">
<svg onload="alert(4)"><script>alert(5)</script><image href="T/svg"/><use href="T/use#x"/></svg>
<math><mtext><img src=x onerror=alert(6)></mtext></math>
<iframe src="T/frame"></iframe><iframe srcdoc="<script>alert(7)</script>"></iframe>
<object data="T/object"></object><embed src="T/embed"><video src="T/video" autoplay poster="T/poster"></video>
<audio src="T/audio" autoplay></audio><input type="image" src="T/input" autofocus onfocus="alert(8)">
<form action="T/form" method="post"><button id="go">Go on</button></form>
<a class="over" href="javascript:alert(9)">over all of it</a>
<div style="background:url('T/style');position:fixed;inset:0">x</div>
<details open ontoggle="alert(10)">x</details><marquee onstart="alert(11)">x</marquee>
<table background="T/table"><tr><td background="T/cell">x</td></tr></table>
<a href="T/ping" ping="T/pinged">T</a><noscript><p title="</noscript><img src=x onerror=alert(12)>"></noscript>
</body></html>"""
PAGE = "/admin/ingestion/message/{}/change/"


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """Another site; the list is of the paths that anybody asked it for, its own address first."""
    paths: list[str] = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        paths.append(f"http://127.0.0.1:{server.server_address[1]}")
        yield paths
        server.shutdown()


def _hostile(owner: User, site: str) -> tuple[Message, str]:
    markup = HOSTILE.replace("T/", f"{site}/")
    body = f"From: a@example.com\r\nSubject: Hostile\r\nContent-Type: text/html\r\n\r\n{markup}"
    (message,) = archived(a_folder(a_mailbox(a_source(owner))), body.encode())
    return message, markup


def _nothing_happened(page: Page, message: Message, asked: list[str]) -> None:
    """Click where the mail wants it, and look for what must not be."""
    frame = page.frame_locator(".ing-paper")
    expect(frame.locator("body")).to_contain_text("Dear customer")
    page.locator(".ing-paper").click(position={"x": 60, "y": 60})
    page.wait_for_load_state("networkidle")
    assert page.url.endswith(PAGE.format(message.pk))
    assert "ran" not in page.title()
    assert page.evaluate("window.name") == ""
    (inner,) = [f for f in page.frames if f.url.endswith("/html/")]
    assert inner.parent_frame == page.main_frame
    assert asked[1:] == []


def test_hostile_html_is_shown_and_nothing_happens(
    operator: Visitor, admin_user: User, asked: list[str]
) -> None:
    message, _ = _hostile(admin_user, asked[0])
    page = operator.go(PAGE.format(message.pk))
    _nothing_happened(page, message, asked)
    operator.shoot("message-hostile-html")


def test_the_frame_holds_what_is_not_sanitised(
    operator: Visitor, admin_user: User, asked: list[str]
) -> None:
    message, markup = _hostile(admin_user, asked[0])

    def unsanitised(route: Route) -> None:
        route.fulfill(response=route.fetch(), body=markup)

    operator.page.route("**/html/", unsanitised)
    page = operator.go(PAGE.format(message.pk))
    _nothing_happened(page, message, asked)
    assert [c for c in operator.complaints if c.startswith(("injected", "script error"))] == []
    assert any("refused by the policy" in complaint for complaint in operator.complaints)
    operator.complaints.clear()  # each is of something that did not come about


def test_what_is_sanitised_does_nothing_without_a_frame_that_holds_it(
    operator: Visitor, admin_user: User, asked: list[str]
) -> None:
    message, _ = _hostile(admin_user, asked[0])

    def unguarded(route: Route) -> None:
        answer = route.fetch()
        names = ("content-security-policy", "x-frame-options")
        headers = {name: value for name, value in answer.headers.items() if name not in names}
        body = answer.text().replace(' sandbox="', ' data-was="')
        route.fulfill(response=answer, headers=headers, body=body)

    operator.page.route(f"**/message/{message.pk}/**", unguarded)
    page = operator.go(PAGE.format(message.pk))
    _nothing_happened(page, message, asked)


def test_pictures_are_loaded_on_request_into_the_frame_alone(
    operator: Visitor, admin_user: User
) -> None:
    (message,) = archived(a_folder(a_mailbox(a_source(admin_user))), RICH)
    operator.may_visit = ("https://tracker.example/",)
    pictures: list[str] = []

    def picture(route: Route) -> None:
        pictures.append(route.request.headers.get("referer", ""))
        route.fulfill(status=204)

    operator.page.route("https://tracker.example/**", picture)
    page = operator.go(PAGE.format(message.pk))
    expect(page.frame_locator(".ing-paper").locator("body")).to_contain_text("Pay now")
    assert pictures == []
    with page.expect_request("https://tracker.example/p.gif"):
        page.get_by_role("link", name="Load it for this view").click()
    assert page.url.endswith(PAGE.format(message.pk))
    page.reload()
    expect(page.frame_locator(".ing-paper").locator("body")).to_contain_text("Pay now")
    assert pictures == [""]
