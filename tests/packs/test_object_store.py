"""What an object store does wrong, and what stands between: a real server, and a proxy before it.

Each ends in a sentence that says what to do, never in a pack that is not whole.
"""

import contextlib
import hashlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from ingestion.errors import ArchiveAway, ArchiveUnavailable, Corrupt
from ingestion.packs import location, s3
from ingestion.packs.blocks import Blocks, ObjectFile
from ingestion.packs.format import Extent, encoded
from ingestion.packs.location import Bucket
from ingestion.packs.s3 import ObjectStore
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.graph import http
from tests.servers.stack import free_port

SOURCE = uuid.UUID(int=1)
BODY = os.urandom(300_000)


@pytest.fixture
def proxy(
    object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    with FaultyProxy(object_store.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultyProxy) -> ObjectStore:
    return ObjectStore(Bucket("archive", f"{uuid.uuid4()}/", proxy.endpoint, "us-east-1"))


def write(store: ObjectStore, *bodies: bytes) -> tuple[uuid.UUID, list[Extent]]:
    with store.writer(SOURCE) as writer:
        extents = writer.append([(encoded({"n": 1}), body) for body in bodies])
        writer.commit()
    return writer.pack_id, extents


def read(store: ObjectStore, pack: uuid.UUID, extent: Extent, body: bytes) -> object:
    return store.open(SOURCE, pack, extent, sha256=hashlib.sha256(body).digest(), size=len(body))


# -- what may pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_a_busy_store_is_asked_again(
    proxy: FaultyProxy, store: ObjectStore, status: int, code: str
) -> None:
    for method in ("PUT", "GET"):
        proxy.fault("answer", method, times=2, status=status, code=code)
    pack, [extent] = write(store, BODY)
    assert read(store, pack, extent, BODY) == BODY


def test_a_connection_that_is_cut_before_the_answer_leaves_one_whole_pack(
    proxy: FaultyProxy, store: ObjectStore
) -> None:
    """The store has it already when it is sent again, and refuses the name: it is the same one."""
    proxy.fault("lose the answer", "PUT")
    pack, [extent] = write(store, BODY)
    assert proxy.count("PUT") == 2
    assert read(store, pack, extent, BODY) == BODY
    assert [found.pack_id for found in store.packs(SOURCE)] == [pack]


def test_a_body_that_is_cut_is_fetched_again(proxy: FaultyProxy, store: ObjectStore) -> None:
    pack, [extent] = write(store, BODY)
    proxy.fault("cut the body", "GET", times=2)
    assert read(store, pack, extent, BODY) == BODY
    assert proxy.count("GET") == 3


def test_a_slow_store_is_given_up_and_asked_again(proxy: FaultyProxy) -> None:
    store = ObjectStore(
        Bucket("archive", f"{uuid.uuid4()}/", proxy.endpoint, "us-east-1"), read_seconds=1
    )
    pack, [extent] = write(store, BODY)
    proxy.fault("wait", "GET", seconds=3)
    assert read(store, pack, extent, BODY) == BODY


# -- what does not ---------------------------------------------------------------------------------


def test_bytes_that_change_on_their_way_are_not_taken(
    proxy: FaultyProxy, store: ObjectStore
) -> None:
    proxy.fault("alter the request", "PUT", times=9)
    with pytest.raises(ArchiveUnavailable, match="other bytes came to the store"):
        write(store, BODY)
    assert list(store.packs(SOURCE)) == []


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (507, "InsufficientStorage", "is full"),
        (403, "QuotaExceeded", "is full"),
        (403, "RequestTimeTooSkewed", "differ by more than 15 minutes"),
        (403, "AccessDenied", "does not let these credentials"),
        (404, "NoSuchBucket", "no such bucket"),
        (418, "SomethingNew", "Nothing is lost"),
    ],
)
def test_a_refusal_says_what_to_do_and_leaves_nothing(
    proxy: FaultyProxy, store: ObjectStore, status: int, code: str, words: str
) -> None:
    proxy.fault("answer", "PUT", times=9, status=status, code=code)
    with pytest.raises(ArchiveUnavailable, match=words) as told:
        write(store, BODY)
    assert code in str(told.value)
    proxy.clear()
    assert list(store.packs(SOURCE)) == []


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "Correct AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ("AWS_ACCESS_KEY_ID", "nobody", "Correct AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ("AWS_ACCESS_KEY_ID", None, "no credentials"),
    ],
)
def test_wrong_credentials_are_told(
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str | None,
    words: str,
) -> None:
    s3._client.cache_clear()  # a process has its credentials from its beginning
    if value is None:
        monkeypatch.delenv(variable)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(variable, value)
    try:
        store = ObjectStore(Bucket("archive", "w/", proxy.endpoint, "us-east-1"))
        with pytest.raises(ArchiveUnavailable, match=words) as told:
            store.try_out()
        with pytest.raises(ArchiveUnavailable, match=words):
            list(store.packs())
        assert "only-on-loopback" not in str(told.value)
    finally:
        s3._client.cache_clear()


def test_a_role_whose_credentials_are_not_there_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The container's agent may come up after us, or restart while we run."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    agent = f"http://127.0.0.1:{free_port()}/"
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent)
    store = ObjectStore(Bucket("archive", "", f"http://127.0.0.1:{free_port()}", "here"))
    with pytest.raises(ArchiveAway, match="container-role gives no credentials now") as told:
        store.mark()
    assert "ARCHIVE_URL" not in str(told.value)


def test_a_bucket_that_vanishes_is_no_missing_pack(
    object_store: ObjectStoreServer, proxy: FaultyProxy
) -> None:
    """A message that is missing may be fetched again or given up; here nothing is known of any."""
    name = f"b-{uuid.uuid4()}"
    object_store.make_bucket(name)
    store = ObjectStore(Bucket(name, "", proxy.endpoint, "us-east-1"))
    store.write_mark("ours")
    pack, [extent] = write(store, BODY)
    admin = object_store.admin()
    admin.delete_object(Bucket=name, Key=store._key(SOURCE, pack))
    with pytest.raises(Corrupt, match="missing"):
        read(store.fresh(), pack, extent, BODY)
    admin.delete_bucket(Bucket=name)
    attempts: list[Callable[[], object]] = [
        lambda: read(store.fresh(), pack, extent, BODY),
        lambda: list(store.fresh().scan(SOURCE, pack)),
        lambda: store.holds(SOURCE, pack),
        lambda: list(store.packs()),
        lambda: store.fresh().mark(),
        lambda: write(store, BODY),
    ]
    for attempt in attempts:
        with pytest.raises(ArchiveUnavailable, match=r"no such bucket|not there"):
            attempt()


def test_a_store_that_goes_away_within_a_pack_is_no_damage(
    proxy: FaultyProxy, store: ObjectStore
) -> None:
    pack, _ = write(store, *[BODY] * 4)
    proxy.fault("nothing", "GET")
    proxy.fault("answer", "GET", times=999, status=403, code="AccessDenied")
    damage: list[Corrupt] = []
    with pytest.raises(ArchiveUnavailable, match="does not let these credentials"):
        list(store.fresh().scan(SOURCE, pack, on_damage=damage.append))
    assert damage == []


def test_a_server_that_is_away_is_told(proxy: FaultyProxy) -> None:
    proxy.__exit__(None, None, None)
    store = ObjectStore(Bucket("archive", "", proxy.endpoint, "us-east-1"), read_seconds=1)
    with pytest.raises(ArchiveUnavailable, match=r"can't be reached \(EndpointConnectionError\)"):
        store.holds(SOURCE, uuid.uuid4())


@contextlib.contextmanager
def answering(serve: Callable[[socket.socket], object]) -> Iterator[ObjectStore]:
    """A store behind a port that has `serve` answer the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                serve(connection)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        yield ObjectStore(Bucket("archive", "", endpoint, "us-east-1"))
        thread.join(10)


@pytest.mark.parametrize(
    "serve",
    [
        lambda connection: connection.recv(65_536),
        lambda connection: (
            connection.recv(65_536),  # else it is reset
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ),
    ],
    ids=["cut", "no TLS"],
)
def test_a_tls_handshake_that_fails_is_waited_for(
    object_store: ObjectStoreServer,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[socket.socket], object],
) -> None:
    """So answers what stands before a store that is not up yet. No certificate was seen."""
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    with (
        answering(serve) as store,
        pytest.raises(ArchiveAway, match=r"can't be reached \(SSLError\)"),
    ):
        store.mark()


@pytest.mark.parametrize("bundle", [None, "/nowhere.pem", __file__])
def test_a_certificate_that_is_not_trusted_is_told(
    object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch, bundle: str | None
) -> None:
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    if bundle:
        monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)

    def serve(connection: socket.socket) -> None:
        http._server_context().wrap_socket(connection, server_side=True).close()

    with (
        answering(serve) as store,
        pytest.raises(ArchiveUnavailable, match=r"certificate can't be verified") as told,
    ):
        store.mark()
    assert not isinstance(told.value, ArchiveAway)


@pytest.mark.parametrize(("before", "words"), [(1, "same name"), (2, "other bytes")])
def test_a_store_that_takes_what_it_must_refuse_is_told(
    proxy: FaultyProxy, store: ObjectStore, before: int, words: str
) -> None:
    proxy.fault("nothing", "PUT", times=before)
    proxy.fault("answer", "PUT", status=200)
    with pytest.raises(ArchiveUnavailable, match=words):
        store.try_out()


# -- requests --------------------------------------------------------------------------------------


def test_a_pack_is_read_by_few_requests_once(proxy: FaultyProxy, store: ObjectStore) -> None:
    bodies = [os.urandom(4_000) for _ in range(2_000)]
    pack, extents = write(store, *bodies)
    proxy.clear()
    assert len(list(store.scan(SOURCE, pack))) == len(bodies)
    for extent, body in zip(extents, bodies, strict=True):
        assert read(store, pack, extent, body) == body
    assert proxy.count("GET") <= 8
    assert proxy.bytes_out < 1.2 * sum(map(len, bodies))


def test_one_message_is_one_request(proxy: FaultyProxy, store: ObjectStore) -> None:
    bodies = [os.urandom(4_000) for _ in range(200)]
    bodies[150] = os.urandom(2_000_000)
    pack, extents = write(store, *bodies)
    for number in (100, 150):
        proxy.clear()
        assert read(store.fresh(), pack, extents[number], bodies[number]) == bodies[number]
        assert proxy.count("GET") == 1


def test_what_is_remembered_is_bounded() -> None:
    size = 100_000_000
    asked = []

    def fetch(key: str, first: int, count: int) -> tuple[bytes, int]:
        asked.append(count)
        return bytes(min(count, size - first)), size

    blocks = Blocks(fetch)
    for key in ("one", "two"):
        with ObjectFile(blocks, key, 0) as file:
            while file.read(1_000_000):
                pass
    assert sum(map(len, blocks._blocks.values())) <= 32 << 20
    assert max(asked) == 4 << 20


def test_a_pack_is_scanned_though_only_a_block_of_it_is_remembered() -> None:
    """What is known of 64 objects is kept, and blocks of more."""
    blocks = Blocks(lambda _key, first, count: (bytes(max(0, min(count, 1_000 - first))), 1_000))
    for number in range(100):
        assert len(ObjectFile(blocks, str(number), 0).read(10)) == 10
    assert ObjectFile(blocks, "0", 0).seek(0, os.SEEK_END) == 1_000


# -- Object Lock -----------------------------------------------------------------------------------


def test_a_locked_pack_cant_be_destroyed_and_a_bucket_without_is_told(
    object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "administrator")  # the policy allows to set a lock
    for name, value in object_store.env.items():
        if name != "AWS_ACCESS_KEY_ID":
            monkeypatch.setenv(name, value)
    s3._client.cache_clear()
    try:
        name = f"b-{uuid.uuid4()}"
        object_store.make_bucket(name, locked=True)
        store = ObjectStore(Bucket(name, "", object_store.endpoint, "us-east-1"), lock_days=3)
        assert store.try_out() > 0
        pack, [extent] = write(store, BODY)
        key, admin = store._key(SOURCE, pack), object_store.admin()
        about = admin.head_object(Bucket=name, Key=key)
        assert about["ObjectLockMode"] == "GOVERNANCE"
        store.delete_source(SOURCE)
        assert list(store.packs(SOURCE)) == []
        with pytest.raises(admin.exceptions.ClientError, match="AccessDenied"):
            admin.delete_object(Bucket=name, Key=key, VersionId=about["VersionId"])
        kept = admin.get_object(Bucket=name, Key=key, VersionId=about["VersionId"])["Body"].read()
        assert len(kept) == about["ContentLength"] > extent.length
        without = Bucket("archive", f"{uuid.uuid4()}/", object_store.endpoint, "us-east-1")
        with pytest.raises(ArchiveUnavailable, match="no Object Lock"):
            ObjectStore(without, lock_days=3).try_out()
    finally:
        s3._client.cache_clear()


# -- ARCHIVE_URL -----------------------------------------------------------------------------------


def test_a_url_says_where(tmp_path: object) -> None:
    url = "s3://mail/a/b?endpoint=https://s3.example.com&region=eu-central-1"
    assert location.parse(url) == Bucket("mail", "a/b/", "https://s3.example.com", "eu-central-1")
    assert location.parse("s3://mail") == Bucket("mail", "", "", "")
    assert str(location.parse(f"file://{tmp_path}")) == str(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@mail/",
        "s3://mail?endpoint=ftp://x",
        "s3://mail?endpoint=https://key:secret@x",
        "s3://mail?acl=public",
        "s3:///mail",
        "file://host/srv",
        "file:relative",
        "/",
        "https://mail.s3.amazonaws.com",
        "s3://secret@ma\u2100il/",
        "s3://[secret/",
    ],
)
def test_a_url_that_cant_be_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[^@]*$") as told:
        location.parse(url)
    assert "secret" not in str(told.value).replace("SECRET", "").replace("AWS_", "")
