"""The archive in a bucket: all that is done with it, and what comes of a store that goes away."""

import datetime as dt
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User

from ingestion.errors import ArchiveUnavailable, WrongArchive
from ingestion.models import (
    Document,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
)
from ingestion.packs.s3 import ObjectStore
from ingestion.packs.store import at, store
from ingestion.services.archive import (
    housekeeping,
    indexing,
    reading,
    rebuild,
    refetch,
    storage,
    verify,
)
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.archive.exports.stream import streamed
from ingestion.services.engine import capture, commit, sync
from ingestion.services.operations import doctor
from ingestion.services.sources import deletion, verbs
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.servers import imap_source
from tests.servers.dovecot import Account, Dovecot
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.imap_source import ACTOR
from tests.servers.mortal import MortalProcess

pytestmark = pytest.mark.django_db(transaction=True)

_MESSAGES = 12
_AT_ONCE = dt.timedelta(seconds=-5)


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return dovecot.account(*(mail(number) for number in range(_MESSAGES)))


def mail(number: int) -> bytes:
    words = os.urandom(30_000).hex().encode()
    return b"Subject: %d\r\nFrom: a@example.com\r\n\r\n%s\r\n" % (number, words)


@pytest.fixture
def proxy(
    object_store: ObjectStoreServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A place of the test's own in the bucket, for all that asks for the archive."""
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    with FaultyProxy(object_store.endpoint) as proxy:
        settings.ARCHIVE_URL = (
            f"s3://archive/{uuid.uuid4()}?endpoint={proxy.endpoint}&region=us-east-1"
        )
        settings.NETWORK_TIMEOUT_SECONDS = 5
        yield proxy


@pytest.fixture
def source(proxy: FaultyProxy, account: Account) -> IngestionSource:
    source = imap_source.create(account)
    imap_source.imported(source)
    assert Message.objects.count() == _MESSAGES
    return source


def replace(pack: Pack, change: Callable[[bytes], bytes]) -> None:
    """Damage a pack behind everybody's back."""
    archive = store().fresh()
    assert isinstance(archive, ObjectStore)
    changed = change(b"".join(archive.chunks(pack.source_id, pack.pk)))
    archive._ask("put_object", Key=archive._key(pack.source_id, pack.pk), Body=changed)


def verified() -> list[verify.Kind]:
    found: list[verify.Problem] = []
    verify.verify_archive(on_problem=found.append)
    return [problem.kind for problem in found]


def storage_finding() -> doctor.Finding:
    return next(found for found in doctor.examine() if found.name == "storage")


def test_all_that_is_done_with_an_archive_is_done_in_a_bucket(
    source: IngestionSource, dovecot: Dovecot, account: Account, owner: User
) -> None:
    bodies = {imap_source.read(message) for message in Message.objects.all()}
    assert bodies == set(dovecot.contents(account.name).values())
    assert verified() == []
    assert storage_finding().state == "ok"
    indexing.index_now(on_progress=lambda _: None)
    assert Document.objects.filter(defects=[]).count() == _MESSAGES
    message = Message.objects.latest("pk")
    assert message.subject.isdigit()
    assert reading.contents(message).text.strip()
    root = User.objects.create_superuser("root")
    assert len(b"".join(streamed(Selection(root, ""), "eml"))) > _MESSAGES * 30_000

    pack = Pack.objects.latest("created_at")
    one = Message.objects.filter(pack=pack).first()
    assert one is not None
    at_byte = one.pack_offset + 40
    replace(pack, lambda data: data[:at_byte] + b"??" + data[at_byte + 2 :])
    assert verified() == ["corrupt_message"]
    done = refetch.refetch(source, [pack.pk], actor=ACTOR, on_left=print)
    assert (done.fetched, done.left) == (1, 0)
    assert verified() == ["orphan_pack"]  # the damaged one
    assert housekeeping.collect_orphans(older_than=_AT_ONCE) == 1
    assert verified() == []

    for model in (Document, Placement, Message):
        model.objects.all().delete()
    Pack.objects.all().delete()
    Folder.objects.update(cursor=None)
    verbs.pause(source, actor=ACTOR)
    result = rebuild.rebuild(source, actor=ACTOR, on_damage=print)
    assert result.messages_added == _MESSAGES
    assert verified() == []

    verbs.delete(source, actor=ACTOR)
    deletion.delete_source(source.pk)
    assert list(store().packs()) == []
    storage.require()


def test_a_store_that_goes_away_costs_time_and_no_message(
    proxy: FaultyProxy, account: Account, dovecot: Dovecot
) -> None:
    source = imap_source.create(account)
    imap_source.start(source)
    proxy.fault("answer", "PUT", times=999, status=403, code="QuotaExceeded")
    mailbox = imap_source.work(source)
    assert mailbox.last_error_code == "storage"
    assert "is full" in mailbox.last_error
    assert not Message.objects.exists()
    found = storage_finding()
    assert (found.state, "is full" in found.message) == ("problem", True)
    proxy.clear()
    imap_source.finish(source)
    assert Message.objects.count() == _MESSAGES

    proxy.fault("answer", "GET", times=999, status=403, code="AccessDenied")
    told: list[verify.Problem] = []
    with pytest.raises(ArchiveUnavailable, match="does not let these credentials"):
        verify.verify_archive(on_problem=told.append)
    assert told == []
    with pytest.raises(ArchiveUnavailable):
        refetch.refetch(
            source, Pack.objects.values_list("pk", flat=True), actor=ACTOR, on_left=print
        )
    housekeeping.collect_when_due()
    proxy.clear()
    assert verified() == []


@pytest.mark.parametrize("where", ["hold the request", "hold the answer"])
def test_a_worker_that_is_killed_while_it_puts_a_pack_loses_nothing_and_repeats_nothing(
    proxy: FaultyProxy, account: Account, dovecot: Dovecot, where: Any, tmp_path: Any
) -> None:
    source = imap_source.create(account)
    imap_source.start(source)
    storage.require()
    proxy.fault(where, "PUT")
    mailbox = Mailbox.objects.get()
    work = MortalProcess(lambda: sync.sync_mailbox(mailbox.pk), at_step=None, directory=tmp_path)
    with work as process:
        assert proxy.holding.wait(60)
        process.kill()
        assert process.wait()
    proxy.let_go()
    assert not Message.objects.exists()
    orphans = [pack.pack_id for pack in store().packs()]
    assert len(orphans) == (where == "hold the answer")
    Mailbox.objects.update(lease_expires_at=None, handed_out_at=None)
    imap_source.finish(source)
    bodies = [imap_source.read(message) for message in Message.objects.all()]
    assert sorted(bodies) == sorted(set(dovecot.contents(account.name).values()))
    assert Placement.objects.count() == _MESSAGES
    assert housekeeping.collect_orphans(older_than=_AT_ONCE) == len(orphans)
    assert {pack.pack_id for pack in store().packs()} == set(
        Pack.objects.values_list("pk", flat=True)
    )
    assert verified() == []


def test_packs_are_put_at_the_same_time_and_seen_in_order(
    proxy: FaultyProxy, dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first PUT is the last to be answered: nothing behind it is visible before."""
    for module in (capture, commit):
        monkeypatch.setattr(module, "COMMIT_MESSAGES", 2)
    account = dovecot.account(*(mail(number) for number in range(_MESSAGES)))
    source = imap_source.create(account)
    imap_source.start(source)
    storage.require()
    proxy.fault("wait", "PUT", seconds=2)
    imap_source.finish(source)
    assert Message.objects.count() == _MESSAGES
    assert Pack.objects.count() > 2
    assert proxy.most_at_once > 1
    first = Pack.objects.earliest("created_at")
    numbers = [int(m.subject) for m in Message.objects.filter(pack=first)]
    assert sorted(numbers) == list(range(len(numbers)))
    assert verified() == []


def test_the_place_is_another_archives(
    source: IngestionSource, object_store: ObjectStoreServer
) -> None:
    store().write_mark(str(uuid.uuid4()))
    found = storage_finding()
    assert (found.state, "another installation" in found.message) == ("problem", True)
    elsewhere = at(object_store.url("archive", "elsewhere"))
    assert elsewhere.name == f"s3://archive/elsewhere at {object_store.endpoint}"


def test_a_bucket_of_another_installation_or_an_empty_one_is_refused(
    proxy: FaultyProxy, source: IngestionSource, settings: Any
) -> None:
    ours = settings.ARCHIVE_URL
    settings.ARCHIVE_URL = ours.replace("?", "-empty?")
    with pytest.raises(WrongArchive, match="has no mark"):
        storage.require()
    theirs = store()
    theirs.write_mark(str(uuid.uuid4()))
    with pytest.raises(WrongArchive, match="another installation"):
        storage.require_writable()
    assert list(theirs.packs()) == []
    settings.ARCHIVE_URL = ours
    storage.require_writable()


def test_credentials_that_may_only_read_are_told_at_the_start(proxy: FaultyProxy, db: None) -> None:
    storage.require()
    proxy.fault("answer", "PUT", times=999, status=403, code="AccessDenied")
    with pytest.raises(ArchiveUnavailable, match="does not let these credentials"):
        storage.require_writable()
