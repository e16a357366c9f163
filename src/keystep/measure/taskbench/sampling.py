"""Sampling sub-graphs of a tool graph: a single tool, a chain, or a DAG.

The distribution is the reference's (draw until the drawn tool is new), written as one weighted draw over the tools that are new, so that
no loop can go on for ever where every neighbour is taken already: there the sub-graph stays smaller than asked for. Every link joins a
new tool to one that is there, so a sub-graph is a forest and never has a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from keystep.errors import BadInput
from keystep.measure.taskbench.graph import Link, ToolGraph

SHAPES = {"single": 3.0, "chain": 7.0, "dag": 8.0}  # weights, unnormalised
SIZES = {2: 0.1, 3: 0.2, 4: 0.3, 5: 0.2, 6: 0.1, 7: 0.05, 8: 0.025, 9: 0.025, 10: 0.025}
LEAST_DAG = 3


@dataclass(frozen=True, slots=True)
class SubGraph:
    """Sampled tools and the links between them. A chain's tools stand in its order, a DAG's in the order in which they were drawn."""

    shape: str
    tools: tuple[str, ...]
    links: tuple[Link, ...]


def draw(graph: ToolGraph, random: Random) -> SubGraph:
    """One sub-graph, its shape drawn by `SHAPES` and its size by `SIZES`."""
    shape = random.choices(list(SHAPES), list(SHAPES.values()))[0]
    size = 1 if shape == "single" else random.choices(list(SIZES), list(SIZES.values()))[0]
    return sample(graph, shape, size, random)


def sample(graph: ToolGraph, shape: str, size: int, random: Random) -> SubGraph:
    """One sub-graph of a shape, of at most `size` tools (a DAG's size is at least 3), from a uniformly drawn first tool.

    Raises:
        BadInput: the shape is none of `SHAPES`, or the size is below 1.
    """
    if shape not in SHAPES:
        raise BadInput("is no shape", field="shape", value=shape, mend=f"there are {', '.join(SHAPES)}")
    if size < 1:
        raise BadInput("is at least 1", field="size", value=size)
    first = random.choice(list(graph.tools))
    if shape == "single":
        return SubGraph(shape, (first,), ())
    return _chain(graph, first, size, random) if shape == "chain" else _dag(graph, first, max(size, LEAST_DAG), random)


def _chain(graph: ToolGraph, first: str, size: int, random: Random) -> SubGraph:
    tools = [first]
    while len(tools) < size:
        before, after = graph.predecessors(tools[0]), graph.successors(tools[-1])
        new = [id for id in before + after if id not in tools]  # one that is on both sides counts twice
        if not new:
            break
        chosen = random.choice(new)
        if chosen in before:
            tools.insert(0, chosen)
        else:
            tools.append(chosen)
    return SubGraph("chain", tuple(tools), tuple(pairwise(tools)))


def _dag(graph: ToolGraph, first: str, size: int, random: Random) -> SubGraph:
    tools, links = [first], list[Link]()
    while len(tools) < size:
        choices: list[tuple[str, Link | None]] = []
        weights: list[float] = []
        for at in tools:
            before, after = _feeding(graph, at, links), graph.successors(at)
            for id in before + after:
                if id not in tools:
                    choices.append((id, (id, at) if id in before else (at, id)))
                    weights.append(1 / len(before + after))
            if not before and not after:  # nothing can be joined here: some tool, without a link
                alone = [id for id in graph.tools if id not in tools]
                choices += [(id, None) for id in alone]
                weights += [1 / len(graph.tools)] * len(alone)
        if not choices:
            break
        tool, link = random.choices(choices, weights)[0]
        tools.append(tool)
        if link is not None:
            links.append(link)
    return SubGraph("dag", tuple(tools), tuple(links))


def _feeding(graph: ToolGraph, id: str, links: list[Link]) -> list[str]:
    """The predecessors of a tool; where inputs are typed, only those that feed a slot no link feeds yet."""
    if not graph.typed:
        return graph.predecessors(id)
    free = list(graph.tools[id].takes)
    for source, target in links:
        kind = graph.links[source, target]
        if target == id and kind in free:
            free.remove(kind)
    return [source for source in graph.predecessors(id) if graph.links[source, id] in free]
