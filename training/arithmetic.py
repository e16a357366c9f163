"""Training examples for the embedded column steps, in the tokens of `keystep.lm.embedded.arithmetic`: all of them there are, in a table.

Long multiplication never carries more than its second digit, so steps with a greater carry come up in no task; they are drawn seldom.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from keystep.lm.embedded.arithmetic import ADD, DIGIT, END, MULTIPLY

PROMPT = 5  # kind, digit, digit, digit below, carry; then digit, carry, end
ADDITIONS, NEVER = 0.1, 0.1  # shares of a batch: additions; multiplications that come up in no task


@cache
def table() -> np.ndarray:
    """Every step as an example, the multiplications first: int [10200, 8]."""
    first, second, below, carry = (part.ravel() for part in np.indices((10, 10, 10, 10)))
    multiplied = rows(np.full(10_000, MULTIPLY), first, second, below, carry)
    first, second, carry = (part.ravel() for part in np.indices((10, 10, 2)))
    return np.concatenate([multiplied, rows(np.full(200, ADD), first, second, np.zeros(200, int), carry)])


def parts() -> dict[str, np.ndarray]:
    """The table's rows by what they are."""
    found = table()
    adds, never = found[:, 0] == ADD, found[:, 4] > found[:, 2]
    return {"addition": found[adds], "multiplication": found[~adds & ~never], "multiplication that never comes up": found[~adds & never]}


def wanted() -> np.ndarray:
    """The table's rows that come up in tasks."""
    found = parts()
    return np.concatenate([found["multiplication"], found["addition"]])


def answer(columns: np.ndarray) -> np.ndarray:
    """Digits and carries, int [N, 2], as answers' tokens, int [N, 3]."""
    return np.concatenate([DIGIT + columns, np.full((len(columns), 1), END)], 1)


def rows(kind: np.ndarray, first: np.ndarray, second: np.ndarray, below: np.ndarray, carry: np.ndarray) -> np.ndarray:
    """Examples of columns, int [N, 8]; all arguments int [N]."""
    result = np.where(kind == ADD, first + second, first * second) + below + carry
    return np.stack(
        [kind, *(DIGIT + part for part in (first, second, below, carry, result % 10, result // 10)), np.full(len(kind), END)], 1
    )


@cache
def _share() -> np.ndarray:
    """How often each row of the table is drawn."""
    found = table()
    adds, never = found[:, 0] == ADD, (found[:, 0] == MULTIPLY) & (found[:, 4] > found[:, 2])
    share = np.where(adds, ADDITIONS / adds.sum(), np.where(never, NEVER / never.sum(), 0.0))
    share[share == 0] = (1 - ADDITIONS - NEVER) / (share == 0).sum()
    return share


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` examples drawn from the table."""
    return table()[rng.choice(len(table()), size, p=_share())]
