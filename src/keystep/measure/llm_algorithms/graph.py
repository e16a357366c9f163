"""The graph of calls: every node an LLM call or an exact program, its error and cost pushed through to the end.

Three rules say what a program does to the errors of what it reads:
- `sum`: they add up (counting): worst case the sum of bounds; independent errors the sum of means and of variances;
- `max`: the largest one remains (merging sorted lists in max norm): order statistics are 1-Lipschitz;
- `any`: errors are probabilities, and one failure spoils all: 1 - prod(1 - e); worst case the sum, at most 1.
An LLM node adds its own error to what its inputs bring, by the same rule. A node that several others read is one draw: with `sum` its error
comes to the output once for every way there, all of it with the same sign, and with `any` it is a single failure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from keystep.errors import BadInput
from keystep.measure.llm_algorithms.costs import CallCost, Prices, Speed, latency, sizes

RULES = ("sum", "max", "any")
MOST_NODES = 1_000_000


class Node(BaseModel):
    """A node. `size` is the input size of a call; None makes it a program: exact, and free. `lipschitz` scales what its inputs bring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    needs: tuple[str, ...] = ()
    lipschitz: float = Field(default=1.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class CallError:
    """One call's error at size m: `bound` (a worst case, or its mean absolute size), `mean` with sign, `sd`."""

    bound: float
    mean: float = 0.0
    sd: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is to be expected of a pipeline.

    worst: bound of the error. expected: mean absolute error if the calls err independently (a normal law for `sum`).
    bias, sd: of the signed error (`sum` only). seconds: with the parallelism asked for; ideal: with all at once.
    """

    worst: float
    expected: float
    bias: float
    sd: float
    calls: int
    tokens_in: float
    tokens_out: float
    money: float
    work: float
    seconds: float
    ideal: float


class Pipeline:
    """Nodes in a directed acyclic graph; the output is the node that no other needs (the last such one).

    Raises:
        BadInput: a name twice, a need that is no node, a circle, an unknown rule.
    """

    def __init__(self, nodes: list[Node], rule: str = "sum") -> None:
        if rule not in RULES:
            raise BadInput("is no rule", field="rule", value=rule, mend=f"there are {', '.join(RULES)}")
        if not nodes:
            raise BadInput("has no node", field="nodes")
        if len(nodes) > MOST_NODES:
            raise BadInput(f"are more than {MOST_NODES:,}", field="nodes", value=len(nodes))
        self.nodes = {node.name: node for node in nodes}
        self.rule = rule
        if len(self.nodes) < len(nodes):
            seen: set[str] = set()
            twice = next(node.name for node in nodes if node.name in seen or seen.add(node.name))  # type: ignore[func-returns-value]
            raise BadInput("two nodes have this name", field="nodes", value=twice)
        for node in nodes:
            for need in node.needs:
                if need not in self.nodes:
                    raise BadInput("is no node", field=f"node {node.name}.needs", value=need, mend="add it or drop the need")
        try:
            self.order = list(TopologicalSorter({node.name: node.needs for node in nodes}).static_order())
        except CycleError as error:
            raise BadInput("the nodes need one another in a circle", field="nodes", value=" -> ".join(error.args[1])) from None
        needed = {need for node in nodes for need in node.needs}
        self.output = next(node.name for node in reversed(nodes) if node.name not in needed)

    def estimate(
        self,
        error: Callable[[float], CallError],
        cost: CallCost | None = None,
        prices: Prices | None = None,
        speed: Speed | None = None,
        parallel: int | None = None,
    ) -> Estimate:
        """Push the calls' errors and costs through the graph.

        Latency with p at once: nodes of one depth run in groups of p in the order in which they are listed, depth after depth.
        """
        cost, prices, speed = cost or CallCost(), prices or Prices(), speed or Speed()
        sized: dict[float, tuple[CallError, float]] = {}
        for node in self.nodes.values():
            if node.size is not None and node.size not in sized:
                seconds = speed.seconds(cost.tokens_in(node.size), cost.tokens_out(node.size))
                sized[node.size] = (error(node.size), seconds)
        ended: dict[str, float] = {}
        depth: dict[str, int] = {}
        for name in self.order:
            node = self.nodes[name]
            took = 0.0 if node.size is None else sized[node.size][1]
            ended[name] = max((ended[need] for need in node.needs), default=0.0) + took
            depth[name] = max((depth[need] for need in node.needs), default=-1) + (node.size is not None)
        levels: dict[int, list[float]] = {}
        for name, node in self.nodes.items():
            if node.size is not None:
                levels.setdefault(depth[name], []).append(sized[node.size][1])
        called = [node.size for node in self.nodes.values() if node.size is not None]
        tokens_in, tokens_out = math.fsum(map(cost.tokens_in, called)), math.fsum(map(cost.tokens_out, called))
        worst, expected, mean, variance = self._errors({size: own for size, (own, _) in sized.items()})
        return Estimate(
            worst=worst, expected=folded(mean, math.sqrt(variance)) if self.rule == "sum" else expected, bias=mean,
            sd=math.sqrt(variance), calls=len(called), tokens_in=tokens_in, tokens_out=tokens_out,
            money=prices.money(tokens_in, tokens_out), work=math.fsum(map(cost.work, called)),
            seconds=math.fsum(latency(level, parallel) for level in levels.values()) if parallel else ended[self.output],
            ideal=ended[self.output],
        )  # fmt: skip

    def _errors(self, own: Mapping[float, CallError]) -> tuple[float, float, float, float]:
        """Worst, expected, mean and variance of the output's error, from those of a call at each size."""
        if self.rule == "max":
            # a call's own error comes on top of what it was given; what came side by side, the largest remains of
            carried: dict[str, float] = {}
            for name in self.order:
                node = self.nodes[name]
                below = node.lipschitz * max((carried[need] for need in node.needs), default=0.0)
                carried[name] = below + (0.0 if node.size is None else own[node.size].bound)
            return carried[self.output], carried[self.output], 0.0, 0.0
        reach = {self.output: 1.0}  # how much of a node's error gets to the output
        for name in reversed(self.order):
            for need in self.nodes[name].needs if name in reach else ():
                through = reach[name] * self.nodes[name].lipschitz
                reach[need] = reach.get(need, 0.0) + through if self.rule == "sum" else max(reach.get(need, 0.0), through)
        calls = [(share, own[size]) for name, share in reach.items() if (size := self.nodes[name].size) is not None]
        worst = math.fsum(share * call.bound for share, call in calls)
        if self.rule == "any":
            return min(1.0, worst), 1 - math.prod(1 - min(1.0, share * call.bound) for share, call in calls), 0.0, 0.0
        mean, variance = math.fsum(share * call.mean for share, call in calls), math.fsum((share * call.sd) ** 2 for share, call in calls)
        return worst, worst, mean, variance


def folded(mean: float, sd: float) -> float:
    """E|X| of a normal X."""
    if sd == 0:
        return abs(mean)
    z = mean / sd
    return sd * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + mean * math.erf(z / math.sqrt(2))


def parallel(n: int, m: int, rule: str = "sum") -> Pipeline:
    """n items in parts of m, one call each, and a program that puts the answers together."""
    calls = [Node(name=f"part-{number}", size=size) for number, size in enumerate(sizes(n, m))]
    return Pipeline([*calls, Node(name="together", needs=tuple(call.name for call in calls))], rule)


def retrieval_augmented(parts: list[int], final: float, rule: str = "any") -> Pipeline:
    """A call for every part, and one more that answers from what they found, `final` items of it."""
    calls = [Node(name=f"part-{number}", size=size) for number, size in enumerate(parts)]
    return Pipeline([*calls, Node(name="answer", size=final, needs=tuple(call.name for call in calls))], rule)


def divide_and_conquer(
    n: int, m: int, branch: int = 2, merge: Callable[[float], float] | None = None, rule: str = "sum", lipschitz: float = 1.0
) -> Pipeline:
    """Split in `branch` until a part has at most m items; a call solves it. C(n) = branch C(n / branch) + C_merge.

    Args:
        merge: the input size of the call that puts parts of together s items together; None is an exact program.
        lipschitz: how far a merge scales the errors it is given.
    """
    if branch < 2:
        raise BadInput("is at least 2", field="branch", value=branch)
    if n < 1 or m < 1:
        raise BadInput("are at least 1", field="n, m", value=[n, m])
    if 2 * n / m > MOST_NODES:
        raise BadInput(f"gives more than {MOST_NODES:,} calls", field="n, m", value=[n, m], mend="raise m")
    nodes: list[Node] = []

    def build(size: int, name: str) -> str:
        if size <= m:
            nodes.append(Node(name=name, size=size))
            return name
        share, more = divmod(size, branch)
        parts = [share + (number < more) for number in range(branch)]
        needs = tuple(build(part, f"{name}.{number}") for number, part in enumerate(parts) if part)
        nodes.append(Node(name=name, needs=needs, size=None if merge is None else merge(size), lipschitz=lipschitz))
        return name

    build(n, "0")
    return Pipeline(nodes, rule)


class PowerLaw(BaseModel):
    """One call's error as scale m^power, with no bias; `sd` is its spread over its mean absolute size (a normal law's by default)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    power: float = Field(default=1.0, allow_inf_nan=False)
    sd: float = Field(default=math.sqrt(math.pi / 2), ge=0, allow_inf_nan=False)

    def __call__(self, m: float) -> CallError:
        try:
            size = self.scale * m**self.power
        except OverflowError:
            raise BadInput(f"is too great a number at size {m:g}", field="error", value=self.model_dump()) from None
        return CallError(size, 0.0, self.sd * size)


class Given(BaseModel):
    """A graph of one's own with what its calls err and cost, as a JSON file:

    {"rule": "sum", "nodes": [{"name": "a", "size": 40}, {"name": "all", "needs": ["a"]}], "error": {"scale": 0.02, "power": 1.5},
    "cost": {"system": 60}, "prices": {"token_in": 2e-6}, "speed": {"start": 0.5, "token_out": 0.02}}
    """

    model_config = ConfigDict(extra="forbid")

    nodes: list[Node]
    rule: str = "sum"
    error: PowerLaw = PowerLaw()
    cost: CallCost = CallCost()
    prices: Prices = Prices()
    speed: Speed = Speed()

    @field_validator("cost", "prices", "speed")
    @classmethod
    def _costs(cls, given: CallCost | Prices | Speed) -> CallCost | Prices | Speed:
        for name, value in asdict(given).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is a number of at least 0")
        return given

    def estimate(self, parallel: int | None = None) -> Estimate:
        """What is to be expected of it.

        Raises:
            BadInput: the graph is none, or its figures are beyond what a number holds.
        """
        try:
            found = Pipeline(self.nodes, self.rule).estimate(self.error, self.cost, self.prices, self.speed, parallel)
        except OverflowError:
            found = None
        if found is None or not all(map(math.isfinite, asdict(found).values())):
            raise BadInput("gives figures that are too great", field="graph", mend="lower sizes, lipschitz or the error's scale and power")
        return found


def load(path: str | Path) -> Given:
    """A graph of one's own.

    Raises:
        BadInput: it cannot be read, or is none.
    """
    try:
        return Given.model_validate(json.loads(Path(path).read_bytes()))
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", field="graph", value=str(path), mend="name a JSON file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(first["msg"].removeprefix("Value error, "), field=f"graph {where}".strip(), value=first["input"]) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON ({error})", field="graph", value=str(path), mend="see the page on LLM-based algorithms") from None
