"""A fault in the settings, told in one line: the name, what was expected, and what came,
unless that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SECRET = re.compile(
    r"password|passphrase|secret|token|credential|access-key|\.key$|key\.pem|jaas|oauthbearer\.config",
    re.IGNORECASE,
)


def fault(error: Mapping[str, Any]) -> str:
    """`name: what was expected, got what came`."""
    name = ".".join(str(part) for part in error["loc"])
    told = str(error["msg"]).removeprefix("Value error, ")
    expected = told if told.startswith("expected") else f"expected {_lower(told)}"
    if error["type"] == "extra_forbidden":
        expected = "expected one of the settings, an unknown name"
    came = "********" if _secret(error["loc"]) else repr(error["input"])
    return f"{name}: {expected}" + ("" if " got " in expected else f", got {came}")


def _secret(place: tuple[object, ...]) -> bool:
    """Whether what came could hold a secret: the whole of [kafka] or of what is passed through."""
    held = place in (("kafka",), ("batch",)) or "librdkafka" in place or "catalog" in place
    return held or any(SECRET.search(str(part)) for part in place)


def _lower(text: str) -> str:
    text = text.removeprefix("Input should be ").removeprefix("Value should ")
    return text[:1].lower() + text[1:]
