"""Where an archive is, as a URL says it (ARCHIVE_URL).

file:///srv/archive
s3://bucket/prefix?endpoint=https://s3.example.com&region=eu-central-1
"""

import urllib.parse
from pathlib import Path
from typing import NamedTuple


class Bucket(NamedTuple):
    """A place in an object store. `endpoint`: "" is Amazon's own. `prefix` is "", or ends in /."""

    name: str
    prefix: str
    endpoint: str
    region: str

    def __str__(self) -> str:
        return f"s3://{self.name}/{self.prefix}".rstrip("/")


def parse(url: str) -> Path | Bucket:
    """Read a URL. Raises ValueError, whose text quotes nothing of it: there might be a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # which quotes it
        raise ValueError("it is no URL: file:///directory or s3://bucket/prefix") from None
    if "@" in parts.netloc:
        raise ValueError(
            "credentials don't belong into it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme == "file":
        path = Path(urllib.parse.unquote(parts.path))
        if parts.netloc or not path.is_absolute() or parts.query:
            raise ValueError("a directory is written file:///srv/archive, by its whole path")
        return path.resolve()
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError("it must be file:///directory or s3://bucket/prefix")
    given = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True, strict_parsing=False))
    if unknown := given.keys() - {"endpoint", "region"}:
        raise ValueError(f"it may say endpoint and region, not {', '.join(sorted(unknown))}")
    endpoint = given.get("endpoint", "")
    if "@" in endpoint:
        raise ValueError("its endpoint must be an address alone, without credentials")
    if endpoint and urllib.parse.urlsplit(endpoint).scheme not in ("http", "https"):
        raise ValueError("its endpoint must begin with https:// (or http://)")
    prefix = urllib.parse.unquote(parts.path).strip("/")
    return Bucket(parts.netloc, prefix and f"{prefix}/", endpoint, given.get("region", ""))
