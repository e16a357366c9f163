"""The planner of the TaskBench reproduction: a small encoder-decoder transformer, trained from scratch on template requests.

It reads a request's sub-word units (BPE of the training requests; literals stand as "KIND L3", the fourth one in the text) and writes
`tool argument argument tool …`, an argument being a literal's number or an earlier node's. Decoding may be held to the tool graph: a node
is a possible argument of a tool only where the graph links the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from keystep.measure.taskbench.graph import ToolGraph
from keystep.measure.taskbench.samples import Node, Sample, Solution, reference
from keystep.measure.taskbench.scoring import kind_of
from keystep.reproduce import torch_for

_LITERAL = re.compile(r"'[^']*'|https?://\S+?(?=[.,]?(?:\s|$))|\b\w+\.(?:jpg|png|wav|mp3|mp4|mov|avi)\b")
LITERALS, NODES, LONGEST = 24, 10, 40  # literals of a request, nodes of a solution, tokens of an answer
UNITS = 2000  # of the BPE


@dataclass(frozen=True, slots=True)
class Config:
    width: int = 64
    heads: int = 4
    layers: int = 2
    inner: int = 128
    steps: int = 800
    batch: int = 64
    rate: float = 2e-3


def without_literals(request: str) -> tuple[str, list[str]]:
    """The request with its literals as "KIND L3", and the literals without their quotes."""
    found: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        text = match.group()
        kind = "url" if text.startswith("http") else kind_of(text)
        found.append(text.strip("'"))
        return f"{kind} L{min(len(found), LITERALS) - 1}"

    return _LITERAL.sub(stand_in, request), found


class Planner:
    """Words in, tool tokens out. `graph`'s tools are numbered as they are listed."""

    def __init__(self, graph: ToolGraph, requests: Sequence[str], config: Config, seed: int) -> None:
        torch_for(seed)
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        self.graph, self.config = graph, config
        self.tools = list(graph.tools)
        self.place = {tool: number for number, tool in enumerate(self.tools)}
        self.node0, self.literal0 = len(self.tools), len(self.tools) + NODES
        self.end = self.literal0 + LITERALS
        self.start = self.end + 1  # also padding of answers
        self.units = Tokenizer(models.BPE(unk_token="?"))
        self.units.normalizer = normalizers.Lowercase()
        self.units.pre_tokenizer = pre_tokenizers.Whitespace()
        special = ["_", "?", *(f"l{number}" for number in range(LITERALS))]
        trainer = trainers.BpeTrainer(vocab_size=UNITS, special_tokens=special, show_progress=False)
        self.units.train_from_iterator((without_literals(request)[0] for request in requests), trainer)
        self.net = _net(self.units.get_vocab_size(), self.start + 1, config)

    def encode(self, request: str) -> list[int]:
        return list(self.units.encode(without_literals(request)[0]).ids)

    def answer(self, sample: Sample) -> list[int]:
        """The gold as tokens."""
        literals = without_literals(sample.request)[1]
        used: dict[str, int] = {}
        found = []
        for node in sample.gold.nodes:
            found.append(self.place[node.task])
            for argument in node.arguments:
                j = reference(argument)
                if j is not None:
                    found.append(self.node0 + j)
                    continue
                first = used.get(argument, -1) + 1  # the same literal may be said twice
                number = next((n for n in range(first, len(literals)) if literals[n] == argument), literals.index(argument))
                used[argument] = number
                found.append(self.literal0 + min(number, LITERALS - 1))
        return [*found, self.end]

    def train(self, samples: Sequence[Sample], seed: int, tick: Any = lambda: None) -> list[float]:
        """Losses, step by step."""
        import torch

        pairs = sorted(((self.encode(s.request), self.answer(s)) for s in samples), key=lambda pair: len(pair[0]))
        batches = [pairs[at : at + self.config.batch] for at in range(0, len(pairs), self.config.batch)]
        random = Random(f"batches {seed}")
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=self.config.rate)
        total = self.config.steps
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.config.rate, total_steps=total, pct_start=0.1)
        losses = []
        self.net.train()
        for _ in range(total):
            batch = random.choice(batches)
            asked, answers = _padded([pair[0] for pair in batch], 0), _padded([[self.start, *pair[1]] for pair in batch], self.start)
            scores = self.net(asked, answers[:, :-1])
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), answers[:, 1:].flatten(), ignore_index=self.start)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            tick()
        return losses

    def plan(self, requests: Sequence[str], *, held_to_graph: bool = False) -> list[Solution]:
        """Greedy solutions of requests, a batch of 64 at a time."""
        import torch

        self.net.eval()
        found = []
        with torch.inference_mode():
            for at in range(0, len(requests), 64):
                found += self._batch(requests[at : at + 64], held_to_graph)
        return found

    def _batch(self, requests: Sequence[str], held: bool) -> list[Solution]:
        import torch

        asked = _padded([self.encode(request) for request in requests], 0)
        memory = self.net.read(asked)
        written = torch.full((len(requests), 1), self.start)
        ended = torch.zeros(len(requests), dtype=torch.bool)
        for _ in range(LONGEST):
            scores = self.net.write(written, memory, asked == 0)[:, -1]
            scores[:, self.start] = -torch.inf
            if held:
                scores[self._forbidden(written)] = -torch.inf
            chosen = scores.argmax(dim=1)
            chosen[ended] = self.end
            ended |= chosen == self.end
            written = torch.cat([written, chosen[:, None]], dim=1)
            if bool(ended.all()):
                break
        literals = [without_literals(request)[1] for request in requests]
        return [self.solution(row[1:], own) for row, own in zip(written.tolist(), literals, strict=True)]

    def _forbidden(self, written: Any) -> Any:
        """Nodes that the graph does not link to the tool each answer is at; (answers, tokens)."""
        import torch

        found = np.zeros((len(written), self.start + 1), dtype=bool)
        for row, tokens in enumerate(written.tolist()):
            tools = [self.tools[token] for token in tokens if token < self.node0]
            for j in range(NODES):
                found[row, self.node0 + j] = not tools or j >= len(tools) - 1 or (tools[j], tools[-1]) not in self.graph
        return torch.from_numpy(found)

    def solution(self, tokens: Sequence[int], literals: Sequence[str]) -> Solution:
        """What the tokens say; an argument before any tool is lost, a literal that the request does not have is said as such."""
        nodes: list[tuple[str, list[str]]] = []
        for token in tokens:
            if token == self.end:
                break
            if token < self.node0:
                nodes.append((self.tools[token], []))
            elif nodes and token < self.literal0:
                nodes[-1][1].append(f"<node-{token - self.node0}>")
            elif nodes:
                number = token - self.literal0
                nodes[-1][1].append(literals[number] if number < len(literals) else f"literal {number}")
        steps = tuple(f"Step {number}: use {tool}." for number, (tool, _) in enumerate(nodes, 1))
        return Solution(steps, tuple(Node(tool, tuple(arguments)) for tool, arguments in nodes))


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Any:
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def _net(units: int, tokens: int, config: Config) -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            c = config
            self.asked, self.answered = nn.Embedding(units, c.width), nn.Embedding(tokens, c.width)
            self.where = nn.Parameter(torch.randn(512, c.width) * 0.02)
            shared: dict[str, Any] = {"dim_feedforward": c.inner, "dropout": 0.0, "batch_first": True, "norm_first": True}
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(c.width, c.heads, **shared), c.layers, nn.LayerNorm(c.width), enable_nested_tensor=False
            )
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(c.width, c.heads, **shared), c.layers, nn.LayerNorm(c.width))
            self.out = nn.Linear(c.width, tokens)

        def read(self, asked: Any) -> Any:
            return self.encoder(self.asked(asked) + self.where[: asked.shape[1]], src_key_padding_mask=asked == 0)

        def write(self, answered: Any, memory: Any, padding: Any) -> Any:
            length = answered.shape[1]
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            inside = self.answered(answered) + self.where[:length]
            return self.out(self.decoder(inside, memory, tgt_mask=later, memory_key_padding_mask=padding))

        def forward(self, asked: Any, answered: Any) -> Any:
            return self.write(answered, self.read(asked), asked == 0)

    return Net()
