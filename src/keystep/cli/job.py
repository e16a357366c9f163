"""What `keystep run` was asked to do, as data: kept with the run, so that `keystep resume` can build the same work again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keystep.cli.defaults import AHEAD_BY, JOURNAL, MODEL, noted
from keystep.errors import BadInput, JournalError
from keystep.lm import lm
from keystep.lm.base import LM
from keystep.lm.embedded.cores import available
from keystep.run import AheadBy, Budget, First, Journal, Majority, Many, Procedure, Run, Sampling, TooLong
from keystep.run.builtin import BUILTIN, builtin
from keystep.run.many import input_rows
from keystep.run.procedure_file import YamlProcedure, from_file
from keystep.run.vote import Rule

if TYPE_CHECKING:
    from keystep.run.tracing import Tracing


class Job(BaseModel):
    """One field per flag of `keystep run`; `serve` has many of them. Paths are absolute. It holds no secrets: only the names of environment
    variables."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    procedure: str
    settings: dict[str, Any] = Field(default_factory=dict)
    model: str = MODEL
    base_url: str | None = None
    api_key_env: str | None = None
    prices: str | None = None
    record: str | None = None
    replay: str | None = None
    processes: int | None = Field(default=None, ge=1)
    ahead_by: int | None = Field(default=None, ge=1)
    majority: int | None = Field(default=None, ge=1)
    first: bool = False
    cap: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    too_long: int | None = Field(default=None, ge=1)
    seed: int = 0
    keep_samples: bool = False
    speculate: bool = False
    compare: bool = False
    budget_calls: int | None = Field(default=None, ge=1)
    budget_tokens: int | None = Field(default=None, ge=1)
    budget_cost: float | None = Field(default=None, gt=0)
    budget_seconds: float | None = Field(default=None, gt=0)
    inputs: str | None = None
    results: str | None = None
    concurrency: int | None = Field(default=None, ge=1)
    max_crashes: int | None = Field(default=None, ge=1)
    on: str | None = None
    forecast: dict[str, Any] | None = None  # what was expected of the run before it began, as `keystep.run.forecast.Forecast`

    @classmethod
    def of(cls, values: dict[str, Any]) -> Job:
        """The job of some flags, checked.

        Raises:
            BadInput: one is out of range, or two exclude each other.
        """
        try:
            job = cls.model_validate(values)
        except ValidationError as error:
            worst = error.errors(include_url=False)[0]
            flag = "--" + str(worst["loc"][0]).replace("_", "-")
            raise BadInput(worst["msg"].replace("Input ", ""), field=flag, value=worst["input"], mend="see `keystep run --help`") from None
        rules = [f"--{name.replace('_', '-')}" for name in ("ahead_by", "majority", "first") if getattr(job, name)]
        if len(rules) > 1:
            raise BadInput("exclude each other", field=" and ".join(rules), mend="choose one rule of voting")
        if job.record and job.replay:
            raise BadInput("exclude each other", field="--record and --replay", mend="choose one")
        for name in ("results", "concurrency", "max_crashes", "on"):
            if job.inputs is None and getattr(job, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise BadInput("is for many inputs", field=flag, value=getattr(job, name), mend="add --inputs FILE")
        if job.on and job.on != "ray" and not job.on.startswith("ray://"):
            raise BadInput("is no cluster", field="--on", value=job.on, mend="write ray, or ray://host:port")
        if job.on and job.record:
            raise BadInput("exclude each other", field="--on and --record", mend="record without a cluster")
        if job.inputs and job.compare:
            raise BadInput("exclude each other", field="--inputs and --compare", mend="compare on a single input")
        if job.base_url and "://" in job.model:
            raise BadInput(
                "is already in the model's name", field="--base-url", value=job.base_url, mend="leave it out, or use openai:MODEL"
            )
        for flag, address in (("--model", job.model), ("--base-url", job.base_url or "")):
            if any("@" in part.partition("//")[2].partition("/")[0] for part in address.split(",")):
                mend = "put the key into an environment variable and name it with --api-key-env"
                raise BadInput("has a secret in its address", field=flag, mend=mend)
        job = job if rules else job.model_copy(update={"ahead_by": AHEAD_BY})
        job.rule()  # says what is wrong with it before anything is begun
        return job

    def check_priced(self) -> None:
        """Refuse a budget of money where every sample would count as free."""
        if self.budget_cost is not None and not (self.prices or self.replay or "replay:" in self.model):
            mend = "add --prices FILE, or give another budget"
            raise BadInput("nothing has a price, so it would stop nothing", field="--budget-cost", value=self.budget_cost, mend=mend)

    def build_procedure(self) -> Procedure:
        if self.procedure in BUILTIN:
            procedure = builtin(self.procedure, self.settings)
        elif Path(self.procedure).suffix in (".yaml", ".yml") or Path(self.procedure).exists():
            procedure = from_file(self.procedure, self.settings)
        else:
            mend = f"built in are {', '.join(BUILTIN)}; or give the path of a YAML file (`keystep init` writes one)"
            raise BadInput("is neither a built-in procedure nor a file", field="procedure", value=self.procedure, mend=mend)
        # A flag goes before the procedure's own sampling, also one that says what is the default anyway.
        flags = {"temperature": self.temperature, "first_temperature": self.temperature, "max_tokens": self.max_tokens}
        procedure.sampling = {name: value for name, value in procedure.sampling.items() if flags.get(name) is None}
        return procedure

    def build_many(self, base: Procedure) -> Many:
        """`base` for every row of the inputs file; a row's values go before those of --set.

        Raises:
            BadInput: the file cannot be read, or a row has a name or a value that the procedure does not take.
        """

        # A cell of a table is read as --set reads it, unless the procedure has a text in its place.
        texts = {name for name, value in base.form.state.items() if isinstance(value, str)} if isinstance(base, YamlProcedure) else set()
        rows = input_rows(Path(self.inputs or ""), texts)
        if self.on is None:
            return Many(self.of_row(base), rows, results=self.results, **self._limits())
        from keystep.run.cluster import OnRay

        begin, address = partial(begin_chunk, self.model_dump(mode="json")), None if self.on == "ray" else self.on
        return OnRay(self.of_row(base), rows, begin, address=address, results=self.results, **self._limits())

    def of_row(self, base: Procedure) -> Callable[[Mapping[str, Any]], Procedure]:
        """`base` with the settings of a row."""

        def build(row: Mapping[str, Any]) -> Procedure:
            settings = {**self.settings, **row}
            if isinstance(base, YamlProcedure):
                return base.having(settings)
            return self.model_copy(update={"settings": settings}).build_procedure()

        return build

    def _limits(self) -> dict[str, Any]:
        limits = {"concurrency": self.concurrency, "max_crashes": self.max_crashes}
        return {name: value for name, value in limits.items() if value is not None}

    def build_lm(self) -> LM:
        if self.replay:
            from keystep.lm.replay import Replay

            return Replay(self.replay)
        options: dict[str, Any] = {}
        if self.base_url:
            options["base_url"] = self.base_url
        if self.prices:
            options["prices"] = self.prices
        if self.api_key_env:
            options["api_key"] = os.environ.get(self.api_key_env)
            if not options["api_key"]:
                mend = f"export {self.api_key_env}=…, or name another variable"
                raise BadInput("this environment variable is not set", field="--api-key-env", value=self.api_key_env, mend=mend)
        if self.processes or (not options and all(part.strip().startswith("embedded") for part in self.model.split(","))):
            options["processes"] = self.processes or available()
        return lm(self.model, **options)

    def rule(self) -> Rule:
        cap: dict[str, int] = {} if self.cap is None else {"cap": self.cap}
        if self.first:
            return First(**cap)
        return AheadBy(self.ahead_by, **cap) if self.ahead_by else Majority(self.majority or 1, **cap)

    def sampling(self) -> Sampling:
        flags = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return Sampling(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]

    def budget(self) -> Budget:
        return Budget(calls=self.budget_calls, tokens=self.budget_tokens, cost=self.budget_cost, seconds=self.budget_seconds)

    def build_run(self, model: LM, journal: Journal, id: str | None = None, tracing: Tracing | None = None) -> Run:
        if self.record:
            from keystep.lm.replay import Record

            model = Record(model, self.record)
        with noted():
            return Run(
                model, vote=self.rule(), flags=[TooLong(self.too_long)] if self.too_long else [], journal=journal, seed=self.seed, id=id,
                sampling=self.sampling(), budget=self.budget(), keep_samples=self.keep_samples, speculate=self.speculate,
                spec=self.model_dump(mode="json"), tracing=tracing,
            )  # fmt: skip


def begin_chunk(
    spec: dict[str, Any], journal: Journal, id: str, budget: Budget, rows: Sequence[Mapping[str, Any]], since: int
) -> tuple[Run, Many]:  # fmt: skip
    """The run of a chunk of a job's rows, on the machine that carries it out (`keystep.run.cluster`)."""
    job = Job.of(spec)
    if not job.replay and job.processes is None and job.model.startswith("embedded"):
        job = job.model_copy(update={"processes": 1})  # the cluster has a task on every core
    base = job.build_procedure()
    run = job.build_run(job.build_lm(), journal, id)
    run.asking = replace(run.asking, budget=budget)
    return run, Many(job.of_row(base), rows, since=since, **job._limits())


def absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def open_journal(url: str, *, must_exist: bool = True) -> Journal:
    """The journal at `url`.

    Raises:
        BadInput: it is not there, or it cannot be opened.
    """
    if not url:
        raise BadInput("is empty: nothing would be kept", field="--journal", mend="name a file, for instance runs.db")
    path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") or "://" not in url else None
    if must_exist and path is not None and not path.exists():
        raise BadInput("there is no journal here", field="--journal", value=url, mend="name the one the run was begun with")
    try:
        return Journal(url)
    except JournalError as error:
        raise BadInput(error.problem, field="--journal", value=error.value, mend=error.mend) from None


def resume_command(id: str, journal: str) -> str:
    shown = journal if "@" not in journal else sa.make_url(journal).render_as_string(hide_password=True)
    return f"keystep resume {id}" + ("" if journal == JOURNAL else f" --journal {shown}")
