"""The generated archive is what capture and indexing would have made of the same mail."""

import mailbox
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from bench import archive, corpus, generated
from ingestion import queries
from ingestion.mail.digest import digest
from ingestion.models import Document, IngestionSource, Message, Pack, Placement
from ingestion.packs.store import store
from ingestion.services.archive import indexing
from ingestion.services.archive.verify import Problem, verify_archive

MESSAGES = 240
#: Of some mailboxes; of two owners.
FIRST = list(generated.blocks(MESSAGES))[:4]


@pytest.fixture(scope="module")
def mails() -> list[generated.Mail]:
    return [m for block in generated.blocks(MESSAGES) for m in generated.mails(block, seed=1)]


def test_reading_a_generated_message_gives_what_is_said_of_it(mails: list[generated.Mail]) -> None:
    assert [digest(mail.raw) for mail in mails] == [mail.digest for mail in mails]


def test_the_same_seed_gives_the_same_mail(mails: list[generated.Mail]) -> None:
    last = list(generated.blocks(MESSAGES))[-1]
    again = list(generated.mails(last, seed=1))
    assert again == mails[-len(again) :]
    assert again != list(generated.mails(last, seed=2))
    assert len({mail.id for mail in mails}) == len({mail.sha256 for mail in mails}) == MESSAGES


def test_words_come_as_often_as_in_a_language() -> None:
    block = generated.Block(0, 0, 0, 2_000, 2_000)
    texts = [mail.digest.text.split() for mail in generated.mails(block, seed=1)]
    assert 100 < sum(map(len, texts)) / 2_000 < 140
    found = Counter(word for text in texts for word in set(text))
    assert found[generated.word(0)] > 1_800
    assert 10_000 < len(found) < 100_000
    assert sum(1 for number in found.values() if number == 1) > len(found) / 3


def test_old_words_are_in_old_mail_alone() -> None:
    block = generated.Block(0, 0, 0, 2_000, 2_000)
    having = [
        mail.place
        for mail in generated.mails(block, seed=1)
        if generated.OLD_AND_COMMON in mail.digest.text
    ]
    assert having
    assert max(having) < 500


def test_files_are_the_same_mail(mails: list[generated.Mail], tmp_path: Path) -> None:
    corpus.write_files(FIRST[:2], tmp_path, seed=1)
    subjects = [
        message["subject"]
        for directory in sorted(tmp_path.iterdir())
        for message in mailbox.Maildir(directory)
    ]
    count = FIRST[1].before + FIRST[1].end
    assert sorted(subjects) == sorted(m.digest.headers.subject for m in mails[:count])


def indexes() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'")
        return {row[0] for row in cursor.fetchall()}


def documents() -> dict[Any, Any]:
    rows = Document.objects.values("message_id", *(f.name for f in Document._meta.fields))
    return {row["message_id"]: row for row in rows}


@pytest.mark.django_db(transaction=True)
def test_an_archive_is_as_capture_and_indexing_leave_it(archive_dir: Path) -> None:
    User.objects.create_superuser("admin")
    before = indexes()
    places = archive.prepare()
    with archive.without_indexes():
        assert indexes() < before
        written = sum(archive.write((block, 1, places, True)) for block in FIRST)
    archive.finish()
    assert indexes() == before

    problems: list[Problem] = []
    assert verify_archive(on_problem=problems.append).messages == written
    assert problems == []
    assert sum(IngestionSource.objects.values_list("message_count", flat=True)) == written
    small = Placement.objects.filter(folder__path=generated.SMALL_FOLDER)
    assert small.count() == generated.IN_SMALL_FOLDER
    reader = User.objects.get(username=archive.READER)
    assert 0 < queries.visible_messages(reader).count() < written

    said = documents()
    assert indexing.next_due() is None
    Pack.objects.update(index_version=0)
    indexing.index_now(on_progress=lambda _: None)
    assert documents() == said

    with pytest.raises(archive.NotEmpty):
        archive.prepare()


@pytest.mark.django_db(transaction=True)
def test_packs_may_be_rows_alone() -> None:
    User.objects.create_superuser("admin")
    archive.write((FIRST[0], 1, archive.prepare(), False))
    assert Message.objects.count() == Document.objects.count() == FIRST[0].end
    pack = Pack.objects.get()
    assert not store().holds(pack.source_id, pack.pk)
