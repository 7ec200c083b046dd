"""add_sources: a file of accounts, each told by its line, the exit code telling how many are in."""

from pathlib import Path

import pytest
from django.contrib.auth.models import User

from ingestion.models import IngestionSource
from tests.servers import people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot

HEAD = "name,host,port,secure,username,password\n"


@pytest.fixture
def root(transactional_db: None) -> User:
    return people.superuser("root")


@pytest.fixture
def accounts(tmp_path: Path, dovecot: Dovecot) -> Path:
    """One that works, one whose password is wrong, one without a host."""
    good, bad = dovecot.account(b"Subject: a\r\n\r\n\r\n"), dovecot.account()
    server = f"{good.host},{good.port},no"
    path = tmp_path / "accounts.csv"
    path.write_text(
        f"{HEAD}Good,{server},{good.name},{good.password}\n"
        f"Bad,{server},{bad.name},not-{bad.password}\n"
        f"Faulty,,,,x,secret-of-x\n"
    )
    return path


def test_what_passed_is_added_and_the_rest_told_by_line(
    manage: CommandLine, root: User, accounts: Path
) -> None:
    file = str(accounts)
    checked = manage.here("add_sources", file, "--check", "--json")
    assert checked.code == 3
    assert [line["result"] for line in checked.json()["lines"]] == ["right", "right", "faulty"]
    tested = manage.here("add_sources", file, "--test", "--json")
    assert (tested.code, IngestionSource.objects.count()) == (3, 0)
    done = manage.here("add_sources", file, "--json", "--auto-import", "--include-trash")
    assert done.code == 3
    document = done.json()
    assert (document["added"], document["bad"]) == (1, 2)
    assert [line["result"] for line in document["lines"]] == ["added", "failed", "faulty"]
    assert "host: This field is required." in document["lines"][2]["message"]
    source = IngestionSource.objects.get()
    assert (source.name, source.owner, source.auto_import) == ("Good", root, True)
    assert source.options["includeTrash"] is True
    mended = manage.here("add_sources", file, "--json")
    assert mended.json()["added"] == 0
    assert [line["result"] for line in mended.json()["lines"]] == ["known", "failed", "faulty"]
    assert "The source “Good” archives this account too" in mended.json()["lines"][0]["message"]
    everything = manage.here("add_sources", file, "--all", "--json")
    assert [line["result"] for line in everything.json()["lines"]] == [
        *("added", "unproven", "faulty"),
    ]
    said = "".join(r.stdout + r.stderr for r in (checked, tested, done, mended, everything))
    assert not any(
        line.rpartition(",")[2] in said for line in accounts.read_text().split("\n")[1:4]
    )


def test_a_file_may_come_from_standard_input_and_end_with_0_1_or_2(
    manage: CommandLine, root: User
) -> None:
    good = f"{HEAD}A,h.example,143,no,a,p\n"
    added = manage("add_sources", "-", "--no-test", stdin=good)
    assert (added.code, IngestionSource.objects.get().name) == (0, "A")
    assert added.stdout.startswith("2\tA\ta\t✓ added")
    assert manage("add_sources", "-", "--check", stdin=f"{HEAD}B,,,,b,p\n").code == 1
    refused = manage.here("add_sources", "/nonexistent.csv")
    assert (refused.code, "can't be read" in refused.stderr) == (2, True)
    assert manage.here("add_sources").code == 2
    assert manage.here("add_sources", "x.csv", "--owner", "nobody").code == 2
    assert manage.here("add_sources", "x.csv", "--since", "yesterday").code == 2
    template = manage.here("add_sources", "--template")
    assert template.stdout.startswith("name,way,host")
