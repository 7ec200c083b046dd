"""sign_in_source: let the owner of an account grant access, by a code or by a link."""

import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings

from ingestion import dispatching
from ingestion.management.base import Exit, SourceCommand
from ingestion.models import IngestionSource
from ingestion.services.sources import consent, consent_links


class Command(SourceCommand):
    help = (
        "Sign in to a source where no browser can come back to this service: shows a code and the "
        "page to type it in, on any device, and waits until that is done. For one person's "
        "Microsoft 365 mailbox, by an application without a client secret. With --link it makes an "
        "address instead, to send to the owner of any account: they grant access by their own "
        "browser, without a user here, once. Then the source is checked. Ends with 1 where access "
        "is not granted in time."
    )
    example = 'manage.py sign_in_source "Alice"\nmanage.py sign_in_source "Bob" --link'

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--link",
            action="store_true",
            help="make a link for the owner; it revokes the one before",
        )
        parser.add_argument(
            "--hours",
            type=int,
            default=consent_links.HOURS,
            metavar="N",
            help=f"for how long a link is good (default {consent_links.HOURS})",
        )

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        return self._make_link(source, options["hours"]) if options["link"] else self._ask(source)

    def _make_link(self, source: IngestionSource, hours: int) -> Exit:
        link, token = consent_links.make(source, hours=hours, actor=self.actor)
        url = consent_links.address(token, here=f"http://localhost:{settings.PORT}")
        self.say(
            f"Send this to the owner of the account, and to nobody else. It is good for {hours} h, "
            "once, and shown here alone:"
        )
        self.report({"sourceId": source.pk, "url": url, "expiresAt": link.expires_at}, url)
        return Exit.OK

    def _ask(self, source: IngestionSource) -> Exit:
        prompt = consent.begin_device(source)
        self.say(
            f"Open {prompt.page} and type in the code {prompt.user_code} within"
            f" {prompt.seconds / 60:.0f} minutes."
        )
        until = time.monotonic() + prompt.seconds
        while not consent.finish_device(source, prompt, actor=self.actor):
            if time.monotonic() > until:
                self.say("Nobody typed it in. Run the command again for a new code.")
                return Exit.PROBLEM
            time.sleep(prompt.interval_seconds)  # as the provider asks
        dispatching.on_commit(source)
        self.report(
            {"sourceId": source.pk, "signedIn": True},
            f"Signed in. The credentials of {source.name} are being checked: see source_status.",
        )
        return Exit.OK
