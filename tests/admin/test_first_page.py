"""The first page without a browser: what needs somebody, with the button that mends it."""

import datetime as dt
import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.template.loader import render_to_string
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion import queries
from ingestion.admin import chart, latest_runs
from ingestion.admin.mending import Mend, edit
from ingestion.models import ArchivedDay, FailedMessage, IngestionSource, Mailbox, Proof, Run
from tests.e2e.rows import LATER, a_folder, a_mailbox, a_source


def _page(client: Client) -> str:
    answer = client.get("/admin/")
    assert answer.status_code == 200
    return answer.content.decode()


def test_each_that_needs_somebody_has_the_button_that_mends_it(
    admin_client: Client, admin_user: User
) -> None:
    wrong = {"status": "error", "status_message": "There is no host named x.", "proven_at": None}
    typo = a_source(admin_user, "Typo", status_code="unknown_host", **wrong)
    other = a_source(admin_user, "Other", status_code="no_mailbox", **wrong)
    failing = a_source(admin_user, "Failing")
    mailbox = a_mailbox(failing, last_synced_at=timezone.now())
    FailedMessage.objects.create(
        mailbox=mailbox, folder=a_folder(mailbox), remote_id="1", not_before=timezone.now() + LATER
    )

    page = _page(admin_client)

    assert f"{_page_of(typo)}?tab=settings&amp;field=generic_imap__host" in page
    assert "Edit host" in page
    assert f'action="/admin/ingestion/ingestionsource/{other.pk}/do/"' in page
    assert 'value="resume"' in page
    assert 'value="retry"' in page
    assert page.index("Other") < page.index("Typo") < page.index("Failing"), "The worst first."


def test_an_import_that_lacks_mail_is_told_with_no_button(
    admin_client: Client, admin_user: User
) -> None:
    """It goes on, and tries again by itself: nobody can do more."""
    importing = a_source(admin_user, "Importing", status="importing", imported_at=None)
    mailbox = a_mailbox(importing)
    FailedMessage.objects.create(
        mailbox=mailbox, folder=a_folder(mailbox), remote_id="1", not_before=timezone.now() + LATER
    )
    page = _page(admin_client)
    assert "Some messages could not be fetched" in page
    assert f"{importing.pk}/do/" not in page
    assert admin_client.get(_page_of(importing)).status_code == 200


def test_who_may_change_no_source_sees_what_is_wrong_and_no_button(
    admin_user: User, owner: User
) -> None:
    a_source(admin_user, "Broken", status="error", status_message="No such host.")
    owner.is_staff = True
    owner.save()
    owner.user_permissions.add(Permission.objects.get(codename="view_ingestionsource"))
    client = Client()
    client.force_login(owner)

    page = _page(client)

    assert "No such host." in page
    assert 'name="verb"' not in page


def test_an_error_that_no_field_mends_has_no_edit(admin_user: User) -> None:
    def of(provider: str, code: str, status: str = "error") -> Mend | None:
        return edit(IngestionSource(provider=provider, status=status, status_code=code))

    def label(provider: str, code: str) -> str:
        found = of(provider, code)
        return found.label if found else ""

    assert label("generic_imap", "tls") == "Edit TLS"
    assert label("generic_imap", "needs_reauth") == "Edit password"
    assert label("google", "wrong_client") == "Edit OAuth client secret"
    assert label("microsoft", "aadsts7000222") == "Edit client secret"
    assert of("generic_imap", "no_folders") is None
    assert of("of_no_package", "tls") is None


def test_of_what_worked_until_now_only_the_password_is_to_be_mended(
    admin_client: Client, admin_user: User
) -> None:
    source = a_source(admin_user, "Alice")
    now = timezone.now()
    mailbox = a_mailbox(
        source, last_synced_at=now - dt.timedelta(minutes=2), last_error="The server is away.",
        last_error_code="unavailable", failing_since=now - dt.timedelta(minutes=1),
    )  # fmt: skip
    assert "The server is away." in _page(admin_client)
    assert "Edit password" not in _page(admin_client), "A server that is away comes back."
    Mailbox.objects.filter(pk=mailbox.pk).update(last_error_code="needs_reauth")
    assert "Edit password" in _page(admin_client)


def test_failed_messages_are_counted_by_their_reason(admin_user: User) -> None:
    alive, deleted = a_source(admin_user, "A"), a_source(admin_user, "B", deleted_at=timezone.now())
    folders = {source.pk: a_folder(a_mailbox(source)) for source in (alive, deleted)}
    for n, (source, code) in enumerate(
        [(alive, "too_large"), (alive, "refused"), (alive, "refused"), (deleted, "refused")]
    ):
        folder = folders[source.pk]
        FailedMessage.objects.create(
            mailbox=folder.mailbox, folder=folder, remote_id=str(n), code=code, reason=f"No {n}.",
            not_before=timezone.now() + LATER,
        )  # fmt: skip
    assert queries.failures_by_code(rows=10) == [
        ("refused", 2, "No 2."), ("too_large", 1, "No 0.")
    ]  # fmt: skip
    assert sum(number for _, number, _ in queries.failures_by_code(rows=2)) == 2


def test_what_came_is_drawn_by_day_and_told_in_words(
    admin_client: Client, admin_user: User
) -> None:
    source, deleted = a_source(admin_user), a_source(admin_user, "Gone", deleted_at=timezone.now())
    today = timezone.now().date()
    for of, age, messages in (
        (source, 0, 40),
        (source, 3, 1_200),
        (deleted, 1, 7),
        (source, 60, 9),
    ):
        day = today - dt.timedelta(days=age)
        ArchivedDay.objects.create(source=of, day=day, messages=messages, size_bytes=1_000)

    page = _page(admin_client)

    assert "1,240 messages in 30 days, 2.0 kB · today 40 messages" in page
    assert page.count('class="ing-bar"') == chart.DAYS
    assert f"{today - dt.timedelta(days=3):%a %d %b}: 1,200 messages, 1.0 kB" in page
    assert ">2,000<" in page, "The scale ends with a round number."
    assert "chart.js" not in page


def test_the_archive_s_last_proofs_are_told_and_a_bad_one_is_red(
    admin_client: Client, admin_user: User
) -> None:
    page = _page(admin_client)
    assert page.count(">never<") == 2
    source = a_source(admin_user, "Sales")
    Proof.objects.create(kind="verification", messages=1_234, problems=0)
    Proof.objects.create(kind="verification", source=source, messages=9, problems=9)
    Proof.objects.create(kind="reconciliation", source=source, messages=50, problems=1)

    page = _page(admin_client)

    assert "1,234 messages, bit for bit" in page
    assert "Sales: 50 messages, 1 problem" in page
    assert page.count('ing-tile ing-panel" data-tone="danger"') == 1


def test_syncs_without_news_are_one_line(admin_user: User) -> None:
    one, other = a_source(admin_user, "One"), a_source(admin_user, "Other")
    start = timezone.now() - dt.timedelta(hours=1)

    def run(source: IngestionSource, **about: Any) -> None:
        nonlocal start
        start += dt.timedelta(minutes=1)
        about = {"kind": "sync", "status": "completed"} | about
        Run.objects.create(
            source=source, actor="beat", started_at=start, finished_at=start, **about
        )

    run(one, kind="import")
    for source in (one, other, one):
        run(source)
    run(one, messages_new=3)
    run(one)
    run(one, status="incomplete")

    lines = latest_runs.lines(Run.objects.all(), limit=8)

    told = [
        f"{line.run.source} {line.run.kind} {line.run.messages_new} {line.run.status}"
        if line.run
        else f"{line.syncs} of {line.sources}"
        for line in lines
    ]
    assert told == [
        "One sync 0 incomplete",
        "One sync 0 completed",
        "One sync 3 completed",
        "3 of 2",
        "One import 0 completed",
    ]
    assert len(latest_runs.lines(Run.objects.all(), limit=2)) == 2


def test_of_the_latest_runs_no_more_is_read_than_is_shown(admin_user: User) -> None:
    source = a_source(admin_user, "One")
    about = {"kind": "sync", "status": "failed", "message": "No.", "finished_at": timezone.now()}
    Run.objects.create(source=source, actor="beat", **about)
    with CaptureQueriesContext(connection) as asked:
        lines = latest_runs.lines(Run.objects.all(), limit=8)
        page = render_to_string(
            "admin/ingestion/runs_table.html", {"lines": lines, "with_source": True}
        )
    assert source.name in page
    assert len(asked) == 2
    read = " ".join(query["sql"] for query in asked)
    assert not {"secrets", "config", "options"} & set(re.findall(r"\w+", read))


def _page_of(source: IngestionSource) -> str:
    return f"/admin/ingestion/ingestionsource/{source.pk}/change/"
