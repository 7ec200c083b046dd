"""Lists of accounts: what is wrong is named by line, and hostile files are files like others."""

import pytest
from django.contrib.auth.models import User

from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import account_lists, configuration
from tests.servers.dovecot import Dovecot

SECRET = "s3cret;never,shown"
PLAIN = "name,host,username,password\r\n"


def read(text: str) -> list[account_lists.Row]:
    return account_lists.read(text.encode(), user=None)


def faults(text: str) -> list[tuple[int, tuple[str, ...]]]:
    return [(row.line, row.faults) for row in read(text)]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "content",
    [
        f'Name,HOST,user name,Password\nAda,h.example,ada,"{SECRET}"\n',
        f'\ufeffname;host;username;password\r\n\r\nAda;h.example;ada;"{SECRET}"\r\n;;;\r\n',
        f'sep=;\r\nname;host;username;password\r\nAda;h.example;ada;"{SECRET}"',
        f"name\thost\tuser_name\tpassword\rAda\th.example\tada\t{SECRET}\r",
    ],
)
def test_a_file_is_read_as_spreadsheets_write_it(content: str) -> None:
    [row] = read(content)
    assert (row.name, row.provider, row.account, row.faults) == ("Ada", "generic_imap", "ada", ())
    assert row.config["password"] == SECRET
    assert SECRET not in repr(row)


@pytest.mark.django_db
def test_a_way_fills_in_what_it_knows_and_a_name_is_made() -> None:
    ada, grace, alice = read(
        "way,username,password,email,clientId,clientSecret,port,secure\n"
        "icloud,ada,p,,,,,\n"
        "gmail,,,grace@gmail.com,c,s,,\n"
        "imap,alice,p,,,,143,no\n".replace("imap,alice", "proton,alice")
    )
    assert (ada.name, ada.config["host"], ada.config["port"]) == ("ada", "imap.mail.me.com", 993)
    assert (grace.provider, grace.awaits_consent) == ("google", True)
    assert (alice.config["port"], alice.config["secure"], alice.config["startTls"]) == (
        143,
        False,
        True,
    )
    assert not ada.faults + grace.faults + alice.faults


@pytest.mark.django_db
def test_each_line_says_what_is_wrong_with_it() -> None:
    text = (
        "name,way,host,port,username,password,email\n"
        "A,imap,h.example,993,a@x.org,p,\n"
        "B,imap,http://h,993,b,p,\n"
        "C,imap,h.example,many,c,p,\n"
        "D,imap,h.example,,d,,\n"
        "E,pigeon,h.example,,e,p,\n"
        "F,imap,H.example,,A@X.org,other,\n"
        "G,imap,h.example,,g,p,g@x.org\n"
        'H,imap,h.example,,h,"two\nlines",\n'
        f"I,imap,h.example,,i,{SECRET},\n"
        "J\x07,imap,h.example,,j,p,\n"
    )
    found = dict(faults(text))
    assert found[2] == ()
    assert "host: Must be a host name" in found[3][0]
    assert found[4] == ("port: must be a whole number.",)
    assert "password: Give a password" in found[5][0]
    assert found[6][0].startswith("way: must be one of gmail, ")
    assert found[7] == ("The same account as in line 2.",)
    assert "email: the way imap does not have it" in found[8][0]
    assert found[9] == ()
    assert "8 cells, and the head has 7" in found[11][0]  # line 9 has two
    assert "control characters" in found[12][0]
    assert SECRET not in str(found)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no account"),
        (PLAIN.encode(), "no account"),
        (b"name,hots,username\nA,h,a\n", "Unknown columns in its first line: \u201chots\u201d"),
        (b"host,Host,username\nh,h,a\n", "twice: host"),
        (PLAIN.encode() + "Ada,h,ada,pässword\n".encode("cp1252"), "not in UTF-8"),
        (PLAIN.encode("utf-16"), "not in UTF-8"),
        (PLAIN.encode() + b"A,h,a,\0\n", "not in UTF-8"),
        (PLAIN.encode() + b'A,h,a,"p\n' * 3, "no CSV from line"),
        (PLAIN.encode() + b'A,h,a,"' + b"x" * 200_000 + b'"\n', "no CSV from line 2"),
        (PLAIN.encode() + b"A,h,a,p\n" * 1_001, "more than 1,000"),
        (b"x" * 10_000_000, "larger than 1 MB"),
        (b"x," * 499_000, "Unknown columns"),
        (b"Ada,h,ada,hunter2\nBob,h,bob,p\n", "Unknown columns"),
        (b"\n" * 999_999, "no account"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_reason(content: bytes, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        account_lists.read(content, user=None)
    [text] = refused.value.errors["file"]
    assert said in text
    assert "hunter2" not in text
    assert len(text) < 2_000


def test_accounts_are_tried_side_by_side_and_stored_one_by_one(
    owner: User, dovecot: Dovecot
) -> None:
    accounts = [dovecot.account(b"Subject: one\r\n\r\nbody\r\n") for _ in range(3)]
    lines = [f"{a.name},{a.host},{a.port},no,{a.password}" for a in accounts]
    lines[1] += "-wrong"
    rows = read("username,host,port,secure,password\n" + "\n".join(lines))
    results = {one.row.line: one for one in account_lists.tried(rows)}
    assert {line: one.ok for line, one in results.items()} == {2: True, 3: False, 4: True}
    assert results[3].text.startswith("Log in: ")
    actor = Actor.system("test")
    stored = account_lists.store(
        [results[2].row, results[4].row], owner=owner, auto_import=True, actor=actor
    )
    made = [source for _, source in stored if isinstance(source, IngestionSource)]
    assert [source.name for source in made] == [accounts[0].name, accounts[2].name]
    assert all(source.auto_import and source.owner == owner for source in made)
    again = read("username,host,port,secure,password\n" + lines[0])
    assert f"“{accounts[0].name}” archives this account too" in again[0].warnings[0]


def test_what_there_is_no_time_for_is_not_tried(monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    monkeypatch.setattr(account_lists, "TRY_SECONDS", -1)
    [row] = read(PLAIN + "A,203.0.113.1,a,p\n")
    [result] = account_lists.tried([row])
    assert (result.ok, result.code) == (False, "not_tried")


def test_its_template_is_right(owner: User) -> None:
    rows = read(account_lists.TEMPLATE)
    assert [row.faults for row in rows] == [(), ()]
    configuration.create(
        owner=owner, name="x", provider=rows[0].provider,
        provider_config=rows[0].config, actor=Actor.system("test"),
    )  # fmt: skip
