"""Mail's HTML in a real browser, without the frame and policy that are its second wall."""

from playwright.sync_api import Browser, Page, Request

from ingestion.mail.view import html_of
from tests.mail.test_body import HTML
from tests.mail.test_view import OTHER_WAYS, REMOTE, RUNNING

#: A browser reads it again where somebody copies it or a script moves it.
AGAIN = "document.body.innerHTML = document.body.innerHTML"


def shown(page: Page, markup: str) -> None:
    page.set_content(html_of((HTML + markup).encode()).markup)
    for element in page.query_selector_all("a, [id], details"):
        element.dispatch_event("click")
    page.evaluate(AGAIN)
    page.wait_for_load_state("load")


def test_no_script_runs_nothing_is_fetched_and_nobody_is_led_away(browser: Browser) -> None:
    context = browser.new_context()
    context.add_init_script("window.run = () => { window.ran = true }")
    page = context.new_page()
    asked: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith("data:"):
            asked.append(request.url)

    context.on("request", note)
    for markup in [*RUNNING, *REMOTE, *OTHER_WAYS]:
        if "<a href='https:" not in markup:  # that one is a link
            shown(page, markup)
            assert page.evaluate("window.ran") is None, markup
            assert asked == [], markup
            assert page.url == "about:blank", markup
    context.close()
