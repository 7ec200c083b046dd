"""What the errors of an object store mean, and what a person does about them.

By code and status alone: the store's own text may quote anything.
"""

import ssl

from botocore import exceptions as aws

from ingestion.errors import ArchiveAway, ArchiveUnavailable

MISSING = frozenset({"NoSuchKey", "404"})
TAKEN = frozenset({"PreconditionFailed", "412"})
BEHIND_THE_END = frozenset({"InvalidRange", "416"})

_CREDENTIALS = """the store refuses the credentials. Correct AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY."""
_FORBIDDEN = """the store does not let these credentials do this. docs/object-store.md has the
    policy that they need. Some stores say the same of a bucket that is not there."""
_SKEW = "the store's clock and this machine's differ by more than 15 minutes. Run NTP on both."
_ALTERED = """other bytes came to the store than were sent, and were not taken. Look after the
    network and the memory of this machine."""
_FULL = "the store is full. Make room there, or raise its quota."
_BUSY = "the store is busy, or comes up. Nothing is lost, and it is asked again."
_ELSEWHERE = "the bucket is in another region. Correct the region in ARCHIVE_URL."

_MEANINGS = {
    "NoSuchBucket": "there is no such bucket. Make it, or correct ARCHIVE_URL.",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "403": _FORBIDDEN,
    "RequestTimeTooSkewed": _SKEW,
    "RequestExpired": _SKEW,
    "BadDigest": _ALTERED,
    "InvalidDigest": _ALTERED,
    "XAmzContentSHA256Mismatch": _ALTERED,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "InsufficientCapacity": _FULL,
    "StorageFull": _FULL,
    "507": _FULL,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "TooManyRequests": _BUSY,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
}

#: What a store answers whose disks or users are not there yet, or a proxy before it. MinIO alone
#: has a dozen codes for that.
_BUSY_STATUSES = frozenset({429, 500, 502, 503, 504})


def refused(name: str, code: str, status: int = 0) -> ArchiveUnavailable:
    """Return what it means that the store answered with this error."""
    other = "the store could not do it. Nothing is lost, and it is asked again."
    meaning = _MEANINGS.get(code, _BUSY if status in _BUSY_STATUSES else other)
    kind = ArchiveAway if meaning is _BUSY else ArchiveUnavailable
    return kind(f"{name}: {' '.join(meaning.split())} ({code or 'no code'})")


def unreachable(name: str, error: Exception | None) -> ArchiveUnavailable:
    """Return what it means that no answer came, or half of one."""
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        what = "there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    elif isinstance(error, aws.NoRegionError):
        what = "no region is known. Add ?region=... to ARCHIVE_URL, or set AWS_REGION."
    elif isinstance(error, aws.CredentialRetrievalError):  # an agent that comes up or restarts
        what = f"{error.kwargs['provider']} gives no credentials now. It is asked again."
        return ArchiveAway(f"{name}: {what} Look after it, or AWS_PROFILE, where that lasts.")
    elif isinstance(error, aws.SSLError) and not _handshake_failed(error):
        what = "its certificate can't be verified. AWS_CA_BUNDLE may name a file of authorities."
    elif isinstance(error, aws.ConnectionError | aws.HTTPClientError | aws.IncompleteReadError):
        what = f"the store can't be reached ({type(error).__name__}). It is asked again."
        return ArchiveAway(f"{name}: {what}")
    else:  # a name that no bucket can have, a profile that is not there
        what = f"it can't be asked ({type(error).__name__}). Correct ARCHIVE_URL, or AWS_PROFILE."
    return ArchiveUnavailable(f"{name}: {what}")


def _handshake_failed(error: aws.SSLError) -> bool:
    """Return whether TLS failed on the wire: cut, or not spoken there, as before a store that is
    not up. Else a certificate is not trusted, or what AWS_CA_BUNDLE names can't be read."""
    why = next(iter(getattr(error.kwargs.get("error"), "args", ())), None)
    return (
        isinstance(why, ssl.SSLError)
        and not isinstance(why, ssl.SSLCertVerificationError)
        and why.library != "X509"  # of the file of authorities
    )
