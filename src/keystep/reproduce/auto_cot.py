"""Auto-CoT at small scale: demonstrations that are alike copy one error into a prompt, different ones do not.

One net a seed learns to answer questions of counting books (`_count_books`), alone and behind other entries of a book, which say how the
book counts. That two kinds of questions are ambiguous, and misread alone for half of the things, is built in. What the net does with
demonstrations that contradict each other, and what the samplers therefore give, is found out by the solver itself: Zero-Shot-CoT on all
questions, `Selection` with its clusters and checks, few-shot answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rich.progress import Progress

from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import Reproduction, machine
from keystep.reproduce._count_books import ANSWER, KINDS, UNSAID, Question, alone, book, drawn, pieces
from keystep.reproduce._nets import Batch, Net, trained
from keystep.reproduce._speaking_nets import Speaker, Words
from keystep.reproduce._tables import checks, table
from keystep.run import Run, Sampling
from keystep.run.many import Many
from keystep.run.vote import AheadBy, First, Rule
from keystep.solve.auto_cot import AutoCot, Demo, Selection, unresolving_rate
from keystep.solve.auto_cot.clusters import at_random, clustered, in_cluster, nearest, tfidf
from keystep.solve.paired import difference, mcnemar
from keystep.solve.solver import Solving, task_of
from keystep.task import Task

UPDATES, WIDTH, LAYERS, HEADS = 300, 64, 2, 4
ROWS = {"alone": 128, "book": 24}
ENTRIES, ALONE = 9, 0.25  # of a book in training; how many batches are of questions alone
EACH, DEMOS = 20, 8  # questions of a kind; demonstrations
BATCH = 30  # of Auto-CoT*
MEANS = (0, 1, 2)  # seeds of k-means
WORDS = Words(pieces())
AHEAD = AheadBy(3, cap=40)
SOLVER = AutoCot(style="completion")

# What has to be found, fixed beforehand; on the means over seeds.
UNRESOLVED = 1.5  # the unresolving rate of Retrieval-Q over that of Random-Q, at least (1.8 in the paper)
SIDE = 0.02  # Auto-CoT may be worse than Random-Q, and Retrieval-Q with right chains worse than Random-Q with them, by this


def batch(draw: np.random.Generator) -> Batch:
    random = Random(int(draw.integers(2**62)))
    if random.random() < ALONE:
        return WORDS.batch([alone(random) for _ in range(ROWS["alone"])])
    return WORDS.batch([book(random, ENTRIES) for _ in range(ROWS["book"])])


def answered(lm: Speaker, rows: Sequence[dict[str, Any]], rule: Rule, heat: float, seed: int) -> tuple[list[bool], list[Any]]:
    """Which questions the solver gets right, and its results, in the rows' order."""
    run = Run(lm, vote=rule, seed=seed, sampling=Sampling(temperature=heat))
    Many(lambda row: Solving(SOLVER, task_of(row)), rows, concurrency=len(rows)).execute_sync(run)
    found: list[Any] = [None] * len(rows)
    for line in run.journal.row_lines(run.id, "finished"):
        each = json.loads(line)
        found[each["row"]] = each["result"]
    run.close()
    right = [each is not None and SOLVER.right(each["answer"], row["answer"]) for each, row in zip(found, rows, strict=True)]
    return right, found


def chosen(lm: Speaker, rows: Sequence[dict[str, Any]], means: int, size: int | None = None, seed: int = 0) -> Any:
    """Demonstrations of the questions by the whole method; with `size`, in batches."""
    run = Run(lm, vote=First(cap=1), seed=seed, sampling=Sampling(temperature=0.0))
    found = asyncio.run(run.solve(Selection(solver=SOLVER, rows=rows, clusters=DEMOS, seed=means, batch=size), Task(goal="demonstrations")))
    run.close()
    return found


def one_seed(seed: int, tick: Callable[[], object]) -> dict[str, Any]:
    about = f"counting books, {ROWS}, {ENTRIES} entries, {ALONE} alone"
    net = Net(about, WORDS.count, 160, UPDATES, seed, WIDTH, LAYERS, HEADS)
    lm = Speaker(f"books-{seed}", trained(net, batch, tick=tick), WORDS, 8, [ANSWER, "\n\n"])
    random, draw = Random(f"auto-cot {seed}"), np.random.default_rng([seed, 3])
    asked: list[Question] = [drawn(random, kind, True) for kind in range(len(KINDS)) for _ in range(EACH)]
    rows = [{"question": each.text, "answer": str(each.answer)} for each in asked]
    zero, results = answered(lm, rows, First(), 0.0, seed)
    own = [SOLVER.demo(row["question"], each["details"]["reasoning"], each["answer"]) for row, each in zip(rows, results, strict=True)]
    true = [SOLVER.demo(each.text, each.chain.strip(), str(each.answer)) for each in asked]
    vectors = tfidf([row["question"] for row in rows])
    groups = clustered(vectors, DEMOS)

    def with_demos(pick: Callable[[int], Sequence[int]], chains: Sequence[Demo]) -> list[dict[str, Any]]:
        """Every question with the demonstrations picked for it, never with itself."""
        return [
            {**row, "demos": [chains[other].model_dump() for other in pick(number) if asked[other].text != row["question"]][:DEMOS]}
            for number, row in enumerate(rows)
        ]

    ways = {
        "Random-Q": with_demos(lambda number: at_random(len(rows), DEMOS + 4, draw), own),
        "Retrieval-Q": with_demos(lambda number: nearest(vectors, vectors[number], DEMOS + 6), own),
        "In-Cluster": with_demos(lambda number: in_cluster(groups, groups.of(number), DEMOS + 4, draw), own),
        "Random-Q, right chains": with_demos(lambda number: at_random(len(rows), DEMOS + 4, draw), true),
        "Retrieval-Q, right chains": with_demos(lambda number: nearest(vectors, vectors[number], DEMOS + 6), true),
    }
    auto, wrong = {}, []
    for means in MEANS:
        demos = chosen(lm, rows, means, seed=seed)
        wrong.append(sum(not SOLVER.right(demo.pred_ans, demo.gold_ans or "") for demo in demos.demo))
        auto[means] = [{**row, "demos": [demo.model_dump() for demo in demos.demo]} for row in rows]
    right = {name: answered(lm, way, First(), 0.0, seed)[0] for name, way in ways.items()}
    runs = [answered(lm, way, First(), 0.0, seed)[0] for way in auto.values()]
    mixed = [rows[number] for number in draw.permutation(len(rows))]
    stream = chosen(lm, mixed, MEANS[0], BATCH, seed)
    unsaid = [each.kind in UNSAID for each in asked]
    return {
        "seed": seed, "zero-shot": _mean(zero), "zero-shot, unsaid kinds": _mean([r for r, u in zip(zero, unsaid, strict=True) if u]),
        "accuracy": {name: _mean(each) for name, each in right.items()} | {"Auto-CoT": _mean([_mean(run) for run in runs])},
        "Auto-CoT by k-means seed": [_mean(run) for run in runs], "wrong demonstrations": wrong,
        "unresolving": {name: unresolving_rate(zero, each) for name, each in right.items()}
        | {"Auto-CoT": _mean([unresolving_rate(zero, run) or 0.0 for run in runs])},
        "Auto-CoT* by batch": [
            _mean([each["correct"] for each in stream.answers if each["batch"] == number])
            for number in range(stream.answers[-1]["batch"] + 1)
        ],
        "votes": {
            name: answered(lm, auto[MEANS[0]], rule, 1.0, seed)[0] for name, rule in (("first", First()), ("ahead by 3", AHEAD))
        },
    }  # fmt: skip


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Run the whole reproduction."""
    began, cpu = time.perf_counter(), time.process_time()
    bar = progress.add_task("updates", total=seeds * UPDATES) if progress else None

    def tick() -> None:
        if progress and bar is not None:
            progress.advance(bar)

    each = [one_seed(seed, tick) for seed in range(seeds)]
    accuracy = {name: _mean([one["accuracy"][name] for one in each]) for name in each[0]["accuracy"]}
    accuracy["Zero-Shot-CoT"] = _mean([one["zero-shot"] for one in each])
    unresolved = {name: _mean([one["unresolving"][name] for one in each]) for name in each[0]["unresolving"]}
    random = max(unresolved["Random-Q"], 1 / (EACH * len(KINDS)))
    found = {
        "Auto-CoT > Zero-Shot-CoT": accuracy["Auto-CoT"] > accuracy["Zero-Shot-CoT"],
        "Random-Q > Retrieval-Q": accuracy["Random-Q"] > accuracy["Retrieval-Q"],
        f"Retrieval-Q leaves at least {UNRESOLVED} times as much unresolved": unresolved["Retrieval-Q"] >= UNRESOLVED * random,
        "Auto-CoT is no worse than Random-Q": accuracy["Auto-CoT"] >= accuracy["Random-Q"] - SIDE,
        "Auto-CoT > In-Cluster": accuracy["Auto-CoT"] > accuracy["In-Cluster"],
        "with right chains Retrieval-Q is no worse than Random-Q": accuracy["Retrieval-Q, right chains"]
        >= accuracy["Random-Q, right chains"] - SIDE,
        "Auto-CoT*: later batches are better than the first": all(
            _mean(one["Auto-CoT* by batch"][1:]) > one["Auto-CoT* by batch"][0] for one in each
        ),
    }
    first, voted = ([right for one in each for right in one["votes"].pop(name)] for name in ("first", "ahead by 3"))
    gain, low, high = difference(first, voted)
    p = mcnemar(
        sum(a and not b for a, b in zip(first, voted, strict=True)), sum(b and not a for a, b in zip(first, voted, strict=True))
    )  # fmt: skip
    return Reproduction(
        name="auto-cot", room="solve",
        paper="Zhang et al. 2022, Automatic Chain of Thought Prompting in Large Language Models, arXiv 2210.03493",
        claim="Demonstrations by similarity copy the errors of similar questions (Retrieval-Q leaves 46.9 % of them unresolved, Random-Q "
        "25.8 %); one from every cluster is as good as random ones or better; with right chains similarity does no harm.",
        setting={
            "questions": f"{len(KINDS)} kinds, {EACH} of each, {len(UNSAID)} kinds ambiguous", "demonstrations": DEMOS,
            "net": f"Llama, {LAYERS} layers, {HEADS} heads, width {WIDTH}; {UPDATES} updates of rows {ROWS}, books of {ENTRIES}",
            "k-means seeds": list(MEANS), "encoder": "tfidf", "votes": f"temperature 1, first against ahead by {AHEAD.k}",
            "judged by": list(found),
        },
        baseline={"Zero-Shot-CoT": accuracy["Zero-Shot-CoT"], "Random-Q": accuracy["Random-Q"], "Retrieval-Q": accuracy["Retrieval-Q"]},
        measured={
            "accuracy": accuracy, "unresolving": unresolved,
            "wrong demonstrations of 8": _mean([_mean(one["wrong demonstrations"]) for one in each]),
            "ahead by 3 against first": {
                "first": _mean(first), "second": _mean(voted), "difference": gain, "interval": [low, high], "p": p,
            },
            "checks": found, "cpu_seconds": round(time.process_time() - cpu, 1), "each": each,
        },
        ratio=unresolved["Retrieval-Q"] / random, held=all(found.values()), seeds=list(range(seeds)),
        seconds=round(time.perf_counter() - began, 1), settings_tried=SETTINGS_TRIED, machine=machine(),
    )  # fmt: skip


SETTINGS_TRIED = [
    "the net alone, seed 100, 300 updates: alone right on all questions that say how they count and on half of the others; behind eight "
    "wrong chains of the same kind on .02 of the others, behind six right and two wrong ones on all. Hence the reported setting, run once",
]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def tables(found: Reproduction) -> str:
    """The figures as Markdown: means over seeds."""
    accuracy, unresolved, votes = found.measured["accuracy"], found.measured["unresolving"], found.measured["ahead by 3 against first"]
    ways = [
        {"demonstrations": name, "right": value, "left unresolved": unresolved.get(name, 1.0)} for name, value in sorted(accuracy.items())
    ]  # fmt: skip
    voted = [{
        "Auto-CoT, temperature 1": f"{votes['first']:.3f}", "ahead by 3": votes["second"], "difference": votes["difference"],
        "95 %": " to ".join(f"{end:.3f}" for end in votes["interval"]),
    }]  # fmt: skip
    batches = found.measured["each"][0]["Auto-CoT* by batch"]
    stream = [
        {"batch": number + 1, "right": _mean([one["Auto-CoT* by batch"][number] for one in found.measured["each"]])}
        for number in range(len(batches))
    ]  # fmt: skip
    parts = (table(ways), table(voted), table(stream), checks(found.measured["checks"]))
    heads = ("By sampler, greedy", "Votes", "Auto-CoT*", "Judged by")
    return "\n".join(f"### {head}\n\n{part}" for head, part in zip(heads, parts, strict=True))


def picture(found: Reproduction, path: Path) -> None:
    """Accuracy and unresolved questions by sampler, and the batches of Auto-CoT*."""
    accuracy, unresolved = found.measured["accuracy"], found.measured["unresolving"]
    names = ("Zero-Shot-CoT", "Retrieval-Q", "In-Cluster", "Random-Q", "Auto-CoT")
    batches = np.array([one["Auto-CoT* by batch"] for one in found.measured["each"]])
    middle, low, high = (part.tolist() for part in (batches.mean(0), batches.min(0), batches.max(0)))
    bars = [
        Line("right", list(range(len(names))), [accuracy[name] for name in names], style="bars"),
        Line("unresolved", list(range(len(names))), [unresolved.get(name, 1.0) for name in names], style="bars"),
    ]
    numbers = list(range(1, batches.shape[1] + 1))
    save(
        [
            Chart("By sampler of demonstrations", "", "share", bars, names=names),
            Chart("Auto-CoT*, in batches", "batch", "accuracy", [Line("", numbers, middle, low, high, "o-")]),
        ],
        path,
    )
