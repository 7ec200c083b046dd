"""add_source: configure a new source."""

import getpass
import sys
from argparse import ArgumentParser
from typing import Any

from connectors.config import Field
from connectors.registry import PROVIDERS
from ingestion import dispatching
from ingestion.management import asking, given
from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.source_objects import source_object
from ingestion.models import IngestionSource
from ingestion.services.sources import configuration, credentials, same_account, trial


class Command(OperatorCommand):
    help = (
        "Add a source. On a terminal, without NAME, it asks for one way after the other, says "
        "what to do at the provider first, and tries it before it is added. Else its "
        "configuration comes from single options, from --config-file, or from --config; single "
        "options win. A secret is taken from an environment variable, from standard input or "
        "from a file, so that it need not stand on the command line, where others on this "
        "machine see it; on a terminal it is asked for. The credentials are checked in the "
        "background, or now with --verify (then it ends with 1 where they don't work)."
    )
    example = (
        "manage.py add_source\n"
        'manage.py add_source "Alice" --host imap.example.com --username alice@example.com '
        "--password-env IMAP_PASSWORD --verify\n"
        'pass mail/alice | manage.py add_source "Alice" --host imap.example.com --username alice '
        "--password-stdin --auto-import\n"
        'manage.py add_source "Alice" --config-file alice.json --exclude-folders "Lists/*"'
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "name", nargs="?", metavar="NAME", help="what it is called; left out, all is asked for"
        )
        parser.add_argument(
            "--provider",
            choices=list(PROVIDERS),
            default="generic_imap",
            help="what kind of server it is (default generic_imap)",
        )
        parser.add_argument(
            "--owner", metavar="USER", help="whose it is (default: the only administrator)"
        )
        parser.add_argument(
            "--auto-import", action="store_true", help="import as soon as the credentials work"
        )
        parser.add_argument(
            "--verify", action="store_true", help="check the credentials now, within 15 s"
        )
        parser.add_argument(
            "--test",
            action="store_true",
            help="only try it, step by step as far as one message, and add nothing",
        )
        given.add_arguments(parser)

    def perform(self, options: dict[str, Any]) -> Exit:
        if options["name"] is None:
            return self._interview(options)
        if options["test"]:
            return self._test(options)
        source = configuration.create(
            owner=self.owner(options["owner"]),
            name=options["name"],
            provider=options["provider"],
            provider_config=self._config(options),
            options=given.chosen_options(options),
            auto_import=options["auto_import"],
            actor=self.actor,
        )
        if not options["verify"]:
            dispatching.on_commit(source)
            return self._added(source, "Its credentials are being checked: see source_status.")
        verdict = credentials.check(source, actor=self.actor)
        dispatching.on_commit(source)
        source.refresh_from_db()
        if verdict.ok:
            return self._added(source, f"The credentials work. {verdict.message}")
        self.say(
            f"The credentials don't work ({verdict.code}): {verdict.message} The source was added; "
            "correct it in the admin or with PUT, or delete_source and add it again."
        )
        self._added(source, "")
        return Exit.PROBLEM

    def _interview(self, options: dict[str, Any]) -> Exit:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(
                "Give NAME and the account, such as --host, --username and --password-env: without "
                "a terminal nobody can be asked. --help has all of it, add_sources takes a file."
            )
        if given.config(options, options["provider"], self.say):
            raise UsageError("Give NAME too: only where nothing is given, all is asked for.")
        owner = self.owner(options["owner"])
        told = asking.Interview().account()
        if told is None:
            self.say("Nothing was added.")
            return Exit.PROBLEM
        source = configuration.create(
            owner=owner,
            name=told.name,
            provider=told.provider,
            provider_config=told.config,
            options=given.chosen_options(options),
            auto_import=told.auto_import,
            actor=self.actor,
        )
        dispatching.on_commit(source)
        then = "Its credentials are being checked: see source_status."
        if told.awaits_consent:
            then = "Its owner grants access: sign_in_source with --link makes an address for them."
        return self._added(source, then)

    def _test(self, options: dict[str, Any]) -> Exit:
        done = []
        for step in trial.steps(
            provider=options["provider"],
            provider_config=self._config(options),
            options=given.chosen_options(options),
        ):
            done.append(step)
            self.say(f"{'✓' if step.ok else '✗'} {step.title}: {step.text}")
        ok = all(step.ok for step in done)
        self.report(
            {"ok": ok, "steps": [_step_object(step) for step in done]},
            "It works. Nothing was added: leave --test out to add it."
            if ok
            else "Nothing was added.",
        )
        return Exit.OK if ok else Exit.PROBLEM

    def _added(self, source: IngestionSource, then: str) -> Exit:
        warnings = same_account.of_source(source, user=None)
        for text in warnings:
            self.say(text)
        shown = source_object(source) | {"warnings": warnings}
        self.report(shown, f"Added {source.name} as {source.pk}. {then}".strip())
        return Exit.OK

    # -- configuration -----------------------------------------------------------------------------

    def _config(self, options: dict[str, Any]) -> dict[str, Any]:
        config = given.config(options, options["provider"], self.say)
        self._ask_for_secret(config, list(PROVIDERS[options["provider"]].config.fields()))
        return config

    def _ask_for_secret(self, config: dict[str, Any], fields: list[Field]) -> None:
        """Ask for the first secret where none was given and a person is there to type it."""
        secrets = [f for f in fields if f.secret]
        if not secrets or any(config.get(f.name) for f in secrets) or not sys.stdin.isatty():
            return
        config[secrets[0].name] = getpass.getpass(f"{secrets[0].label}: ")


def _step_object(step: trial.Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "title": step.title,
        "ok": step.ok,
        "code": step.code,
        "message": step.text,
    }
