"""One at a time does a piece of work, for as long as it takes."""

import time
import uuid

import pytest
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ingestion.services.engine import claims

pytestmark = pytest.mark.django_db(transaction=True)
WORK = ("a kind", uuid.uuid4())


@pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_claim_outlives_what_the_server_allows_to_transactions(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = connection.settings_dict["OPTIONS"]
    brief = f"{options.get('options', '')} -c {limit}=50ms"
    monkeypatch.setitem(options, "options", brief)
    with claims.claimed(*WORK) as first:
        time.sleep(0.3)
        with claims.claimed(*WORK) as second:
            assert (first, second) == (True, False)
    with claims.held_off(*WORK):
        time.sleep(0.3)
        with claims.claimed(*WORK) as third:
            assert not third
    with claims.claimed(*WORK) as last:
        assert last


def test_a_claim_is_let_go_before_its_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sees a closed connection only some time later."""
    wrapper = type(connections["default"])
    close, others = wrapper.close, []

    def closing(self: BaseDatabaseWrapper) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            others.append(cursor.fetchone()[0])
        close(self)

    with monkeypatch.context() as patched:
        patched.setattr(wrapper, "close", closing)
        with claims.claimed(*WORK):
            pass
        with claims.held_off(*WORK):
            pass
        with pytest.raises(ZeroDivisionError), claims.claimed(*WORK):
            raise ZeroDivisionError
    assert others == [0, 0, 0]
