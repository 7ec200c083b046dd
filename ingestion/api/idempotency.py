"""A POST that came twice is done once (draft-ietf-httpapi-idempotency-key-header-07).

A client that heard no answer repeats its request with the same key, and gets the answer that the
first one had. What is done and what was answered are one transaction: no crash comes between them,
and of two at the same time the second waits for the first. What was refused is not remembered.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from rest_framework.exceptions import ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion.api.errors import KeyUsedOtherwise
from ingestion.models import AnsweredRequest
from ingestion.services.operations import answered
from ingestion.services.transactions import in_transaction

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def once(handler: Callable[..., Response], *, sealed: bool) -> Callable[..., Response]:
    """Return a handler that answers a repeated request as it was answered before. `sealed`: what it
    answers holds a secret, and is kept encrypted."""

    @functools.wraps(handler)
    def done_once(request: Request, *args: Any, **kwargs: Any) -> Response:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return handler(request, *args, **kwargs)
        if not _KEY.fullmatch(key):
            raise ValidationError(
                {"Idempotency-Key": ["Must be 1 to 255 visible ASCII characters, such as a UUID."]}
            )
        fingerprint = _fingerprint(request)

        @in_transaction
        def claimed_and_done() -> Response | AnsweredRequest:
            user_id = request.user.pk
            assert user_id is not None  # nobody comes here without a login
            before = answered.claim(user_id, key, fingerprint)
            if before is not None:
                return before
            response = handler(request, *args, **kwargs)
            plain = json.loads(JSONRenderer().render(response.data)) if response.data else None
            answered.remember(user_id, key, response.status_code, plain, sealed=sealed)
            return response

        done = claimed_and_done()
        if isinstance(done, Response):
            return done
        if done.fingerprint != fingerprint:
            raise KeyUsedOtherwise
        headers = {"Idempotent-Replayed": "true"}
        return Response(answered.answer_of(done), status=done.status, headers=headers)

    return done_once


def _fingerprint(request: Request) -> bytes:
    asked = f"{request.method} {request.get_full_path()}\n".encode()
    return hashlib.sha256(asked + request.body).digest()
