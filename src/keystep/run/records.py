"""The data file of a procedure: CSV, JSON lines, JSON or text, read whole into a list (a few hundred thousand records, not more than
memory holds)."""

from __future__ import annotations

import csv
import io
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from keystep.errors import BadInput

MOST_BYTES = 256 * 2**20
KINDS = ".csv, .tsv, .jsonl, .json and .txt"


def records(path: Path) -> tuple[list[Any], str]:
    """The records of a file and the hash of its bytes.

    Of a CSV or TSV file every row below the header as a dict of texts, of JSON lines every line's value, of a JSON file the list it
    holds, of a text file its lines.

    Raises:
        BadInput: it cannot be read, or a row or line of it is not as the others; the message says which.
    """
    shown = path.name
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{shown} is larger than {MOST_BYTES >> 20} MiB", field="data", value=path.stat().st_size, mend="split it")
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        mend = "name a file that is there; what a procedure file names counts from its folder"
        raise BadInput(f"cannot be read ({error.strerror})", field="data", value=str(path), mend=mend) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown} is not UTF-8 (byte {error.start})", field="data", value=shown, mend="save it as UTF-8") from None
    except ValueError as error:  # a NUL in the path
        raise BadInput(f"is no path ({error})", field="data", value=str(path)) from None
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        found: list[Any] = _table(text, "," if kind == ".csv" else "\t", shown)
    elif kind in (".jsonl", ".ndjson"):
        found = [_json(line, f"line {number} of {shown}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    elif kind == ".json":
        found = _json(text, shown)
        if not isinstance(found, list):
            raise BadInput(f"{shown} holds no list", field="data", value=found, mend="put the records into [...]")
    elif kind in (".txt", ".text"):
        found = text.splitlines()
    else:
        raise BadInput("is of a kind that is not read", field="data", value=shown, mend=f"there are {KINDS}")
    return found, blake2b(raw, digest_size=16).hexdigest()


def _table(text: str, delimiter: str, shown: str) -> list[dict[str, str]]:
    usual = csv.field_size_limit(MOST_BYTES)  # a field may be as long as the file
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[dict[str, str]] = []
    try:
        header = next(rows, [])
        if not header or "" in header or len(set(header)) < len(header):
            mend = "name every column once in the first row"
            raise BadInput(f"{shown} has no usable header", field="data", value=header, mend=mend)
        for row in rows:
            if row and len(row) != len(header):
                problem = f"{shown}, line {rows.line_num}: {len(row)} fields under {len(header)} columns"
                raise BadInput(problem, field="data", value=row, mend="quote fields that hold a comma")
            if row:
                found.append(dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise BadInput(f"{shown}, line {rows.line_num}: {error}", field="data", mend="save it as plain CSV") from None
    finally:
        csv.field_size_limit(usual)
    return found


def _json(text: str, shown: str) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{shown} is not JSON ({error})", field="data", value=text[:60], mend="mend or remove it") from None
