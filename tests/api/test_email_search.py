"""GET /api/v1/emails as a search: who finds what, what it tells, what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient

from tests.documents import a_file, indexed
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.search.world import Known, World, a_user, a_world, newest

pytestmark = pytest.mark.django_db


def found(user: User, query: dict[str, Any]) -> dict[str, Any]:
    answer = asked(user, query | {"pageSize": 100})
    assert answer.status_code == 200, answer.content
    document: dict[str, Any] = answer.json()
    return document


SEARCHES = [
    {"q": "report"},
    {"q": "report", "count": "true", "facets": "true"},
    {"q": "report", "highlight": "true"},
    {"q": "in:inbox OR label:vip OR -nothing"},
    {"sort": "-date", "count": "true", "facets": "true"},
    {"sort": "relevance", "q": "annual"},
    {"recipient": "team", "facets": "true"},
    {"hasAttachment": "true"},
    {"label": "VIP"},
]


@pytest.fixture
def world(db: None) -> World:
    return a_world(size=40)


def asked(user: User | None, query: dict[str, Any]) -> Any:
    client = Client()
    if user:
        client.force_login(user)
    return client.get("/api/v1/emails", query)


class WhoMaySee:
    """Who finds what by each of some searches."""

    searches: list[dict[str, Any]]

    def test_anonymous_is_refused(self, world: World) -> None:
        for query in self.searches:
            assert asked(None, query).status_code == 401

    def test_a_stranger_finds_nothing_and_learns_no_number(self, world: World) -> None:
        for user in (a_user("stranger"), world.staff):
            for query in self.searches:
                document = found(user, query)
                nothing = {"number": 0, "more": False}
                assert document["results"] == []
                assert document.get("count", nothing) == nothing
                told = document.get("facets", {"of": 0, "values": {}})
                assert told["of"] == 0
                assert not any(told["values"].values())

    def test_an_owner_finds_their_own_alone(self, world: World) -> None:
        for user, mailboxes in ((world.owner, (0, 1, 2)), (world.other, (3,))):
            theirs = {str(world.mailboxes[number].pk) for number in mailboxes}
            addresses = {world.mailboxes[number].address for number in mailboxes}
            for query in self.searches:
                document = found(user, query)
                number = len(document["results"])
                assert number
                assert {email["mailboxId"] for email in document["results"]} <= theirs
                if "count" in document:
                    assert document["count"] == {"number": number, "more": False}
                if "facets" in document:
                    told = document["facets"]
                    assert told["of"] == number
                    assert {value["text"] for value in told["values"]["mailbox"]} <= addresses
                    folders = [value["text"].split("(")[1] for value in told["values"]["folder"]]
                    assert {folder.strip(")") for folder in folders} <= addresses

    def test_staff_who_may_see_messages_finds_all(self, world: World) -> None:
        for query in self.searches:
            owned = [found(user, query)["results"] for user in (world.owner, world.other)]
            assert len(found(world.reader, query)["results"]) == sum(map(len, owned))


class TestWhoMaySearch(WhoMaySee):
    searches = SEARCHES


def test_facets_count_what_is_found_and_each_leads_to_it(world: World) -> None:
    document = asked(world.reader, {"q": "report", "facets": "true", "pageSize": 100}).json()
    values = document["facets"]["values"]
    assert set(values) == {"sender", "mailbox", "folder", "label", "year", "attachment", "type"}
    assert values["year"] == [
        {"text": "2024", "count": document["facets"]["of"], "query": "on:2024"}
    ]
    for facet, told in values.items():
        for value in told[:2]:
            narrowed = f"report {value['query']}"
            answer = asked(world.reader, {"q": narrowed, "count": "true"}).json()
            assert answer["count"]["number"] == value["count"], (facet, narrowed)


def test_filters_are_parameters_too(world: World) -> None:
    one = world.known[0]
    source = one.message.mailbox.source_id
    cases: list[tuple[dict[str, Any], Callable[[Known], bool]]] = [
        ({"source": source}, lambda k: k.message.mailbox.source_id == source),
        ({"mailbox": one.message.mailbox_id}, lambda k: k.message.mailbox == one.message.mailbox),
        ({"folder": one.folder.pk}, lambda k: k.folder == one.folder and not k.removed),
        ({"label": "VIP"}, lambda k: "VIP" in k.labels and not k.removed),
        ({"sender": "ada@example.com"}, lambda k: k.sender == 0),
        ({"recipient": "team@example.com"}, lambda k: True),
        ({"subject": "report"}, lambda k: "report" in k.subject),
        ({"hasAttachment": "false"}, lambda k: not k.files),
        ({"receivedFrom": one.date.isoformat()}, lambda k: k.date >= one.date),
        (
            {"receivedBefore": one.date.isoformat(), "q": "subject:report"},
            lambda k: k.date < one.date and "report" in k.subject,
        ),
    ]
    for query, wanted in cases:
        results = found(world.reader, {"sort": "-date", **query})["results"]
        right = newest([known for known in world.known if wanted(known)])
        assert [email["id"] for email in results] == list(map(str, right)), query


def test_pages_lead_on_and_back(world: World) -> None:
    first = asked(world.reader, {"q": "-nothing", "pageSize": 15}).json()
    second = asked(
        world.reader, {"q": "-nothing", "pageSize": 15, "cursor": first["nextCursor"]}
    ).json()
    again = asked(
        world.reader, {"q": "-nothing", "pageSize": 15, "cursor": second["previousCursor"]}
    )
    assert first["previousCursor"] == ""
    assert again.json()["results"] == first["results"]
    assert {e["id"] for e in first["results"]}.isdisjoint(e["id"] for e in second["results"])


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ({"q": "a frm:ada"}, "q", 'There is no operator "frm:". Known: from:, to:'),
        ({"q": "a larger:big"}, "q", "(At character 10.)"),
        ({"q": "a", "cursor": "nonsense"}, "cursor", "Not a cursor of this list."),
        ({"q": "a", "sort": "-archived"}, "sort", "sorted by -date, date or relevance"),
        ({"q": "a", "sort": "size"}, "sort", "not a valid choice"),
        ({"recipient": "!"}, "recipient", "to: wants an address"),
        ({"subject": "!", "sort": "date"}, "subject", "subject: wants words"),
        ({"q": "a\0"}, "q", "Null characters"),
        ({"q": "x" * 2_001}, "q", "2000 characters"),
    ],
)
def test_what_is_no_search_is_refused_at_its_parameter(
    owner: User, query: dict[str, Any], field: str, said: str
) -> None:
    answer = asked(owner, query)
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["attr"] == field
    assert said in error["detail"]


def test_facets_are_told_whatever_strangers_call_themselves(owner: User) -> None:
    folder = a_folder(a_mailbox(a_source(owner)))
    strange = ("\u0363@\u24d0", '"ada"@example.com', "bob@example.com")
    bodies = (b"Subject: %d\r\n\r\n" % number for number in range(len(strange)))
    for message, address in zip(archived(folder, *bodies), strange, strict=True):
        indexed(message, participants=(("from", address, ""),))
    senders = found(owner, {"facets": "true"})["facets"]["values"]["sender"]
    assert [value["text"] for value in senders] == ['"ada"@example.com', "bob@example.com"]
    for value in senders:
        assert len(found(owner, {"q": value["query"]})["results"]) == value["count"] == 1


def test_facets_count_no_part_of_a_text_for_an_attachment(owner: User) -> None:
    folder = a_folder(a_mailbox(a_source(owner)))
    [message] = archived(folder, b"Subject: one\r\n\r\n")
    inline = a_file("logo.png", "image/png", inline=True)
    indexed(message, attachments=(inline,))
    values = found(owner, {"facets": "true"})["facets"]["values"]
    assert (values["attachment"], values["type"]) == ([], [])


def test_highlights_are_pieces_of_what_the_bytes_say(owner: User, archive_dir: object) -> None:
    folder = a_folder(a_mailbox(a_source(owner)))
    bodies = [
        b"Subject: The needle & <b>\r\nContent-Type: text/plain\r\n\r\nHay hay.\r\nA needle <i>here</i>.\r\n",
        b"Subject: enclosed\r\n\r\nSee the file.\r\n",
    ]
    messages = archived(folder, *bodies)
    indexed(messages[0], "Hay hay. A needle <i>here</i>.")
    indexed(messages[1], "See the file.", attachments=(a_file("needle.pdf"),))
    results = asked(owner, {"q": "needle", "highlight": "true", "sort": "date"}).json()["results"]
    by_subject = {email["subject"]: email["highlight"] for email in results}
    assert by_subject["The needle & <b>"] == {
        "subject": [
            {"text": "The ", "found": False},
            {"text": "needle", "found": True},
            {"text": " & <b>", "found": False},
        ],
        "text": [
            {"text": "Hay hay. A ", "found": False},
            {"text": "needle", "found": True},
            {"text": " <i>here</i>.", "found": False},
        ],
    }
    assert by_subject["enclosed"]["text"] == []
    plain = asked(owner, {"q": "needle"}).json()["results"][0]
    assert plain["highlight"] is None
    assert plain["preview"]


def test_what_can_not_be_read_in_time_has_no_highlight(world: World) -> None:
    """Their packs are not there at all."""
    found = asked(world.reader, {"q": "report", "highlight": "true"}).json()["results"]
    assert found
    assert all(email["highlight"] is None for email in found)


def test_a_pack_that_cannot_be_opened_costs_its_own_highlights_alone(
    owner: User, archive_dir: Path
) -> None:
    mailbox = a_mailbox(a_source(owner))
    (lost,) = archived(a_folder(mailbox), b"Subject: lost\r\n\r\nA needle.\r\n")
    [path] = archive_dir.rglob("*.pack")
    (whole,) = archived(a_folder(mailbox, "Other"), b"Subject: whole\r\n\r\nA needle.\r\n")
    for message in (lost, whole):
        indexed(message, "A needle.")
    path.unlink()
    path.mkdir()
    results = asked(owner, {"q": "needle", "highlight": "true"}).json()["results"]
    assert {email["subject"]: bool(email["highlight"]) for email in results} == {
        "lost": False,
        "whole": True,
    }


def test_a_key_needs_the_scope_to_read(world: World, make_key: Any) -> None:
    for scopes, status in ((("read",), 200), (("export",), 403)):
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_key(world.owner, scopes)}")
        assert client.get("/api/v1/emails?q=report").status_code == status


def test_a_key_that_may_not_take_mail_out_gets_none_of_its_text(
    world: World, make_key: Any
) -> None:
    for scopes, status in ((("read",), 403), (("read", "export"), 200)):
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_key(world.owner, scopes)}")
        assert client.get("/api/v1/emails?q=report&highlight=true").status_code == status
        emails = client.get("/api/v1/emails?q=report").json()["results"]
        assert emails
        assert {email["preview"] is None for email in emails} == {status == 403}
