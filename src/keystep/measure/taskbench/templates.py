"""Requests by template: gold for nothing, without a model, and what a small planner can be trained on.

The tools and phrases that come with keystep are those of `keystep.worlds.toolbox`; any other table of phrases does as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from keystep.measure.taskbench.graph import Tool, ToolGraph, resource_graph
from keystep.measure.taskbench.samples import Node, Sample, Solution
from keystep.measure.taskbench.sampling import SubGraph
from keystep.worlds import toolbox


@dataclass(frozen=True, slots=True)
class Wording:
    """How a tool's use is said: phrases with one `{}` for each typed input, in the order of its types, and the step's own sentence.

    A phrase is a wish ("shorten {}"); what stands for an input is a literal ("the text 'Bees dance'") or an earlier result ("the result").
    """

    phrases: tuple[str, ...]


def by_template(
    sub: SubGraph, graph: ToolGraph, wordings: Mapping[str, Wording], literals: Mapping[str, Sequence[str]], random: Random, id: str,
    openings: Sequence[str] = ("",), asides: Sequence[str] = (),
) -> Sample:  # fmt: skip
    """A sample of a resource graph worded from phrases: clauses in an order the links allow (siblings shuffled), literals from a pool.

    A result is "that" or "the result" for the clause just before, "the result of step 2" for an earlier one.

    Args:
        literals: what may stand for an input of a type that no link feeds; files by name, texts in quotes.
        openings, asides: sentences before the wish, and such as say nothing about it.
    """
    tools = _shuffled_order(sub, random)
    place = {tool: number for number, tool in enumerate(tools)}
    clauses, nodes, steps = [], [], []
    for number, tool in enumerate(tools):
        feeding = sorted((place[source] for source, target in sub.links if target == tool), reverse=True)
        arguments, words = [], []
        for kind in graph.tools[tool].takes:
            j = next((j for j in feeding if graph.links[tools[j], tool] == kind), None)
            if j is None:
                literal = random.choice(list(literals[kind]))
                arguments.append(literal.strip("'"))
                words.append(literal)
            else:
                feeding.remove(j)
                arguments.append(f"<node-{j}>")
                words.append(random.choice(("that", "the result")) if j == number - 1 else f"the result of step {j + 1}")
        clauses.append(random.choice(wordings[tool].phrases).format(*words))
        nodes.append(Node(tool, tuple(arguments)))
        steps.append(f"Step {number + 1}: {wordings[tool].phrases[0].format(*words)}")
    joined = _joined(clauses, random)
    aside = f" {random.choice(list(asides))}" if asides and random.random() < 0.5 else ""
    request = f"{random.choice(list(openings))}{joined}.{aside}".strip()
    links = tuple((source, target) for source, target in sub.links)
    return Sample(id, request, sub.shape, Solution(tuple(steps), tuple(nodes), links))


def _shuffled_order(sub: SubGraph, random: Random) -> list[str]:
    """The tools in a random order that the links allow."""
    left, found = list(sub.tools), list[str]()
    while left:
        ready = [tool for tool in left if not any(target == tool and source in left for source, target in sub.links)]
        found.append(random.choice(ready))
        left.remove(found[-1])
    return found


def _joined(clauses: Sequence[str], random: Random) -> str:
    text = clauses[0]
    for clause in clauses[1:]:
        text += random.choice((", then ", ". After that ", ", and next ", ". Then ")) + clause
    return text


def toolbox_graph() -> ToolGraph:
    """The tool graph of `keystep.worlds.toolbox`: 40 tools, 449 links."""
    return resource_graph(Tool(id=id, takes=takes, gives=gives) for id, (takes, gives, _) in toolbox.TOOLS.items())


def toolbox_wordings(phrases: slice = slice(None)) -> dict[str, Wording]:
    """Its phrases, or some of each tool's."""
    return {id: Wording(said[phrases]) for id, (_, _, said) in toolbox.TOOLS.items()}


def toolbox_request(sub: SubGraph, graph: ToolGraph, wordings: Mapping[str, Wording], random: Random, id: str) -> Sample:
    """A request for the toolbox's tools, with its literals, openings and asides."""
    return by_template(sub, graph, wordings, toolbox.LITERALS, random, id, toolbox.OPENINGS, toolbox.ASIDES)
