"""Back-instruct: from a sampled sub-graph to the request that needs it, and the critics that keep what is sound.

A model is given the tools and links and writes steps, request and graph, with a strict teacher's word on them (the LLM critic); the rule
critic compares what it wrote with what was sampled. Requests without a model: `keystep.measure.taskbench.templates`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from keystep.errors import Undecided
from keystep.measure.taskbench.graph import Link, ToolGraph
from keystep.measure.taskbench.planner import fenced
from keystep.measure.taskbench.samples import Node, Sample, Solution, argument_text, solution_of
from keystep.measure.taskbench.sampling import SubGraph, draw
from keystep.run import First, Flag, Run

MOST_RESOURCES = 2  # arguments of a tool with typed inputs
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2500}


@dataclass(frozen=True, slots=True)
class Made:
    """One made sample, and what the critics say of it: by rule the tools, the links, the number of steps, the
    arguments; and the teacher."""

    sample: Sample
    tools: bool
    links: bool
    steps: bool
    arguments: bool
    teacher: bool

    @property
    def by_rule(self) -> bool:
        return self.tools and self.links and self.steps and self.arguments

    @property
    def kept(self) -> bool:
        return self.by_rule and self.teacher


def prompt(sub: SubGraph, graph: ToolGraph, number: int) -> str:
    """What the model is asked; `number` makes it write something else each time."""
    tools = "\n".join(json.dumps(graph.tools[id].as_json(), ensure_ascii=False) for id in sub.tools)
    links = "\n".join(f"{source} -> {target}" for source, target in sub.links) or "(none)"
    node = (
        '{"id": TOOL, "input": [each a text or file name from the request, or the name of the tool whose output it is]}'
        if graph.typed
        else '{"id": TOOL, "arguments": [{"name": PARAMETER, "value": a value from the request, or the name of the tool that gives it}]}'
    )
    return f"""These tools are at hand, one JSON object a line:
{tools}

They are to be used together like this, the output of the left one going to the right one:
{links}

Invent what a person could ask for so that exactly this use of the tools answers it.
- The request is practical and complete: every text, value and file that a tool needs is in it. Files are called example.jpg, example.mp4,
  example.wav or example.png.
- There is one step for every tool, each tool is used once, and the steps depend on one another as the tools do.
- Number and kind of a tool's arguments are those of its description.
Then be your own strict teacher, who lets nothing pass: can the graph be executed, and does it have exactly the tools and links above?

Answer with one JSON object and nothing else (variation {number}):
{{"task_steps": [one sentence a step], "user_request": "…", "invoking_graph": {{"nodes": [{node}, …],
"links": [{{"source": TOOL, "target": TOOL}}, …]}},
"check_by_teacher": "what the teacher found, ending in: Executable: yes or no, Correct: yes or no"}}"""


def read(text: str, sub: SubGraph, graph: ToolGraph, id: str) -> Made:
    """The sample in a model's answer, judged.

    Raises:
        Flag: it is not of the form asked for.
    """
    said = fenced(text)
    inner = said.get("invoking_graph")
    if not isinstance(inner, dict) or not isinstance(said.get("user_request"), str) or not isinstance(said.get("task_steps"), list):
        raise Flag("not the form asked for")
    nodes, links = _nodes(inner.get("nodes")), inner.get("links")
    try:
        made = solution_of({"task_steps": said["task_steps"], "task_nodes": nodes, "task_links": links})
    except ValueError as error:
        raise Flag(str(error)) from None
    lists = all(isinstance(node["arguments"], list) for node in nodes)
    few = not graph.typed or all(len(node.arguments) <= MOST_RESOURCES for node in made.nodes)
    verdict = said.get("check_by_teacher")
    return Made(
        sample=Sample(id, said["user_request"], sub.shape, referring(made) if graph.typed else made),
        tools=sorted(node.task for node in made.nodes) == sorted(sub.tools),
        links=set(made.links) == set(sub.links) and len(made.links) == len(sub.links),
        steps=len(made.steps) == len(made.nodes),
        arguments=lists and few,
        teacher=isinstance(verdict, str) and verdict.lower().rstrip(" .'\"`").endswith("correct: yes"),
    )


def _nodes(nodes: Any) -> list[dict[str, Any]]:
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise Flag("no list of nodes")
    return [{"task": node.get("id"), "arguments": node.get("input", node.get("arguments"))} for node in nodes]


def referring(solution: Solution) -> Solution:
    """The solution with its nodes in the order of its links, and `<node-j>` for every argument that holds the name of another node."""
    order = _order([node.task for node in solution.nodes], solution.links)
    nodes = [solution.nodes[number] for number in order]
    longest_first = sorted(range(len(nodes)), key=lambda j: -len(nodes[j].task))

    def rewritten(argument: Any, own: int) -> Any:
        text = argument_text(argument)
        for j in longest_first:
            if j != own and nodes[j].task.replace("_", " ") in text.replace("_", " "):
                return f"<node-{j}>"
        return argument

    kept = tuple(Node(node.task, tuple(rewritten(argument, own) for argument in node.arguments)) for own, node in enumerate(nodes))
    steps = tuple(solution.steps[number] for number in order) if len(solution.steps) == len(nodes) else solution.steps
    return Solution(steps, kept, solution.links)


def _order(tools: Sequence[str], links: Sequence[Link]) -> list[int]:
    """Places of the tools, each after all that lead to it, else as they stand; as they stand where the links go in a circle."""
    left, found = list(range(len(tools))), list[int]()
    while left:
        waiting = {tools[place] for place in left}
        ready = next((p for p in left if not any(target == tools[p] and source in waiting - {target} for source, target in links)), None)
        if ready is None:
            return list(range(len(tools)))
        left.remove(ready)
        found.append(ready)
    return found


async def back_instruct(run: Run, graph: ToolGraph, n: int, seed: int = 0, *, most: int = 10) -> list[Made]:
    """`n` samples worded by the run's model, all of them, with the critics' word on each; asks go side by side and are journaled.

    A malformed answer is drawn again, `most` times; a sub-graph that no answer fits is left out.
    """

    async def one(number: int) -> Made | None:
        random = Random(f"back-instruct {seed} {number}")
        sub = draw(graph, random)
        id = f"{seed}-{number}"
        question = prompt(sub, graph, random.randrange(10**6))

        def form(text: str) -> str:
            read(text, sub, graph, id)
            return text

        try:
            answer = await run.ask(question, parse=form, vote=First(cap=most), **SAMPLING)
        except Undecided:
            return None
        return read(str(answer.value), sub, graph, id)

    return [made for made in await asyncio.gather(*(one(number) for number in range(n))) if made is not None]


def alignment(made: Sequence[Made]) -> dict[str, dict[str, list[str]]]:
    """Ids of what each critic keeps, by shape: by tools, by links, by both, by the teacher, and by all."""
    views: dict[str, Callable[[Made], bool]] = {
        "node": lambda m: m.tools, "link": lambda m: m.links, "graph": lambda m: m.tools and m.links,
        "llm_check": lambda m: m.teacher, "all": lambda m: m.kept,
    }  # fmt: skip
    shapes = sorted({m.sample.shape for m in made})
    return {
        f"{name}_alignment_id": {shape: [m.sample.id for m in made if m.sample.shape == shape and keeps(m)] for shape in shapes}
        for name, keeps in views.items()
    }
