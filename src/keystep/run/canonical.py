"""Canonical JSON: what votes are counted by, and what the journal stores and takes checksums of."""

from __future__ import annotations

import json
import zlib
from typing import Any

from keystep.errors import BadInput

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def dumps(value: Any, field: str = "answer") -> str:
    """The text of `value`: keys sorted, no blanks.

    Raises:
        BadInput: it cannot be JSON; the message names `field`.
    """
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"is not JSON ({error})", field=field, value=value, mend="return numbers, strings, lists and dicts only") from None


def checksum(*parts: Any) -> int:
    """CRC-32 of the parts as text."""
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


def step_checksum(scope: int, seq: int, *row: Any) -> int:
    """That of a journaled step: of all it holds but the seconds it took, which are no part of what was decided."""
    *decided, _, cost = row
    return checksum(scope, seq, *decided, cost)
