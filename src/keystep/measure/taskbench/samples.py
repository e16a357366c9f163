"""TaskBench's records: requests with their gold invocation graphs, and what a planner answered.

Two schemas are read: that of the repository (`user_request`, `task_steps`, `task_nodes`, `task_links`) and that of the data hub
(`instruction`, `tool_steps`, `tool_nodes`, `tool_links`, as JSON texts). Gold has to be in order and is refused where it is not; a
prediction may be anything, and one that cannot be used has failed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystep.errors import BadInput
from keystep.measure.taskbench.graph import Link, ToolGraph
from keystep.run.records import records

MOST_NODES, MOST_LINKS = 1000, 10_000  # of one solution; more is no plan but noise
_SAID_AS = ("task", "step", "id", "step_name", "description")  # where predictions keep a step's text that are not text themselves
_REFERENCE = "<node-"


@dataclass(frozen=True, slots=True)
class Node:
    """The use of a tool. Arguments are JSON values: texts and `<node-j>` (resource), {"name", "value"} (temporal), or whatever was said."""

    task: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Solution:
    """An invocation graph and its steps in words. `links` are those written out; resource graphs have theirs in the arguments."""

    steps: tuple[str, ...]
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As the official files write it."""
        return {
            "task_steps": list(self.steps),
            "task_nodes": [{"task": node.task, "arguments": list(node.arguments)} for node in self.nodes],
            "task_links": [{"source": source, "target": target} for source, target in self.links],
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """A request and its gold solution. `shape` is single, chain or dag ("single" is what the paper calls Node)."""

    id: str
    request: str
    shape: str
    gold: Solution

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": self.shape, "n_tools": len(self.gold.nodes), "user_request": self.request, **self.gold.as_json()}


def load_samples(path: str | Path) -> list[Sample]:
    """The samples of a file of JSON lines (or one JSON list), in either schema.

    Raises:
        BadInput: it cannot be read, or a row of it is no sample or has an id that another row has.
    """
    path = Path(path)
    if path.suffix == ".json" and not _is_list(path):  # the official files are JSON lines by another name
        rows = [_object(line, f"{path.name}, line {n}") for n, line in enumerate(path.read_text("utf-8").splitlines(), 1) if line.strip()]
    else:
        rows = records(path)[0]
    found: dict[str, Sample] = {}
    for number, row in enumerate(rows, 1):
        sample = sample_of(row, f"{path.name}, row {number}")
        if sample.id in found:
            raise BadInput("an earlier row has this id", field=f"{path.name}, row {number}", value=sample.id)
        found[sample.id] = sample
    return list(found.values())


def _is_list(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip().startswith(b"[")
    except OSError:
        return True  # `records` says what is wrong


def _object(line: str, field: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON ({error})", field=field, value=line) from None


def sample_of(row: Any, field: str = "sample") -> Sample:
    """A gold row in either schema."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
        raise BadInput("is no object with an id", field=field, value=row)
    request = row.get("user_request", row.get("instruction"))
    if not isinstance(request, str):
        raise BadInput("has no user_request", field=field, value=request)
    try:
        gold = solution_of(row)
    except ValueError as error:
        raise BadInput(str(error), field=field) from None
    if not gold.nodes:
        raise BadInput("has no node", field=field, value=row.get("task_nodes"))
    shape = row.get("type")
    return Sample(str(row["id"]), request, shape if isinstance(shape, str) else _shape(gold), gold)


def _shape(gold: Solution) -> str:
    """Of rows without a type: single, or a chain where every node but the ends has one link in and one out."""
    if len(gold.nodes) == 1:
        return "single"
    links: set[tuple[object, object]] = set(gold.links) or {
        (source, target) for target, node in enumerate(gold.nodes) for a in node.arguments if (source := reference(a)) is not None
    }
    sources, targets = [source for source, _ in links], [target for _, target in links]
    in_line = len(links) == len(gold.nodes) - 1 and len(set(sources)) == len(sources) and len(set(targets)) == len(targets)
    return "chain" if in_line else "dag"


def solution_of(value: Any) -> Solution:
    """What a prediction (or a gold row) says, in either schema, bare or under "result".

    Raises:
        ValueError: it is no solution; the message says why.
    """
    value = _decoded(value)
    if isinstance(value, dict) and "result" in value:
        value = _decoded(value["result"])
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):  # some models wrap theirs in a list
        value = {name: part[name] for part in reversed(value) for name in part}
    if not isinstance(value, dict):
        raise ValueError("is no object")
    nodes = _decoded(value.get("task_nodes", value.get("tool_nodes")))
    if not isinstance(nodes, list):
        raise ValueError("has no list task_nodes")
    if len(nodes) > MOST_NODES:
        raise ValueError(f"has {len(nodes)} nodes, more than {MOST_NODES}")
    return Solution(
        steps=_steps(_decoded(value.get("task_steps", value.get("tool_steps")))),
        nodes=tuple(_node(_decoded(node), number) for number, node in enumerate(nodes)),
        links=_links(_decoded(value.get("task_links", value.get("tool_links")))),
    )


def _decoded(value: Any) -> Any:
    """A JSON text's list or object; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _node(node: Any, number: int) -> Node:
    task = node.get("task") if isinstance(node, dict) else None
    if not isinstance(task, str):
        raise ValueError(f"node {number} names no task")
    arguments = node.get("arguments", [])
    if isinstance(arguments, dict):
        arguments = [{"name": name, "value": value} for name, value in arguments.items()]
    if not isinstance(arguments, list):
        arguments = [] if arguments is None else [arguments]
    if len(arguments) > MOST_NODES:
        raise ValueError(f"node {number} has {len(arguments)} arguments, more than {MOST_NODES}")
    return Node(task, tuple(arguments))


def _steps(steps: Any) -> tuple[str, ...]:
    if not isinstance(steps, list):
        return () if steps is None else (shown(steps),)
    return tuple(_said(step) for step in steps)


def _said(step: Any) -> str:
    if isinstance(step, dict):
        step = next((step[name] for name in _SAID_AS if isinstance(step.get(name), str)), step)
    return shown(step)


def _links(links: Any) -> tuple[Link, ...]:
    """What is no link stays, as one that nothing can match: it was said, and is wrong."""
    if not isinstance(links, list):
        return () if links is None else (("", shown(links)),)
    if len(links) > MOST_LINKS:
        raise ValueError(f"has {len(links)} links, more than {MOST_LINKS}")
    found = []
    for link in links:
        source, target = (link.get("source"), link.get("target")) if isinstance(link, dict) else (None, None)
        found.append((source, target) if isinstance(source, str) and isinstance(target, str) else ("", shown(link)))
    return tuple(found)


def shown(value: Any) -> str:
    """A value as a text to compare; ValueError where it is nested deeper than Python can write."""
    try:
        return value if isinstance(value, str) else str(value)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def reference(argument: Any) -> int | None:
    """j of an argument that says `<node-j>`, else None; -1 where what stands there is no number."""
    text = argument_text(argument)
    if _REFERENCE not in text:
        return None
    number = text.split(_REFERENCE, 1)[1].partition(">")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 7 else -1


def argument_text(argument: Any) -> str:
    """A resource argument as text: of an object its first value, of a list its texts in a row."""
    if isinstance(argument, dict) and argument:
        argument = next(iter(argument.values()))
    if isinstance(argument, list) and all(isinstance(part, str) for part in argument):
        argument = " ".join(argument)
    return shown(argument)


def lint(sample: Sample, graph: ToolGraph) -> list[str]:
    """What is odd about a gold row: it is scored all the same, but a right answer may not get full marks for it."""
    found, nodes = [], sample.gold.nodes
    if len(sample.gold.steps) != len(nodes):
        found.append(f"{len(sample.gold.steps)} steps for {len(nodes)} nodes")
    found += [f"{node.task!r} is no tool of the list" for node in nodes if node.task not in graph.tools]
    if graph.typed:
        for number, node in enumerate(nodes):
            for argument in node.arguments:
                j = reference(argument)
                if j == number:
                    found.append(f"node {number} refers to itself; perhaps references are counted from 1 here")
                elif j is not None and not 0 <= j < len(nodes):
                    found.append(f"node {number} refers to {argument_text(argument)}, which is none")
                elif j is not None and (nodes[j].task, node.task) not in graph:
                    found.append(f"{nodes[j].task!r} -> {node.task!r} is no link of the tool graph")
    else:
        found += [
            f"{source!r} -> {target!r} is no link of the tool graph"
            for source, target in sample.gold.links
            if (source, target) not in graph
        ]
    return found
