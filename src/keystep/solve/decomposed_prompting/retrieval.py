"""Passages of a folder of texts by BM25 (`bm25s`), as a handler or as the context of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from keystep.errors import BadInput, MissingExtra
from keystep.run.run import Context
from keystep.solve.decomposed_prompting.handlers import Handler, Node

KINDS = (".txt", ".md")
MOST_BYTES = 256 * 2**20


class Passages:
    """The paragraphs of a folder's .txt and .md files (below it too), each with its file's name before it.

    Raises:
        BadInput: the folder cannot be read, or has no text.
        MissingExtra: bm25s is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.texts = folder, _paragraphs(folder)
        self.hash = blake2b("\x1f".join(self.texts).encode(), digest_size=8).hexdigest()
        self._index = _index(tuple(self.texts))

    def best(self, question: str, top: int) -> list[str]:
        """Up to `top` passages that share a word with the question, best first; the first of the folder among equals."""
        words = _bm25().tokenize([question], stopwords="en", return_ids=False, show_progress=False)[0]
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        ranked = sorted(range(len(self.texts)), key=lambda number: (-float(scores[number]), number))
        return [self.texts[number] for number in ranked[:top] if scores[number] > 0]


class Retriever(Handler):
    """Gives the `top` passages for its question, as a list of texts."""

    kind = "retriever"

    def __init__(self, name: str, passages: Passages, top: int = 4, *, description: str = "") -> None:
        super().__init__(name, description=description)
        if top < 1:
            raise BadInput("is at least 1", field=f"handler {name}.top", value=top)
        self.passages, self.top = passages, top

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Node:
        self.limits.spend(calls=1)
        found = self.passages.best(inputs["question"], self.top)
        return {**self.node(inputs, found), "passages": found}

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"passages": self.passages.hash, "top": self.top}


def _paragraphs(folder: Path) -> list[str]:
    try:
        files = sorted(file for file in folder.rglob("*") if file.suffix in KINDS and file.is_file())
        if sum(file.stat().st_size for file in files) > MOST_BYTES:
            raise BadInput(f"holds more than {MOST_BYTES >> 20} MiB", field="folder", value=str(folder), mend="split it")
        texts = [(file.stem, part.strip()) for file in files for part in file.read_text("utf-8").split("\n\n")]
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read ({error})", field="folder", value=str(folder), mend="name a folder of UTF-8 texts") from None
    found = [f"{name}: {text}" for name, text in texts if text]
    if not found:
        raise BadInput(f"has no text in {' or '.join(KINDS)} files", field="folder", value=str(folder), mend="name another folder")
    return found


@lru_cache(maxsize=4)
def _index(texts: tuple[str, ...]) -> Any:
    index = _bm25().BM25()
    index.index(_bm25().tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    return index


def _bm25() -> Any:
    try:
        import bm25s  # type: ignore[import-untyped]  # it has no type hints
    except ImportError:
        raise MissingExtra("retrieval by BM25", "solve") from None
    return bm25s
