"""Packs in an object store that speaks S3.

    <prefix><source id>/<pack id>.pack        immutable, durable
    <prefix>.installation                     the mark

A pack is complete in a temporary file without a name, which ends with its process; then one PUT
makes all of it durable, or nothing. The store refuses it where the name is taken, or where the
bytes are not those of the SHA-256 that comes with them. Read by ranges, through `packs.blocks`.

Imported only where an archive is one: botocore takes 0.3 s and 30 MB.
"""

import base64
import contextlib
import datetime as dt
import errno
import functools
import hashlib
import io
import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import botocore.config
import botocore.session
from botocore import exceptions as aws

from ingestion.errors import ArchiveUnavailable
from ingestion.packs import s3_errors
from ingestion.packs.base import PackFile, PackStore, PackWriter
from ingestion.packs.blocks import Blocks, ObjectFile
from ingestion.packs.location import Bucket

MARK = ".installation"

_CONNECT_SECONDS = 10
#: A bucket is not unmounted: whose it is need not be asked for each pack.
_MARK_SECONDS = 60.0
#: Of a listing; so many may also be deleted by one request.
_PAGE = 1_000
_CHUNK_BYTES = 1 << 20
#: Of each request; the waits between grow to 20 s.
_ATTEMPTS = 5


@functools.lru_cache(maxsize=4)
def _client(endpoint: str, region: str, read_seconds: float) -> Any:
    """Make a client: thread-safe, and dear to make. Credentials are AWS's usual ones."""
    config = botocore.config.Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=read_seconds,
        max_pool_connections=32,
        # Ours is SHA-256, which comes with a pack. Servers of others may not know the default one.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # It is signed with the other fields, and the store compares it with the bytes: hashing them
        # a second time, for the signature alone, would prove nothing more.
        s3={"payload_signing_enabled": False},
    )
    return botocore.session.get_session().create_client(
        "s3", endpoint_url=endpoint or None, region_name=region or None, config=config
    )


os.register_at_fork(after_in_child=_client.cache_clear)


class ObjectStore(PackStore):
    """`lock_days`: for so long nobody but who may bypass it can remove a pack (Object Lock,
    governance mode); 0 is not at all."""

    setting = "ARCHIVE_URL"
    slow = True

    def __init__(self, bucket: Bucket, *, lock_days: int = 0, read_seconds: float = 30.0) -> None:
        self._bucket, self._lock_days, self._read_seconds = bucket, lock_days, read_seconds
        self.locked_for = dt.timedelta(days=lock_days)
        self.name = f"{bucket} at {bucket.endpoint}" if bucket.endpoint else str(bucket)
        self.mark_name = f"{bucket}/{MARK}"
        self._blocks = Blocks(self._range)
        self._marked: tuple[str, float] | None = None

    def fresh(self) -> "ObjectStore":
        return ObjectStore(self._bucket, lock_days=self._lock_days, read_seconds=self._read_seconds)

    # -- PackStore ---------------------------------------------------------------------------------

    def copier(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> PackWriter:
        return _Writer(self, source_id, pack_id)

    def holds(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> bool:
        key = self._key(source_id, pack_id)
        listed = self._ask("list_objects_v2", Prefix=key, MaxKeys=1)
        return any(found["Key"] == key for found in listed.get("Contents", ()))

    def sources(self) -> Iterator[uuid.UUID]:
        before = len(self._bucket.prefix)
        for page in self._pages(self._bucket.prefix, Delimiter="/"):
            for found in page.get("CommonPrefixes", ()):
                if source_id := _uuid(found["Prefix"][before:-1]):
                    yield source_id

    def _packs_of(self, source_id: uuid.UUID) -> Iterator[PackFile]:
        prefix = self._prefix(source_id)
        for page in self._pages(prefix):
            for found in page.get("Contents", ()):
                stem, dot, kind = found["Key"][len(prefix) :].rpartition(".")
                pack_id = _uuid(stem)
                if dot and kind == "pack" and pack_id:
                    modified = found["LastModified"].astimezone(dt.UTC)
                    yield PackFile(source_id, pack_id, found["Size"], modified)

    def delete(self, pack: PackFile) -> None:
        self._ask("delete_object", Key=self._key(pack.source_id, pack.pack_id))

    def delete_source(
        self, source_id: uuid.UUID, *, may_go_on: Callable[[], bool] = lambda: True
    ) -> bool:
        # A page of the listing is a batch: what stands before the next one may go meanwhile.
        for page in self._pages(self._prefix(source_id)):
            if not may_go_on():
                return False
            keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
            if keys:
                done = self._ask("delete_objects", Delete={"Objects": keys, "Quiet": True})
                for refused in done.get("Errors", ()):
                    raise s3_errors.refused(self.name, str(refused.get("Code")))
        return True

    def mark(self) -> str | None:
        if self._marked is not None and time.monotonic() < self._marked[1]:
            return self._marked[0]
        try:
            body, _ = self._range(self._bucket.prefix + MARK, 0, 1_000)
        except FileNotFoundError:
            return None
        text = body.decode(errors="replace").strip()
        self._marked = text, time.monotonic() + _MARK_SECONDS
        return text

    def write_mark(self, text: str) -> None:
        self._marked = None
        body = f"{text}\n".encode()
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        key = self._bucket.prefix + MARK
        self._ask("put_object", Key=key, Body=body, ChecksumSHA256=checksum)

    def try_out(self) -> float:
        key, body = f"{self._bucket.prefix}.doctor-{secrets.token_hex(8)}", b"\0" * 4096
        began = time.monotonic()
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(body)
            self._put(key, file)
            seconds = time.monotonic() - began
            try:
                self._require_conditions(key, file)
            finally:
                self._ask("delete_object", Key=key)
        if self._lock_days:
            self._require_lock()
        return seconds

    def _file(
        self, source_id: uuid.UUID, pack_id: uuid.UUID, expected_bytes: int = 0
    ) -> io.RawIOBase:
        return ObjectFile(self._blocks, self._key(source_id, pack_id), expected_bytes)

    # -- requests ----------------------------------------------------------------------------------

    def keep(self, source_id: uuid.UUID, pack_id: uuid.UUID, file: IO[bytes]) -> None:
        """Make a file durable as a pack. Raises FileExistsError where another one is there."""
        locked: dict[str, object] = {}
        if self._lock_days:
            until = dt.datetime.now(dt.UTC) + dt.timedelta(days=self._lock_days)
            locked = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until}
        try:
            self._put(self._key(source_id, pack_id), file, **locked)
        except FileExistsError:
            # Perhaps it is this one: the answer to the first attempt was lost on its way.
            if self.sha256(source_id, pack_id) != _hashed(file):
                raise

    def _put(self, key: str, file: IO[bytes], **more: object) -> None:
        checksum = base64.b64encode(_hashed(file)).decode()
        file.seek(0)
        self._ask(
            "put_object",
            **{"Key": key, "Body": file, "IfNoneMatch": "*", "ChecksumSHA256": checksum} | more,
        )

    def _range(self, key: str, first: int, count: int) -> tuple[bytes, int]:
        """Return the bytes of a range that there are, and the object's size. Raises
        FileNotFoundError."""
        cut: Exception | None = None
        for _ in range(_ATTEMPTS):
            wanted = f"bytes={first}-{first + count - 1}"
            try:
                answer = self._ask("get_object", Key=key, Range=wanted)
            except _BehindTheEnd:
                return b"", int(self._ask("head_object", Key=key)["ContentLength"])
            try:
                with contextlib.closing(answer["Body"]) as body:
                    return body.read(), int(answer["ContentRange"].rpartition("/")[2])
            except (aws.HTTPClientError, aws.IncompleteReadError) as error:
                cut = error  # botocore begins again only where no answer has begun
        raise s3_errors.unreachable(self.name, cut) from cut

    def _pages(self, prefix: str, **more: object) -> Iterator[Mapping[str, Any]]:
        after: dict[str, object] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=prefix, MaxKeys=_PAGE, **more, **after)
            yield page
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def _ask(self, operation: str, **arguments: object) -> Mapping[str, Any]:
        """Send a request, again where that may help. Raises FileNotFoundError, FileExistsError and
        ArchiveUnavailable, which says what is wrong."""
        try:
            client = _client(self._bucket.endpoint, self._bucket.region, self._read_seconds)
            answer: Mapping[str, Any] = getattr(client, operation)(
                Bucket=self._bucket.name, **arguments
            )
        except aws.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in s3_errors.MISSING:
                raise FileNotFoundError(errno.ENOENT, "No such object", self.name) from error
            if code in s3_errors.TAKEN:
                raise FileExistsError(errno.EEXIST, "An object is there", self.name) from error
            if code in s3_errors.BEHIND_THE_END:
                raise _BehindTheEnd from error
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise s3_errors.refused(self.name, code, status) from error
        except aws.BotoCoreError as error:
            raise s3_errors.unreachable(self.name, error) from error
        return answer

    # -- what a store must know --------------------------------------------------------------------

    def _require_conditions(self, key: str, file: IO[bytes]) -> None:
        """Raise ArchiveUnavailable where the store takes a name twice, or other bytes than it was
        told."""
        with contextlib.suppress(FileExistsError):
            self._put(key, file)
            raise self._lacks("takes a second object under the same name (If-None-Match: *)")
        try:
            wrong = base64.b64encode(hashlib.sha256(b"other bytes").digest()).decode()
            self._put(f"{key}-2", file, ChecksumSHA256=wrong)
        except ArchiveUnavailable:
            return
        self._ask("delete_object", Key=f"{key}-2")
        raise self._lacks("takes other bytes than it is told (x-amz-checksum-sha256)")

    def _require_lock(self) -> None:
        try:
            found = self._ask("get_object_lock_configuration")
        except ArchiveUnavailable as error:
            if "AccessDenied" in str(error):  # nobody need be allowed to ask
                return
            found = {}
        if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise ArchiveUnavailable(
                f"{self.name}: ARCHIVE_LOCK_DAYS is set, and the bucket has no Object Lock. It is"
                " given to a bucket when that is made."
            )

    def _lacks(self, what: str) -> ArchiveUnavailable:
        return ArchiveUnavailable(f"{self.name}: the store {what}. Use one that refuses that.")

    # -- names -------------------------------------------------------------------------------------

    def _prefix(self, source_id: uuid.UUID) -> str:
        return f"{self._bucket.prefix}{uuid.UUID(str(source_id))}/"

    def _key(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> str:
        return f"{self._prefix(source_id)}{uuid.UUID(str(pack_id))}.pack"


class _Writer(PackWriter):
    def __init__(self, store: ObjectStore, source_id: uuid.UUID, pack_id: uuid.UUID) -> None:
        self._store, self._source_id = store, source_id
        super().__init__(pack_id, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - the base closes it

    def remove(self) -> None:
        now = dt.datetime.now(dt.UTC)
        self._store.delete(PackFile(self._source_id, self.pack_id, 0, now))

    def _keep(self) -> None:
        self._store.keep(self._source_id, self.pack_id, self.file)
        self.file.close()

    def _discard(self) -> None:
        """The file had no name."""


class _BehindTheEnd(Exception):
    """A range that begins where the object has ended."""


def _hashed(file: IO[bytes]) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.digest()


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
