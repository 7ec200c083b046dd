"""oidc-provider (npm), an OpenID Connect provider that nobody here wrote, and its people.

`make node-packages` installs it. Whoever its sign-in names is signed in, whatever the password.
"""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

_NODE = Path(__file__).parent / "node"
CLIENT_ID, CLIENT_SECRET = "ingestion", "a-secret-that-the-provider-gave-out-1234"


@contextlib.contextmanager
def provider(people: Mapping[str, Mapping[str, Any]], *, redirect_uri: str) -> Iterator[str]:
    """Run it with these people, claims by `sub`; yield its issuer."""
    node = shutil.which("node")
    if node is None or not (_NODE / "node_modules/oidc-provider").is_dir():
        pytest.fail("These tests need oidc-provider: make node-packages", pytrace=False)
    options = {
        "people": people, "clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET,
        "redirectUri": redirect_uri,
    }  # fmt: skip
    process = subprocess.Popen(
        [node, "--no-warnings", "oidc.mjs", json.dumps(options)],
        cwd=_NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        while line and not line.startswith("http://"):
            line = process.stdout.readline().strip()
        assert line, "oidc-provider did not start: why stands on its standard error"
        yield line
    finally:
        process.communicate()  # closes its standard input, and it ends
