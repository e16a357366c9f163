"""Many inputs on a Ray cluster: the rows in chunks, each chunk a run of its own in a journal that all machines reach.

The run itself holds no steps: it says what the work is and who drives it. Chunk 7 of run "r" is the run "r.c00007", with its own lease and
fencing token, carried out by one Ray task as `Many` would in one process: a row keeps its number in the whole table, so its draws and its
result are those of a run without a cluster. A task whose process dies is tried again by Ray, on any machine, and goes on with what the
journal has of its chunk. How the rows are cut depends on their number alone, so a resume finds the same chunks on a cluster of any size.

A budget of calls, tokens or cost is shared out when the tasks are sent: a chunk gets what it has spent and its rows' part of the rest, and
what it leaves over is used after a resume only. Seconds are those of the whole.

Limits: what a chunk has done is seen when it ends. Ray itself sends functions and rows between its processes as pickles: a cluster is for
machines that trust each other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from keystep.errors import BadInput, BudgetSpent, Busy, ChangedWork, JournalError, KeystepError, MissingExtra, ModelError, Stopped
from keystep.lm.base import run_sync
from keystep.run.budget import Budget
from keystep.run.journal import LEASE_SECONDS, Journal
from keystep.run.many import Build, Many, ManyOutcome
from keystep.run.run import Run

CHUNKS, LARGEST = 16, 64  # at least so many chunks, where there are as many rows, and at most so many rows in each
GOING = 10.0  # seconds that tasks have to end when all must stop
_ENDS = {kind.__name__: kind for kind in (BadInput, BudgetSpent, Busy, ChangedWork, JournalError, ModelError)}

# begin(journal, id, budget, rows, number of the first row) -> the run of a chunk and its rows, made where they are carried out
Begin = Callable[[Journal, str, Budget, Sequence[Mapping[str, Any]], int], tuple[Run, Many]]


class OnRay(Many):
    """Rows spread over a Ray cluster; what `Many` says of them holds.

    Args:
        begin: makes a chunk's run and its rows (`Many` with `since`) in the process that carries them out; its models, vote, flags,
            sampling and seed have to be those of the run. It is sent to other processes, so it is a function of a module that they have.
        address: "ray://host:port" of a running cluster; None starts one on this machine for as long as the rows take. A program that has
            called `ray.init` itself keeps its own.

    Raises:
        BadInput: as `Many`.
    """

    def __init__(
        self, build: Build, rows: Sequence[Mapping[str, Any]], begin: Begin, *, address: str | None = None,
        results: str | Path | None = None, concurrency: int = 64, max_crashes: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(build, rows, results=results, concurrency=concurrency, max_crashes=max_crashes)
        self.begin, self.address = begin, address
        self.size = min(LARGEST, -(-self.total // CHUNKS))
        self.parts = [range(at, min(at + self.size, self.total)) for at in range(0, self.total, self.size)]
        self._tallies = [Counter[str]() for _ in self.parts]

    async def execute(self, run: Run) -> ManyOutcome:
        """Carry the rows out as this run, or those that are left of it.

        Raises:
            BadInput: the journal is none that several machines can write, or there is no such cluster.
            MissingExtra: Ray is not installed.
            ChangedWork, BudgetSpent, ModelError, Busy, JournalError: as `Many`.
            Stopped: a chunk's process died again and again.
        """
        check_shared(run.journal.url)
        if len(run.id) > 57:
            raise BadInput("has 1 to 57 characters, as its chunks are named after it", field="run", value=run.id, mend="name it shorter")
        with _cluster(self.address):
            self._begin(run, {"chunk": self.size})
            try:
                try:
                    await self._spread(run)
                finally:
                    self._mend_results(run, crashes=0)
                    self._close_results()
                if self._stop is not None:
                    raise self._stop
                outcome = self._outcome(run)
            except BaseException as error:
                run._stop(error)
                raise
        return self._finish(run, outcome)

    def _runs(self, run: Run) -> list[str]:
        return [f"{run.id}.c{number:05}" for number in range(len(self.parts))]

    async def _spread(self, run: Run) -> None:
        """Send all chunks that have rows left, and wait until they have ended or one of them says that all have to stop."""
        import ray

        ids, url = self._runs(run), run.journal.database.engine.url.render_as_string(hide_password=False)
        for number in range(len(ids)):
            self._count(run, number, ids[number])
        # A row that kills its process takes `max_crashes` of them, and one more to note that it is set aside.
        send = ray.remote(num_cpus=1, max_retries=self.max_crashes + 1)(_carry_out).remote
        under_way: dict[asyncio.Future[Any], tuple[int, Any]] = {}
        seconds = run.asking.budget.seconds
        try:
            for number, budget in self._budgets(run.asking.budget):
                part = self.parts[number]
                sent = send(self.begin, url, run.id, ids[number], self.rows[part.start : part.stop], part.start, budget)
                under_way[asyncio.wrap_future(sent.future())] = number, sent
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds - run.meter.seconds)):
                while under_way and (self._stop is None or isinstance(self._stop, BudgetSpent)):
                    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    for future in done:
                        number, _ = under_way.pop(future)
                        self._count(run, number, ids[number])
                        self._stop = self._stop or _ended(future, self.parts[number])
        except TimeoutError:
            mend = "resume with a larger one"
            self._stop = BudgetSpent("the budget is spent", field="budget.seconds", value=seconds, mend=mend)
        finally:
            for _, sent in under_way.values():
                ray.cancel(sent)
            if under_way:
                ended, _ = await asyncio.wait(under_way, timeout=GOING)
                for future in ended:
                    future.exception()  # they were told to end
                    self._count(run, under_way[future][0], ids[under_way[future][0]])

    def _budgets(self, whole: Budget) -> Iterator[tuple[int, dict[str, Any]]]:
        """The chunks that have rows left, each with its part of the budget; those that nothing is left for are spent before they begin."""
        left = [len(part) - tally["finished"] - tally["set_aside"] for part, tally in zip(self.parts, self._tallies, strict=True)]
        limits = {"calls": whole.calls, "tokens": whole.tokens, "cost": whole.cost}
        rest = {name: max(0, limit - self._sum(name)) for name, limit in limits.items() if limit is not None}
        before = 0
        for number, rows in enumerate(left):
            if not rows:
                continue
            budget: dict[str, Any] = {}
            for name, room in rest.items():
                upto, since = (room * n / sum(left) for n in (before + rows, before))
                # whole numbers are cut so that the parts sum up to the rest
                part = upto - since if name == "cost" else int(upto) - int(since)
                if part <= 0:
                    spent = BudgetSpent("the budget is spent", field=f"budget.{name}", value=limits[name], mend="resume with a larger one")
                    self._stop = self._stop or spent
                    break
                budget[name] = self._tallies[number][name] + part
            else:
                yield number, budget
            before += rows

    def _count(self, run: Run, number: int, id: str) -> None:
        """Note where a chunk stands by the journal, and the sums over all."""
        journal = run.journal
        tally: Counter[str] = Counter()
        tally.update(journal.totals(id))
        known = journal.run(id, missing_ok=True)
        tally["calls"] = max(tally["samples"], known.get("calls", 0))
        for name in ("tokens_in", "tokens_out", "cost"):  # also of samples whose step never closed
            tally[name] = max(tally[name], known.get(name, 0))
        tally["tokens"] = tally["tokens_in"] + tally["tokens_out"]
        for status, crashes, _, _ in journal.row_states(id).values():
            set_aside = status == "failed" and crashes >= self.max_crashes
            tally["set_aside" if set_aside else status] += 1
        self._tallies[number] = tally
        self.finished, self.failed, self.set_aside = (int(self._sum(name)) for name in ("finished", "failed", "set_aside"))
        for name in ("calls", "flagged", "tokens_in", "tokens_out", "cost", "steps"):
            setattr(run.meter, name, self._sum(name))

    def _sum(self, name: str) -> Any:
        return sum(tally[name] for tally in self._tallies)


def check_shared(journal: str) -> None:
    """Refuse a journal that only this machine, or only this process, can write."""
    if not journal.startswith("postgresql"):
        problem = "is on this machine alone, and the workers of a cluster cannot share it"
        raise BadInput(problem, field="--journal", value=journal, mend="keep it in PostgreSQL: --journal postgresql://user@host/database")


def _carry_out(
    begin: Begin, url: str, parent: str, id: str, rows: Sequence[Mapping[str, Any]], since: int, budget: Mapping[str, Any]
) -> tuple[str, str, str, str, str] | None:  # fmt: skip
    """The task: a chunk to its end. What stops it comes back as data, to be raised where the chunks were sent from."""
    try:
        with closing(Journal(url)) as journal:
            run, many = begin(journal, id, Budget(**budget), rows, since)
            run.spec = {"chunk_of": parent}
            run_sync(_when_free(run, many))
    except KeystepError as error:
        shown = "" if error.value is None else str(error.value)
        return type(error).__name__, error.problem, error.field, shown, error.mend
    return None


async def _when_free(run: Run, many: Many) -> None:
    """Carry it out, where another process seems to hold it when its lease has ended: it may have died with its machine."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 2 * LEASE_SECONDS
    try:
        while True:
            try:
                await many.execute(run)
                return
            except Busy:
                if loop.time() > until:
                    raise
                await asyncio.sleep(0.5)
    finally:
        await run.asking.lm.close()


def _ended(future: asyncio.Future[Any], part: range) -> KeystepError | None:
    """What stopped a chunk, if anything did."""
    import ray

    try:
        said = future.result()
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        where = f"rows {part.start} to {part.stop - 1}"
        return Stopped(f"their process was lost ({type(error).__name__})", field=where, mend="resume when the cluster is well")
    if said is None:
        return None
    kind, problem, field, value, mend = said
    return _ENDS.get(kind, Stopped)(problem, field=field, value=value or None, mend=mend)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connected to the cluster, or to one of this machine's own that ends with it.

    Raises:
        MissingExtra: Ray is not installed.
        BadInput: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    try:
        import ray
    except ImportError:
        raise MissingExtra("running on a Ray cluster", "ray") from None
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ImportError) as error:
        problem = f"there is no Ray cluster to be reached ({' '.join(str(error).split())[:200]})"
        mend = "start it with `ray start --head`, or write --on ray; set RAY_AUTH_MODE=token for one that wants a token"
        raise BadInput(problem, field="--on", value=address or "ray", mend=mend) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without a word to the journal
    try:
        yield
    finally:
        ray.shutdown()
