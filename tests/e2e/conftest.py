"""A real browser for the pages: Chromium, watched for whatever a page must never do."""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.db import connections
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Error,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

if TYPE_CHECKING:
    from django.contrib.auth.models import User

    from tests.servers.stack import Service

#: Screenshots for people who ask for them: SCREENSHOTS=1. A large page takes as long as a test.
RESULTS = Path(__file__).resolve().parents[2] / "var" / "screenshots"
_ARE_WANTED = bool(os.environ.get("SCREENSHOTS"))
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_WIDTH, _HEIGHT = 1440, 900
#: As ingestion/theme.js does.
_DRESS = """dark => {
    for (const name of ["dark", "dark-mode"]) document.documentElement.classList.toggle(name, dark);
}"""
ADMIN_PASSWORD = "the-admin-of-the-tests"
expect.set_options(timeout=180_000)


def shoot(page: Page, name: str, *widths: int, full_page: bool = False) -> None:
    """Keep pictures of the page in both themes, if they are wanted; leave it as it was."""
    if not _ARE_WANTED:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    before = page.viewport_size
    for width in widths:
        page.set_viewport_size({"width": width, "height": _HEIGHT})
        if full_page:
            height = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": width, "height": min(height, 4_000)})
        for theme in ("dark", "light"):
            dress(page, dark=theme == "dark")
            path = RESULTS / f"{name}-{width}-{theme}.png"
            page.screenshot(path=path, animations="disabled")
    if before is not None:
        page.set_viewport_size(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # The same Chromium: without windows, menus and extensions, a page costs it half.
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        needed = "apt-get install chromium-headless-shell"
        pytest.fail(f"These tests need a browser: {needed}", pytrace=False)
    # Playwright's own loop runs in this thread, which Django takes for asynchronous code: from now
    # on it keeps this thread's connections elsewhere. One that was left open here would be found
    # again by a child (tests/servers/mortal.py), where no loop runs, and shared with its brothers.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    connections.close_all()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=_ARGUMENTS)
        yield chromium
        chromium.close()


def dress(page: Page, *, dark: bool) -> None:
    """Have a page in the dark theme, or the light one: that of the switch, and of the system."""
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.evaluate(_DRESS, dark)


@dataclasses.dataclass
class Visitor:
    """One person's browser. `complaints` is what went wrong on the pages; a test expects none."""

    url: str
    context: BrowserContext
    page: Page
    complaints: list[str]
    #: Other sites that the pages may send this person to.
    may_visit: tuple[str, ...] = ()

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.url}{path}", wait_until="load")
        return self.page

    def let_in(self, user: "User") -> None:
        """Have this person be signed in: no page is opened, and no password hashed."""
        from django.conf import settings
        from django.test import Client

        client = Client()
        client.force_login(user)
        name = settings.SESSION_COOKIE_NAME
        self.context.add_cookies(
            [{"name": name, "value": client.cookies[name].value, "url": self.url}]
        )

    def log_in(self, name: str, password: str) -> None:
        self.go("/admin/login/")
        self.page.fill("input[name=username]", name)
        self.page.fill("input[name=password]", password)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(re.compile(r"/admin/$"))

    def shoot(self, name: str, *, width: int = _WIDTH) -> None:
        """Keep pictures of the page, if they are wanted."""
        shoot(self.page, f"admin-{name}", width, full_page=True)


@pytest.fixture
def visit(service: "Service", browser: Browser) -> Iterator[Callable[[], Visitor]]:
    """`visit()` opens a browser of its own for one person; all their complaints fail the test."""
    visitors: list[Visitor] = []

    def open_browser() -> Visitor:
        context = browser.new_context(viewport={"width": _WIDTH, "height": _HEIGHT})
        context.set_default_timeout(180_000)
        visitor = Visitor(service.url, context, context.new_page(), [])
        _watch(visitor)
        visitors.append(visitor)
        return visitor

    yield open_browser
    for visitor in visitors:
        visitor.context.close()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []


def _watch(visitor: Visitor) -> None:
    def script_failed(error: Error) -> None:
        visitor.complaints.append(f"script error: {error}")

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            visitor.complaints.append(f"refused by the policy: {message.text}")

    def box_opened(box: Dialog) -> None:
        visitor.complaints.append(f"injected: {box.message}")
        box.dismiss()

    def asked(request: Request) -> None:
        allowed = (visitor.url, "data:", "blob:", *visitor.may_visit)
        if not request.url.startswith(allowed):
            visitor.complaints.append(f"left the service: {request.url}")

    def answered(answer: Response) -> None:
        if answer.status >= 400:
            visitor.complaints.append(f"{answer.status} for {answer.request.method} {answer.url}")

    visitor.page.on("pageerror", script_failed)
    visitor.page.on("console", said)
    visitor.page.on("dialog", box_opened)
    visitor.page.on("request", asked)
    visitor.page.on("response", answered)


@pytest.fixture
def operator(visit: Callable[[], Visitor], admin_user: "User") -> Visitor:
    """The superuser, signed in, on no page yet."""
    visitor = visit()
    visitor.let_in(admin_user)
    return visitor
