"""The keys that encrypt credentials at rest: which are in use, and changing to a new one.

The first of settings.ENCRYPTION_KEYS encrypts, all of them decrypt. A key is replaced in steps that
leave every process able to read at every moment: add the new key in front and restart; re-encrypt
(`rotate`, any number of times); take the old key away and restart. The columns themselves are
`ingestion.crypto`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import connection, transaction
from fernet_fields.hkdf import derive_fernet_key

from ingestion.crypto import key_id
from ingestion.errors import NotAllowedNow
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import heartbeat

_BATCH_ROWS = 200
#: Who only refers to a row need not wait.
_LOCK = " FOR NO KEY UPDATE"
#: The dispatcher writes its heartbeat every 3 s.
_HEARTBEAT_SECONDS = 30.0


#: What has secrets, in a column of that name: sources, and webhooks.
_SOURCES, _WEBHOOKS = "ingestion_ingestionsource", "ingestion_webhookendpoint"
#: Where the JSON of a second step has what only its owner may know; security keys have nothing.
_SECOND_STEP_FIELDS = ("secret", "seed")


@dataclasses.dataclass(slots=True)
class Rotation:
    """What was looked at. `unreadable`: ids of what none of the keys decrypts."""

    sources: int = 0
    webhooks: int = 0
    second_steps: int = 0
    reencrypted: int = 0
    unreadable: list[uuid.UUID | int] = dataclasses.field(default_factory=list)

    @property
    def all(self) -> str:
        """Say what there is: "3 sources and 1 webhook"."""
        webhooks = f"{self.webhooks} webhook{'' if self.webhooks == 1 else 's'}"
        steps = f"{self.second_steps} second step{'' if self.second_steps == 1 else 's'}"
        parts = [
            f"{self.sources} sources" if self.sources or not (self.webhooks or self.second_steps)
            else "",
            webhooks if self.webhooks else "",
            steps if self.second_steps else "",
        ]  # fmt: skip
        return " and ".join(part for part in parts if part)

    def count(self, table: str) -> None:
        if table == _SOURCES:
            self.sources += 1
        else:
            self.webhooks += 1


def rotate(
    *,
    actor: Actor,
    keys: Sequence[str] | None = None,
    on_progress: Callable[[Rotation], None] = lambda _: None,
) -> Rotation:
    """Re-encrypt with the first of `keys` (default: the settings') what another one encrypted.

    Idempotent; each batch is its own transaction, so a kill half-way leaves some sources on the
    old key and none unreadable. A source that no key decrypts is left as it is and reported.
    Raises NotAllowedNow while the service runs without the first key: it could read nothing more.
    """
    chosen = settings.ENCRYPTION_KEYS if keys is None else keys
    if not chosen:
        raise NotAllowedNow("ENCRYPTION_KEYS is empty: there is no key to encrypt with.")
    if unknown_to_the_service(chosen[0]):
        raise NotAllowedNow(
            "The service runs and does not know the newest key: it was started before the key was "
            "added, or with other ENCRYPTION_KEYS. Restart all of its processes, then run this "
            "again."
        )
    fernets = _fernets(chosen)
    result = Rotation()
    for table, batch in _batches():
        with transaction.atomic():
            for pk, token in _tokens(table, batch, lock=True):
                result.count(table)
                _rotate_one(fernets, table, pk, token, result)
            on_progress(result)
    with transaction.atomic():
        _rotate_second_steps(fernets, result)
        on_progress(result)
    if result.reencrypted:
        with transaction.atomic():
            audit(actor, "credentials.rotate", None, {"reencrypted": result.reencrypted})
    return result


def survey() -> Rotation:
    """Count what has secrets, what is not yet on the first key (`reencrypted`) or unreadable."""
    fernets = _fernets(settings.ENCRYPTION_KEYS)
    result = Rotation()
    for table, batch in _batches():
        for pk, token in _tokens(table, batch, lock=False):
            result.count(table)
            key = _key_of(fernets, token)
            if key is None:
                result.unreadable.append(pk)
            elif key > 0:
                result.reencrypted += 1
    for row, _, token in _second_steps(lock=False):
        result.second_steps += 1
        key = _key_of(fernets, token)
        if key is None:
            result.unreadable.append(row)
        elif key > 0:
            result.reencrypted += 1
    return result


def _rotate_second_steps(fernets: Sequence[Fernet], result: Rotation) -> None:
    """Needs a transaction. They are as few as people, so it is one."""
    for pk, field, token in _second_steps(lock=True):
        result.second_steps += 1
        key = _key_of(fernets, token)
        if key is None:
            result.unreadable.append(pk)
        elif key > 0:
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE mfa_authenticator SET data = jsonb_set(data, %s, to_jsonb(%s::text))"
                    " WHERE id = %s",
                    ([field], MultiFernet(fernets).rotate(token).decode(), pk),
                )
            result.reencrypted += 1


def _second_steps(*, lock: bool) -> list[tuple[int, str, bytes]]:
    """Return id, field and ciphertext of what people prove themselves with."""
    query = f"SELECT id, data FROM mfa_authenticator ORDER BY id{_LOCK if lock else ''}"
    with connection.cursor() as cursor:
        cursor.execute(query)
        rows = [(pk, json.loads(data)) for pk, data in cursor.fetchall()]
    return [
        (pk, field, data[field].encode())
        for pk, data in rows
        for field in _SECOND_STEP_FIELDS
        if field in data
    ]


def _rotate_one(
    fernets: Sequence[Fernet], table: str, pk: uuid.UUID, token: bytes, result: Rotation
) -> None:
    key = _key_of(fernets, token)
    if key is None:
        result.unreadable.append(pk)
    elif key > 0:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {table} SET secrets = %s WHERE id = %s",
                (MultiFernet(fernets).rotate(token), pk),
            )
        result.reencrypted += 1


def unknown_to_the_service(key: str) -> bool:
    """Whether a service runs that was started without this key."""
    last = heartbeat.last()
    known = last.keys if last.younger_than(_HEARTBEAT_SECONDS) else None
    return known is not None and key_id(key) not in known


def _fernets(keys: Sequence[str]) -> list[Fernet]:
    return [Fernet(derive_fernet_key(key)) for key in keys]


def _key_of(fernets: Sequence[Fernet], token: bytes) -> int | None:
    """Return which key decrypts the token, 0 being the one that encrypts."""
    for number, fernet in enumerate(fernets):
        try:
            fernet.decrypt(token)
        except InvalidToken:
            continue
        return number
    return None


def _batches() -> Iterator[tuple[str, list[uuid.UUID]]]:
    """Yield table and ids of all that has secrets, deleted sources too, in batches."""
    for table in (_SOURCES, _WEBHOOKS):
        after = uuid.UUID(int=0)
        while True:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT id FROM {table} WHERE id > %s ORDER BY id LIMIT %s",
                    (after, _BATCH_ROWS),
                )
                batch = [row[0] for row in cursor.fetchall()]
            if not batch:
                break
            yield table, batch
            after = batch[-1]


def _tokens(table: str, batch: list[uuid.UUID], *, lock: bool) -> list[tuple[uuid.UUID, bytes]]:
    """Read ciphertexts as they are stored: the model's field would decrypt them, or raise."""
    query = f"SELECT id, secrets FROM {table} WHERE id = ANY(%s) ORDER BY id"
    with connection.cursor() as cursor:
        cursor.execute(query + (_LOCK if lock else ""), (batch,))
        return [(pk, bytes(token)) for pk, token in cursor.fetchall()]


# -- keys that the embedded services keep in VAR_DIR -----------------------------------------------


def add_managed_key() -> list[str]:
    """Put a fresh key in front of those in VAR_DIR/secrets.json; return all of them.

    Durable and atomic. Processes that run already don't know the new key until they are started
    again. Raises NotAllowedNow where the keys are not kept there, or another added one just now.
    """
    with _alone(_managed_file().parent):
        path = _managed_file()  # as it is now
        content = json.loads(path.read_text())
        content["ENCRYPTION_KEYS"] = [secrets.token_urlsafe(32), *content["ENCRYPTION_KEYS"]]
        _replace(path, json.dumps(content, indent=2))
    keys: list[str] = content["ENCRYPTION_KEYS"]
    return keys


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Have it for one process: of two who add a key, none may write without the other's."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def service_runs() -> bool:
    """Whether processes of this service run that know only the keys they started with."""
    alive = heartbeat.last().younger_than(_HEARTBEAT_SECONDS)
    return alive or _is_locked(settings.VAR_DIR / "run.lock")


def _is_locked(path: Path) -> bool:
    """Whether `make run` holds its lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _managed_file() -> Path:
    path: Path = settings.VAR_DIR / "secrets.json"
    try:
        kept = json.loads(path.read_text()).get("ENCRYPTION_KEYS")
    except FileNotFoundError:
        kept = None
    ours = settings.ENCRYPTION_KEYS
    if kept and ours and kept != ours and kept[-len(ours) :] == ours:
        raise NotAllowedNow(f"The keys in {path} were changed since this began. Run it again.")
    if kept != ours or "ENCRYPTION_KEYS" in os.environ:
        raise NotAllowedNow(
            "The keys come from the environment variable ENCRYPTION_KEYS, so they are changed "
            "there: put a new key in front of the others, restart every process, and run "
            "rotate_credentials_key without --new-key."
        )
    return path


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
