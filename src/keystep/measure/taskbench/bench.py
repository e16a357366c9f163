"""TaskBench as a benchmark of the front (`keystep bench taskbench`): requests to a model, or a file of predictions, scored by TaskEval.

Without files of one's own the requests are made by template from the toolbox that comes with keystep: gold for nothing, and easier than
the released ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from keystep.errors import BadInput
from keystep.measure.bench import Measured, OneAnswer, Problem
from keystep.measure.chart import Chart, Line
from keystep.measure.taskbench import planner
from keystep.measure.taskbench.graph import ToolGraph, load_graph
from keystep.measure.taskbench.samples import Sample, Solution, lint, load_samples, sample_of, solution_of
from keystep.measure.taskbench.sampling import draw
from keystep.measure.taskbench.scoring import report
from keystep.measure.taskbench.templates import toolbox_graph, toolbox_request, toolbox_wordings

SHOWN = {
    "node_f1": "tools", "link_f1": "links", "parameter_name_f1": "parameter names", "parameter_value_f1": "parameter values",
}  # fmt: skip
SUMMARY = (*SHOWN, "edit_distance", "exact_graph", "rouge1", "rouge2", "rougeL", "steps_tfidf_cosine", "invented_nodes", "invented_links")
ODD_SHOWN = 50


class Settings(BaseModel):
    """`tools` and `data` are official files (tool_desc.json, data.json), `links` graph_desc.json where the links are not those of the
    rule. Without them `n` requests are made by template. `demos` are ids of samples of `data` that are shown as examples and not asked.
    `written_links` takes the links of typed tools from task_links, in predictions and gold, and not from the arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)  # ids of the official files look like numbers

    tools: str | None = None
    links: str | None = None
    data: str | None = None
    n: int = Field(default=200, ge=1, le=1_000_000)
    demos: tuple[str, ...] = Field(default=(), max_length=planner.MOST_DEMOS)
    written_links: bool = False


class OneRequest(OneAnswer):
    """A request, asked once."""

    name = "taskbench"
    sampling: Mapping[str, Any] = {"max_tokens": planner.SAMPLING["max_tokens"]}

    def __init__(self, request: str, graph: ToolGraph, demos: Sequence[Sample]) -> None:
        self.question = planner.prompt(request, graph, demos)

    def prompt(self, state: int) -> str:
        return self.question

    def read(self, text: str, state: int) -> dict[str, Any]:
        return planner.read(text).as_json()

    def identity(self) -> Any:
        return {"prompt": self.question}


def problems(settings: Settings, seed: int) -> list[Problem]:
    """The samples of the file but the demonstrations, or made ones.

    Raises:
        BadInput: one of `tools` and `data` without the other, `links` or `demos` without them, or a demonstration that is no sample.
    """
    if (settings.tools is None) != (settings.data is None):
        mend = "name both an official tool_desc.json and its data, or neither"
        raise BadInput("one of tools and data is missing", field="set tools" if settings.tools is None else "set data", mend=mend)
    if settings.data is None:
        for name in ("links", "demos"):
            if value := getattr(settings, name):
                raise BadInput("is for files of your own", field=f"set {name}", value=value, mend="name tools and data as well")
    samples = _samples(settings.data) if settings.data is not None else _made(settings.n, seed)
    known = {sample.id for sample in samples}
    for id in settings.demos:
        if id not in known:
            raise BadInput("is no sample", field="set demos", value=id, mend=f"ids are like {', '.join(sorted(known)[:3])}")
    return [sample.as_json() for sample in samples if sample.id not in settings.demos]


def procedure(settings: Settings, problem: Problem) -> Measured:
    demos = [sample for sample in _samples(settings.data) if sample.id in settings.demos] if settings.data and settings.demos else []
    return OneRequest(problem["user_request"], _graph(settings.tools, settings.links), demos)


def predicted(settings: Settings, problem: Problem, record: Mapping[str, Any]) -> list[Any]:
    """The record's solution in the official form, or [] where it has none that could be used."""
    solution = _usable(record)
    return [] if solution is None else [solution.as_json()]


def score(settings: Settings, problems: Sequence[Problem], answers: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """TaskEval by both conventions; the summary's plain names are the honest figures, those with "_published" the paper's."""
    graph = _graph(settings.tools, settings.links)
    samples = [sample_of(problem, f"problem {problem['id']}") for problem in problems]
    given = {sample.id: _usable(answer[0]) for sample, answer in zip(samples, answers, strict=True) if answer}
    found = report(samples, given, graph, written_links=settings.written_links)
    groups = found["groups"]
    overall = groups.get("overall", {"honest": {}, "published": {}})
    odd = [{"id": sample.id, "oddity": oddity} for sample in samples for oddity in lint(sample, graph)]
    summary = {"problems": found["samples"], "coverage": found["coverage"]}
    summary |= {name: overall["honest"].get(name) for name in SUMMARY}
    summary |= {f"{name}_published": overall["published"].get(name) for name in SHOWN}
    tables = {
        "All figures": [
            {"figure": name, "honest": value, "published": overall["published"].get(name)} for name, value in overall["honest"].items()
        ],
        "By shape and number of tools": [
            {"group": group, "samples": ways["honest"]["samples"], **{name: ways["honest"][name] for name in (*SHOWN, "edit_distance")}}
            for group, ways in groups.items()
        ],
    }
    if odd:
        tables[f"What is odd about the gold ({len(odd)})"] = odd[:ODD_SHOWN]
    return {"summary": summary, "tables": tables, "groups": groups, "odd_gold_rows": len({each["id"] for each in odd})}


def charts(scores: Mapping[str, Any]) -> list[Chart]:
    """F1 against the number of tools, and by shape; honest figures."""
    groups = scores["groups"]
    sizes = [group for group in groups if group.endswith(" tools")]
    shapes = [group for group in groups if group not in sizes]
    found = []
    for title, names in (("By number of tools", sizes), ("By shape", shapes)):
        lines = []
        for name, label in SHOWN.items():
            points = [(x, groups[group]["honest"][name]) for x, group in enumerate(names) if groups[group]["honest"][name] is not None]
            style = "o-" if names is sizes else "bars"
            lines.append(Line(label, [x for x, _ in points], [y for _, y in points], style=style))
        if any(line.x for line in lines):
            ticks = [group.removesuffix(" tools") for group in names]
            found.append(Chart(title, "tools" if names is sizes else "shape", "F1", [line for line in lines if line.x], names=ticks))
    return found


def _usable(said: Any) -> Solution | None:
    try:
        return solution_of(said)
    except ValueError:
        return None


@cache
def _graph(tools: str | None, links: str | None) -> ToolGraph:
    return toolbox_graph() if tools is None else load_graph(tools, links)


@cache
def _samples(data: str) -> list[Sample]:
    return load_samples(data)


def _made(n: int, seed: int) -> list[Sample]:
    graph, wordings, random = toolbox_graph(), toolbox_wordings(), Random(f"taskbench {seed}")
    return [toolbox_request(draw(graph, random), graph, wordings, random, str(number)) for number in range(n)]
