"""The mail view without a browser: who sees what, at which cost, and that mail stays text."""

import datetime as dt
import html
import re
import uuid

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import QueryDict
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion.admin.mail import places, rows
from ingestion.admin.mail.asked import Asked
from ingestion.models import (
    INDEX_VERSION,
    AuditEvent,
    Document,
    Folder,
    Message,
    Pack,
    Placement,
    SavedSearch,
)
from ingestion.search import pages as search_pages
from ingestion.search import readings, words
from tests.documents import a_file, indexed
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

MAIL = "/admin/mail/"
_BOX = uuid.UUID("0b1e7a52-5a6e-4a3c-9a5e-3d3a4cf6f0aa")
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def _mail(folder: Folder, count: int = 1, subject: str = "Mail") -> list[Message]:
    bodies = [
        f"From: Ada <ada@example.com>\r\nSubject: {subject} {number}\r\n\r\n{folder.pk}".encode()
        for number in range(count)
    ]
    found = archived(folder, *bodies)
    for number, message in enumerate(found):
        indexed(message, f"the text of {subject} {number}", thread=number % 3)
    return found


def _client(user: User) -> Client:
    client = Client()
    client.force_login(user)
    client.get("/admin/login/")  # a session's first request writes down when it was
    return client


@pytest.fixture
def reader(other_user: User) -> User:
    """One of the staff who may see sources and mail."""
    return _allowed(other_user, "view_ingestionsource", "view_message")


def _allowed(user: User, *codenames: str) -> User:
    user.is_staff = True
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


# -- who -----------------------------------------------------------------------------------------


def test_who_is_not_signed_in_is_asked_to(db: None) -> None:
    assert Client().get(MAIL).url.startswith("/admin/login/")  # type: ignore[attr-defined] # a redirect


def test_staff_without_the_permission_to_see_mail_are_refused(other_user: User) -> None:
    client = _client(_allowed(other_user, "view_ingestionsource"))
    assert client.get(MAIL).status_code == 403
    assert client.post(f"{MAIL}searches/", {"name": "n", "query": "q"}).status_code == 403
    assert 'href="/admin/mail/"' not in client.get("/admin/").content.decode()


def test_the_menu_leads_there_who_may_see_mail(reader: User) -> None:
    assert 'href="/admin/mail/"' in _client(reader).get("/admin/").content.decode()


def test_staff_who_may_not_see_sources_see_the_mail_of_their_own(
    admin_user: User, other_user: User
) -> None:
    theirs = a_folder(a_mailbox(a_source(admin_user, "Secret"), "boss@example.com"), "Hidden")
    (foreign,) = _mail(theirs, subject="Foreign")
    own = a_folder(a_mailbox(a_source(other_user, "Mine"), "me@example.com"))
    (mine,) = _mail(own, subject="Mine")
    client = _client(_allowed(other_user, "view_message"))
    for asked in (
        Asked(),
        Asked(q="Foreign"),
        Asked(mailbox=theirs.mailbox_id),
        Asked(mailbox=theirs.mailbox_id, folder=theirs.pk),
    ):
        page = client.get(asked.url()).content.decode()
        for secret in ("Foreign 0", "Secret", "boss@example.com", "Hidden"):
            assert secret not in page, (asked, secret)
    assert "Mine 0" in client.get(MAIL).content.decode()
    assert client.get(Asked().url(mine.pk)).status_code == 200
    assert client.get(Asked().url(foreign.pk)).status_code == 404


def test_a_conversation_is_read_within_its_list(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    first, *_, other = _mail(folder, 4)  # every third is of one thread
    asked = Asked(q="text", mailbox=folder.mailbox_id)
    page = _client(reader).get(asked.url(first.pk)).content.decode()
    assert f'href="{asked.url(other.pk)}" data-go="message"' in html.unescape(page)


def test_the_own_page_of_a_message_goes_through_the_same_list(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    message = _mail(folder, 3)[1]
    for asked, q in (
        (Asked(), ""),
        (Asked(q="text", mailbox=folder.mailbox_id), f"mailbox:{folder.mailbox_id} text"),
        (Asked(q='"unclosed'), ""),
    ):
        page = _client(reader).get(asked.url(message.pk)).content.decode()
        (href,) = re.findall(r'href="([^"]+)" aria-label="The message.s own page', page)
        address, _, query = html.unescape(href).partition("?")
        assert address == f"/admin/ingestion/message/{message.pk}/change/"
        assert QueryDict(query).get("q", "") == q


def test_the_mail_of_a_source_that_is_being_deleted_is_gone(reader: User) -> None:
    source = a_source(reader)
    (message,) = _mail(a_folder(a_mailbox(source)), subject="Deleted")
    source.deleted_at = timezone.now()
    source.save()
    client = _client(reader)
    assert "Deleted 0" not in client.get(MAIL).content.decode()
    assert client.get(Asked().url(message.pk)).status_code == 404


def test_opening_a_message_is_audited_and_listing_it_is_not(reader: User) -> None:
    (message,) = _mail(a_folder(a_mailbox(a_source(reader))))
    client = _client(reader)
    client.get(MAIL)
    assert not AuditEvent.objects.filter(action="message.read").exists()
    client.get(Asked().url(message.pk))
    client.get(Asked().url(message.pk), headers={"X-Panes": "list"})
    read = AuditEvent.objects.get(action="message.read")
    assert read.changes["message"] == str(message.pk)


# -- what it costs -------------------------------------------------------------------------------


def test_the_number_of_queries_depends_on_neither_mail_nor_places(reader: User) -> None:
    source = a_source(reader)
    folder = a_folder(a_mailbox(source), "INBOX", role="inbox")
    _mail(folder, 2)
    Placement.objects.update(labels=["Customers"])
    a_mailbox(source, "other@example.com")  # the only one would be open from the beginning
    client = _client(reader)
    asked = Asked(mailbox=folder.mailbox_id, folder=folder.pk)
    pages = [asked.url(), Asked().url(), asked.url(Message.objects.latest("pk").pk)]

    def cost() -> list[int]:
        counted = []
        for page in pages:
            with CaptureQueriesContext(connection) as queries:
                assert client.get(page).status_code == 200
            counted.append(len(queries))
        return counted

    few = cost()
    for number in range(12):
        _mail(a_folder(folder.mailbox, f"Archive/{number}"), 3, subject=f"More {number}")
        a_mailbox(source, f"box{number}@example.com")
        SavedSearch.objects.create(owner=reader, name=f"Search {number}", query="invoice")
    Placement.objects.update(labels=["Customers", "Receipts"])
    assert cost() == few
    assert max(few) < 50


def test_a_pane_that_is_asked_for_alone_comes_alone(reader: User) -> None:
    (message,) = _mail(a_folder(a_mailbox(a_source(reader))))
    answer = _client(reader).get(Asked().url(message.pk), headers={"X-Panes": "message"})
    page = answer.content.decode()
    assert re.findall('data-pane="([a-z]+)"', page) == ["message"]
    assert "<html" not in page
    assert "no-store" in answer["Cache-Control"]


def test_a_domain_of_very_many_mailboxes_is_found_by_the_start_of_an_address(reader: User) -> None:
    source = a_source(reader)
    for number in range(places.MAX_MAILBOXES + 5):
        a_mailbox(source, f"user{number:03}@example.com")
    last = a_mailbox(source, "zoe@example.com")
    client = _client(reader)
    page = client.get(MAIL).content.decode()
    assert page.count("@example.com</bdi>") == places.MAX_MAILBOXES
    assert "zoe@example.com" not in page
    assert "zoe@example.com" in client.get(f"{MAIL}?mailboxes=ZOE").content.decode()
    assert "zoe@example.com" in client.get(Asked(mailbox=last.pk).url()).content.decode()


# -- that mail stays text ------------------------------------------------------------------------


def test_the_first_mailboxes_are_by_source_and_no_source_without_any_takes_their_place(
    reader: User, admin_user: User
) -> None:
    empty = [a_source(admin_user, f"A {n:02}") for n in range(places.MAX_MAILBOXES + 1)]
    for name in ("c", "b"):
        source = a_source(admin_user, name)
        for address in ("zoe@example.com", f"bob@{name}.example"):
            a_mailbox(source, address)
    page = _client(reader).get(MAIL).content.decode()
    shown = re.findall(r"(?:bob|zoe)@[a-z.]+", page)
    assert list(dict.fromkeys(shown)) == ["bob@b.example", "zoe@example.com", "bob@c.example"]
    assert not any(source.name in page for source in empty)
    found = _client(reader).get(f"{MAIL}?mailboxes=ZOE").content.decode()
    assert found.count("zoe@example.com") == page.count("zoe@example.com")
    assert "bob@" not in found


def test_nothing_of_a_strangers_becomes_markup(reader: User) -> None:
    source = a_source(reader, HOSTILE)
    folder = a_folder(a_mailbox(source, HOSTILE), f"{HOSTILE}/{HOSTILE}")
    body = f"From: {HOSTILE} <x@example.com>\r\nSubject: {HOSTILE}\r\n\r\n{HOSTILE}".encode()
    (message,) = archived(folder, body)
    indexed(message, HOSTILE, attachments=(a_file(HOSTILE),), defects=(HOSTILE,))
    Placement.objects.update(labels=[HOSTILE])
    SavedSearch.objects.create(owner=reader, name=HOSTILE, query=f'"{HOSTILE}"')
    client = _client(reader)
    for asked in (
        Asked(mailbox=folder.mailbox_id),
        Asked(mailbox=folder.mailbox_id, folder=folder.pk),
        Asked(mailbox=folder.mailbox_id, label=HOSTILE),
        Asked(q=HOSTILE),
        Asked(q=f"fro:{HOSTILE}"),
        Asked(q=f"{HOSTILE} fro:ada {HOSTILE}"),
    ):
        page = client.get(asked.url(message.pk)).content.decode()
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "&lt;script&gt;alert" in page


def test_what_a_search_found_is_marked_and_stays_text(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    far = b"Subject: <b>an invoice</b>\r\n\r\n" + b"filler " * 200 + b"<i>needle</i> in the hay\r\n"
    (message,) = archived(folder, far)
    indexed(message, far.decode())
    client = _client(reader)
    page = client.get(Asked(q="invoice").url()).content.decode()
    assert "&lt;b&gt;an <mark>invoice</mark>&lt;/b&gt;" in page
    page = client.get(Asked(q="needle").url()).content.decode()
    assert "&lt;i&gt;<mark>needle</mark>&lt;/i&gt; in the hay" in page


@pytest.mark.parametrize(
    ("sender", "shown"),
    [
        ("Ada Nowak <ada@example.com>", "Ada Nowak"),
        ('"Nowak, Ada" <ada@example.com>', "Nowak, Ada"),
        ("ada@example.com", "ada@example.com"),
        ('"boss@example.com" <evil@example.net>', '"boss@example.com" <evil@example.net>'),
        ("<ada@example.com>", "<ada@example.com>"),
        ("", ""),
    ],
)
def test_a_sender_is_shown_by_name_unless_that_looks_like_an_address(
    sender: str, shown: str
) -> None:
    assert rows.name_of(sender) == shown


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (dt.datetime(2026, 5, 4, 9, 5, tzinfo=dt.UTC), "09:05"),
        (dt.datetime(2026, 5, 3, 23, 59, tzinfo=dt.UTC), "3 May"),
        (dt.datetime(2025, 12, 31, 1, 0, tzinfo=dt.UTC), "2025-12-31"),
        (dt.datetime(2026, 6, 1, 1, 0, tzinfo=dt.UTC), "2026-06-01"),  # of a clock that is wrong
    ],
)
def test_dates_are_as_short_as_they_can_be(moment: dt.datetime, said: str) -> None:
    assert rows.short_date(moment, now=dt.datetime(2026, 5, 4, 12, 0, tzinfo=dt.UTC)) == said


# -- places --------------------------------------------------------------------------------------


def test_folders_are_a_tree_with_the_special_ones_first(reader: User) -> None:
    mailbox = a_mailbox(a_source(reader))
    for path, role in (
        ("Lists/b", ""), ("Archive", "archive"), ("lists/A", ""), ("Archive/2021", ""),
        ("[Gmail]/Sent Mail", "sent"), ("INBOX", "inbox"), ("INBOX/Customers", ""), ("Zoo", ""),
        ("Deep/er/est", ""),
    ):  # fmt: skip
        a_folder(mailbox, path, role=role)
    a_folder(mailbox, "Old", removed_at=timezone.now())
    context = places.context(reader, Asked(mailbox=mailbox.pk), "")
    assert [("  " * place.depth) + place.name for place in context["folders"]] == [
        "INBOX", "  Customers", "Sent Mail", "Archive", "  2021",
        "Deep", "  er", "    est", "lists", "  A", "Lists", "  b", "Zoo",
    ]  # fmt: skip
    assert [place.name for place in context["folders"] if not place.url] == [
        "Deep", "er", "lists", "Lists",
    ]  # fmt: skip


def test_labels_are_counted_and_states_are_no_labels(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)), "All Mail", role="all")
    _mail(folder, 3)
    first, second, gone = Placement.objects.order_by("pk")
    for placement, labels in ((first, ["Work", "UNREAD"]), (second, ["Work", "\\Seen", "$Junk"])):
        placement.labels = labels
        placement.save()
    gone.labels, gone.removed_at = ["Work"], timezone.now()
    gone.save()
    context = places.context(reader, Asked(mailbox=folder.mailbox_id, label="Work"), "")
    assert [(place.name, place.count, place.current) for place in context["labels"]] == [
        ("Work", "2", True)
    ]


def test_a_count_is_capped_and_says_so(reader: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_COUNTED_ROWS", 2)
    folder = a_folder(a_mailbox(a_source(reader)))
    _mail(folder, 3)
    context = places.context(reader, Asked(mailbox=folder.mailbox_id), "")
    assert [place.count for place in context["folders"]] == ["2+"]


# -- the list ----------------------------------------------------------------------------------


def test_pages_go_on_and_back_in_each_order(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    start = timezone.now()
    for number, message in enumerate(
        archived(folder, *(b"Subject: n%03d\r\n\r\n" % n for n in range(120)))
    ):
        indexed(message, "word", date=start - dt.timedelta(minutes=number))
    client = _client(reader)

    def subjects(page: str) -> list[str]:
        return re.findall(r"n\d{3}(?=</span>)", page)

    def link(page: str, rel: str) -> str:
        found = re.search(rf'href="([^"]+)" data-go rel="{rel}"', page)
        assert found
        return html.unescape(found[1])

    for sort, expected in (
        ("", [f"n{n:03}" for n in range(120)]),
        ("date", [f"n{n:03}" for n in reversed(range(120))]),
    ):
        first = client.get(Asked(q="word", sort=sort).url()).content.decode()
        assert "120 messages" in first
        second = client.get(link(first, "next")).content.decode()
        third = client.get(link(second, "next")).content.decode()
        assert subjects(first) + subjects(second) + subjects(third) == expected
        assert 'rel="next"' not in third
        assert 'rel="prev"' not in first
        assert subjects(client.get(link(third, "prev")).content.decode()) == subjects(second)
    assert client.get(Asked(q="word", page="x").url()).status_code == 404


def test_what_is_found_is_counted_up_to_a_cap(
    reader: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_pages, "CAP", 3)
    monkeypatch.setattr(search_pages, "CAP_OF_PHRASE", 2)
    _mail(a_folder(a_mailbox(a_source(reader))), 4)
    client = _client(reader)
    for q, said in (("", "3+"), ("text mail", "3+"), ('"the text of"', "2+"), ('"of mail 3"', "1")):
        assert f"{said} message" in client.get(Asked(q=q).url()).content.decode()


def test_a_list_says_what_it_does_not_have_yet(reader: User, admin_user: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    _mail(folder, 3)
    other = a_folder(a_mailbox(a_source(reader, "Other"), "other@example.com"))
    _mail(other, 2)
    Pack.objects.filter(source=other.mailbox.source).update(index_version=INDEX_VERSION)
    client = _client(reader)
    said = "3 of 5 messages archived wait to be indexed"
    assert said in client.get(MAIL).content.decode()
    there = client.get(Asked(mailbox=folder.mailbox_id).url()).content.decode()
    assert "3 of 3 messages of this source wait to be indexed" in there
    assert "to be indexed" not in client.get(Asked(mailbox=other.mailbox_id).url()).content.decode()
    own = _client(_allowed(admin_user, "view_message"))
    admin_user.is_superuser = False
    admin_user.save()
    assert "to be indexed" not in own.get(MAIL).content.decode(), "Others' mail is not counted."


def test_a_list_by_relevance_has_what_is_most_about_a_word_first(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    about, beside = archived(folder, b"Subject: invoice\r\n\r\n", b"Subject: beside\r\n\r\n")
    indexed(about, "invoice invoice", date=timezone.now() - dt.timedelta(days=9))
    indexed(beside, "an invoice among many other words")
    page = _client(reader).get(Asked(q="invoice", sort="relevance").url()).content.decode()
    assert page.index(str(about.pk)) < page.index(str(beside.pk))


def test_a_list_is_narrowed_down_by_what_it_has(reader: User) -> None:
    source = a_source(reader)
    folder, other = (a_folder(a_mailbox(source, who)) for who in ("ada@example.com", "bob@x.org"))
    for number, message in enumerate(_mail(folder, 3)):
        date = dt.datetime(2020 + number, 1, 1, tzinfo=dt.UTC)
        Document.objects.filter(pk=message.pk).update(
            sender_address=HOSTILE if number else "ada@example.com",
            date=date,
            numbers=list(words.date_numbers(date)),
        )
    _mail(other)
    Placement.objects.update(labels=[HOSTILE])
    client = _client(reader)
    asked = Asked(q="Mail", show="facets")
    page = client.get(asked.url()).content.decode()
    assert HOSTILE not in page
    links = {
        html.unescape(text): html.unescape(url)
        for url, text in re.findall(r'class="mail-facet" href="([^"]+)"[^>]*><bdi>([^<]+)<', page)
    }
    assert links["2021"] == Asked(q="Mail on:2021", show="facets").url()
    assert links["ada@example.com"] in {
        Asked(q="Mail from:ada@example.com", show="facets").url(),
        Asked(q="Mail", mailbox=folder.mailbox_id, show="facets").url(),
    }
    narrower = client.get(links["2021"]).content.decode()
    assert "1 message<" in narrower
    assert "<bdi>2021<" not in narrower, "It would narrow nothing down."
    assert client.get(links["bob@x.org"]).content.decode().count('class="mail-row"') == 1


# -- searches ------------------------------------------------------------------------------------


def test_a_search_that_is_wrong_is_told_where(reader: User) -> None:
    page = _client(reader).get(Asked(q="invoice fro:ada bill").url()).content.decode()
    assert "There is no operator &quot;fro:&quot;." in page
    assert "invoice <mark>fro:ada</mark> bill" in page
    assert "Nothing matches" not in page


def test_a_search_that_takes_too_long_is_told_so(
    reader: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    [message] = _mail(a_folder(a_mailbox(a_source(reader))))
    monkeypatch.setattr(readings, "TIMEOUT_SECONDS", 0.1)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP VIEW ingestion_document AS SELECT d.* FROM public.ingestion_document d,"
            " LATERAL (SELECT pg_sleep(0.3)) AS slowly"
        )
    client = _client(reader)
    answer = client.get(MAIL, {"q": "text"})
    assert "Narrow it" in answer.content.decode()
    page = client.get(f"/admin/ingestion/message/{message.pk}/change/", {"q": "text"})
    assert page.status_code == 200


def test_a_place_that_can_not_be_is_told(reader: User) -> None:
    answer = _client(reader).get(MAIL, {"label": "\0"})
    assert "be searched for" in answer.content.decode()


def test_a_message_is_shown_beside_a_search_that_can_not_be(reader: User) -> None:
    (message,) = _mail(a_folder(a_mailbox(a_source(reader))))
    answer = _client(reader).get(Asked(q="\0").url(message.pk))
    assert answer.status_code == 200
    assert "be searched for" in answer.content.decode()
    assert "query" not in AuditEvent.objects.get(action="message.read").changes


def test_a_search_is_saved_with_its_place_listed_and_removed(reader: User) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    client = _client(reader)
    asked = Asked(q="invoice OR bill", mailbox=folder.mailbox_id, folder=folder.pk)
    query = re.search(r'name="query" value="([^"]*)"', client.get(asked.url()).content.decode())
    assert query
    assert query[1] == f"mailbox:{folder.mailbox_id} folder:{folder.pk} (invoice OR bill)"
    saved = client.post(
        f"{MAIL}searches/", {"name": "Bills", "query": query[1], "back": asked.url()}
    )
    assert saved["Location"] == asked.url()
    page = client.get(MAIL).content.decode()
    assert "Saved as “Bills”." in page
    assert f'href="{asked.url()}"'.replace("&", "&amp;") in page, "It leads to its place."
    again = client.post(f"{MAIL}searches/", {"name": "Bills", "query": "x"}, follow=True)
    assert "Not saved. You have a saved search of this name." in again.content.decode()
    row = SavedSearch.objects.get()
    renamed = {"name": "Invoices", "back": asked.url()}
    page = client.post(f"{MAIL}searches/{row.pk}/rename/", renamed, follow=True).content.decode()
    assert "It is called “Invoices” now." in page
    assert 'aria-label="Rename “Invoices”"' in page
    wrong = client.post(f"{MAIL}searches/{row.pk}/rename/", {"name": " "}, follow=True)
    assert "Not renamed. Must have 1 to 100 characters." in wrong.content.decode()
    assert client.get(f"{MAIL}searches/{row.pk}/forget/").status_code == 405
    client.post(f"{MAIL}searches/{row.pk}/forget/")
    assert not SavedSearch.objects.exists()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("invoice", Asked(q="invoice")),
        (f"mailbox:{_BOX}", Asked(mailbox=_BOX)),
        (f"mailbox:{_BOX} folder:42 a b", Asked(q="a b", mailbox=_BOX, folder=42)),
        (f'mailbox:{_BOX} label:"a b" x OR y', Asked(q="x OR y", mailbox=_BOX, label="a b")),
        ("mailbox:ada@example.com x", Asked(q="mailbox:ada@example.com x")),
        ("folder:42 x", Asked(q="folder:42 x")),
        (f"mailbox:{_BOX} OR x", Asked(q=f"mailbox:{_BOX} OR x")),
        (f"x mailbox:{_BOX}", Asked(q=f"x mailbox:{_BOX}")),
    ],
)
def test_a_place_is_taken_out_of_a_saved_search_again(text: str, asked: Asked) -> None:
    assert Asked.of_query(text) == asked
    assert Asked.of_query(str(asked.query())) == asked


def test_a_saved_search_that_is_no_search_any_more_does_not_break_the_page(reader: User) -> None:
    SavedSearch.objects.create(owner=reader, name="Old", query='"never closed')
    client = _client(reader)
    page = client.get(MAIL).content.decode()
    assert "Old" in page
    assert (
        "This quote is never closed." in client.get(Asked(q='"never closed').url()).content.decode()
    )


def test_nobody_sees_or_removes_the_searches_of_others(reader: User, admin_user: User) -> None:
    theirs = SavedSearch.objects.create(owner=admin_user, name="Theirs alone", query="x")
    client = _client(reader)
    assert "Theirs alone" not in client.get(MAIL).content.decode()
    assert client.post(f"{MAIL}searches/{theirs.pk}/forget/").status_code == 404
    assert client.post(f"{MAIL}searches/{theirs.pk}/rename/", {"name": "x"}).status_code == 404
    assert SavedSearch.objects.exists()


@pytest.mark.parametrize("label", ["", "Projekt „Alpha“", '12" vinyl'])
def test_a_list_leads_to_its_export_whoever_may(reader: User, label: str) -> None:
    folder = a_folder(a_mailbox(a_source(reader)))
    asked = Asked(q="a OR b", mailbox=folder.mailbox_id, label=label)
    assert "data-export" not in _client(reader).get(asked.url()).content.decode()
    client = _client(_allowed(reader, "view_message", "add_export"))
    link = re.search('href="([^"]+)"[^>]+data-export', client.get(asked.url()).content.decode())
    assert link
    form = client.get(html.unescape(link[1])).content.decode()
    taken = re.search('name="query" value="([^"]*)"', form)
    assert taken
    assert Asked.of_query(html.unescape(taken[1])) == asked


@pytest.mark.parametrize("back", ["https://evil.example/admin/mail/", "//evil.example", "/admin/"])
def test_saving_leads_back_into_the_mail_view_alone(reader: User, back: str) -> None:
    answer = _client(reader).post(f"{MAIL}searches/", {"name": "a", "query": "x", "back": back})
    assert answer["Location"] == MAIL


@pytest.mark.parametrize("given", ["mailbox=x", "folder=x", "mailbox=1"])
def test_an_address_with_an_id_that_is_none_is_not_found(reader: User, given: str) -> None:
    assert _client(reader).get(f"{MAIL}?{given}").status_code == 404


def test_words_that_are_searched_in_the_list_of_messages_are_answered_in_the_mail_view(
    reader: User,
) -> None:
    (message,) = _mail(a_folder(a_mailbox(a_source(reader))))
    client = _client(reader)
    listed = "/admin/ingestion/message/"
    assert client.get(f"{listed}?q=two words")["Location"] == f"{MAIL}?q=two+words"
    for found in (str(message.pk), message.sha256_hex):
        assert "Mail 0" in client.get(f"{listed}?q={found}").content.decode()
