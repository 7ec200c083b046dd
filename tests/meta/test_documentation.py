"""README and docs against the code: what is said is so, and what is there is said."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from ingestion.management.base import OperatorCommand
from tests.meta.test_code import files
from tests.servers.stack import ROOT

README = (ROOT / "README.md").read_text()
#: `migrate` stands in for Django's, and is asked for as that is.
COMMANDS = sorted(
    {name for name, app in get_commands().items() if app == "ingestion"} - {"migrate"}
)


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section {title!r}."
    return found[1]


def table(title: str) -> Iterator[list[str]]:
    """Yield the cells of each row of a section's table, without its head."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    for row in rows[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))]


# -- commands ----------------------------------------------------------------------------------


def test_readme_lists_every_command_and_no_other() -> None:
    listed = [name for cells in table("Commands") for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(listed) == COMMANDS
    assert all(len(cells) == 2 and cells[1] for cells in table("Commands"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_test_that_runs_it_and_reads_its_json(name: str) -> None:
    command = load_command_class("ingestion", name)
    assert isinstance(command, OperatorCommand)
    texts = [path.read_text() for path in files(r"^tests/(management|services|connectors)/.*\.py$")]
    wanted = [rf'"{name}"']
    if command.reports:
        wanted.append(rf'"{name}"[^)]*"--json"')
    for pattern in wanted:
        assert any(re.search(pattern, text) for text in texts), pattern


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = load_command_class("ingestion", name)
    assert isinstance(command, OperatorCommand), "then it has no exit codes and no --json"
    with pytest.raises(SystemExit) as end:
        command.create_parser("manage.py", name).parse_args(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "exit codes:" in said
    assert f"manage.py {name}" in said.split("example:")[1]
    assert len(command.help) > 40
    assert ("--json" in said) is command.reports
    for action in command.create_parser("manage.py", name)._actions:
        assert action.help, f"{name}: {action.dest} has no help"


# -- error codes -------------------------------------------------------------------------------

_CODE = re.compile(r'\bcode ?= ?"([a-z][a-z_0-9]*)"|default_code = "([a-z_]+)"')


def test_every_error_code_is_in_the_catalogue() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    listed = set(re.findall(r"`([a-z_]+)`", page))
    used = {
        found[1] or found[2]
        for path in files(r"^(connectors|ingestion)/(?!admin/|management/).*\.py$")
        for found in _CODE.finditer(path.read_text())
    }
    assert len(used) > 50
    assert used <= listed


# -- settings ----------------------------------------------------------------------------------

#: What README says where the default is no constant.
_MADE = {
    "VAR_DIR": "`var/`",
    "ARCHIVE_DIR": "`VAR_DIR/archive`",
    "EXPORT_DIR": "`VAR_DIR/exports`",
    "DATABASE_URL": "",
    "REDIS_URL": "",
    "SECRET_KEY": "made in `VAR_DIR`",
    "ENCRYPTION_KEYS": "made in `VAR_DIR`",
    "ADMIN_PASSWORD": "made and printed once",
    "ALLOWED_HOSTS": "localhost",
    "CSRF_TRUSTED_ORIGINS": "",
    "TRUSTED_PROXIES": "",
    "WORKER_CONCURRENCY": "number of cores",
    "MICROSOFT_LOGIN_URL": "by the source's `cloud`",
    "MICROSOFT_GRAPH_URL": "by the source's `cloud`",
    "GOOGLE_UNITS_PER_USER": "by `GOOGLE_QUOTA`",
    "GOOGLE_UNITS_PER_PROJECT": "by `GOOGLE_QUOTA`",
    "OIDC_GROUPS": "",
}


def settings_read() -> dict[str, object]:
    """Return name and default of what these three take from the environment."""
    found: dict[str, object] = {}
    for path in ("settings.py", "bootstrap.py", "embedded.py"):
        for node in ast.walk(ast.parse((ROOT / "ingestion_project" / path).read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not re.fullmatch(r"env\.\w+|os\.environ\.get", ast.unparse(node.func)):
                continue
            assert isinstance(node.args[0], ast.Constant)
            given = [word.value for word in node.keywords if word.arg == "default"]
            default = given[0].value if given and isinstance(given[0], ast.Constant) else None
            found[str(node.args[0].value)] = default
    return found


def settings_told() -> dict[str, str]:
    """Return name and default of README's settings."""
    told: dict[str, str] = {}
    for names, default, _ in table("Settings"):
        listed = re.findall(r"`(\w+)`", names)
        defaults = default.split(", ") if len(listed) > 1 else [default]
        told |= dict(zip(listed, defaults, strict=True))
    return told


def test_readme_has_every_setting_with_its_default_and_no_other() -> None:
    read, told = settings_read(), settings_told()
    assert sorted(told) == sorted(read)
    for name, default in read.items():
        if isinstance(default, bool):
            expected = str(default).lower()
        elif isinstance(default, int | float):
            expected = f"{default:g}" if isinstance(default, float) else str(default)
        elif isinstance(default, str) and name not in _MADE:
            expected = default
        else:
            expected = _MADE[name]
        assert told[name].strip("`") == expected.strip("`"), name


def test_tests_are_free_of_every_setting_of_the_developers_shell() -> None:
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    own = conftest.split("_OWN_SETTINGS = (")[1].split("\n)\n")[0]
    assert set(re.findall(r'"(\w+)"', own)) == set(settings_read())


# -- links and paths ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", files(r"^(README\.md|docs/.*\.md)$"), ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        reached = (page.parent / path).resolve() if path else page
        assert reached.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", reached.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}"


def test_every_target_and_directory_that_readme_names_exists() -> None:
    targets = set(
        re.findall(
            r"\bmake (\w+)\b", "\n".join(re.findall(r"`[^`]+`|^    .*$", README, re.MULTILINE))
        )
    )
    assert {"demo", "run", "test"} <= targets
    known = subprocess.run(
        ["make", "--question", "--print-data-base", "--no-builtin-rules", "help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    for target in targets:
        assert re.search(rf"^{target}:", known, re.MULTILINE), target
    for directory in re.findall(r"`(tests/\w+|docs/\w+)`", README):
        assert (ROOT / directory).is_dir(), directory
