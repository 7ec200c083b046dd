"""What a Maildir needs: which one it is, and a proof that it may be read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from connectors.config import Config, ConfigError, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaildirConfig(Config):
    directory: str = field("Directory", help="Beneath MAILDIR_ROOT: example.com/alice.")
    token: str = field(
        "Token",
        secret=True,
        goes_with=("directory",),
        help="The line in the file .archive-token there: whoever can write it may read the mail.",
    )

    def check(self) -> None:
        if any(part in ("", ".", "..") for part in self.directory.split("/")):
            raise ConfigError({"directory": ["Must be a path beneath MAILDIR_ROOT, without '..'."]})

    def is_elsewhere(self, stored: Mapping[str, Any]) -> bool:
        return self.directory != stored.get("directory")


LABEL = "Maildir directory"
CONFIG = MaildirConfig
