"""When credentials expire: told by a person, or read from the certificate, and where it is shown."""

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User

from ingestion import expiry
from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration
from tests.connectors.microsoft.test_login import certificate
from tests.e2e.rows import CONFIG, SECRET, a_source
from tests.servers.command_line import CommandLine

pytestmark = pytest.mark.django_db

ACTOR = Actor.system("tests")
DAY = dt.date(2030, 5, 31)


@pytest.fixture
def source(owner: User) -> IngestionSource:
    made = a_source(owner)
    return changed(made, options={expiry.OPTION: str(DAY)})


def changed(source: IngestionSource, **changes: Any) -> IngestionSource:
    return configuration.update(source, changes=changes, actor=ACTOR)


def test_somebody_tells_it(source: IngestionSource) -> None:
    assert expiry.of(source) == DAY
    assert expiry.of(changed(source, options={expiry.OPTION: None})) is None
    with pytest.raises(InvalidInput):
        changed(source, options={expiry.OPTION: "31.5.2030"})


def test_another_secret_forgets_it_and_the_same_does_not(source: IngestionSource) -> None:
    assert expiry.of(changed(source, name="Other", providerConfig={"port": 993})) == DAY
    again = {"password": SECRET, "username": CONFIG["username"]}
    assert expiry.of(changed(source, providerConfig=again)) == DAY
    later = {expiry.OPTION: "2031-01-01"}
    told = changed(source, providerConfig={"password": "new"}, options=later)
    assert expiry.of(told) == dt.date(2031, 1, 1)
    assert expiry.of(changed(source, providerConfig={"password": "newer"})) is None


def test_another_provider_forgets_it(owner: User) -> None:
    source = configuration.create(
        owner=owner,
        name="One",
        provider="microsoft",
        provider_config={"clientId": "app", "clientSecret": "x", "email": "ada@example.com"},
        options={expiry.OPTION: str(DAY)},
        actor=ACTOR,
    )
    moved = changed(source, provider="generic_imap", providerConfig=CONFIG)
    assert expiry.of(moved) is None


def test_what_a_sign_in_gives_is_no_other_secret(owner: User) -> None:
    source = configuration.create(
        owner=owner,
        name="One",
        provider="microsoft",
        provider_config={"clientId": "app", "clientSecret": "x", "email": "ada@example.com"},
        options={expiry.OPTION: str(DAY)},
        actor=ACTOR,
    )
    signed_in = configuration.reconnect(source, {"refreshToken": "r"}, actor=ACTOR)
    assert expiry.of(signed_in) == DAY


def with_certificate(owner: User, **options: str) -> tuple[IngestionSource, dt.date]:
    """A source whose certificate ends on a day."""
    made, public, private = certificate()
    source = configuration.create(
        owner=owner,
        name="Tenant",
        provider="microsoft",
        provider_config={
            "tenantId": "contoso.example",
            "clientId": "app",
            "certificatePem": public,
            "certificatePrivateKeyPem": private,
        },
        options=options,
        actor=ACTOR,
    )
    return source, made.not_valid_after_utc.date()


def test_a_certificate_says_it_itself(owner: User) -> None:
    source, ends = with_certificate(owner, **{expiry.OPTION: str(DAY)})
    assert expiry.of(source) == ends, "the earlier of both"
    assert expiry.days_left(ends) in (0, 1)


def test_all_of_which_somebody_knows_are_found_in_one_question(
    source: IngestionSource, owner: User, django_assert_num_queries: Any
) -> None:
    tenant, ends = with_certificate(owner)
    silent = a_source(owner, "Silent")
    forgot = changed(a_source(owner, "Forgot"), options={expiry.OPTION: None})
    with django_assert_num_queries(1):
        known = list(expiry.known(IngestionSource.objects.order_by("created_at")))
    assert known == [(source, DAY), (tenant, ends)]
    assert not {silent, forgot} & {one for one, _ in known}


@pytest.mark.django_db(transaction=True)
def test_the_command_line_takes_it(manage: CommandLine, source: IngestionSource) -> None:
    given = ("update_source", "Sales", "--credentials-expire-on", "2032-02-29", "--json")
    told = manage.here(*given).json()
    assert told["options"][expiry.OPTION] == told["credentialsExpireOn"] == "2032-02-29"
    assert (
        "Expires:   the credentials, on 2032-02-29" in manage.here("source_status", "Sales").stdout
    )
    source.refresh_from_db()
    assert expiry.of(source) == dt.date(2032, 2, 29)
