"""revoke_key: refuse an API key from now on."""

from argparse import ArgumentParser
from typing import Any

from knox.settings import CONSTANTS

from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.models import ApiKey
from ingestion.services.operations import api_keys


class Command(OperatorCommand):
    help = (
        "Revoke an API key: whoever uses it is refused from now on. It is named by how it begins, "
        "as list_keys shows it. It can't be brought back."
    )
    example = "manage.py revoke_key 3f9c2ab81d07"

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("key", metavar="BEGIN", help="how it begins, as list_keys shows it")

    def perform(self, options: dict[str, Any]) -> Exit:
        # Whoever has the key itself may give it: more of it than is stored finds it too.
        begin = options["key"][: CONSTANTS.TOKEN_KEY_LENGTH]
        found = list(ApiKey.objects.filter(token_key__startswith=begin).select_related("user")[:2])
        if not begin or not found:
            raise UsageError("No key begins like that. list_keys lists them all.")
        if len(found) > 1:
            raise UsageError("More than one key begins like that. Give more of it.")
        key = found[0]
        api_keys.revoke(key, actor=self.actor)
        whose = key.user.get_username()
        self.report(
            {"beginsWith": key.token_key, "name": key.name, "user": whose, "revoked": True},
            f"Revoked {key.name} of {whose}.",
        )
        return Exit.OK
