"""The verdict of a verification is kept: of each source, and of the whole archive."""

import pytest
from django.contrib.auth.models import User

from ingestion.errors import ArchiveUnavailable
from ingestion.models import Alert, AlertKind, Proof
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import store
from ingestion.services.archive.verify import Verification, verify_archive
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_verification_is_remembered_of_each_source_and_of_the_whole(owner: User) -> None:
    sound, damaged = a_source(owner, "Sound"), a_source(owner, "Damaged")
    archived(a_folder(a_mailbox(sound)), b"Subject: a\r\n\r\n1", b"Subject: b\r\n\r\n2")
    (lost,) = archived(a_folder(a_mailbox(damaged)), b"Subject: c\r\n\r\n3")
    for pack in store().packs(damaged.pk):
        store().delete(pack)

    verify_archive(on_problem=lambda _: None)

    kept = {p.source_id: (p.kind, p.messages, p.problems, p.ok) for p in Proof.objects.all()}
    assert kept == {
        sound.pk: ("verification", 2, 0, True),
        damaged.pk: ("verification", 0, 1, False),
        None: ("verification", 2, 1, False),
    }
    assert lost.pack.source == damaged

    verify_archive([sound], on_problem=lambda _: None)
    assert Proof.objects.filter(source=sound).count() == 2
    assert Proof.objects.filter(source=None).count() == 1


def test_what_was_found_before_the_archive_went_away_is_told_and_remembered(owner: User) -> None:
    """Else an outage in each night would hide what each night finds."""
    damaged, away = a_source(owner, "Damaged"), a_source(owner, "Away")
    for source in (damaged, away):
        mailbox = a_mailbox(source)
        archived(a_folder(mailbox), b"Subject: a\r\n\r\n1")
        archived(a_folder(mailbox, "Other"), b"Subject: b\r\n\r\n2")
        for pack in list(store().packs(source.pk))[:1]:
            store().delete(pack)

    def lose_the_volume(so_far: Verification) -> None:
        if so_far.packs == 3:
            archive = store()
            assert isinstance(archive, DirectoryStore)
            for path in archive.root.rglob("*.*"):
                path.unlink()

    with pytest.raises(ArchiveUnavailable):
        verify_archive([damaged, away], on_problem=lambda _: None, on_progress=lose_the_volume)

    assert [(p.source, p.problems) for p in Proof.objects.all()] == [(damaged, 1)]
    told = Alert.objects.filter(kind=AlertKind.ARCHIVE_CORRUPT).values_list("source_id", flat=True)
    assert damaged.pk in set(told)
