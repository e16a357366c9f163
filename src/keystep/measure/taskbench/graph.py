"""Tool graphs: which tool's output another tool can use (resource), or which may follow which (temporal).

Names map to TaskBench's files: `Tool.takes` is "input-type", `Tool.gives` "output-type"; a link is (source, target).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from keystep.errors import BadInput

Link = tuple[str, str]
MOST_BYTES = 64 * 2**20


class Parameter(BaseModel):
    """A named argument of a tool of a temporal graph."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    type: str = ""
    desc: str = ""


class Tool(BaseModel):
    """A tool: typed input slots and outputs (resource graphs), or named parameters (temporal graphs), or neither."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(min_length=1)
    desc: str = ""
    takes: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("takes", "input-type"))
    gives: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("gives", "output-type"))
    parameters: tuple[Parameter, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As the official files write it."""
        if self.parameters:
            return {"id": self.id, "desc": self.desc, "parameters": [parameter.model_dump() for parameter in self.parameters]}
        typed = {"input-type": list(self.takes), "output-type": list(self.gives)} if self.takes or self.gives else {}
        return {"id": self.id, "desc": self.desc, **typed}


class ToolGraph:
    """Tools and the links between them.

    `links` maps (source, target) to the type of what is handed over ("complete" in a temporal graph). `typed` says whether arguments are
    typed resources that refer to nodes by number (resource graphs) or named values with links written out (temporal graphs).

    Raises:
        BadInput: a tool twice, or a link that names no tool.
    """

    def __init__(self, tools: Iterable[Tool], links: Mapping[Link, str]) -> None:
        self.tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.id in self.tools:
                raise BadInput("two tools have this id", field="tools", value=tool.id, mend="give every tool an id of its own")
            self.tools[tool.id] = tool
        if not self.tools:
            raise BadInput("has no tool", field="tools", mend='write {"nodes": [{"id": …, "desc": …}, …]}')
        self.links = dict(links)
        self._after: dict[str, list[str]] = {id: [] for id in self.tools}
        self._before: dict[str, list[str]] = {id: [] for id in self.tools}
        for source, target in self.links:
            for end in (source, target):
                if end not in self.tools:
                    raise BadInput("names no tool", field="links", value=end, mend="add the tool or drop the link")
            self._after[source].append(target)
            self._before[target].append(source)
        self.typed = any(tool.takes or tool.gives for tool in self.tools.values())

    def __contains__(self, link: object) -> bool:
        return link in self.links

    def successors(self, id: str) -> list[str]:
        return self._after[id]

    def predecessors(self, id: str) -> list[str]:
        return self._before[id]

    @property
    def density(self) -> float:
        """Links there are, of the n (n - 1) there could be."""
        n = len(self.tools)
        return len(self.links) / (n * (n - 1)) if n > 1 else 0.0


def resource_graph(tools: Iterable[Tool]) -> ToolGraph:
    """A link a -> b (a != b) wherever a type that a gives is one that b takes."""
    tools = list(tools)
    links = {}
    for a in tools:
        for b in tools:
            shared = next((kind for kind in a.gives if kind in b.takes), None)
            if shared is not None and a.id != b.id:
                links[a.id, b.id] = shared
    return ToolGraph(tools, links)


def temporal_graph(tools: Iterable[Tool]) -> ToolGraph:
    """Every tool may follow every other one: n (n - 1) links."""
    tools = list(tools)
    return ToolGraph(tools, {(a.id, b.id): "complete" for a in tools for b in tools if a.id != b.id})


def load_graph(tools: str | Path, links: str | Path | None = None) -> ToolGraph:
    """The graph of an official `tool_desc.json`, with the links of `graph_desc.json` where given, else by the rule of its kind.

    Raises:
        BadInput: a file cannot be read or is not of this form; the message names the place.
    """
    found = [_tool(node, f"{Path(tools).name}, node {number}") for number, node in enumerate(_list(tools, "nodes"))]
    if links is None:
        return (resource_graph if any(tool.takes or tool.gives for tool in found) else temporal_graph)(found)
    table = {}
    for number, link in enumerate(_list(links, "links")):
        if not isinstance(link, dict) or not isinstance(link.get("source"), str) or not isinstance(link.get("target"), str):
            mend = 'write {"source": TOOL, "target": TOOL, "type": …}'
            raise BadInput("is no link", field=f"{Path(links).name}, link {number}", value=link, mend=mend)
        table[link["source"], link["target"]] = str(link.get("type", ""))
    return ToolGraph(found, table)


def _tool(node: Any, field: str) -> Tool:
    try:
        return Tool.model_validate(node)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(first["msg"], field=f"{field}{'.' + where if where else ''}", value=first["input"]) from None


def _list(path: str | Path, name: str) -> list[Any]:
    """The list under `name` in a JSON file."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"is larger than {MOST_BYTES >> 20} MiB", field=str(path))
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"cannot be read ({error.strerror})", field=str(path), mend="name an official file, for instance tool_desc.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON ({error})", field=str(path)) from None
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise BadInput(f"has no list {name!r}", field=str(path), mend=f'write {{"{name}": […]}}')
    return found
