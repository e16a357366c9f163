"""Examples of a skill, from a JSONL file to tokens, batches, a loss, and how a model does on them.

A line is {"prompt", "answer"} (judged by exact match of the answer and the end of the sequence), {"text"} (a text to be modelled; every
token counts) or {"text", "label"} (a class, told by the first token of its label among those of all labels: the published way for
decoders). Prompt and answer are tokenized apart, so an answer's tokens never depend on the prompt.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from keystep.errors import BadInput


@dataclass(frozen=True, slots=True)
class Example:
    """`kind` is "answer", "text" or "label"."""

    prompt: str
    answer: str
    kind: str = "answer"


def read_examples(file: Path, *, limit: int | None = None) -> list[Example]:
    """The examples of a JSONL file, in its order.

    Raises:
        BadInput: it cannot be read, a line is of no known form or of another than the first; the message names the line. Or the limit is
            below 1.
    """
    if limit is not None and limit < 1:
        raise BadInput("is at least 1", field="limit", value=limit, mend="leave it out to read all")
    found: list[Example] = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(_example(line, f"{file} line {number}"))
                    if found[-1].kind != found[0].kind:
                        raise BadInput("is of another form than the first", field=f"{file} line {number}", value=found[-1].kind)
                if limit is not None and len(found) == limit:
                    break
    except OSError as error:
        raise BadInput(f"cannot be read ({error})", field="data", value=str(file), mend="give a JSONL file") from None
    if not found:
        raise BadInput("holds no example", field="data", value=str(file), mend='write lines like {"prompt": "2+2=", "answer": "4"}')
    return found


def _example(line: bytes, where: str) -> Example:
    mend = 'write {"prompt": …, "answer": …}, {"text": …} or {"text": …, "label": …}'
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"is no JSON ({error})", field=where, mend=mend) from None
    fields = ("prompt", "answer", "text", "label")
    given = {key: row[key] for key in fields if key in row} if isinstance(row, dict) else {}
    for key, value in given.items():
        if not isinstance(value, str) or (not value and key != "prompt"):
            raise BadInput("is a text that is not empty", field=f"{where}.{key}", value=value, mend=mend)
    match given:
        case {"prompt": prompt, "answer": answer, **rest} if not rest:
            return Example(prompt, answer)
        case {"text": text, "label": label, **rest} if not rest:
            return Example(text, label, "label")
        case {"text": text, **rest} if not rest:
            return Example("", text, "text")
    raise BadInput("is of no known form", field=where, value=sorted(given), mend=mend)


class Encoded(NamedTuple):
    """Tokens of an example; those from `start` on are the answer."""

    tokens: list[int]
    start: int


class Batch(NamedTuple):
    """Right-padded rows: `tokens` and `attended` [rows, length]; `counted` [rows, length - 1] is true at t where token t + 1 is part of an
    answer, so that it lies over what position t foretells."""

    tokens: Tensor
    attended: Tensor
    counted: Tensor

    def part(self, which: slice | Sequence[int]) -> Batch:
        """Some of the rows."""
        return Batch(self.tokens[which], self.attended[which], self.counted[which])


class Examples:
    """Encoded examples of one file. `labels` are the first tokens of the labels, where there are any.

    Args:
        longest: the most tokens of an example; None takes all.

    Raises:
        BadInput: an example is longer or has no token to foretell; two labels begin with the same token; the labels are not known.
    """

    def __init__(
        self, examples: Sequence[Example], tokenizer: Any, *, longest: int | None = None, labels: Mapping[str, int] | None = None
    ) -> None:
        self.examples, self.kind = list(examples), examples[0].kind
        self.padding = tokenizer.pad_token_id or 0
        self.labels: dict[str, int] = {}
        if self.kind == "label":
            self.labels = dict(labels) if labels else _labels(tokenizer, {example.answer for example in examples})
        prompts = tokenizer([example.prompt for example in self.examples])["input_ids"]
        answers = tokenizer([example.answer for example in self.examples], add_special_tokens=False)["input_ids"]
        each = zip(self.examples, prompts, answers, strict=True)
        self.rows = [self._encoded(*one, tokenizer, number, longest) for number, one in enumerate(each, 1)]

    def __len__(self) -> int:
        return len(self.rows)

    def _encoded(
        self, example: Example, prompt: list[int], answer: list[int], tokenizer: Any, number: int, longest: int | None
    ) -> Encoded:  # fmt: skip
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        where = f"example {number}"
        if not example.prompt:
            prompt = []  # whatever the tokenizer puts before a text
        if prompt and end and prompt[-1:] == end:
            prompt = prompt[:-1]
        if not prompt:
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else None
            prompt, answer = ([first], answer) if first is not None else (answer[:1], answer[1:])
        if example.kind == "label":
            if example.answer not in self.labels:
                mend = f"known are {sorted(self.labels)}"
                raise BadInput("has a label that the first file does not know", field=where, value=example.answer, mend=mend)
            answer, end = [self.labels[example.answer]], []
        tokens = [*prompt, *answer, *end]
        if longest is not None and len(tokens) > longest:
            raise BadInput(f"has {len(tokens)} tokens, more than the model's {longest}", field=where, mend="shorten it")
        if len(tokens) == len(prompt):
            raise BadInput("leaves no token to foretell", field=where, value=example.answer)
        return Encoded(tokens, len(prompt))

    def batch(self, which: Iterable[int], device: Any = None) -> Batch:
        return batch_of([self.rows[number] for number in which], self.padding, device)

    def some(self, which: Sequence[int]) -> Examples:
        """Only the examples of these numbers."""
        found = copy.copy(self)
        found.examples, found.rows = [self.examples[number] for number in which], [self.rows[number] for number in which]
        return found

    def split(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Numbers of all examples but a share of them, and of that share (at least one), drawn by the seed.

        Raises:
            BadInput: there is only one example.
        """
        if len(self) < 2:
            raise BadInput("needs at least two examples to put some aside", field="data", value=len(self), mend="give a second file")
        order = np.random.default_rng([seed, 77]).permutation(len(self)).tolist()
        aside = min(max(1, round(share * len(self))), len(self) - 1)
        return sorted(order[aside:]), sorted(order[:aside])


def _labels(tokenizer: Any, labels: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for label in sorted(labels):
        first = tokenizer(label, add_special_tokens=False)["input_ids"][0]
        twin = next((other for other, token in found.items() if token == first), None)
        if twin is not None:
            raise BadInput(f"begins with the same token as the label {twin!r}", field="label", value=label, mend="choose labels apart")
        found[label] = first
    return found


def batch_of(rows: Sequence[Encoded], padding: int = 0, device: Any = None) -> Batch:
    """Right-padded rows."""
    tokens, attended = padded([row.tokens for row in rows], padding)
    after = torch.arange(1, tokens.shape[1]) >= torch.tensor([row.start for row in rows])[:, None]
    return Batch(tokens.to(device), attended.to(device), (after & attended[:, 1:].bool()).to(device))


def padded(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of tokens right-padded to the longest, and 1 where they are no padding; both [rows, length]."""
    tokens = torch.full((len(rows), max(map(len, rows))), padding)
    attended = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
        attended[number, : len(row)] = 1
    return tokens, attended


def sample_fingerprint(weights: str, rows: Sequence[Sequence[int]]) -> str:
    """Of a checkpoint's fingerprint and the tokens of a sample."""
    return blake2b(json.dumps([weights, [list(row) for row in rows]]).encode(), digest_size=16).hexdigest()


def batches(rows: Sequence[Sequence[int]], size: int, *, padding: int = 0, device: Any = None) -> list[dict[str, Tensor]]:
    """Rows of tokens as right-padded batches, the arguments of a model: `input_ids` and `attention_mask` [size, length]."""
    chunks = [padded(rows[at : at + size], padding) for at in range(0, len(rows), size)]
    return [{"input_ids": tokens.to(device), "attention_mask": attended.to(device)} for tokens, attended in chunks]


Forward = Callable[..., Any]  # a model, or a functional call of one: tokens and attended in, logits out


def loss_of(logits: Tensor, batch: Batch, labels: Mapping[str, int]) -> Tensor:
    """Mean cross-entropy (nats) of a batch's counted tokens; among the labels' tokens only, where there are labels."""
    scores, wanted = logits[:, :-1][batch.counted].float(), batch.tokens[:, 1:][batch.counted]
    if labels:
        among = torch.tensor(list(labels.values()), device=scores.device)
        scores, wanted = scores[:, among], (wanted[:, None] == among).int().argmax(1)
    return functional.cross_entropy(scores, wanted)


@dataclass(frozen=True, slots=True)
class Judged:
    """How a model does on examples. Per counted token, in order: `chosen` (its likeliest token), `confidence` (that token's probability)
    and `correct`; `rows` tells the example of each. An example is right where all its tokens are: greedy decoding gives its answer."""

    chosen: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    rows: np.ndarray
    loss: float

    @property
    def right(self) -> np.ndarray:
        """By example."""
        found = np.ones(int(self.rows[-1]) + 1, dtype=bool)
        np.logical_and.at(found, self.rows, self.correct)
        return found

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def ece(self) -> float:
        """Of the token predictions, 10 bins."""
        from keystep.nn.calibration import ece

        return ece(self.confidence, self.correct)

    def agreement(self, other: Judged) -> float:
        """The share of examples for which both models foretell the same tokens."""
        found = np.ones(int(self.rows[-1]) + 1, dtype=bool)
        np.logical_and.at(found, self.rows, self.chosen == other.chosen)
        return float(found.mean())


@torch.no_grad()
def judge(model: Forward, examples: Examples, which: Sequence[int] | None = None, *, batch: int = 128, device: Any = None) -> Judged:
    """A model's likeliest token at every counted place, the true tokens before it given.

    Args:
        model: called as `model(input_ids=…, attention_mask=…)`, gives something with `logits` [rows, length, vocabulary].
        which: numbers of the examples; None takes all.
    """
    numbers = list(range(len(examples))) if which is None else list(which)
    parts: list[tuple[Tensor, ...]] = []
    for at in range(0, len(numbers), batch):
        chunk = examples.batch(numbers[at : at + batch], device)
        logits = model(input_ids=chunk.tokens, attention_mask=chunk.attended).logits
        scores, wanted = logits[:, :-1][chunk.counted].float(), chunk.tokens[:, 1:][chunk.counted]
        row = chunk.counted.nonzero()[:, 0] + at
        if examples.labels:
            among = torch.tensor(list(examples.labels.values()), device=scores.device)
            scores, wanted = scores[:, among], (wanted[:, None] == among).int().argmax(1)
        logs = torch.log_softmax(scores, -1)
        best, chosen = logs.max(-1)
        parts.append((chosen, best.exp(), chosen == wanted, row, -logs.gather(1, wanted[:, None])[:, 0]))
    found = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    picks, sure, hits, numbers_of, losses = found
    return Judged(picks, sure, hits, numbers_of, float(losses.mean()))
