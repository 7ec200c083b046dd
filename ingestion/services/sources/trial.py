"""Trying a configuration before anything of it is stored: step by step, as far as one mail.

It drives the connector as the engine does, and stores nothing: neither the configuration nor mail.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from connectors import errors, registry
from connectors.base import Connector, MailboxSession
from connectors.config import Config
from connectors.types import Identity, Missing, RemoteFolder, RemoteMailbox, SpooledBody
from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.engine import trouble
from ingestion.services.engine.trouble import Action
from ingestion.services.sources import configuration, credentials
from ingestion.services.sources import options as source_options
from ingestion.services.sources.options import Options

log = structlog.get_logger(__name__)

#: Each step with what it is called where it is not done, in their order.
STEPS = {
    "server": "Find the server",
    "encryption": "Encrypt the connection",
    "login": "Log in",
    "mailboxes": "List the mailboxes",
    "folders": "List the folders",
    "message": "Read one message",
}
#: Which step a check failed at; the login where it is none of these.
_FAILED_AT = {
    **dict.fromkeys(("unknown_host", "forbidden_address", "unavailable", "not_imap"), "server"),
    **dict.fromkeys(("certificate", "tls"), "encryption"),
    "no_folders": "folders",
}
_MAX_MAILBOXES = 1_000
_NAMED = 5


class AwaitsConsent(InvalidInput):
    """Nothing is wrong: somebody grants access once it is stored, and before there is no login."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What came of a step. `code` is "ok", or the trouble's; `text` is for people."""

    name: str
    text: str
    code: str = "ok"

    @property
    def ok(self) -> bool:
        return self.code == "ok"

    @property
    def title(self) -> str:
        return STEPS[self.name]


def steps(
    *,
    provider: Any,
    provider_config: Any,
    options: Mapping[str, Any] | None = None,
    source: IngestionSource | None = None,
) -> Iterator[Step]:
    """Yield what comes of each step, as it is done; the last one failed, or mail can be read.

    `source`: whose stored secrets stand in for those that are not given. Raises InvalidInput,
    before the first step, where the configuration can't be right, or AwaitsConsent. Each step
    takes up to some 15 s.
    """
    config = configuration.checked_config(provider, provider_config, source)
    chosen = source_options.parse({} if options is None else options)
    if config.awaits_consent():
        label = registry.get(provider).label
        then = (
            "then make a link for its owner."
            if config.owners_secret
            else f"you sign in with {label} afterwards, once."
        )
        raise AwaitsConsent({"providerConfig": [f"Save it first: {then}"]})
    return _steps(registry.get(provider), config, chosen)


def _steps(provider: registry.Provider, config: Config, options: Options) -> Iterator[Step]:
    doing = "login"
    found: dict[str, str] = {}
    environment = dataclasses.replace(credentials.deployment(), found=found.__setitem__)
    try:
        with provider.connector(config, environment) as connector:
            identity = connector.check()
            found["login"] = _login(identity)
            yield from _done(found, before="mailboxes")
            doing = "mailboxes"
            mailbox, said = _mailbox(connector, options)
            yield Step("mailboxes", said)
            doing = "folders"
            with connector.open(mailbox) as session:
                wanted, said = _folders(session, options)
                yield Step("folders", said)
                doing = "message"
                yield Step("message", _one_message(session, wanted))
    except Exception as error:
        what = trouble.of(error)
        if what.action is Action.BUG:
            log.exception("trial_bug", error=type(error).__name__)
        at = _FAILED_AT.get(what.code, doing) if doing == "login" else doing
        yield from _done(found, before=at) if doing == "login" else ()
        yield Step(at, what.text, what.code)


def _done(found: Mapping[str, str], *, before: str) -> Iterator[Step]:
    """Yield what the connector told of the steps before one; of some it may know nothing."""
    earlier = itertools.takewhile(lambda name: name != before, STEPS)
    yield from (Step(name, found[name]) for name in earlier if name in found)


def _login(identity: Identity) -> str:
    return f"Signed in as {identity.account}: {identity.detail}".rstrip(":. ") + "."


def _mailbox(connector: Connector, options: Options) -> tuple[RemoteMailbox, str]:
    """Return the first mailbox that is wanted and can be had, and what there is in all."""
    wanted: list[RemoteMailbox] = []
    unavailable = left_out = 0
    more = ""
    for number, mailbox in enumerate(connector.mailboxes()):
        if number >= _MAX_MAILBOXES:
            more = " or more"
            break
        if not options.wants_mailbox(mailbox.address):
            left_out += 1
        elif mailbox.unavailable:
            unavailable += 1
        else:
            wanted.append(mailbox)
    parts = [f"{len(wanted):,}{more} to archive"]
    parts += [f"{unavailable:,} unavailable"] if unavailable else []
    parts += [f"{left_out:,} left out by the options"] if left_out else []
    if not wanted:
        raise errors.Fatal(f"No mailbox is left to archive: {', '.join(parts)}.", code="no_mailbox")
    return wanted[0], f"{', '.join(parts)}."


def _folders(session: MailboxSession, options: Options) -> tuple[list[RemoteFolder], str]:
    found = session.folders()
    wanted = [folder for folder in found if options.wants_folder(folder)]
    out = [folder.path for folder in found if not options.wants_folder(folder)]
    known = [folder.message_count for folder in wanted if folder.message_count is not None]
    total = sum(known)
    about = f", about {total:,} message{'' if total == 1 else 's'}" if known else ""
    text = f"Archives {len(wanted):,} folder{'' if len(wanted) == 1 else 's'}{about}"
    if out:
        more = f" and {len(out) - _NAMED:,} more" if len(out) > _NAMED else ""
        text = f"{text}; leaves out {', '.join(out[:_NAMED])}{more}"
    return wanted, f"{text}."


def _one_message(session: MailboxSession, folders: list[RemoteFolder]) -> str:
    """Read one message of the smallest folder that has any."""
    by_size = sorted(folders, key=lambda folder: folder.message_count or float("inf"))
    for folder in by_size:
        if folder.message_count == 0:
            continue
        for page in session.changes(folder, None):
            if not page.added:
                continue
            for answer in session.fetch(folder, page.added[-1:]):
                if isinstance(answer, Missing):
                    raise answer.error
                with contextlib.closing(answer):
                    body = answer.body
                    size = body.size if isinstance(body, SpooledBody) else len(body)
                return f"Read: {size:,} bytes, in {folder.path}."
    return "There is no message yet."
