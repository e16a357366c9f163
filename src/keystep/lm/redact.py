"""Take secrets out of what is written down or shown: recordings, error messages, journals.

Known shapes of keys, bearer tokens, passwords inside addresses, and the values of environment variables whose names end like a
secret's. A secret of an unknown shape that stands in no such variable is not recognised.
"""

from __future__ import annotations

import os
import re
from typing import TypeVar, cast

T = TypeVar("T")

HIDDEN = "[redacted]"
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:sk|pk|rk)-[A-Za-z0-9_*-]{8,}"  # OpenAI and its likes; servers echo them with stars
    r"|(?<![A-Za-z0-9])(?:ghp|gho|ghs|ghu|github_pat|hf|gsk|xox[abprs]|glpat)[_-][A-Za-z0-9_-]{16,}"
    r"|(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*"
    r"|(?<=://)[^/\s:@\"]+:[^/\s@\"]+(?=@)"
)
_SECRET_NAMES = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_SHORTEST = 8  # a shorter value would be found by chance in ordinary text


def redact(value: T, *secrets: str) -> T:
    """`value` (text, or JSON of any depth) with every secret replaced by "[redacted]"; `secrets` are further ones to hide."""
    found = [text for name, text in os.environ.items() if name.upper().endswith(_SECRET_NAMES)]
    known = sorted({text for text in (*found, *secrets) if len(text) >= _SHORTEST}, key=len, reverse=True)
    return cast(T, _redact(value, known))


def _redact(value: object, known: list[str]) -> object:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, HIDDEN)
        return _SHAPES.sub(HIDDEN, value)
    if isinstance(value, dict):
        return {_redact(key, known): _redact(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, known) for item in value]
    return value
