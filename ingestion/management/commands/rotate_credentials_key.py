"""rotate_credentials_key: re-encrypt all credentials with the newest key."""

from argparse import ArgumentParser
from typing import Any

from ingestion.management.base import Exit, OperatorCommand
from ingestion.services.operations import credential_keys


class Command(OperatorCommand):
    help = (
        "Re-encrypt the credentials of all sources with the first key of ENCRYPTION_KEYS. To "
        "change keys: put a new one in front of the old ones, restart every process, run this, "
        "take the old ones away, restart. Killed half-way it leaves everything readable: run it "
        "again. "
        "--new-key does the first step for keys that the service keeps itself, in "
        "VAR_DIR/secrets.json. Ends with 1 where a source's credentials can't be read by any key."
    )
    example = (
        "manage.py rotate_credentials_key --new-key   # then restart the service, then:\n"
        "manage.py rotate_credentials_key"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--new-key",
            action="store_true",
            help="first put a fresh key in front of those in VAR_DIR/secrets.json; where the "
            "service runs, re-encrypting waits until it was restarted",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        keys = None
        if options["new_key"]:
            running = credential_keys.service_runs()
            keys = credential_keys.add_managed_key()
            if running:
                self._restart_first(len(keys))
                return Exit.OK
        result = credential_keys.rotate(keys=keys, actor=self.actor)
        unreadable = [str(pk) for pk in result.unreadable]
        document = {
            "sources": result.sources,
            "webhooks": result.webhooks,
            "reencrypted": result.reencrypted,
            "unreadable": unreadable,
            "restartNeeded": False,
        }
        lines = [
            f"{result.reencrypted} of {result.all} were re-encrypted; "
            "the newest key reads all of them."
            if not unreadable
            else f"{result.reencrypted} of {result.all} were re-encrypted."
        ]
        if unreadable:
            lines.append(
                f"No key reads the credentials of: {', '.join(unreadable)}. Put the key they were "
                "stored with back into ENCRYPTION_KEYS, or set their credentials anew."
            )
        self.report(document, lines)
        return Exit.PROBLEM if unreadable else Exit.OK

    def _restart_first(self, number: int) -> None:
        self.report(
            {
                "sources": 0,
                "webhooks": 0,
                "reencrypted": 0,
                "unreadable": [],
                "restartNeeded": True,
            },
            f"A fresh key is in front of {number - 1} older in VAR_DIR/secrets.json. The service "
            "runs and does not know it yet: restart it, then run rotate_credentials_key again, "
            "without --new-key.",
        )
