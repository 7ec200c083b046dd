"""list_keys: which API keys there are."""

from argparse import ArgumentParser
from typing import Any

from ingestion.management.base import Exit, OperatorCommand
from ingestion.models import ApiKey


class Command(OperatorCommand):
    help = (
        "List the API keys: how each begins, what it is for, whose it is, what it may do, when it "
        "was last used (to within a minute) and when it expires. Only hashes are stored, so the "
        "keys themselves can't be shown."
    )
    example = "manage.py list_keys\nmanage.py list_keys --user alice --json"

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", metavar="U", help="only the keys of this user")

    def perform(self, options: dict[str, Any]) -> Exit:
        keys = ApiKey.objects.select_related("user")
        if options["user"] is not None:
            keys = keys.filter(user=self.find_user(options["user"]))
        found = list(keys)
        self.report_rows(
            {"keys": [_object(key) for key in found]},
            ("Begins with", "Name", "User", "May", "Made", "Last used", "Expires"),
            [
                (
                    key.token_key,
                    key.name,
                    key.user.get_username(),
                    ", ".join(key.scopes),
                    key.created,
                    key.last_used_at,
                    key.expiry,
                )
                for key in found
            ],
            numbers={"Begins with"},  # whole
            spare=("Made", "Expires"),
            nothing="There is no API key. create_api_key makes one.",
        )
        return Exit.OK


def _object(key: ApiKey) -> dict[str, Any]:
    return {
        "beginsWith": key.token_key,
        "name": key.name,
        "user": key.user.get_username(),
        "scopes": key.scopes,
        "createdAt": key.created,
        "lastUsedAt": key.last_used_at,
        "expiresAt": key.expiry,
    }
