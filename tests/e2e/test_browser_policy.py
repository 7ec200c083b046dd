"""What browsers are told about our pages: whose scripts run, and how long a sign-in lasts."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from playwright.sync_api import Route, expect

from tests.e2e.conftest import Visitor
from tests.e2e.rows import a_source

if TYPE_CHECKING:
    from tests.servers.stack import Service


@pytest.mark.parametrize(
    "path", ["/admin/login/", "/no/such/page", "/healthz", "/api/v1/ingestion"]
)
def test_every_answer_has_a_policy(service: "Service", path: str) -> None:
    answer = httpx.get(f"{service.url}{path}", trust_env=False, verify=False)
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self' 'unsafe-eval';" in policy
    assert "default-src 'none'" in policy
    assert "form-action 'self'" in policy


def test_the_page_of_the_documentation_keeps_its_stricter_policy(service: "Service") -> None:
    answer = httpx.get(f"{service.url}/api/docs", trust_env=False, verify=False)
    assert "unsafe-eval" not in answer.headers["Content-Security-Policy"]


def test_a_script_that_got_into_a_page_does_not_run(visit: Callable[[], Visitor]) -> None:
    visitor = visit()

    def inject(route: Route) -> None:
        answer = route.fetch()
        body = answer.text().replace("</body>", "<script>document.title = 'ran'</script></body>")
        route.fulfill(response=answer, body=body)

    visitor.page.route("**/admin/login/", inject)
    page = visitor.go("/admin/login/")
    expect(page).not_to_have_title("ran")
    assert [complaint[:21] for complaint in visitor.complaints] == ["refused by the policy"]
    visitor.complaints.clear()


def test_a_page_that_is_left_open_keeps_no_session_and_ends_at_the_sign_in(
    operator: Visitor, admin_user: User
) -> None:
    source = a_source(admin_user)
    with operator.page.expect_request("**/live/**") as asked:
        operator.go(f"/admin/ingestion/ingestionsource/{source.pk}/change/")
    assert asked.value.headers["x-background"] == "live"
    Session.objects.all().delete()
    operator.page.wait_for_url(re.compile(r"/admin/login/\?next=.*/change/"))


def test_too_many_passwords_are_answered_in_words(visit: Callable[[], Visitor]) -> None:
    visitor = visit()
    for _ in range(11):
        visitor.go("/admin/login/")
        visitor.page.fill("input[name=username]", "nobody-of-this-test")
        visitor.page.fill("input[name=password]", "wrong")
        visitor.page.click("button[type=submit]")
        visitor.page.wait_for_load_state()
    expect(visitor.page.get_by_text("Too many passwords were tried")).to_be_visible()
    visitor.shoot("sign-in-refused")
    assert [complaint[:3] for complaint in visitor.complaints] == ["429"]
    visitor.complaints.clear()
