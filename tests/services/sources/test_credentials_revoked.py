"""A password or token that is revoked in the middle of an import, and then replaced."""

from collections.abc import Iterator

import pytest

from ingestion.models import Message, StatusChange
from ingestion.services.sources import configuration, credentials
from tests.servers import imap_source
from tests.servers.imap_script import MODERN, Client, ImapScript
from tests.servers.imap_source import ACTOR, Sent, archived, held_by

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript(capabilities=[*MODERN, "AUTH=XOAUTH2"]) as script:
        for number in range(40):
            script.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
        yield script


@pytest.mark.parametrize("kind", ["password", "accessToken"])
def test_credentials_revoked_halfway(server: ImapScript, kind: str) -> None:
    given = {"password": "", kind: server.password}
    source = imap_source.create(server, **given)

    def revoke(client: Client, uid: int) -> None:
        if uid == 20 and server.password != "the new one":
            server.password = "the new one"
            client.hang_up()

    server.before_each_mail = revoke
    sent = Sent(server)
    imap_source.start(source)
    for _ in range(4):  # the drop, and then three refused logins: no accident
        source.refresh_from_db()
        assert source.status == "importing"
        imap_source.work(source)
    source.refresh_from_db()
    assert source.status == "error"
    assert "refused" in source.status_message
    assert "s3cret-canary" not in source.status_message
    assert StatusChange.objects.latest("id").reason == source.status_message
    assert Message.objects.count() == 19

    source = configuration.update(
        source, changes={"providerConfig": {kind: "the new one"}}, actor=ACTOR
    )
    assert source.status == "pending_auth"
    assert credentials.check(source, actor=ACTOR).ok
    assert imap_source.imported(source).messages_new == 21
    assert sent.times == {uid: 1 + (uid == 20) for uid in range(1, 41)}  # none is downloaded again
    assert archived(source) == held_by(server)
    source.refresh_from_db()
    assert source.status == "active"
