"""Providers of other packages: found, followed like our own, left out where they are no good, and
missed in words once they are gone."""

import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from connectors import registry
from ingestion.admin import source_form
from ingestion.models import FailedMessage, Folder, IngestionSource, Placement
from ingestion.models.source import provider_choices
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration, credentials, discovery, verbs
from ingestion.states import SourceStatus
from tests.meta.test_reference import document
from tests.servers import imap_source, people, plugins
from tests.servers.command_line import CommandLine
from tests.servers.maildir import Maildir

ACTOR = Actor.system("test")
INGESTION = "/admin/ingestion/ingestionsource/"

_CONFIG = """
import dataclasses
from connectors.config import Config, field

@dataclasses.dataclass(frozen=True, kw_only=True)
class C(Config):
    {field}: str = field("Loft", secret=True)

LABEL, CONFIG = "Carrier pigeon", C
"""
_CONNECTOR = "from tests.servers.scripted_provider import ScriptedConnector as CONNECTOR"
#: Distribution -> its provider's name, the package of that, and what is said of it.
LEFT_OUT = {
    "of-a-taken-name": ("google", "pigeon", "name, connectors.google."),
    "z-of-another-plugins-name": ("pigeon", "pigeon", "name, pigeon."),
    "of-no-name": ("Carrier Pigeon", "pigeon", "lower-case words"),
    "that-lacks-a-part": ("lacking", "lacking", "ModuleNotFoundError: No module named 'feathers'"),
    "that-is-no-connector": ("stone", "stone", "no subclass of connectors.base.Connector"),
    "with-postponed-types": ("postponed", "postponed", "must not postpone annotations"),
    "with-our-own-field": ("typed", "typed", "no field can be called type"),
    "with-a-fraction": ("fraction", "fraction", "neither a text nor a whole number nor a flag"),
    "that-ends-all": ("ending", "ending", "SystemExit: enough"),
    "that-is-not-there": ("gone", "gone_package", "No module named 'gone_package'"),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory in which all these are installed, and one that is good."""
    good = _CONFIG.format(field="loft")
    packages = {
        "pigeon": (good, _CONNECTOR),
        "lacking": (good, "import feathers"),
        "stone": (good, "CONNECTOR = object"),
        "postponed": (f"from __future__ import annotations\n{good}", _CONNECTOR),
        "fraction": (good.replace("str =", "float ="), _CONNECTOR),
        "ending": (good, "raise SystemExit('enough')"),
        "typed": (_CONFIG.format(field="type"), _CONNECTOR),
    }
    for package, (config, connector) in packages.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "config.py").write_text(config)
        (tmp_path / package / "connector.py").write_text(connector)
    plugins.write_metadata(tmp_path, "good", {"pigeon": "pigeon"})
    for name, (slug, package, _) in LEFT_OUT.items():
        plugins.write_metadata(tmp_path, name, {slug: package})
    return tmp_path


# -- what is found -----------------------------------------------------------------------------


def test_a_plugin_that_is_no_good_is_left_out_in_words_and_no_other_is(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    providers, left_out = registry.find({"google": "connectors.google"})
    assert set(providers) == {"google", "maildir", "pigeon"}
    assert providers["google"].package == "connectors.google"
    assert providers["pigeon"].label == "Carrier pigeon"
    assert len(left_out) == len(LEFT_OUT)
    for name, (slug, _, reason) in LEFT_OUT.items():
        [text] = [text for text in left_out if f"package {name} is" in text]
        assert repr(slug) in text
        assert reason in text


def test_the_service_starts_beside_them_and_its_check_tells_each(
    site: Path, manage: CommandLine
) -> None:
    done = manage("check", PYTHONPATH=f"{site}:{manage.env['PYTHONPATH']}")
    assert done.code == 0
    assert done.stderr.count("ingestion.W003") == len(LEFT_OUT)


def test_the_api_the_admin_and_the_commands_know_it(manage: CommandLine, db: None) -> None:
    choice = ("maildir", "Maildir directory")
    assert choice in provider_choices()
    schemas = document()["components"]["schemas"]
    assert "maildir" in schemas["ProviderEnum"]["enum"]
    assert schemas["MaildirConfig"]["required"] == ["directory", "token"]
    form = source_form.form_class()()
    assert "maildir__directory" in form.fields
    provider: Any = form.fields["provider"]
    assert choice in provider.choices
    assert "--token-env" in manage("add_source", "--help").stdout
    assert manage.here("makemigrations", "--check", "--dry-run").code == 0


def test_a_field_that_is_called_as_an_option_costs_nobody_the_command(
    site: Path, manage: CommandLine
) -> None:
    people.superuser("root")
    config = _CONFIG.format(field="since").replace("secret=True", "secret=False")
    (site / "pigeon" / "config.py").write_text(config)
    done = manage(
        *("add_source", "P", "--provider", "pigeon", "--since", "2020-01-01"),
        *("--config", '{"since": "the ark"}'),
        PYTHONPATH=f"{site}:{manage.env['PYTHONPATH']}",
    )
    assert done.code == 0, done
    added = IngestionSource.objects.get()
    assert (added.config, added.options["since"]) == ({"since": "the ark"}, "2020-01-01")


# -- the example -------------------------------------------------------------------------------


@pytest.fixture
def maildir() -> Maildir:
    return Maildir(f"example.com/{uuid.uuid4()}", token="proof")


@pytest.fixture
def source(transactional_db: None, archive_dir: Path, maildir: Maildir) -> IngestionSource:
    source = configuration.create(
        owner=people.superuser("alice"),
        name="Alice",
        provider="maildir",
        provider_config=maildir.config,
        actor=ACTOR,
    )
    assert credentials.check(source, actor=ACTOR).ok
    return source


def test_a_maildir_is_archived_and_followed(source: IngestionSource, maildir: Maildir) -> None:
    bodies = [b"Subject: %d\r\n\r\nbare\nline \xff\r\n" % number for number in range(5)]
    ids = [maildir.deliver(body) for body in bodies]
    sent = maildir.deliver(b"Subject: sent\r\n\r\n", folder=".Sent.2024")
    expected = {(".", name): body for name, body in zip(ids, bodies, strict=True)}
    expected[".Sent.2024", sent] = b"Subject: sent\r\n\r\n"
    run = imap_source.imported(source)
    assert run.status == "completed", run.message
    assert imap_source.archived(source) == expected

    maildir.flag(ids[1])
    maildir.file(ids[0]).unlink()
    new = maildir.deliver(b"Subject: new\r\n\r\n")
    assert imap_source.synced(source).status == "completed"
    del expected[".", ids[0]]
    expected[".", new] = b"Subject: new\r\n\r\n"
    assert imap_source.archived(source) == expected
    placements = Placement.objects.filter(mailbox__source=source)
    assert placements.get(remote_id=ids[1]).labels == ["\\Flagged"]
    assert placements.get(remote_id=ids[0]).removed_at is not None


def test_nobody_who_writes_into_a_maildir_makes_us_read_anything_else(
    source: IngestionSource, maildir: Maildir, tmp_path: Path
) -> None:
    (tmp_path / "cur").mkdir()
    (tmp_path / "secret").write_bytes(b"of another")
    (tmp_path / "cur" / "1.of.another").write_bytes(b"of another")
    (maildir.path / ".Others").symlink_to(tmp_path)
    (maildir.path / ".Links" / "new").mkdir(parents=True)
    (maildir.path / ".Links" / "cur").symlink_to(tmp_path / "cur")
    (maildir.path / "cur" / "1.link").symlink_to(tmp_path / "secret")
    (maildir.path / "cur" / "2.directory").mkdir()
    os.mkfifo(maildir.path / "cur" / "3.pipe")
    kept = maildir.deliver(b"mail")
    imap_source.start(source)
    imap_source.work(source)
    assert imap_source.archived(source) == {(".", kept): b"mail"}
    assert FailedMessage.objects.filter(code="message_refused").count() == 3
    assert Folder.objects.get(remote_id=".Links").last_error_code == "folder_refused"


# -- a provider that is gone -------------------------------------------------------------------


def test_sources_of_a_provider_that_is_gone_are_shown_and_say_so(source: IngestionSource) -> None:
    IngestionSource.objects.update(provider="pigeon")
    client = Client()
    client.login(username="alice", password="the-alice-of-the-tests")
    [shown] = client.get("/api/v1/ingestion").json()
    assert shown["provider"] == "pigeon"
    for page in (INGESTION, f"{INGESTION}{source.pk}/change/", f"{INGESTION}add/"):
        assert client.get(page).status_code == 200
    source.refresh_from_db()
    run = verbs.start_import(source, actor=ACTOR)
    discovery.discover(run.pk)
    source.refresh_from_db()
    assert source.status == SourceStatus.ERROR
    assert "The provider pigeon is not installed here" in source.status_message
    assert credentials.check(source, actor=ACTOR).code == "provider_missing"


def test_a_source_whose_provider_came_back_goes_on(
    source: IngestionSource, maildir: Maildir
) -> None:
    kept = maildir.deliver(b"mail")
    IngestionSource.objects.update(provider="pigeon")
    source.refresh_from_db()
    assert not credentials.check(source, actor=ACTOR).ok
    IngestionSource.objects.update(provider="maildir")
    source.refresh_from_db()
    assert credentials.check(source, actor=ACTOR).ok
    source.refresh_from_db()
    imap_source.imported(source)
    assert imap_source.archived(source) == {(".", kept): b"mail"}
