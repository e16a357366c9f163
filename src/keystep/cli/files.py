"""Files that commands write: there when they are whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from keystep.errors import BadInput, KeystepError


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, that takes its place when it is whole.

    Raises:
        BadInput: it cannot be written; what stood there before is unchanged.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, ValueError) as error:
        if isinstance(error, KeystepError):
            raise
        raise BadInput(f"cannot be written ({error})", field="--out", value=str(path), mend="name another file") from None
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`whole_file` for a text, in a folder that is made where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot be written ({error})", field="--out", value=str(path), mend="name another folder") from None
    with whole_file(path) as file:
        file.write(text.encode())
