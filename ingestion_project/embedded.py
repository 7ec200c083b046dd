"""A real PostgreSQL and a real Redis from pip wheels, under VAR_DIR, for machines without them.

Owns where they live and how they start. `ingestion_project.settings` asks it for their addresses;
`ingestion_project.run` starts them. Nothing here is used where DATABASE_URL and REDIS_URL are set.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

#: A Unix socket's path may have 107 bytes (sun_path); PostgreSQL appends ".s.PGSQL.5432".
_MAX_SOCKET_DIR_BYTES = 90


class Local:
    """The addresses and files of the embedded services of one VAR_DIR."""

    def __init__(self, var_dir: Path) -> None:
        self.var_dir = var_dir
        own = var_dir / "run"
        if len(os.fsencode(own)) > _MAX_SOCKET_DIR_BYTES:
            digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:16]
            own = Path(f"/tmp/ingestion-{os.getuid()}-{digest}")  # noqa: S108 - made with mode 0700
        self.socket_dir = own

    def database(self) -> dict[str, Any]:
        return {"NAME": "ingestion", "USER": "postgres", "HOST": str(self.socket_dir)}

    @property
    def redis_url(self) -> str:
        return f"unix://{self.socket_dir}/redis.sock"

    def secrets(self, *, create: bool) -> dict[str, Any]:
        """Return {"SECRET_KEY", "ENCRYPTION_KEYS"} of VAR_DIR/secrets.json, made once if asked."""
        path = self.var_dir / "secrets.json"
        if create and not path.exists():
            self.var_dir.mkdir(parents=True, exist_ok=True)
            fresh = {
                "SECRET_KEY": secrets.token_urlsafe(50),
                "ENCRYPTION_KEYS": [secrets.token_urlsafe(32)],
            }
            partial = path.with_name(f"secrets.{os.getpid()}.{secrets.token_hex(4)}")
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(fresh, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(partial, path)  # fails where another process was first: use its keys
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        return json.loads(path.read_text()) if path.exists() else {}
