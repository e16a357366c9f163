"""The tasks by number, problems drawn from a seed, and problems read from files.

Read are: JSON lines with {task, example, question, init, intermediate, final}; the published parquet files and JSON lines of the same
columns {prompt, label, task_name, example_name}; the folder that the reference writes (taskNN/prompt/XXXX.txt, taskNN/label/XXXX.json);
and any folder of such files.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from keystep.errors import BadInput, MissingExtra
from keystep.measure.procbench import lists, sentences, strings
from keystep.measure.procbench.kind import Config, Kind
from keystep.run.records import records

KINDS: dict[int, Kind] = {
    kind.number: kind
    for kind in (
        strings.Sort(), strings.Gather(), lists.Count(), lists.Search(), strings.Copy(), strings.Substitute(), lists.Encode(),
        lists.Split1(), lists.Split2(), lists.Compose(), strings.Decompose(), strings.Rhythm(), lists.Compare(), sentences.Count2(),
        strings.Decode(), strings.PushPop(), strings.Rotate(), sentences.FillWord(), strings.DeleteChar(), sentences.DeleteWord(),
        strings.Cumulate(), strings.MoveCyclic(), lists.FindCyclic(),
    )
}  # fmt: skip

TRIES = 100_000  # draws until one has the wanted number of steps


@dataclass(frozen=True)
class Problem:
    """One problem. `prompt` is the published text where the problem comes from a file that has it.

    A run of n steps has the states init, n - 1 intermediate ones and the final one.
    """

    id: str
    task: int
    question: str
    init: Any
    intermediate: list[Any]
    final: Any
    prompt: str | None = None

    @property
    def steps(self) -> int:
        return len(self.intermediate) + 1

    @property
    def kind(self) -> Kind:
        return KINDS[self.task]

    @cached_property
    def config(self) -> Config:
        """The instance, read from the question.

        Raises:
            BadInput: the question is not written as those of its task.
        """
        try:
            return self.kind.read(self.question)
        except ValueError:
            mend = f"write it like this: {self.kind.question(self.kind.draw(random.Random(0), 2))}" if not self.kind.sentences else ""
            raise BadInput(f"is no question of {self.kind.name}", field=f"problem {self.id}", value=self.question, mend=mend) from None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def generate(tasks: Sequence[int], lengths: Sequence[int], each: int, seed: int, corpus: Sequence[str] | None = None) -> Iterator[Problem]:
    """`each` problems for every task and length. A problem depends on (seed, task, length, its number) and on nothing else.

    Raises:
        BadInput: a task needs sentences and there are none, or no instance of that length can be drawn.
    """
    for task in tasks:
        kind = KINDS[task]
        if isinstance(kind, sentences.FromSentences):
            if not corpus:
                mend = "name a text file with a sentence a line: --set sentences=FILE"
                raise BadInput("needs sentences", field="set tasks", value=task, mend=mend)
            kind.corpus = corpus
        for steps in lengths:
            for number in range(each):
                yield _drawn(kind, steps, random.Random(f"procbench {seed} {task} {steps} {number}"), f"task{task:02}/{steps:02}-{number}")


def _drawn(kind: Kind, steps: int, draw: random.Random, id: str) -> Problem:
    for _ in range(TRIES if not kind.sentences else TRIES // 10):
        config = kind.draw(draw, steps)
        states = kind.states(config)
        if len(states) == steps + 1:
            return Problem(id, kind.number, kind.question(config), states[0], states[1:-1], states[-1])
    mend = f"give more sentences: {kind.needs}" if isinstance(kind, sentences.FromSentences) else "ask for fewer steps"
    raise BadInput(f"no instance of {kind.name} with so many steps was found", field="set shortest, longest", value=steps, mend=mend)


def load(path: Path) -> list[Problem]:
    """The problems of a file or folder, in its order.

    Raises:
        BadInput: nothing is there, or an entry is no problem; the message names it.
        MissingExtra: it is parquet and pyarrow is missing.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".jsonl", ".parquet") or file.parent.name == "label")
    found = [problem for file in files for problem in _load(file)]
    if not found:
        mend = "name a .jsonl or .parquet file, or a folder of them or of taskNN/label/*.json"
        raise BadInput("holds no problems", field="set data", value=str(path), mend=mend)
    return found


def _load(file: Path) -> Iterator[Problem]:
    if file.parent.name == "label" and file.suffix == ".json":
        task = file.parent.parent
        prompt = task / "prompt" / f"{file.stem}.txt"
        try:
            row = {"task": task.name, "example": file.stem, "label": json.loads(file.read_text("utf-8"))}
            row["prompt"] = prompt.read_text("utf-8") if prompt.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(f"cannot be read ({error})", field="set data", value=str(file)) from None
        yield _problem(row, str(file))
        return
    for number, row in enumerate(_parquet(file) if file.suffix == ".parquet" else records(file)[0], 1):
        yield _problem(row, f"{file.name}, entry {number}")


def _parquet(file: Path) -> list[Any]:
    try:
        parquet, unreadable = import_module("pyarrow.parquet"), import_module("pyarrow").ArrowException
    except ImportError:
        raise MissingExtra("reading parquet", "parquet") from None
    try:
        rows: list[Any] = parquet.read_table(file).to_pylist()
    except (OSError, unreadable) as error:
        raise BadInput(f"cannot be read ({error})", field="set data", value=str(file)) from None
    return rows


def _problem(row: Any, where: str) -> Problem:
    """One entry of any of the formats.

    Raises:
        BadInput: it is none.
    """
    row = row if isinstance(row, dict) else {}
    try:
        label = row.get("label", row)
        label = json.loads(label) if isinstance(label, str) else label
        task = re.fullmatch(r"task(\d+)", str(row.get("task", row.get("task_name"))))
        example = row.get("example", row.get("example_name"))
        prompt = row.get("prompt")
        question = row.get("question")
        if question is None and isinstance(prompt, str):
            question = prompt.partition("[Question]")[2].strip()
        init, intermediate, final = (label[name] for name in ("init", "intermediate", "final"))
    except (KeyError, TypeError, ValueError, RecursionError):
        task = None
    if task is None or int(task[1]) not in KINDS or not isinstance(question, str) or not isinstance(prompt, str | None):
        raise BadInput("is no problem of ProcBench", field=f"set data, {where}", value=row, mend="see docs/methods/procbench.md")
    for state in (final, *(intermediate if isinstance(intermediate, list) else [None])):
        if isinstance(state, bool) or not isinstance(state, str | int | list):
            raise BadInput("a state is a text, a whole number or a list", field=f"set data, {where}", value=state)
    return Problem(f"task{int(task[1]):02}/{example}", int(task[1]), question, init, intermediate, final, prompt)
