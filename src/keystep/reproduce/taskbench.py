"""TaskBench at small scale: a planner trained from scratch, freely and held to the tool graph, on template requests with known gold.

The tool graph is that of the multimedia domain, the requests are made by `keystep.measure.taskbench.back_instruct.by_template`. Two of
six phrases of every tool, and a fifth of all tool combinations, are met in the test only. Where KEYSTEP_DATA names a folder with
taskbench/tmdb.* (100 real requests with gold), tools retrieved by TF-IDF are put in order with and without the graph.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import Progress

from keystep.measure.chart import Chart, Line, save
from keystep.measure.taskbench import retrieval
from keystep.measure.taskbench.graph import ToolGraph, load_graph
from keystep.measure.taskbench.samples import Node, Sample, Solution, load_samples
from keystep.measure.taskbench.sampling import SubGraph, draw
from keystep.measure.taskbench.scoring import report
from keystep.measure.taskbench.templates import toolbox_graph, toolbox_request, toolbox_wordings
from keystep.reproduce import Reproduction, machine
from keystep.reproduce._taskbench_planner import Config, Planner
from keystep.worlds import toolbox

TRAINED, TESTED = 20_000, 1_000
HELD_OUT = 5  # one of so many combinations is met in the test only
LARGE = 5  # tools; "many tools" are at least so many
SIDE = 0.01  # how far n-F1 may move when decoding is held to the graph


def is_held_out(sub: SubGraph) -> bool:
    """A fifth of all combinations of tools."""
    return blake2b("|".join(sorted(sub.tools)).encode(), digest_size=2).digest()[0] % HELD_OUT == 0


def requests(graph: ToolGraph, n: int, random: Random, test: bool, held_out_phrases: bool) -> list[Sample]:
    """n template requests over combinations that are held out (test) or not (training); single tools have their share in both."""
    phrases = slice(-toolbox.HELD_OUT, None) if held_out_phrases else slice(None, -toolbox.HELD_OUT)
    said, found = toolbox_wordings(phrases), list[Sample]()
    while len(found) < n:
        sub = draw(graph, random)
        if is_held_out(sub) == test if len(sub.tools) > 1 else not test or random.random() < 1 / HELD_OUT:
            found.append(toolbox_request(sub, graph, said, random, str(len(found))))
    return found


def _figures(samples: Sequence[Sample], plans: Sequence[Solution], tools: ToolGraph) -> dict[str, Any]:
    groups = report(samples, {s.id: plan for s, plan in zip(samples, plans, strict=True)}, tools)["groups"]
    names = ("node_f1", "link_f1", "parameter_name_f1", "parameter_value_f1", "edit_distance", "exact_graph", "invented_links", "samples")
    return {group: {name: _rounded(ways["honest"][name]) for name in names} for group, ways in groups.items()}


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def one_seed(seed: int, config: Config, tick: Any = lambda: None) -> dict[str, Any]:
    """Train a planner and score it on held-out combinations, with trained and with held-out phrases, freely and held to the graph."""
    tools = toolbox_graph()
    trained = requests(tools, TRAINED, Random(f"taskbench train {seed}"), False, False)
    planner = Planner(tools, [sample.request for sample in trained], config, seed)
    losses = planner.train(trained, seed, tick)
    found: dict[str, Any] = {"seed": seed, "last_loss": round(sum(losses[-50:]) / len(losses[-50:]), 4)}
    for name, held_out in (("known phrases", False), ("held-out phrases", True)):
        tested = requests(tools, TESTED, Random(f"taskbench test {seed} {held_out}"), True, held_out)
        asked = [sample.request for sample in tested]
        for way, held in (("free", False), ("held to the graph", True)):
            found[f"{name}, {way}"] = _figures(tested, planner.plan(asked, held_to_graph=held), tools)
        random = Random(f"taskbench path {seed}")
        walks = [retrieval.random_path(tools, len(sample.gold.nodes), random) for sample in tested]
        found[f"{name}, random path"] = _figures(tested, [_typed(walk) for walk in walks], tools)
    return found


def _typed(walk: Solution) -> Solution:
    """A chain with its links as references."""
    nodes = tuple(Node(node.task, (f"<node-{number - 1}>",) if number else ()) for number, node in enumerate(walk.nodes))
    return Solution(walk.steps, nodes, walk.links)


def real_requests(folder: Path) -> list[dict[str, Any]]:
    """The 100 TMDB requests: the n tools of the best TF-IDF score in the order of their scores, in the graph's order, and walks."""
    tools = load_graph(folder / "tmdb.tool_desc.json", folder / "tmdb.graph_desc.json")
    samples, retriever = load_samples(folder / "tmdb.data.json"), retrieval.Retriever(tools)
    scores = {sample.id: retriever.scores(sample.request) for sample in samples}
    found = []
    for n in (1, 2, 3, 4):
        ways: dict[str, dict[str, Solution]] = {
            "retrieval alone": {id: retrieval.chained(retrieval.best(score, n)) for id, score in scores.items()},
            "edge repair": {id: retrieval.linked(retrieval.best(score, n), tools) for id, score in scores.items()},
            "graph order": {id: retrieval.in_graph_order(retrieval.best(score, n), tools) for id, score in scores.items()},
            "walk": {id: retrieval.walk(score, tools, n) for id, score in scores.items()},
            "random path": {id: retrieval.random_path(tools, n, Random(f"tmdb {id}")) for id in scores},
        }
        for way, plans in ways.items():
            all_of = report(samples, plans, tools)["groups"]["overall"]["honest"]
            found.append({"tools": n, "way": way} | {name: _rounded(all_of[name]) for name in ("node_f1", "link_f1", "edit_distance")})
    return found


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Train and score one planner a seed, and the real requests where there are any."""
    began, busy = time.perf_counter(), time.process_time()
    config = Config()
    bar = progress.add_task("planners", total=config.steps * seeds) if progress else None
    tick = (lambda: progress.advance(bar)) if progress and bar is not None else (lambda: None)
    runs = [one_seed(seed, config, tick) for seed in range(seeds)]
    data = os.environ.get("KEYSTEP_DATA")
    folder = Path(data) / "taskbench" if data else None
    real = real_requests(folder) if folder and folder.is_dir() else None
    free = [run["held-out phrases, free"] for run in runs]
    held = [run["held-out phrases, held to the graph"] for run in runs]
    gains = [after["overall"]["link_f1"] - before["overall"]["link_f1"] for before, after in zip(free, held, strict=True)]
    moved = [after["overall"]["node_f1"] - before["overall"]["node_f1"] for before, after in zip(free, held, strict=True)]
    checks = {
        "links are harder than tools": all(f["overall"]["node_f1"] > f["overall"]["link_f1"] for f in free),
        "tools, parameter names, parameter values: each harder": all(
            f["overall"]["node_f1"] > f["overall"]["parameter_name_f1"] > f["overall"]["parameter_value_f1"] for f in free
        ),
        "DAGs are harder than chains": all(f["dag"]["link_f1"] < f["chain"]["link_f1"] for f in free),
        "links fall with the number of tools": all(_many(f, "link_f1") < _few(f, "link_f1") for f in free),
        "single tools are nearly always right": all(run["known phrases, free"]["single"]["node_f1"] > 0.95 for run in runs),
        "the graph raises link F1 at every seed": all(gain > 0 for gain in gains),
        "and leaves tool F1 where it was": all(abs(change) <= SIDE for change in moved),
    }
    mean = _mean(gains)
    return Reproduction(
        name="taskbench", room="measure",
        paper="Shen et al. 2023, TaskBench: Benchmarking Large Language Models for Task Automation, arXiv 2311.18760",
        claim="Links between tools are much harder than the tools, values harder than names, both the more so the more tools; a planner "
        "held to the tool graph has better links with the same tools.",
        setting={
            "tools": "multimedia, 40 tools, 449 links", "trained_on": TRAINED, "tested_on": TESTED, "planner": repr(config),
            "judged_on": "held-out combinations and phrases", "node_f1_may_move": SIDE,
        },
        baseline={"free": [f["overall"] for f in free], "random_path": [run["held-out phrases, random path"]["overall"] for run in runs]},
        measured={
            "checks": checks, "link_f1_gain": [round(gain, 4) for gain in gains], "link_f1_gain_mean": round(mean, 4),
            "node_f1_change": [round(change, 4) for change in moved], "runs": runs, "real_requests": real,
            "cpu_seconds": round(time.process_time() - busy, 1),
        },
        ratio=round(_mean([f["overall"]["link_f1"] / f["overall"]["node_f1"] for f in free]), 4),
        held=all(checks.values()),
        seeds=list(range(seeds)), seconds=round(time.perf_counter() - began, 1),
        settings_tried=SETTINGS_TRIED,
        machine=machine(),
    )  # fmt: skip


SETTINGS_TRIED = [
    "100 steps of training, seed 100: nothing learned yet (tool F1 0.07)",
    "700 steps of training, seed 100: tool F1 0.65, link F1 0.30 freely and 0.33 held to the graph (held-out phrases)",
    "800 steps of training, the seeds reported: the setting fixed after these two",
]


def _few(groups: dict[str, Any], name: str) -> float:
    return _pooled(groups, name, range(2, LARGE))


def _many(groups: dict[str, Any], name: str) -> float:
    return _pooled(groups, name, range(LARGE, 11))


def _pooled(groups: dict[str, Any], name: str, sizes: range) -> float:
    rows = [groups[key] for size in sizes if (key := f"{size} tools") in groups and groups[key][name] is not None]
    return float(sum(row[name] * row["samples"] for row in rows) / sum(row["samples"] for row in rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def picture(found: Reproduction, path: Path) -> None:
    """F1 by the number of tools, freely and held to the graph; and what is hard."""
    runs, sizes = found.measured["runs"], [f"{size} tools" for size in range(2, 11)]
    lines = []
    for way, style in (("free", "s--"), ("held to the graph", "o-")):
        for name, label in (("node_f1", "tools"), ("link_f1", "links")):
            kept = [run[f"held-out phrases, {way}"] for run in runs]
            values = [_mean([groups[size][name] for groups in kept if size in groups]) for size in sizes]
            lines.append(Line(f"{label}, {way}", list(range(2, 11)), values, style=style))
    parts = {"node_f1": "tools", "link_f1": "links", "parameter_name_f1": "names", "parameter_value_f1": "values"}
    bars = [
        Line(way, list(range(len(parts))), [_mean([run[way]["overall"][name] for run in runs]) for name in parts], style="bars")
        for way in ("known phrases, free", "held-out phrases, free", "held-out phrases, held to the graph", "held-out phrases, random path")
    ]
    save(
        [
            Chart("By number of tools, held-out phrases", "tools", "F1", lines),
            Chart("What is hard", "", "F1", bars, names=list(parts.values())),
        ],
        path,
    )
