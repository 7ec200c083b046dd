"""GET /api/v1/changes over HTTP: who may, what is refused, and how it waits."""

import base64
import concurrent.futures
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.contrib.auth.models import User

from ingestion.api import changes
from ingestion.models import Folder, Message, Placement
from tests.e2e import rows
from tests.servers import people

if TYPE_CHECKING:
    from tests.servers.stack import Service

PATH = "/changes"
#: A key of each of these, and how many changes of two messages it is told.
MAY = [("owner", 2), ("other", 0), ("staff who may not read mail", 0), ("staff", 2)]


@pytest.fixture
def folder(service: "Service", owner: User) -> Folder:
    return rows.a_folder(rows.a_mailbox(rows.a_source(owner)))


@pytest.fixture
def mail(folder: Folder) -> list[Message]:
    return rows.archived(folder, b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")


@pytest.fixture
def user(request: pytest.FixtureRequest, owner: User, other_user: User) -> User:
    if request.param == "owner":
        return owner
    if request.param == "other":
        return other_user
    may = ["view_ingestionsource"] + (["view_message"] if request.param == "staff" else [])
    return people.staff("operator", *may)


def test_nobody_is_told_anything_without_a_key(api: httpx.Client, mail: list[Message]) -> None:
    answer = api.get(PATH, headers={"Authorization": ""})
    assert answer.status_code == 401


@pytest.mark.parametrize(("user", "count"), MAY, indirect=["user"], ids=[name for name, _ in MAY])
def test_who_sees_the_mail_is_told_of_its_changes(
    api: httpx.Client, make_key: Callable[..., str], mail: list[Message], user: User, count: int
) -> None:
    headers = {"Authorization": f"Bearer {make_key(user, ('read',))}"}
    answer = api.get(PATH, headers=headers)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["changes"]) == count


def test_a_key_needs_the_scope_read(
    api: httpx.Client, make_key: Callable[..., str], owner: User
) -> None:
    headers = {"Authorization": f"Bearer {make_key(owner, ('write', 'export'))}"}
    assert api.get(PATH, headers=headers).status_code == 403


def test_a_change_says_what_is_where(
    api: httpx.Client, folder: Folder, mail: list[Message]
) -> None:
    Placement.objects.filter(message=mail[0]).update(labels=["Work"])
    first = api.get(PATH, params={"limit": 1}).json()
    assert first["more"] is True
    [change] = first["changes"]
    assert change["cursor"] == first["cursor"]
    placed = Placement.objects.get(message=mail[1])
    assert change == {
        "kind": "message.placed",
        "cursor": first["cursor"],
        "sourceId": str(folder.mailbox.source_id),
        "mailboxId": str(folder.mailbox_id),
        "mailbox": "ada@example.com",
        "folderId": folder.pk,
        "folder": "INBOX",
        "placementId": placed.pk,
        "messageId": str(mail[1].pk),
        "sha256": mail[1].sha256_hex,
        "sizeBytes": mail[1].size_bytes,
        "labels": [],
        "firstSeenAt": placed.first_seen_at.isoformat().replace("+00:00", "Z"),
        "removedAt": None,
    }
    second = api.get(PATH, params={"after": first["cursor"]}).json()
    assert second["more"] is False
    assert [(c["kind"], c["labels"]) for c in second["changes"]] == [
        ("placement.changed", ["Work"]),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("after", "nonsense"),
        ("limit", "0"),
        ("limit", "2001"),
        ("wait", "31"),
        ("source", "x"),
        ("since", "1"),
    ],
)
def test_a_wrong_parameter_is_named(api: httpx.Client, name: str, value: str) -> None:
    answer = api.get(PATH, params={name: value})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["attr"] == name


def test_a_cursor_of_another_database_is_answered_gone(
    api: httpx.Client, mail: list[Message]
) -> None:
    """It has the place of one of this database, which may hold other things by now."""
    cursor = api.get(PATH).json()["cursor"]
    told = json.loads(base64.urlsafe_b64decode(cursor + "=="))
    other = base64.urlsafe_b64encode(json.dumps(["0" * 12, *told[1:]]).encode()).decode()
    answer = api.get(PATH, params={"after": other})
    assert answer.status_code == 410
    [error] = answer.json()["errors"]
    assert error["code"] == "cursor_of_another_database"
    assert "read again from the beginning" in error["detail"]


# -- waiting -----------------------------------------------------------------------------------


@pytest.fixture
def asks() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        yield pool


def _waiting(api: httpx.Client, wait: int) -> httpx.Response:
    now = api.get(PATH, params={"after": "now"}).json()["cursor"]
    return api.get(PATH, params={"after": now, "wait": wait}, timeout=60)


def test_who_waits_is_told_of_a_change_that_comes(
    api: httpx.Client, mail: list[Message], asks: concurrent.futures.ThreadPoolExecutor
) -> None:
    now = api.get(PATH, params={"after": "now"}).json()["cursor"]
    answer = asks.submit(api.get, PATH, params={"after": now, "wait": 30}, timeout=60)
    assert not concurrent.futures.wait([answer], timeout=1).done, "there is nothing to tell"
    Placement.objects.filter(message=mail[0]).update(labels=["new"])
    [change] = answer.result(timeout=25).json()["changes"]
    assert change["labels"] == ["new"]
    assert answer.result().elapsed.total_seconds() < 29


def test_who_waits_in_vain_is_told_so_in_time(api: httpx.Client, mail: list[Message]) -> None:
    began = time.monotonic()
    page = _waiting(api, 1).json()
    assert page["changes"] == []
    assert page["more"] is False
    assert time.monotonic() - began >= 1


def test_few_of_one_user_wait_at_a_time(
    api: httpx.Client,
    mail: list[Message],
    asks: concurrent.futures.ThreadPoolExecutor,
    wait_for: Callable[..., Any],
) -> None:
    """There are two web processes, and a thread is left for whoever asks beside."""
    most = 2 * changes.MAX_OF_A_USER
    now = api.get(PATH, params={"after": "now"}).json()["cursor"]
    wait = {"after": now, "wait": 30}
    answers = [asks.submit(api.get, PATH, params=wait, timeout=60) for _ in range(most + 8)]

    def answered() -> list[httpx.Response]:
        return [answer.result() for answer in answers if answer.done()]

    wait_for(lambda: len(answered()) >= 8)
    assert {answer.status_code for answer in answered()} == {429}
    assert int(answered()[0].headers["Retry-After"]) >= 1
    Placement.objects.update(labels=["new"])
    codes = [answer.result().status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) <= most


def test_who_hangs_up_waits_no_longer(
    api: httpx.Client,
    mail: list[Message],
    asks: concurrent.futures.ThreadPoolExecutor,
    wait_for: Callable[..., Any],
) -> None:
    """A program that is killed again and again does not wait for the one that it was before."""
    now = api.get(PATH, params={"after": "now"}).json()["cursor"]

    def has_waited_and_hung_up() -> bool:
        """False where those before have all places still."""
        wait = {"after": now, "wait": 30}
        try:
            return api.get(PATH, params=wait, timeout=httpx.Timeout(60, read=0.5)).is_success
        except httpx.ReadTimeout:
            return True

    last = {"after": now, "wait": 1}
    for _ in range(3):  # not more at a time than may; in all, more than there are places
        list(asks.map(lambda _: wait_for(has_waited_and_hung_up, 15), range(3)))
        wait_for(lambda: api.get(PATH, params=last).status_code == 200)
