"""A planner by prompt: a request to a plan of tool uses, as text, as a `Solution`, and as a `Plan` that `Run.execute` carries out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from keystep.errors import BadInput
from keystep.measure.taskbench.graph import ToolGraph
from keystep.measure.taskbench.samples import Sample, Solution, argument_text, reference, solution_of
from keystep.plan import Need, Plan, Ref, Step
from keystep.run import Context, Flag
from keystep.task import Task

SAMPLING: dict[str, Any] = {"temperature": 0.2, "top_p": 0.1, "max_tokens": 2000}
MOST_DEMOS = 3
RESULT = "RESULT:"


class Planner:
    """Asks a model for the solution of a request (`Run.solve`); gives a `Plan`.

    Args:
        demos: worked samples shown before the request; take them out of what you evaluate on.
    """

    def __init__(self, graph: ToolGraph, demos: Sequence[Sample] = ()) -> None:
        if len(demos) > MOST_DEMOS:
            raise BadInput(f"are at most {MOST_DEMOS}", field="demos", value=len(demos))
        self.graph, self.demos = graph, tuple(demos)

    def __repr__(self) -> str:  # what the journal knows the method by
        return f"Planner({[tool.as_json() for tool in self.graph.tools.values()]}, {[demo.as_json() for demo in self.demos]})"

    async def solve(self, task: Task, ctx: Context) -> Plan:
        question = prompt(task.goal, self.graph, self.demos)
        answer = await ctx.ask(question, parse=lambda text: plan(read(text), self.graph).model_dump(mode="json"), **SAMPLING)
        return Plan.model_validate(answer.value)


def prompt(request: str, graph: ToolGraph, demos: Sequence[Sample] = ()) -> str:
    """The tools, the form of an answer, the demonstrations, the request."""
    tools = "\n".join(json.dumps(tool.as_json(), ensure_ascii=False) for tool in graph.tools.values())
    if graph.typed:
        form = '{"task_steps": [STEP, …], "task_nodes": [{"task": TOOL, "arguments": [ARGUMENT, …]}, …]}'
        rules = """- An argument is a text or file name from the request, or <node-j> for the output of the j-th node, counted from 0.
- Arguments are as many and of the types as the tool's input-type says."""
    else:
        form = (
            '{"task_steps": [STEP, …], "task_nodes": [{"task": TOOL, "arguments": [{"name": PARAMETER, "value": VALUE}, …]}, …], '
            '"task_links": [{"source": TOOL, "target": TOOL}, …]}'
        )
        rules = """- A value is from the request, or the name of the tool whose output it is.
- The links say which tool has to come before which."""
    shown = "".join(f"\nREQUEST: {demo.request}\n{RESULT} {_demo(demo, graph)}\n" for demo in demos)
    return f"""Plan how these tools answer the request below. The tools, one JSON object a line:
{tools}

Answer with one JSON object of this form and nothing else:
{form}
- Every tool is one of the list, under its exact name.
- There is one step, a short sentence, for each node, in the same order.
{rules}
{shown}
REQUEST: {request}
{RESULT}"""


def _demo(demo: Sample, graph: ToolGraph) -> str:
    said = demo.gold.as_json()
    if graph.typed:
        del said["task_links"]
    return json.dumps(said, ensure_ascii=False)


def read(text: str) -> Solution:
    """The solution in a model's text.

    Raises:
        Flag: there is none.
    """
    try:
        return solution_of(fenced(text.rpartition(RESULT)[2]))
    except ValueError as error:
        raise Flag(str(error)) from None


def fenced(text: str) -> dict[str, Any]:
    """The JSON object in a text: that of a fenced block if there is one, from the first { to the last }.

    Raises:
        Flag: there is none.
    """
    _, fence, rest = text.partition("```")
    inside = rest.partition("```")[0] if fence else text
    start, end = inside.find("{"), inside.rfind("}")
    try:
        value = json.loads(inside[start : end + 1])
    except (ValueError, RecursionError):
        raise Flag("no JSON object") from None
    if not isinstance(value, dict):
        raise Flag("no JSON object")
    return value


def plan(solution: Solution, graph: ToolGraph) -> Plan:
    """The solution as a Plan: node j is the step `node-j`, done by the skill that is named like the tool.

    Of a tool with typed inputs the step's inputs are {"arguments": […]}, of one with parameters they are those parameters. References
    become `Ref`s, links become needs. A value that is the name of another tool of the solution is that tool's output.

    Raises:
        Flag: it cannot be carried out: a tool of no list, a reference or link to nothing, a circle.
    """
    tools = [node.task.replace("_", " ") if graph.typed else node.task for node in solution.nodes]
    for tool in tools:
        if tool not in graph.tools:
            raise Flag(f"{tool!r} is no tool")
    steps = []
    for number, node in enumerate(solution.nodes):
        inputs: dict[str, Any]
        needs: list[Need] = []
        if graph.typed:
            inputs = {"arguments": [_input(argument, len(tools)) for argument in node.arguments]}
        else:
            inputs = {}
            for argument in node.arguments:
                if not isinstance(argument, dict) or not isinstance(argument.get("name"), str):
                    raise Flag(f"node {number} has an argument without a name")
                value = argument.get("value")
                other = tools.index(value) if value in tools and value != tools[number] else None
                inputs[argument["name"]] = value if other is None else Ref(step=f"node-{other}")
            for source, target in solution.links:
                if target == tools[number] and source not in tools:
                    raise Flag(f"a link from {source!r}, which is no node")
            needs = [
                Need(step=f"node-{tools.index(source)}") for source, target in dict.fromkeys(solution.links) if target == tools[number]
            ]
        instruction = solution.steps[number] if number < len(solution.steps) else ""
        steps.append(Step(id=f"node-{number}", instruction=instruction, inputs=inputs, skill=tools[number], needs=tuple(needs)))
    try:
        return Plan(steps=tuple(steps), output=_last(steps))
    except (BadInput, ValueError) as error:
        raise Flag(str(error)) from None


def _input(argument: Any, nodes: int) -> Any:
    j = reference(argument)
    if j is None:
        return argument_text(argument)
    if not 0 <= j < nodes:
        raise Flag(f"{argument_text(argument)} is no node")
    return Ref(step=f"node-{j}")


def _last(steps: Sequence[Step]) -> str | None:
    """The last step that no other one needs."""
    needed = {id for step in steps for id in step.first()}
    return next((step.id for step in reversed(steps) if step.id not in needed), None)
