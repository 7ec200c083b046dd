"""One message of 30 MB, in and out through the real service: memory depends on no message's size."""

import base64
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.stack import descendants

if TYPE_CHECKING:
    from tests.servers.stack import Service

SIZE_BYTES = 30_000_000
#: What any process may grow by meanwhile. A body held once, or its base64, would be 30 MB and more.
MARGIN_BYTES = 15_000_000


def peaks(pids: list[int]) -> dict[int, int]:
    """Return the largest resident set of each process since `forget_peaks`, in bytes."""
    found = {}
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found[pid] = int(line.split()[1]) * 1024
    return found


def forget_peaks(pids: list[int]) -> None:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5)


def test_a_large_message_is_archived_and_read_back_in_constant_memory(
    service: "Service", api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    account = dovecot.account(b"Subject: small\r\n\r\nsmall\r\n")
    body = {
        "name": "Mail",
        "provider": "generic_imap",
        "providerConfig": imap_source.config(account),
        "autoImport": True,
    }
    url = f"/ingestion/{api.post('/ingestion', json=body).json()['id']}"
    wait_for(lambda: api.get(url).json()["status"] == "active")
    [small] = api.get("/emails").json()["results"]
    assert api.get(f"/emails/{small['id']}/raw").content == b"Subject: small\r\n\r\nsmall\r\n"

    seed = 20261125
    noise = base64.encodebytes(random.Random(seed).randbytes(SIZE_BYTES * 3 // 4))
    large = b"Subject: large\r\n\r\n" + noise.replace(b"\n", b"\r\n")
    dovecot.deliver(account.name, "1700000000.M1P1.host", large)
    pids = descendants(service.supervised.process.pid)
    forget_peaks(pids)
    before = peaks(pids)

    api.post(f"{url}/sync")
    wait_for(lambda: api.get(url).json()["messageCount"] == 2)
    [email] = [e for e in api.get("/emails").json()["results"] if e["subject"] == "large"]
    digest, size = hashlib.sha256(), 0
    with api.stream("GET", f"/emails/{email['id']}/raw") as answer:
        for chunk in answer.iter_raw():
            digest.update(chunk)
            size += len(chunk)
    assert size == len(large) == int(answer.headers["Content-Length"])
    assert digest.digest() == hashlib.sha256(large).digest()
    grown = {pid: peak - before[pid] for pid, peak in peaks(pids).items()}
    assert max(grown.values()) < MARGIN_BYTES, grown
