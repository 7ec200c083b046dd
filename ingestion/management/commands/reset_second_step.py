"""reset_second_step: let somebody in by password again who lost their phone."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User

from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.services.operations import people


class Command(OperatorCommand):
    help = (
        "Take away a person's second step: codes of an app, recovery codes and security keys. For"
        " who lost them all. The password alone lets them in then, and they set up a new one."
        " Ask first, by another way, whether it is them."
    )
    example = "manage.py reset_second_step ada"

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user", metavar="USER", help="the user name")

    def perform(self, options: dict[str, Any]) -> Exit:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise UsageError("There is no user of that name.")
        removed = people.reset_second_step(user, actor=self.actor)
        self.report(
            {"user": user.get_username(), "removed": removed},
            f"Took away {removed} of {user.get_username()}." if removed
            else f"{user.get_username()} had no second step.",
        )  # fmt: skip
        return Exit.OK
