"""Journals filled by bulk inserts with the steps that a test wants, and pages taken apart."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from keystep.run import Journal
from keystep.run.tables import metadata, scopes

NOTHING = {"name": None, "skill": None, "candidates": None, "tokens_in": 10, "tokens_out": 2, "seconds": 0.25, "cost": 0.5}
HOSTILE = (
    "</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", "{{ 7 * 7 }}", "<!-- <script>",
    "</template></style><svg onload=window.hacked=1>", "\"' onmouseover=\"window.hacked = 1", "&lt;b&gt; \u2028 \x00 \x1b[31m",
    "javascript:window.hacked=1",
)  # fmt: skip


class Filled:
    """A journal file and a second connection that writes what it is told; `journal` is what is tested."""

    def __init__(self, path: Path, *runs: str) -> None:
        self.journal = Journal(path)
        for run in runs or ("r",):
            self.journal.begin(run, "test", None, {"work": {}})
        self.engine = sa.create_engine(f"sqlite:///{path}")

    def place(self, path: str = "0", run: str = "r") -> int:
        with self.engine.begin() as connection:
            return int(connection.execute(scopes.insert().values(run=run, path=path, at=0)).inserted_primary_key[0])

    def put(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        left = iter(rows)
        with self.engine.begin() as connection:
            while some := list(islice(left, 10_000)):
                connection.execute(metadata.tables[table].insert(), some)

    def change(self, statement: sa.Executable) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)

    def close(self) -> None:
        self.engine.dispose()
        self.journal.close()


def step(scope: int, seq: int, samples: int = 3, flagged: int = 0, **changes: Any) -> dict[str, Any]:
    return {**NOTHING, "scope": scope, "seq": seq, "answer": "1", "samples": samples, "flagged": flagged, **changes}


def sample(scope: int, seq: int, idx: int, text: str = "1", key: str | None = "1", flag: str | None = None) -> dict[str, Any]:
    return {"scope": scope, "seq": seq, "idx": idx, "text": text, "key": key, "flag": flag, "model": "m", "tokens_out": 1, "logprob": None}


def many(filled: Filled, count: int, seed: int = 0, letters: int = 1200) -> None:
    """One long procedure: one step in sixteen is disputed, with hostile texts of so many letters kept."""
    scope, rng = filled.place(), random.Random(seed)
    hard = {seq: rng.choice((5, 7, 9)) for seq in rng.sample(range(count), count // 16)}
    long = {seq: (rng.choice(HOSTILE) * 60)[:letters] for seq in hard}
    votes = {seq: f'{{"{"x" * 600}<&":4,"2":1}}' for seq in hard}
    filled.put("steps", (step(scope, seq, hard.get(seq, 3), int(seq in hard), candidates=votes.get(seq)) for seq in range(count)))
    kept = ((seq, idx) for seq in hard for idx in range(hard[seq]))
    filled.put("samples", (sample(scope, seq, idx, long[seq], flag=None if idx else "malformed: x") for seq, idx in kept))


class Taken(HTMLParser):
    """A page taken apart: its elements in order as (tag, attributes), its text, and what its script and style hold."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {"script": "", "style": ""}
        self.text = ""
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in, self.text = tag, self.text + " "

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in self.inside:
            self.inside[self._in] += data
        else:
            self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)
