"""Planners that need no model: tools by TF-IDF of their descriptions, links by search in the tool graph, and the baselines beside them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random

from keystep.measure.taskbench.graph import Link, ToolGraph
from keystep.measure.taskbench.rouge import words
from keystep.measure.taskbench.samples import Node, Solution, reference
from keystep.measure.taskbench.sampling import sample

BEAM = 64  # walks kept in each round


class Retriever:
    """Scores tools by the cosine between a request and their names and descriptions, words weighted by ln((1 + n) / (1 + n_word)) + 1."""

    def __init__(self, graph: ToolGraph) -> None:
        texts = {id: _terms(f"{_apart(id)} {tool.desc}") for id, tool in graph.tools.items()}
        seen = Counter(word for text in texts.values() for word in set(text))
        self._weight = {word: math.log((1 + len(texts)) / (1 + count)) + 1 for word, count in seen.items()}
        self._tools = {id: self._vector(text) for id, text in texts.items()}

    def scores(self, request: str) -> dict[str, float]:
        asked = self._vector(_terms(request))
        return {id: sum(x * asked.get(word, 0.0) for word, x in vector.items()) for id, vector in self._tools.items()}

    def _vector(self, text: Sequence[str]) -> dict[str, float]:
        found = {word: count * self._weight[word] for word, count in Counter(text).items() if word in self._weight}
        norm = math.sqrt(sum(x * x for x in found.values()))
        return {word: x / norm for word, x in found.items()}


def _apart(id: str) -> str:
    """GetMovieCredit -> Get Movie Credit."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", id.replace("_", " "))


def _terms(text: str) -> list[str]:
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words(text)]


def best(scores: Mapping[str, float], n: int) -> list[str]:
    """The n best tools, best first; the first of the list among equals."""
    return sorted(scores, key=lambda id: -scores[id])[:n]


def chained(tools: Sequence[str]) -> Solution:
    """The tools in the order given, each linked to the next."""
    return Solution(tuple(f"Use {tool}." for tool in tools), tuple(map(Node, tools)), tuple(pairwise(tools)))


def in_graph_order(tools: Sequence[str], graph: ToolGraph) -> Solution:
    """The same tools in the order that has most links of the graph between neighbours, earlier tools first among equals; only those links.

    By dynamic programming over subsets: at most 12 tools.
    """
    if len(tools) > 12:
        raise ValueError("at most 12 tools")
    # (links, the order as places), by (set of places, last place); more links first, then the earlier places first
    table: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {(1 << place, place): (0, (place,)) for place in range(len(tools))}
    for _ in range(len(tools) - 1):
        longer: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        for (chosen, last), (links, order) in table.items():
            for place in range(len(tools)):
                if chosen >> place & 1:
                    continue
                key, made = (chosen | 1 << place, place), (links - ((tools[last], tools[place]) in graph), (*order, place))
                longer[key] = min(longer.get(key, made), made)
        table = longer
    return linked([tools[place] for place in min(table.values())[1]], graph)


def linked(tools: Sequence[str], graph: ToolGraph) -> Solution:
    """The tools in the order given, neighbours linked where the graph has the link."""
    return repaired(chained(tools), graph)


def walk(scores: Mapping[str, float], graph: ToolGraph, n: int) -> Solution:
    """n tools along links of the graph with the greatest sum of scores (beam search); fewer where there is no such walk."""
    beams: list[tuple[float, tuple[str, ...]]] = [(-scores[id], (id,)) for id in graph.tools]
    for _ in range(n - 1):
        longer = [(cost - scores[id], (*path, id)) for cost, path in beams for id in graph.successors(path[-1]) if id not in path]
        if not longer:
            break
        beams = sorted(longer)[:BEAM]
    return chained(min(beams)[1])


def random_path(graph: ToolGraph, n: int, random: Random) -> Solution:
    """The baseline that reads nothing."""
    return chained(sample(graph, "chain", n, random).tools)


def repaired(solution: Solution, graph: ToolGraph) -> Solution:
    """The solution without the links and references that are no link of the graph."""
    tools = [node.task.replace("_", " ") if graph.typed else node.task for node in solution.nodes]

    def stays(argument: object, own: int) -> bool:
        j = reference(argument)
        return j is None or (0 <= j < len(tools) and (tools[j], tools[own]) in graph)

    nodes = solution.nodes
    if graph.typed:
        nodes = tuple(Node(node.task, tuple(a for a in node.arguments if stays(a, own))) for own, node in enumerate(nodes))
    links: tuple[Link, ...] = tuple(link for link in solution.links if link in graph)
    return Solution(solution.steps, nodes, links)
