"""Passwords can't be tried without end, the first one can't be guessed, and sessions end."""

import datetime as dt
import time
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.test import Client, RequestFactory
from django.utils import timezone

from ingestion.addresses import client_address
from ingestion.models import AuditEvent
from ingestion.services.audit import SYSTEM, Actor
from ingestion.services.operations import api_keys, signing_in
from ingestion.signin import single
from ingestion_project import bootstrap

pytestmark = pytest.mark.django_db
RIGHT = "the-root-of-the-tests"


@pytest.fixture(autouse=True)
def quick(settings: Any) -> None:
    """Hundreds of passwords are tried here; what a hash costs is not the subject."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    cache.clear()


@pytest.fixture
def root() -> User:
    return User.objects.create_superuser("root", password=RIGHT)


def try_to(username: str, password: str, address: str = "198.51.100.7") -> Any:
    form = {"username": username, "password": password}
    return Client(REMOTE_ADDR=address).post("/admin/login/", form)


def test_the_right_password_is_not_looked_at_after_too_many_wrong_ones(root: User) -> None:
    for number in range(signing_in.TRIES_PER_USER):
        answer = try_to("root", f"wrong {number}", f"198.51.100.{number}")
        assert answer.status_code == 200
    for name in ("root", "ROOT"):
        answer = try_to(name, RIGHT, "203.0.113.9")
        assert answer.status_code == 429
        assert 0 < int(answer["Retry-After"]) <= signing_in.WINDOW_SECONDS
        assert "Too many passwords" in answer.content.decode()
    assert try_to("other", "wrong", "203.0.113.9").status_code == 200


def test_a_clock_that_is_set_back_keeps_nobody_out_for_as_long(root: User) -> None:
    for _ in range(signing_in.TRIES_PER_USER):
        try_to("root", "wrong")
    assert try_to("root", RIGHT).status_code == 429
    ends = f"{signing_in._user_key('root', signing_in.PASSWORD)}:ends"
    cache.set(ends, cache.get(ends) + 3_600, timeout=3_900)
    assert try_to("root", RIGHT).status_code == 302


def test_one_address_may_not_try_many_users(root: User) -> None:
    for number in range(signing_in.TRIES_PER_ADDRESS):
        try_to(f"user{number}", "wrong", f"2001:db8::{number:x}")
    assert try_to("root", RIGHT, "2001:db8::ffff").status_code == 429
    assert try_to("root", RIGHT, "2001:db8:0:1::1").status_code == 302


def test_a_try_does_not_put_off_when_the_next_may_be_made(root: User, settings: Any) -> None:
    try_to("root", "wrong")
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        keys = list(client.scan_iter("*sign-in:*"))
        assert keys
        for key in keys:
            assert 0 < client.ttl(key) <= signing_in.WINDOW_SECONDS
            client.expire(key, 60)
        try_to("root", "wrong")
        assert all(client.ttl(key) <= 60 for key in keys)


def test_who_signs_in_begins_anew(root: User) -> None:
    for round_ in range(3):
        for number in range(signing_in.TRIES_PER_USER - 1):
            try_to("root", "wrong", f"198.51.{round_}.{number}")
        assert try_to("root", RIGHT, f"198.51.{round_}.99").status_code == 302
    for _ in range(signing_in.TRIES_PER_ADDRESS + 1):
        assert try_to("root", RIGHT).status_code == 302


def test_nobody_fills_the_audit_with_sign_ins_that_no_browser_began(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.OIDC_ISSUER = issuer = "http://127.0.0.1:9"
    app = {"provider_id": "sso", "client_id": "x", "settings": {"server_url": issuer}}
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"APPS": [app]}}
    monkeypatch.setattr(single, "_REQUESTS_OF_ADDRESS", 3)
    client = Client(REMOTE_ADDR="2001:db8::1")
    for error in ("", "?error=access_denied", "?state=of-somebody-else"):
        assert client.get(f"/account/sso/callback/{error}").status_code == 403
    for path in ("callback", "login", "logout"):
        refused = Client(REMOTE_ADDR="2001:db8::2").get(f"/account/sso/{path}/")
        assert refused.status_code == 429
        assert 0 < int(refused["Retry-After"]) <= signing_in.WINDOW_SECONDS
    assert client.get("/account/sso/login/", REMOTE_ADDR="192.0.2.1").status_code == 502
    assert not AuditEvent.objects.exists()


def ends_in_seconds(client: Client) -> float:
    return (client.session.get_expiry_date() - timezone.now()).total_seconds()


def let_end_in(client: Client, seconds: float, *, latest: float | None = None) -> None:
    """Make it later: `seconds` are left until the session ends, `latest` until it must."""
    session = client.session
    session.set_expiry(timezone.now() + dt.timedelta(seconds=seconds))
    if latest is not None:
        session["latest_end"] = time.time() + latest
    session.save()


def test_a_session_ends_half_an_hour_after_its_persons_last_request(root: User) -> None:
    client = Client()
    client.post("/admin/login/", {"username": "root", "password": RIGHT})
    assert 1790 < ends_in_seconds(client) <= 1800
    let_end_in(client, 60)
    page_by_itself = {"X-Background": "live"}
    assert client.get("/admin/", headers=page_by_itself).status_code == 200
    assert ends_in_seconds(client) <= 60
    assert client.get("/admin/").status_code == 200
    assert ends_in_seconds(client) > 1790
    let_end_in(client, -1)
    assert client.get("/admin/").status_code == 302
    assert client.get("/api/v1/ingestion").status_code == 401


def test_only_what_a_page_asks_by_itself_has_no_line_in_the_log(
    root: User, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = api_keys.create(root, name="program", actor=SYSTEM)
    page = Client(headers={"X-Background": "live"})
    page.get("/admin/login/")
    page.post("/admin/login/", {"username": "root", "password": RIGHT})
    page.get("/admin/")
    page.get("/api/v1/ingestion")
    program = {"X-Background": "live", "Authorization": f"Bearer {key}"}
    Client(headers=program).get("/api/v1/ingestion")
    lines = [dict(record.msg) for record in caplog.records if isinstance(record.msg, dict)]
    assert [line["request"] for line in lines if line["event"] == "request_finished"] == [
        "GET /admin/login/", "POST /admin/login/", *["GET /api/v1/ingestion"] * 2,
    ]  # fmt: skip


def test_a_session_ends_half_a_day_after_its_sign_in_however_busy(root: User) -> None:
    client = Client()
    client.post("/admin/login/", {"username": "root", "password": RIGHT})
    assert 0 < client.session["latest_end"] - time.time() <= 12 * 3600
    let_end_in(client, 30, latest=300)
    client.get("/admin/")
    assert 290 < ends_in_seconds(client) <= 300


def test_what_a_key_does_begins_no_session(root: User) -> None:
    _, plain = api_keys.create(root, name="program", actor=SYSTEM)
    answer = Client().get("/api/v1/ingestion", headers={"Authorization": f"Bearer {plain}"})
    assert (answer.status_code, answer.cookies) == (200, {})
    assert not Session.objects.exists()


@pytest.mark.parametrize("password", ["a", "password1234", "administrator", "admin-admin"])
def test_a_first_password_that_is_easy_to_guess_is_refused(password: str) -> None:
    with pytest.raises(ValidationError):
        bootstrap.create_first_admin(password=password)
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "expected"),
    [
        ([], "192.0.2.1", "8.8.8.8", "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", "8.8.8.8", "8.8.8.8"),
        (["192.0.2.1"], "192.0.2.2", "8.8.8.8", "192.0.2.2"),
        (["192.0.2.0/24"], "192.0.2.1", "1.1.1.1, 8.8.8.8, 192.0.2.9", "8.8.8.8"),
        (["192.0.2.0/24"], "::ffff:192.0.2.1", "1.1.1.1,2001:db8::1", "2001:db8::1"),
        (["192.0.2.1"], "192.0.2.1", "8.8.8.8, no address", "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", "", "192.0.2.1"),
        (["192.0.2.1"], "", "8.8.8.8", None),
    ],
)
def test_only_known_proxies_say_where_a_request_comes_from(
    settings: Any, proxies: list[str], peer: str, forwarded: str, expected: str | None
) -> None:
    settings.TRUSTED_PROXIES = proxies
    request = RequestFactory(REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded).get("/")
    assert client_address(request) == expected
    request.user = User(username="root")
    assert Actor.of_request(request).address == expected
