"""How the cache's values are written into Redis: as JSON.

Django's own way is pickle, and whoever can write to Redis could then run code in our processes.
"""

import json
from typing import Any


class Json:
    """Texts, numbers, truth values, None, lists and objects. An int stays a number to Redis, so
    that it can be counted up there."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> Any:
        """Raises ValueError where somebody else wrote what is no JSON."""
        return json.loads(data)
