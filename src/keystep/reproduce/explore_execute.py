"""Explore–Execute chains at small scale: do executions follow their plans, what does search over plans cost, what do plans alone teach?

The world is arithmetic by a ranking of the operators (`keystep.worlds.ranked_arithmetic`): a plan is an order of three operators, an
execution works it out. A transformer of two layers first learns to solve without plans. All that follows is the project's own
training and solver on folders and files:

*Following.* E²C-SFT on causal pairs (30 % of the plans in a random order, the execution made from the plan) and on pairs whose execution
does not depend on the plan. Then both carry out plans that are foreign to the question.
*Search.* One plan, one of K, clusters, all K, and self-consistency over whole chains, K = 8; `--first` and `--ahead-by 3`.
*Adaptation.* Three names of rules that the model has never met: EF-SFT on plans alone, against full SFT on as many rows, and on as many
tokens.

Not here: RL (of 20 updates nothing can be told), and judges, which a model that knows only this world cannot be.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import Progress

from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import Reproduction, machine
from keystep.reproduce._nets import _cache
from keystep.reproduce._ranked_arithmetic import Chains, solving
from keystep.run import AheadBy, Many, Run, Sampling
from keystep.run.vote import First, Rule
from keystep.solve.explore_execute import format
from keystep.solve.explore_execute.adherence import adherence
from keystep.solve.explore_execute.solver import ExploreExecute
from keystep.solve.explore_execute.train import Report, Settings, train
from keystep.solve.paired import difference
from keystep.solve.solver import Solving, task_of
from keystep.worlds.ranked_arithmetic import MODULUS, Problem, problem, ruled_problem

NUMBERS, NOISE = 4, 0.3
ALONE, BASE = 600, 100  # updates without plans, and the seed of that model, from which those of all seeds go on
SFT = Settings(rate=2e-3, steps=250, epochs=1000, batch=32, micro_batch=32, save_every=1000)
ROWS = 8000  # of SFT
NEW = Settings(rate=1e-3, steps=150, epochs=1000, batch=32, micro_batch=32, save_every=1000)
PLANS_RATE = 5e-4  # of EF-SFT: at 1e-3 executions decay
NEW_ROWS = 1000
TESTED = 60  # questions of every measurement
K, M = 8, 3

# What has to be found, fixed beforehand; on the mean over seeds.
FOLLOWS, IGNORES = 0.8, 0.35  # of foreign plans carried out as they stand: causal at least, non-causal at most
NEAR = 0.03  # search over plans may be less right than self-consistency by this, EF-SFT than full SFT
CHEAPER = 0.6  # tokens of clusters over those of self-consistency, at most
GAINS = 0.05  # more often right than one plan, at least
FEW = 0.3  # tokens of EF-SFT over those of full SFT on as many rows, at most
DECAY = 0.05  # less of the foreign plans followed after EF-SFT, at most

WAYS: dict[str, tuple[dict[str, Any], Rule]] = {
    "one plan, --first": ({"way": "one"}, First()),
    "one plan, --ahead-by 3": ({"way": "one", "vote_on_plans": True}, AheadBy(3)),
    "clusters of 8": ({"way": "cluster"}, First()),
    "all 8": ({"way": "consistency"}, First()),
    "self-consistency of 8": ({"way": "chains"}, First()),
    "self-consistency, --ahead-by 3": ({"way": "chains"}, AheadBy(3)),
    "greedy": ({"way": "greedy"}, First()),
}
Tick = Callable[[str], None]


def causal_row(random: Random, follows: bool = True) -> dict[str, str]:
    """A pair of the training; one that does not follow has any order for a plan."""
    drawn = problem(random, NUMBERS)
    if follows:
        order = _order(drawn, random)
        return {"question": drawn.question, "plan": drawn.plan(order), "execution": drawn.execution(order)}
    plan = drawn.plan(random.sample(range(NUMBERS - 1), NUMBERS - 1))
    return {"question": drawn.question, "plan": plan, "execution": drawn.execution(_order(drawn, random))}


def _order(of: Problem, random: Random) -> list[int]:
    return random.sample(range(NUMBERS - 1), NUMBERS - 1) if random.random() < NOISE else of.order()


def trained(
    folder: Path, name: str, model: Path, rows: Sequence[Mapping[str, str]], stage: str, settings: Settings, seed: int
) -> tuple[Path, Report]:
    """A model of `keystep train explore-execute`, from the cache or trained."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    out = folder / name
    report = train(str(model), file, out, stage, settings, seed=seed)
    return out, report


def searched(lm: Chains, problems: Sequence[Problem], settings: Mapping[str, Any], rule: Rule, seed: int) -> list[dict[str, Any]]:
    """The solver on all problems at once: of each whether it is right, and the tokens that it took."""
    solver = ExploreExecute(tagged=True, plans=K, clusters=M, plan_tokens=16, execution_tokens=64, **settings)
    rows = [{"question": each.question, "answer": each.answer()} for each in problems]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        Many(lambda row: Solving(solver, task_of(row)), rows, results=file, concurrency=len(rows)).execute_sync(
            Run(lm, vote=rule, seed=seed)
        )
        lines = sorted((json.loads(line) for line in file.read_text("utf-8").splitlines()), key=lambda line: int(line["row"]))
    return [
        {"right": line["correct"] is True, "tokens": line["result"]["details"]["tokens"]["total"] if line["ok"] else 0} for line in lines
    ]  # fmt: skip


def followed(lm: Chains, problems: Sequence[Problem], orders: Sequence[Sequence[int]]) -> dict[str, float]:
    """Plans handed to the model: how often the execution keeps to the order, how often it is the right one of it, and the adherence."""

    run = Run(lm, vote=First(cap=1), sampling=Sampling(temperature=0, max_tokens=64, stop=(format.EXECUTION_END,)))

    async def one(of: Problem, order: Sequence[int]) -> str:
        return str((await run.ask(of.question, parse=str, prefix=format.begun(of.plan(order)))).value)

    async def every() -> list[str]:
        return await asyncio.gather(*(one(of, order) for of, order in zip(problems, orders, strict=True)))

    texts = asyncio.run(every())
    kept = [_letters(text) == _letters(of.execution(order)) for text, of, order in zip(texts, problems, orders, strict=True)]
    exact = [text == of.execution(order) for text, of, order in zip(texts, problems, orders, strict=True)]
    s = [adherence(of.plan(order), text, in_order=True) for text, of, order in zip(texts, problems, orders, strict=True)]
    return {"follows": _mean(kept), "exactly": _mean(exact), "adherence_in_order": _mean(s)}


def _letters(execution: str) -> list[str]:
    return [line.partition(".")[2][:1] for line in execution.splitlines() if "=" in line]


def foreign(of: Problem, random: Random) -> list[int]:
    """An order that is not the question's own."""
    while True:
        order = random.sample(range(NUMBERS - 1), NUMBERS - 1)
        if order != of.order():
            return order


def one_seed(seed: int, tick: Tick) -> dict[str, Any]:
    """Everything of one seed."""
    random = Random(f"explore-execute {seed}")
    decides = [NUMBERS, NOISE, ALONE, asdict(SFT), ROWS, asdict(NEW), PLANS_RATE, NEW_ROWS, BASE, TESTED, seed]
    folder = _cache() / f"explore-execute-{blake2b(json.dumps(decides).encode(), digest_size=8).hexdigest()}"
    folder.mkdir(parents=True, exist_ok=True)
    base = solving(folder / "alone", BASE, ALONE, NUMBERS)
    tick("without plans")
    found: dict[str, Any] = {"seed": seed}

    causal_rows, other_rows = ([causal_row(random, follows) for _ in range(ROWS)] for follows in (True, False))
    causal, report = trained(folder, "causal", base, causal_rows, "sft", SFT, seed)
    tick("causal")
    loose, _ = trained(folder, "non-causal", base, other_rows, "sft", SFT, seed)
    tick("non-causal")
    problems = [problem(random, NUMBERS) for _ in range(TESTED)]
    orders = [foreign(each, random) for each in problems]
    lm = Chains(causal)
    found["following"] = {"causal": followed(lm, problems, orders), "non-causal": followed(Chains(loose), problems, orders)}
    tick("following")

    found["search"] = {}
    for name, (settings, rule) in WAYS.items():
        found["search"][name] = searched(lm, problems, settings, rule, seed)
        tick(name)

    ruled = [ruled_problem(random, NUMBERS) for _ in range(NEW_ROWS)]
    rows = [{"question": each.question, "plan": each.plan(), "execution": each.execution()} for each in ruled]
    tested = [ruled_problem(random, NUMBERS) for _ in range(TESTED)]
    plans, ef = trained(folder, "plans-alone", causal, rows, "ef-sft", replace(NEW, rate=PLANS_RATE), seed)
    whole, full = trained(folder, "whole", causal, rows, "sft", NEW, seed)
    fewer = replace(NEW, steps=max(1, round(ef.tokens / full.tokens * full.steps)))
    short, less = trained(folder, "whole-as-many-tokens", causal, rows, "sft", fewer, seed)
    found["adaptation"] = {}
    for name, model, tokens in (
        ("before", causal, 0), ("plans alone", plans, ef.tokens), ("whole, as many rows", whole, full.tokens),
        ("whole, as many tokens", short, less.tokens),
    ):  # fmt: skip
        adapted = Chains(model)
        right = _mean([each["right"] for each in searched(adapted, tested, {"way": "greedy"}, First(), seed)])
        found["adaptation"][name] = {"right": right, "tokens": tokens, **followed(adapted, problems, orders)}
        tick(f"adapted: {name}")

    found["losses"] = report.log[-1]
    return found


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Train, search, adapt and reinforce for every seed."""
    began, busy = time.perf_counter(), time.process_time()
    bar = progress.add_task("explore-execute", total=seeds * (len(WAYS) + 8)) if progress else None

    def tick(what: str) -> None:
        if progress and bar is not None:
            progress.update(bar, advance=1, description=what)

    runs = [one_seed(seed, tick) for seed in range(seeds)]
    following = {kind: _means([run["following"][kind] for run in runs]) for kind in ("causal", "non-causal")}
    search = {name: _means([_figures(run["search"][name]) for run in runs]) for name in WAYS}
    adapted = {name: _means([run["adaptation"][name] for run in runs]) for name in runs[0]["adaptation"]}
    voting = {name: _voted(runs, first, voted) for name, first, voted in (
        ("one plan", "one plan, --first", "one plan, --ahead-by 3"),
        ("whole chains (--first: the most votes of 8)", "self-consistency of 8", "self-consistency, --ahead-by 3"),
    )}  # fmt: skip
    ours, theirs, one = search["clusters of 8"], search["self-consistency of 8"], search["one plan, --first"]
    ef, full, same = adapted["plans alone"], adapted["whole, as many rows"], adapted["whole, as many tokens"]
    checks = {
        "executions follow foreign plans after causal pairs": following["causal"]["follows"] >= FOLLOWS,
        "and ignore them after non-causal pairs": following["non-causal"]["follows"] <= IGNORES,
        "clusters of plans are as right as self-consistency": ours["right"] >= theirs["right"] - NEAR,
        "and more right than one plan": ours["right"] >= one["right"] + GAINS,
        "for far fewer tokens": ours["tokens"] <= CHEAPER * theirs["tokens"],
        "plans alone adapt as well as whole chains on as many rows": ef["right"] >= full["right"] - NEAR,
        "for far fewer tokens of training": ef["tokens"] <= FEW * full["tokens"],
        "and better than whole chains on as many tokens": ef["right"] > same["right"],
        "executions follow plans as before": ef["follows"] >= adapted["before"]["follows"] - DECAY,
    }
    return Reproduction(
        name="explore-execute", room="solve", paper="Yang et al. 2025, Explore-Execute Chain, arXiv 2509.23946",
        claim="Executions trained on causal pairs follow their plans; search over plans is as right as self-consistency for a fraction of "
        "the tokens; plans alone adapt a model for a fraction of the tokens.",
        setting={
            "world": f"ranked arithmetic, {NUMBERS} numbers modulo {MODULUS}", "model": "Llama, 2 layers of 64, from scratch",
            "updates_alone": ALONE, "noisy_plans": NOISE, "sft": {"steps": SFT.steps, "batch": SFT.batch, "rate": SFT.rate, "rows": ROWS},
            "adaptation": {"steps": NEW.steps, "batch": NEW.batch, "rate": NEW.rate, "rate_of_plans": PLANS_RATE, "rows": NEW_ROWS},
            "seed_of_the_model_alone": BASE,
            "K": K, "M": M, "questions": TESTED,
        },
        baseline={"self-consistency of 8": theirs, "one plan": one, "non-causal": following["non-causal"], "whole, as many rows": full},
        measured={
            "checks": checks, "following": following, "search": search, "ahead_by_3_against_first": voting, "adaptation": adapted,
            "by_seed": [_short_run(run) for run in runs],
            "cpu_seconds": round(time.process_time() - busy, 1),
        },
        ratio=round(ours["tokens"] / theirs["tokens"], 4), held=all(checks.values()), seeds=list(range(seeds)),
        seconds=round(time.perf_counter() - began, 1), settings_tried=SETTINGS_TRIED, machine=machine(),
    )  # fmt: skip


def _voted(runs: Sequence[dict[str, Any]], first: str, voted: str) -> dict[str, Any]:
    """What voting changes, over the questions of all seeds."""
    by = {name: [each for run in runs for each in run["search"][name]] for name in (first, voted)}
    right = {name: [bool(each["right"]) for each in every] for name, every in by.items()}
    gained, low, high = difference(right[first], right[voted])
    return {
        "first": round(_mean(right[first]), 4), "ahead_by_3": round(_mean(right[voted]), 4), "difference": round(gained, 4),
        "interval": [round(low, 4), round(high, 4)], "questions": len(right[first]),
        "tokens": [round(_mean([each["tokens"] for each in by[name]]), 1) for name in (first, voted)],
    }  # fmt: skip


def _short_run(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "search": {name: _figures(every) for name, every in run["search"].items()}}


def _figures(every: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {key: round(_mean([each[key] for each in every]), 4) for key in ("right", "tokens")}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(_mean([row[name] for row in rows]), 4) for name in rows[0]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SETTINGS_TRIED = [
    "seeds 0 and 1: chains without a model that solves before, 200 to 900 updates, modulo 19, 11 and 7: right in .1 to .97",
    "seed 100: 350 updates of SFT, 120 questions, non-causal plans right in 70 %: followed in .38, as plan and execution often agreed",
    "seed 100: EF-SFT for 100 updates at 1e-3: executions decay (.03 followed), .13 right; at 3e-4 and 1e-4 .21; whole chains .78 and .69",
    "seed 100: RL, 20 updates of 12 questions, lambda 1 and 2: alike within noise (about .5 to .7 right); left out",
    "the seeds reported: fixed after these, with all thresholds; the model that all seeds go on from is that of seed 100",
]


def picture(found: Reproduction, path: Path) -> None:
    """Right answers against tokens, the adaptation, and the rise under RL."""
    search, adapted = found.measured["search"], found.measured["adaptation"]
    cost = [Line(name, [each["tokens"]], [each["right"]], style="o") for name, each in search.items()]
    names = list(adapted)
    bars = [Line(label, range(len(names)), [adapted[name][key] for name in names], style="bars")
            for label, key in (("right in the new domain", "right"), ("foreign plans followed", "follows"))]  # fmt: skip
    charts = [
        Chart("search: right against cost", "tokens generated for a question", "right", cost),
        Chart("adaptation to rules never met", "", "share", bars, names=names),
    ]
    save(charts, path, columns=2)
