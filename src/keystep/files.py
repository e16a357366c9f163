"""Files and folders that are written whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keystep.errors import BadInput


@contextmanager
def whole(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder at, that becomes `path` when the block ends without an error.

    Args:
        replace: what stands at `path` gives way, a file to a file or a folder to a folder.

    Raises:
        BadInput: something stands at `path` already, or it cannot be written.
    """
    if not replace:
        free_for(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        for file in [part, *part.rglob("*")] if part.is_dir() else [part]:
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if replace and part.is_dir() and path.is_dir():
            shutil.rmtree(path)
        part.replace(path)
    except OSError as error:
        raise BadInput(f"cannot be written ({error})", field="--out", value=str(path), mend="name another place") from None
    finally:
        if os.path.isdir(part):  # unlike Path.is_dir, False where the name is too long
            shutil.rmtree(part)
        elif os.path.exists(part):
            part.unlink()


def free_for(path: Path, *, replace: bool = False) -> None:
    """That something may be written at `path`; to be asked before long work.

    Raises:
        BadInput: something stands there already.
    """
    try:
        taken = path.exists() and not (replace and path.is_file()) and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise BadInput(f"cannot be written ({error})", field="--out", value=str(path), mend="name another place") from None
    if taken:
        raise BadInput("is there already", field="--out", value=str(path), mend="name another place; nothing was changed")


def write_text(path: Path, text: str) -> None:
    """A file of this text, in place of what stands there.

    Raises:
        BadInput: it cannot be written; what stood there before is unchanged.
    """
    with whole(path, replace=True) as part:
        part.write_text(text, "utf-8")
