"""Small transformers that carry out procedures of ProcBench, all steps in one answer or a step a call, behind the language-model protocol.

They read the benchmark's own prompts and write the answers that it asks for. A letter is a token, a number is one, a run of 0s or 1s is
one (as in tokenizers of large models). Either way a text is: operations, state, state, …; a step a call is that text with one operation.

So that little training is enough, a net is told which operation or state a token is in (operation t makes state t): a further row of the
embedding table, added to the token's. And the states of a text begin SLOT positions apart, so that the same place of two neighbouring
states is always equally far away.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keystep.errors import Refused
from keystep.lm.base import Prompt, as_messages
from keystep.measure.procbench import KINDS
from keystep.reproduce._nets import Batch, Batched

OPERATIONS = {15: "pieces", 16: "actions", 17: "spans", 19: "chars"}  # what instances of Decode, PushPop, Rotate, DeleteChar call them
WIDTH = 2  # tokens of one operation
RUNS = [digit * length for digit in "01" for length in range(1, 10)]
WORDS = [*map(str, range(2, 26)), *RUNS, *string.ascii_lowercase, "left", "right", "pop", "first"]
TOKEN = {word: number for number, word in enumerate(WORDS)}
NEXT, END = len(WORDS), len(WORDS) + 1  # a state begins; the answer is over (also padding)
SLOT = 64  # above the longest state
STATES = 27  # above the initial one and 25 others
NUMBER = END + 1
VOCABULARY = NUMBER + STATES
ALIKE = 4  # batches are drawn at once and parted by length
LONGEST = 2048  # positions, above 26 slots and 50 operands
ROWS = 128  # prompts that a net answers at once

Row = tuple[list[int], list[int]]  # what is given and what is to be written

_STATE = re.compile("0{1,9}|1{1,9}|[a-z]")
_OPERATION = re.compile(r"push_(left|right)\(([a-z])\)|(pop)_(left|right)|\b([01])x(\d)|\((\d+), (\d+)\)|(first) ([a-z])$")
_STEP = re.compile(r"The state now: (.+)\nDo one step: (.+)\.\n")
_QUESTION = re.compile(r"\[Question\]\n(.*)\n\nEnd your answer", re.DOTALL)


def state_tokens(state: str) -> list[int]:
    return [TOKEN[part] for part in _STATE.findall(state)]


def state_text(tokens: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in tokens)


def operands(now: str) -> list[int]:
    """One operation, as `Kind.now` words it: a piece's character and times, an action's side and letter, a span, a letter."""
    found = _OPERATION.search(now)
    if found is None:
        raise Refused("is no operation that the nets know", field="prompt", value=now)
    return [TOKEN[word] for word in found.groups() if word is not None]


def asked(operations: Sequence[str], state: str) -> list[int]:
    """What a net is given: the operations and the state before the first of them."""
    return [*(token for now in operations for token in operands(now)), NEXT, *state_tokens(state), NEXT]


def seats(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position of every token, and the number of its operation or state; (2, rows, length).

    Operations are numbered from 1, states from 0. Tokens are (rows, length).
    """
    at = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    opens = tokens == NEXT
    number, last = opens.cumsum(axis=1) - 1, np.maximum.accumulate(np.where(opens, at, 0), axis=1)
    told = number < 0  # the operations
    position = np.where(told, at, opens.argmax(axis=1)[:, None] + SLOT * number + at - last)
    return np.stack([position, np.where(told, at // WIDTH + 1, number).clip(max=STATES - 1)])


def inputs(model: Any, tokens: NDArray[np.int64], seated: NDArray[np.int64]) -> dict[str, Any]:
    """What a Llama is called with for tokens and their seats."""
    import torch

    position, number = map(torch.from_numpy, seated)
    rows = model.get_input_embeddings()
    return {"inputs_embeds": rows(torch.from_numpy(tokens)) + rows(NUMBER + number), "position_ids": position}


def reading(model: Any, tokens: NDArray[np.int64]) -> dict[str, Any]:
    """How a net reads a batch, for `trained`."""
    return inputs(model, tokens, seats(tokens))


def direct_batch(tasks: Sequence[int], lengths: Sequence[int], steps: int, draw: np.random.Generator) -> Batch:
    """Whole problems of one task and one length, both drawn, of about `steps` steps in all."""
    chance = random.Random(int(draw.integers(2**63)))
    kind = KINDS[chance.choice(tasks)]
    [length], rows = chance.choices(lengths, weights=lengths), list[Row]()  # as rows of long ones are fewer
    kept = max(1, steps // length)
    while len(rows) < ALIKE * kept:
        config = kind.draw(chance, length)
        rows.append(_row([kind.now(config, number) for number in range(length)], kind.states(config)))
    return _padded(_alike(rows, kept, chance))


def stepwise_batch(tasks: Sequence[int], lengths: Sequence[int], steps: int, draw: np.random.Generator) -> Batch:
    """Single steps of problems of one task, `steps` of them, out of problems of those lengths."""
    chance = random.Random(int(draw.integers(2**63)))
    kind = KINDS[chance.choice(tasks)]
    rows: list[Row] = []
    while len(rows) < ALIKE * steps:
        config = kind.draw(chance, chance.choice(lengths))
        states = kind.states(config)
        rows += [_row([kind.now(config, number)], states[number : number + 2]) for number in range(len(states) - 1)]
    return _padded(_alike(rows[: ALIKE * steps], steps, chance))


def _alike(rows: list[Row], kept: int, chance: random.Random) -> list[Row]:
    """One of the ALIKE parts that the rows make by their lengths, so that little is padding; every row is as likely."""
    start = kept * chance.randrange(ALIKE)
    return sorted(rows, key=lambda row: len(row[0]) + len(row[1]))[start : start + kept]


def _row(operations: Sequence[str], states: Sequence[str]) -> Row:
    answer = [token for state in states[1:] for token in (NEXT, *state_tokens(state))][1:]
    return asked(operations, states[0]), [*answer, END]


def _padded(rows: Sequence[Row]) -> Batch:
    longest = max(len(given) + len(answer) for given, answer in rows)
    tokens, counted = np.full((len(rows), longest), END), np.zeros((len(rows), longest), bool)
    for row, (given, answer) in enumerate(rows):
        end = len(given) + len(answer)
        tokens[row, :end], counted[row, len(given) : end] = [*given, *answer], True
    return tokens, counted


class Worker(Batched):
    """A net that does whole procedures or single steps, as it was trained."""

    def __init__(self, name: str, model: Any) -> None:
        super().__init__(name)
        self.model = model

    def answers(self, prompts: list[Prompt], temperature: float, uniform: NDArray[np.float64]) -> list[str]:
        read = [_read(str(as_messages(prompt)[-1].content)) for prompt in prompts]
        texts = [""] * len(prompts)
        order = sorted(range(len(read)), key=lambda number: _most(read[number]))
        for at in range(0, len(order), ROWS):
            rows = order[at : at + ROWS]
            given = [asked(read[number].operations, read[number].state) for number in rows]
            most = [_most(read[number]) for number in rows]
            for number, tokens in zip(rows, written(self.model, given, most, temperature, uniform[rows]), strict=True):
                texts[number] = _said(tokens, read[number].whole)
        return texts


class _Asked(NamedTuple):
    """What a prompt is about; `whole`: whether it wants all states."""

    task: int
    operations: Sequence[str]
    state: str
    whole: bool


def _read(prompt: str) -> _Asked:
    task = next((task for task in OPERATIONS if prompt.startswith(KINDS[task].rule)), None)
    step, question = _STEP.search(prompt), _QUESTION.search(prompt)
    if task is not None and step:
        return _Asked(task, [step[2]], json.loads(step[1]), whole=False)
    if task is not None and question:
        kind = KINDS[task]
        config = kind.read(question[1])
        operations = [kind.now(config, number) for number in range(len(config[OPERATIONS[task]]))]
        return _Asked(task, operations, kind.init(config), whole=True)
    raise Refused("knows the prompts of its own tasks only", field="prompt", value=prompt)


def _most(one: _Asked) -> int:
    """Tokens after which an answer is cut: a step adds at most one to a state; a whole answer may have one state too many."""
    first, steps = len(state_tokens(one.state)), len(one.operations) + one.whole
    return sum(first + step + 1 for step in range(1, steps + 1))


def _said(tokens: Sequence[int], whole: bool) -> str:
    """The answer in the benchmark's form. A cut one is closed, so that what it has is scored."""
    ended = tokens[: tokens.index(END)] if END in tokens else tokens
    states, begun = list[str](), list[int]()
    for token in [*ended, NEXT]:
        if token == NEXT:
            states.append(state_text(begun))
            begun = []
        else:
            begun.append(token)
    if whole:
        return json.dumps({"intermediate": states[:-1], "final": states[-1]})
    return f"state = {json.dumps(states[0])}"


def written(
    model: Any, given: Sequence[Sequence[int]], most: Sequence[int], temperature: float, uniform: NDArray[np.float64]
) -> list[list[int]]:
    """What a net writes after each of the given rows, at most so many tokens; drawn by a stream of random numbers from each `uniform`."""
    import torch
    from transformers import DynamicCache

    longest = max(map(len, given))
    tokens, shown = np.full((len(given), longest), END), np.zeros((len(given), longest), int)
    seated = np.zeros((2, len(given), longest), int)
    for row, one in enumerate(given):
        start = longest - len(one)
        tokens[row, start:], shown[row, start:], seated[:, row, start:] = one, 1, seats(np.array([one]))[:, 0]
    streams = [np.random.Generator(np.random.Philox(key=int(chance * 2**53))) for chance in uniform]
    draws = [stream.random(limit) for stream, limit in zip(streams, most, strict=True)]
    found: list[list[int]] = [[] for _ in given]
    rows, limits, going, cache = np.arange(len(given)), np.array(most), np.ones(len(given), bool), DynamicCache()
    begun = seated[0, :, -1]  # where the last state of each begins
    for length in range(1, max(most) + 1):
        with torch.inference_mode():
            asked = inputs(model, tokens, seated) | {"attention_mask": torch.from_numpy(shown), "past_key_values": cache}
            scores = model(**asked, use_cache=True, logits_to_keep=1).logits[:, -1, :NUMBER].double()
        reached = torch.softmax(scores / temperature, -1).cumsum(-1).numpy()
        chance = np.array([draws[row][min(length, limit) - 1] for row, limit in zip(rows, limits, strict=True)])
        drawn = (reached < chance[:, None] * reached[:, -1:]).sum(axis=1)
        for at in np.flatnonzero(going):
            found[rows[at]].append(int(drawn[at]))
        going &= (drawn != END) & (length < limits)
        if not going.any():
            break
        position, number = seated[:, :, -1]
        begun, opens = np.where(drawn == NEXT, begun + SLOT, begun), drawn == NEXT
        number = (number + opens).clip(max=STATES - 1)
        seated = np.stack([np.where(opens, begun, position + 1), number])[:, :, None]
        tokens, shown = drawn[:, None], np.concatenate([shown, np.ones((len(rows), 1), int)], axis=1)
        if going.sum() <= len(rows) // 2:  # those that are over are left behind
            cache.batch_select_indices(torch.from_numpy(np.flatnonzero(going)))
            rows, limits, begun, tokens, shown = (part[going] for part in (rows, limits, begun, tokens, shown))
            seated = seated[:, going]
            going = np.ones(len(rows), bool)
    return found
