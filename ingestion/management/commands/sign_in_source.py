"""sign_in_source: grant access to one person's mailbox by typing in a code in any browser."""

import time
from typing import Any

from ingestion import tasks
from ingestion.management.base import Exit, SourceCommand
from ingestion.models import IngestionSource
from ingestion.services.sources import consent


class Command(SourceCommand):
    help = (
        "Sign in to a source where no browser can come back to this service: shows a code and the "
        "page to type it in, on any device, and waits until that is done. For one person's "
        "Microsoft 365 mailbox, by an application without a client secret. Then the source is "
        "checked. Ends with 1 where access is not granted in time."
    )
    example = 'manage.py sign_in_source "Alice"'

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        del options
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
        tasks.dispatch_on_commit(source)
        self.report(
            {"sourceId": source.pk, "signedIn": True},
            f"Signed in. The credentials of {source.name} are being checked: see source_status.",
        )
        return Exit.OK
