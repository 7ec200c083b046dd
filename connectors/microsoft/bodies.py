"""Reading a message's bytes off an answer: in memory, or on disk where they are many."""

import threading
import zlib
from collections.abc import Iterator

import httpx

from connectors.errors import MessageRefused, Unavailable
from connectors.gunzip import Gunzip
from connectors.parallel import Stopped
from connectors.types import SPOOL_BYTES, Body, SpooledBody


def body_of(response: httpx.Response, *, max_bytes: int, stop: threading.Event) -> Body:
    """Return the bytes of an answer.

    Raises MessageRefused where they are too many, or have no room, Stopped once `stop` is set,
    Unavailable where nothing would tell that some are missing.
    """
    chunked = response.headers.get("transfer-encoding", "").lower() == "chunked"
    if not chunked and "content-length" not in response.headers:
        raise Unavailable("Microsoft Graph sent a message without telling where it ends.")
    held = bytearray()
    spool: SpooledBody | None = None
    try:
        for chunk in _chunks(response, max_bytes, stop):
            held += chunk
            if spool is None and len(held) > SPOOL_BYTES:
                spool = SpooledBody.begin()
            if spool is not None:
                spool.write(held)
                held.clear()
    except BaseException:
        if spool is not None:
            spool.close()
        raise
    return bytes(held) if spool is None else spool


def _chunks(response: httpx.Response, max_bytes: int, stop: threading.Event) -> Iterator[bytes]:
    size = 0
    for chunk in _unpacked(response):
        size += len(chunk)
        if stop.is_set():
            raise Stopped
        if size > max_bytes:
            raise MessageRefused(
                f"The message has more bytes than MAX_MESSAGE_BYTES ({max_bytes:,}) allows. Raise"
                " the limit and retry it.",
                code="too_large",
                of_item=True,
            )
        yield chunk


def _unpacked(response: httpx.Response) -> Iterator[bytes]:
    """Yield what comes, in pieces of bounded size: httpx unpacks what came at once."""
    if response.headers.get("content-encoding", "").lower() != "gzip":
        yield from response.iter_bytes()
        return
    gunzip = Gunzip()
    try:
        for packed in response.iter_raw():
            yield from gunzip.pieces(packed)
        yield gunzip.end()
    except zlib.error as error:
        raise Unavailable("Microsoft Graph sent a message that is damaged on the way.") from error
