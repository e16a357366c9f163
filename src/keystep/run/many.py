"""Many inputs: one procedure for every row of a table, thousands of them interleaved, as one run of the journal.

Row 17 (rows count from 0) has the place "row17": every draw is keyed by it, so a row's result depends neither on the other rows nor on the
order in which they get done. Rows start in file order, a bounded number at a time, and take turns step by step.

What goes wrong in a row (an undecided step, a failed one, an exception of the procedure) ends that row alone; a resume tries it again,
until it has crashed `max_crashes` times in succession at the same step. The death of the process counts as a crash of all rows that were
under way and journaled no step since their last one; as nobody knows which of them it was, a row that would be set aside at the next such
death waits until the others are done and then runs alone.

Limits: all rows are held in memory, results are not; a procedure's `check` of a very long row holds the others up while it reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from keystep.errors import BadInput, BudgetSpent, Busy, ChangedWork, JournalError, KeystepError, ModelError, Stopped
from keystep.lm.base import run_sync
from keystep.lm.redact import redact
from keystep.run.canonical import dumps
from keystep.run.procedure import Procedure, Work
from keystep.run.records import records
from keystep.run.run import Context, Outcome, Run
from keystep.run.yaml_text import Document

UNREACHED = 5  # rows that fail in succession for want of an answer, without a step between: then the model is taken as gone
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")

Build = Callable[[Mapping[str, Any]], Work]


class Rows(BaseModel):
    """What became of the rows: `finished` ones (`wrong` of them by their check), `failed` ones that a resume tries again, `set_aside`."""

    total: int
    finished: int
    wrong: int
    failed: int
    set_aside: int


class ManyOutcome(Outcome):
    """Sums over all rows. `correct` is False where a finished row is wrong, True where all finished and are right, else None."""

    rows: Rows
    results: str | None = None


class Many:
    """A procedure, or other work, for every row.

    Args:
        build: the work of one row.
        rows: the settings of each, as JSON.
        results: a JSONL file that gets one line per row as it ends: {row, ok, result, correct, first_error_step, steps, samples, error}.
            A resume writes it anew from the journal, which is the truth.
        concurrency: how many rows are under way at once.
        max_crashes: a row is set aside when it has crashed so often at one step.
        since: the number of the first row, where these are a part of a longer table (`keystep.run.cluster`).

    While it is executed `finished`, `failed` and `set_aside` count rows, and the run's `expected` is the steps of all, where known.
    `first` is the work of row 0.

    Raises:
        BadInput: there are no rows, `build` refuses one of them (the message names it), or a number is below 1.
    """

    def __init__(
        self, build: Build, rows: Sequence[Mapping[str, Any]], *, results: str | Path | None = None, concurrency: int = 64,
        max_crashes: int = 3, since: int = 0,
    ) -> None:  # fmt: skip
        for name, number in (("concurrency", concurrency), ("max_crashes", max_crashes)):
            if number < 1:
                raise BadInput("is at least 1", field=name, value=number)
        self.build, self.rows, self.concurrency, self.max_crashes, self.since = build, rows, concurrency, max_crashes, since
        self.results = None if results is None else Path(results)
        self.total, self.finished, self.failed, self.set_aside = len(rows), 0, 0, 0
        self.first, self._steps = _checked(build, rows)
        self._crashes: dict[int, tuple[int, int]] = {}  # row -> (how often in succession, at which step)
        self._unreached = (0, 0)  # rows that got no answer in succession, and the steps done when the last of them failed
        self._stop: KeystepError | None = None
        self._lines: IO[bytes] | None = None

    async def execute(self, run: Run) -> ManyOutcome:
        """Carry the rows out as this run, or those that are left of it; its budget is that of all rows together.

        Raises:
            ChangedWork: the run was begun with other rows, another procedure, models or sampling.
            BudgetSpent, ModelError, Busy, JournalError: all rows had to stop; a resume goes on.
        """
        self._begin(run, {})
        run.sharing = True
        try:
            together, alone = self._take_up(run)
            self._mend_results(run, crashes=self.max_crashes)  # the others are tried again
            await self._carry_out(run, together, self.concurrency)
            await self._carry_out(run, alone, 1)
            if self._stop is not None:
                raise self._stop
            if self._lines is not None:
                os.fsync(self._lines.fileno())
            outcome = self._outcome(run)
        except BaseException as error:
            run._stop(error)
            raise
        finally:
            run.sharing = False
            self._close_results()
        return self._finish(run, outcome)

    def execute_sync(self, run: Run) -> ManyOutcome:
        """`execute` for scripts and notebooks."""
        return run_sync(self.execute(run))

    def failures(self, run: Run, limit: int | None = None) -> Iterator[str]:
        """The result lines of the rows that failed, in order."""
        return islice(chain.from_iterable(run.journal.row_lines(id, "failed", limit=limit) for id in self._runs(run)), limit)

    def _runs(self, run: Run) -> list[str]:
        """The journal's runs that have the rows, in their order."""
        return [run.id]

    def _begin(self, run: Run, more: Mapping[str, Any]) -> None:
        if self.results is not None and not run.journal.run(run.id, missing_ok=True):
            _check_new(self.results)
        inputs = blake2b(dumps([dict(row) for row in self.rows], "rows").encode(), digest_size=16).hexdigest()
        sampling = dict(self.first.sampling) if isinstance(self.first, Procedure) else {}
        work = {"name": self.first.name, "procedure": self.first.identity(), "sampling": sampling, "inputs": inputs}
        run._begin({"rows": work | dict(more)})
        run.expected, self._stop = self._steps, None

    def _finish(self, run: Run, outcome: ManyOutcome) -> ManyOutcome:
        counts = [f"{n} {what}" for n, what in ((self.failed, "failed"), (self.set_aside, "set aside")) if n]
        why = f"of {self.total} rows {' and '.join(counts)}" if counts else None
        run._end("stopped" if counts else "finished", why=why, result=outcome.model_dump(mode="json"))
        return outcome

    def _take_up(self, run: Run) -> tuple[list[int], list[int]]:
        """The rows that are left: those that may run side by side, tried ones last, and those that must run alone."""
        journal, id = run.journal, run.id
        known = journal.row_states(id)
        self.finished = self.failed = self.set_aside = 0
        together: list[int] = []
        again: list[int] = []
        alone: list[int] = []
        for number in range(self.since, self.since + self.total):
            status, crashes, at, scope = known.get(number, ("new", 0, -1, 0))
            if status == "running":  # when its process died: nobody holds the run but this one
                status, steps = "died", journal.count(scope)
                crashes, at = crashes + 1 if at == steps else 1, steps
                journal.bury_row(id, number, crashes, at)
            self._crashes[number] = crashes, at
            if status == "died" and crashes >= self.max_crashes:
                self._end(run, number, scope, "failed", error=f"the process died {crashes} times at step {at}")
            elif status == "failed" and crashes >= self.max_crashes:
                self.set_aside += 1
            elif status == "finished":
                self.finished += 1
            elif status == "failed":
                again.append(number)
            elif status == "died" and crashes == self.max_crashes - 1:
                alone.append(number)
            else:
                together.append(number)
        return together + again, alone

    def _mend_results(self, run: Run, *, crashes: int) -> None:
        """Write the results file as the journal has it, failed rows that crashed at least so often, and open it for more."""
        if self.results is None:
            return
        journal, new = run.journal, self.results.with_name(f"{self.results.name}.new")
        try:
            with new.open("wb") as lines:
                for id in self._runs(run):
                    for line in journal.row_lines(id, "finished"):
                        lines.write(f"{line}\n".encode())
                    for line in journal.row_lines(id, "failed", crashes=crashes):
                        lines.write(f"{line}\n".encode())
            new.replace(self.results)
            self._lines = self.results.open("ab", buffering=0)
        except OSError as error:
            raise _unwritable(self.results, error) from None

    def _close_results(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    async def _carry_out(self, run: Run, numbers: list[int], side_by_side: int) -> None:
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                if self._stop is not None:
                    return
                await self._row(run, number)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(side_by_side, len(numbers))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__  # the others came while it was being cleared away

    async def _row(self, run: Run, number: int) -> None:
        """Carry out one row to its end, and keep what goes wrong in it to it."""
        journal, path = run.journal, f"row{number}"
        scope = journal.begin_row(run.id, number, path)
        try:
            procedure = self.build(self.rows[number - self.since])
            result = await procedure.carry_out(Context(run, path))
            dumps(result, "result").encode()
            correct, wrong = procedure.verdict(result, (row.answer for row in journal.rows(scope)))
            self._end(run, number, scope, "finished", result=result, correct=correct, wrong=wrong)
            return
        except BudgetSpent as error:  # the others finish what they have asked for, and come here with their next step
            self._stop = self._stop or error
            return
        except (Busy, ChangedWork, JournalError, _Unwritable):
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            failure: BaseException = error
        except Exception as error:
            failure = error
        if isinstance(failure, ModelError):
            self._count_unreached(run, failure)
        crashes, at = self._crashes[number]
        if not (isinstance(failure, KeystepError) and failure.exit_code == Stopped.exit_code):  # it would come again, however often
            steps = journal.count(scope)
            self._crashes[number] = crashes + 1 if at == steps else 1, steps
        self._end(run, number, scope, "failed", error=str(failure) if isinstance(failure, KeystepError) else _said(failure))

    def _count_unreached(self, run: Run, error: ModelError) -> None:
        times, steps = self._unreached
        self._unreached = (times + 1 if steps == run.meter.steps else 1), run.meter.steps
        if self._unreached[0] >= UNREACHED:
            self._stop = self._stop or error

    def _end(
        self, run: Run, number: int, scope: int, status: str, *, result: Any = None, correct: bool | None = None,
        wrong: int | None = None, error: str | None = None,
    ) -> None:  # fmt: skip
        """Journal how a row ended, then append its line to the results file."""
        journal, (crashes, at) = run.journal, self._crashes[number]
        sums = journal.row_sums(scope)
        spent = sums if isinstance(self.first, Procedure) else journal.place_sums(run.id, f"row{number}")  # a loop has no places below
        if error is not None:
            error = redact(error).encode(errors="replace").decode()
        line = json.dumps(
            {
                "row": number, "ok": error is None, "result": result, "correct": correct, "first_error_step": wrong,
                "steps": spent["steps"], "samples": spent["samples"], "error": error,
            },
            ensure_ascii=False,
        )  # fmt: skip
        if error is None:
            self.finished += 1
        elif crashes >= self.max_crashes:
            self.set_aside += 1
        else:
            self.failed += 1
        journal.end_row(run.id, number, status, sums, line, correct=correct, crashes=crashes, at=at)
        if self._lines is not None:
            assert self.results is not None
            try:
                self._lines.write(f"{line}\n".encode())
            except OSError as failed:
                raise _unwritable(self.results, failed) from None

    def _outcome(self, run: Run) -> ManyOutcome:
        ids = self._runs(run)
        spent, verdicts = run.journal.totals(*ids), run.journal.row_verdicts(*ids)
        wrong = verdicts.get(False, 0)
        all_right = verdicts.get(True, 0) == self.total
        rows = Rows(total=self.total, finished=self.finished, wrong=wrong, failed=self.failed, set_aside=self.set_aside)
        return ManyOutcome(
            run_id=run.id, procedure=self.first.name, steps=int(spent["steps"]), correct=False if wrong else True if all_right else None,
            first_error_step=None, samples=int(spent["samples"]), flagged=int(spent["flagged"]),
            votes_per_step=round(spent["samples"] / max(1, spent["sampled"]), 4), tokens_in=int(spent["tokens_in"]),
            tokens_out=int(spent["tokens_out"]), cost=spent["cost"], seconds=round(run.meter.seconds, 3), rows=rows,
            results=None if self.results is None else str(self.results),
        )  # fmt: skip


class _Unwritable(Stopped):
    """The results file; what it lacks is in the journal, so a resume mends it."""


def _unwritable(path: Path, error: OSError) -> _Unwritable:
    mend = "make room there and resume: the journal has what is missing"
    return _Unwritable(f"cannot be written ({error.strerror})", field="results", value=str(path), mend=mend)


def _check_new(path: Path) -> None:
    """Refuse to overwrite what is no results file of this run, and a place that nothing can be written to."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size):
            raise BadInput("is there already", field="results", value=str(path), mend="move it away, or name another file")
        path.open("ab").close()
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be written ({error})", field="results", value=str(path), mend="name another file") from None


def _checked(build: Build, rows: Sequence[Mapping[str, Any]]) -> tuple[Work, int | None]:
    """The first row's procedure and the steps of all rows, where known; every row is built once to see that it can be."""
    if not rows:
        raise BadInput("there are no rows", field="inputs", mend="add one")
    first, steps = None, 0
    known = True
    for number, row in enumerate(rows):
        try:
            procedure = build(row)
            total = procedure.total()
        except KeystepError as error:
            name, value = error.field.removeprefix("set."), error.value
            if name == "set" and value in list(row):  # an unknown name: what stands there says more
                name, value = value or repr(value), row[value]
            raise BadInput(error.problem, field=f"row {number}" + (f", {name}" if name else ""), value=value, mend=error.mend) from None
        known, steps = known and total is not None, steps + (total or 0)
        first = first or procedure
    assert first is not None
    return first, steps if known else None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def input_rows(path: Path, texts: Set[str] = frozenset()) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSONL or JSON file. Cells of a table are read as YAML, as `--set` reads them, but for columns in `texts`.

    Raises:
        BadInput: the file cannot be read, or a row is no mapping of names.
    """
    if not path.is_file():
        raise BadInput("there is no such file", field="inputs", value=str(path), mend="name a .csv, .tsv or .jsonl file")
    try:
        found, _ = records(path)
    except BadInput as error:
        raise BadInput(error.problem, field="inputs", value=error.value, mend=error.mend) from None
    table = path.suffix.lower() in (".csv", ".tsv")
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise BadInput("is no mapping of names", field=f"row {number}", value=row, mend='write {"name": value, …} on every line')
        if table:
            found[number] = {name: cell if name in texts else _cell(cell, f"row {number}, {name}") for name, cell in row.items()}
    return found


def _cell(text: str, where: str) -> Any:
    if _NUMBER.fullmatch(text):  # most cells, and YAML takes its time
        return int(text)
    try:
        return Document(text, where).value
    except BadInput as error:
        raise BadInput(error.problem, field=where, value=text, mend="quote it inside the cell: \"'…'\"") from None
