"""TaskEval: how far a planner's steps, tools, links and arguments are those of the gold (TaskBench, section 4).

Everything is reported twice. *published* follows the paper's program: only samples with a usable prediction count, and a tool that is not
in the list is no false positive. *honest* counts every sample (a missing or unusable prediction as an empty one) and every invented tool.

Where the paper's program trips, neither follows it: an argument whose reference leads nowhere counts as a wrong argument (there: the one
before it again), names are compared with "_" as " " on both sides of a link (there: on one), precision and recall are not swapped. A
figure that nothing stands behind (links where nobody has any) is None (there: 0).

All figures are shares, 0 to 1; edit distance is the one where less is better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keystep.measure.taskbench.graph import ToolGraph
from keystep.measure.taskbench.rouge import f1, ratio, rouge_l, rouge_n, words
from keystep.measure.taskbench.samples import Sample, Solution, argument_text, reference, shown

Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # (predicted texts, gold texts) -> one figure a pair
SIZES = range(1, 11)
_KINDS = {
    "image": ("jpg", "png", "jpeg", "gif", "bmp", "tiff", "svg", "ico"),
    "audio": ("mp3", "wav", "wma", "ogg", "aac", "flac", "aiff", "au"),
    "video": ("mp4", "avi", "mov", "flv", "wmv", "mkv", "webm", "m4v", "mpg", "mpeg"),
}


class Parts(NamedTuple):
    """What of a solution is compared."""

    nodes: tuple[str, ...]
    links: frozenset[tuple[str, str]]
    names: frozenset[tuple[str, str]]  # (tool, type or name of an argument)
    values: frozenset[tuple[str, str, str]]


class Count(NamedTuple):
    """How many are shared, and how many each side has."""

    shared: int
    predicted: int
    gold: int


@dataclass(slots=True)
class Row:
    """One sample against one prediction."""

    shape: str
    size: int
    usable: bool
    known: Count  # tools of the list
    nodes: Count  # all tools named
    links: Count
    names: Count
    values: Count
    edit: float
    rouge: tuple[float, float, float]
    cosine: float
    similarity: float | None
    named: int  # nodes predicted, repeated ones too
    invented: int
    invented_links: int
    exact: bool  # the same tools as often, and the same links
    tools: tuple[frozenset[str], frozenset[str]]


def parts(solution: Solution, graph: ToolGraph, written_links: bool = False) -> Parts:
    """What of a solution is compared; ValueError where a value of it cannot be written.

    With typed tools the links are those of the references in the arguments, or the written ones where `written_links` says so.
    """
    if not graph.typed:
        names, values = set[tuple[str, str]](), set[tuple[str, str, str]]()
        for node in solution.nodes:
            for argument in node.arguments:
                named = isinstance(argument, dict) and "name" in argument
                name, value = (shown(argument["name"]), shown(argument.get("value"))) if named else ("", shown(argument))
                names.add((node.task, name))
                values.add((node.task, name, value))
        return Parts(tuple(node.task for node in solution.nodes), frozenset(solution.links), frozenset(names), frozenset(values))
    tools = tuple(node.task.replace("_", " ") for node in solution.nodes)
    links, typed = set[tuple[str, str]](), set[tuple[str, str, str]]()
    for number, node in enumerate(solution.nodes):
        for argument in node.arguments:
            j = reference(argument)
            if j == number:
                continue  # nothing can come from itself
            if j is None:
                text = argument_text(argument)
                typed.add((tools[number], kind_of(text), text))
            elif 0 <= j < len(tools):
                links.add((tools[j], tools[number]))
                typed.add((tools[number], _given(tools[j], graph), tools[j]))
            else:
                typed.add((tools[number], "", argument_text(argument)))
    if written_links:
        links = {(source.replace("_", " "), target.replace("_", " ")) for source, target in solution.links}
    return Parts(tools, frozenset(links), frozenset((tool, kind) for tool, kind, _ in typed), frozenset(typed))


def _given(id: str, graph: ToolGraph) -> str:
    tool = graph.tools.get(id)
    return "other" if tool is None else tool.gives[0] if tool.gives else "none"


def kind_of(text: str) -> str:
    """image, audio or video by a file extension anywhere in it, else text."""
    for kind, extensions in _KINDS.items():
        if any(f".{extension}" in text for extension in extensions):
            return kind
    return "text"


def rows(
    samples: Sequence[Sample],
    predictions: Mapping[str, Solution | None],
    graph: ToolGraph,
    similarity: Similarity | None = None,
    written_links: bool = False,
) -> list[Row]:
    """Every sample against its prediction (None or absent: there is no usable one).

    `similarity` may add a measure of step texts that needs a model, for instance BERTScore; it is asked once, for all pairs.
    """
    texts = [
        ("\n".join(p.steps) if (p := predictions.get(sample.id)) is not None else "", "\n".join(sample.gold.steps)) for sample in samples
    ]
    similar = similarity([ours for ours, _ in texts], [gold for _, gold in texts]) if similarity is not None else [None] * len(texts)
    weight = _weights(words(gold) for _, gold in texts)
    found = []
    for sample, (ours, theirs), likeness in zip(samples, texts, similar, strict=True):
        gold = parts(sample.gold, graph, written_links)
        prediction, usable = Parts((), frozenset(), frozenset(), frozenset()), False
        given = predictions.get(sample.id)
        if given is not None:
            try:
                prediction, usable = parts(given, graph, written_links), True
            except ValueError:
                ours = ""
        said, due = words(ours), words(theirs)
        tools = frozenset(prediction.nodes), frozenset(gold.nodes)
        places = [graph.tools.keys() & side for side in tools]
        found.append(
            Row(
                shape=sample.shape, size=len(sample.gold.nodes), usable=usable, known=_count(*places), nodes=_count(*tools),
                links=_count(prediction.links, gold.links), names=_count(prediction.names, gold.names),
                values=_count(prediction.values, gold.values),
                edit=1 - ratio(*([tool if tool in graph.tools else "" for tool in side] for side in (prediction.nodes, gold.nodes))),
                rouge=(rouge_n(said, due, 1), rouge_n(said, due, 2), rouge_l(said, due)), cosine=_cosine(said, due, weight),
                similarity=None if likeness is None else float(likeness), named=len(prediction.nodes),
                invented=sum(tool not in graph.tools for tool in prediction.nodes),
                invented_links=sum(link not in graph for link in prediction.links),
                exact=Counter(prediction.nodes) == Counter(gold.nodes) and prediction.links == gold.links, tools=tools,
            )
        )  # fmt: skip
    return found


def _count(predicted: Any, gold: Any) -> Count:
    return Count(len(predicted & gold), len(predicted), len(gold))


def _weights(texts: Iterable[Sequence[str]]) -> Callable[[str], float]:
    """Inverse document frequency over the gold steps: ln((1 + n) / (1 + n_word)) + 1."""
    seen: Counter[str] = Counter()
    n = 0
    for text in texts:
        seen.update(set(text))
        n += 1
    return lambda word: math.log((1 + n) / (1 + seen[word])) + 1


def _cosine(a: Sequence[str], b: Sequence[str], weight: Callable[[str], float]) -> float:
    ours, theirs = ({word: count * weight(word) for word, count in Counter(text).items()} for text in (a, b))
    norm = math.sqrt(sum(x * x for x in ours.values()) * sum(x * x for x in theirs.values()))
    return min(1.0, sum(x * theirs.get(word, 0.0) for word, x in ours.items()) / norm) if norm else 0.0


def figures(table: Sequence[Row], graph: ToolGraph, *, honest: bool) -> dict[str, float | int | None]:
    """The figures over some rows, by the honest or the published convention (see above)."""
    table = table if honest else [row for row in table if row.usable]
    n = len(table)
    node = [row.nodes if honest else row.known for row in table]
    found: dict[str, float | int | None] = {"samples": n}
    for name, value in zip(
        ("rouge1", "rouge2", "rougeL"), zip(*(row.rouge for row in table), strict=True) if n else ((), (), ()), strict=True
    ):
        found[name] = _mean(value)
    found["steps_tfidf_cosine"] = _mean([row.cosine for row in table])
    if any(row.similarity is not None for row in table):
        found["steps_similarity"] = _mean([row.similarity for row in table if row.similarity is not None])
    for name, counts in (
        ("node", node), ("link", [row.links for row in table]), ("parameter_name", [row.names for row in table]),
        ("parameter_value", [row.values for row in table]),
    ):  # fmt: skip
        shared, predicted, gold = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        found[f"{name}_f1"] = f1(shared, predicted, gold) if predicted + gold else None
        found[f"{name}_precision"] = shared / predicted if predicted else None
        found[f"{name}_recall"] = shared / gold if gold else None
    found["node_f1_macro"] = _macro(table, graph)
    found["edit_distance"] = _mean([row.edit for row in table])
    found["node_f1_per_sample"] = _mean([f1(*count) for count in node if count.predicted + count.gold])
    found["link_f1_per_sample"] = _mean([f1(*row.links) for row in table if row.links.predicted + row.links.gold])
    found["exact_graph"] = _mean([float(row.exact) for row in table])
    named, linked = sum(row.named for row in table), sum(row.links.predicted for row in table)
    found["invented_nodes"] = sum(row.invented for row in table) / named if named else None
    found["invented_links"] = sum(row.invented_links for row in table) / linked if linked else None
    return found


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _macro(table: Sequence[Row], graph: ToolGraph) -> float | None:
    """Mean F1 over the tools of the list; 0 for one that nobody uses, as published."""
    both, ours, theirs = Counter[str](), Counter[str](), Counter[str]()
    for predicted, gold in (row.tools for row in table):
        both.update(predicted & gold)
        ours.update(predicted)
        theirs.update(gold)
    return _mean([f1(both[id], ours[id], theirs[id]) for id in graph.tools]) if table else None


def report(
    samples: Sequence[Sample],
    predictions: Mapping[str, Solution | None],
    graph: ToolGraph,
    similarity: Similarity | None = None,
    written_links: bool = False,
) -> dict[str, Any]:
    """All figures: overall, by shape and by number of tools, each by both conventions.

    `coverage` is the share of samples that have a usable prediction.
    """
    table = rows(samples, predictions, graph, similarity, written_links)
    groups = {"overall": table}
    groups |= {shape: [row for row in table if row.shape == shape] for shape in sorted({row.shape for row in table})}
    groups |= {f"{size} tools": [row for row in table if row.size == size] for size in SIZES}
    found = {
        name: {way: figures(group, graph, honest=way == "honest") for way in ("published", "honest")}
        for name, group in groups.items()
        if group
    }
    usable = sum(row.usable for row in table)
    return {"samples": len(table), "usable": usable, "coverage": usable / len(table) if table else None, "groups": found}
