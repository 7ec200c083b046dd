"""What each class of error means, for all who ask a provider."""

import errno
import random
import string
import tempfile
import uuid

import pytest
from django.db import OperationalError, transaction

from connectors import errors
from connectors.config import ConfigError
from connectors.errors import MessageRefused
from connectors.types import SpooledBody
from ingestion.errors import CredentialsUnreadable, LeaseLost, LostRace
from ingestion.models import Folder
from ingestion.services.engine import trouble
from ingestion.services.engine.trouble import Action


@pytest.mark.parametrize(
    ("error", "action", "code"),
    [
        (errors.Unavailable("Away."), Action.RETRY, "unavailable"),
        (errors.RateLimited("Busy."), Action.RETRY, "rate_limited"),
        (CredentialsUnreadable(), Action.RETRY, "credentials_unreadable"),
        (errors.NeedsReauth("Refused."), Action.REAUTH, "needs_reauth"),
        (errors.MailboxUnavailable("No licence."), Action.MAILBOX, "mailbox_unavailable"),
        (errors.FolderRefused("No permission."), Action.FOLDER, "folder_refused"),
        (errors.Fatal("No IMAP.", code="not_imap"), Action.STOP, "not_imap"),
        (ConfigError({"host": ["Is missing."]}), Action.STOP, "invalid_config"),
        (errors.CursorExpired("Nobody expected it here."), Action.BUG, "internal_error"),
        (KeyError("of ours"), Action.BUG, "internal_error"),
    ],
)
def test_an_error_says_what_is_to_be_done(error: Exception, action: Action, code: str) -> None:
    found = trouble.of(error)
    assert (found.action, found.code) == (action, code)


def test_a_bug_is_not_quoted() -> None:
    assert "hunter2" not in trouble.of(ValueError("hunter2")).text


@pytest.mark.parametrize("error", [LeaseLost(), LostRace(), OperationalError()])
def test_what_is_no_trouble_of_a_provider_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        trouble.of(error)


@pytest.mark.django_db
def test_a_row_that_the_database_never_takes_is_a_bug_and_no_outage() -> None:
    name = "".join(random.Random(7).choices(string.ascii_letters, k=8_000))
    with pytest.raises(OperationalError) as caught, transaction.atomic():
        Folder.objects.create(mailbox_id=uuid.uuid4(), remote_id=name, path="Long")
    assert trouble.of(caught.value).action is Action.BUG


def test_a_server_is_not_asked_before_its_own_time() -> None:
    found = trouble.of(errors.RateLimited("Busy.", retry_after_seconds=7_200))
    wait = found.wait(1)
    assert wait is not None
    assert wait.total_seconds() >= 7_200


def test_refused_logins_are_counted_by_themselves_and_end() -> None:
    refused = trouble.of(errors.NeedsReauth("Refused."))
    assert refused.failures(4, "unavailable") == 1
    assert refused.failures(2, "needs_reauth") == 3
    assert [refused.wait(count) is None for count in (1, 2, 3)] == [False, False, True]


def test_a_full_disk_is_told_also_where_no_temporary_directory_can_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    monkeypatch.setenv("TMPDIR", "/full")
    with pytest.raises(MessageRefused, match=r"TMPDIR \(/full\)"):
        SpooledBody.begin()
    assert "TMPDIR (/full)" in trouble.of_archive(OSError(errno.ENOSPC, "No space left")).text
