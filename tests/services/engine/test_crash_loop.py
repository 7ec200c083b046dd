"""Workers that die soon after their start, whatever they do: no message is blamed for it."""

import os
import signal

import pytest
from django.conf import settings

from ingestion.models import FailedMessage, IngestionSource, Mailbox, Message
from tests.servers.mortal import MortalProcess
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import (
    assert_exact,
    fill,
    finish,
    start,
    work_as_soon_as_it_is_free,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_workers_that_die_at_once_blame_no_message(
    server: Server,
    source: IngestionSource,
) -> None:
    """Each dies when it is handed its first message. Were that the same one each time, the third
    death would set aside, or leave unparsed, a message that is as good as any."""
    fill(server, 8)
    start(source)
    handed: list[int] = []

    def die(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    server.before_message = die
    for _ in range(6):
        with MortalProcess(
            work_as_soon_as_it_is_free, at_step=None, directory=settings.ARCHIVE_DIR
        ) as worker:
            assert worker.wait(), "it died"
    deaths = list(FailedMessage.objects.values_list("code", "attempts"))
    assert deaths == [("worker_died", 1)] * 5  # the first was not careful yet
    assert Message.objects.count() == 0

    server.before_message = handed.append
    assert finish(source).message == "8 archived."
    assert len(handed) == 8
    assert_exact(server, source)
    assert not FailedMessage.objects.exists()
    assert not Message.objects.exclude(defects=[]).exists()
    assert Mailbox.objects.get().worker_deaths == 0
