"""The scores of ProcBench, the law they follow where errors are independent, and the states in a worker's text.

Y is the list of true states (the intermediate ones, then the final one), Z the predicted list. Elements are compared by the type of the
truth, as the reference does: a text by its text, a whole number by `int`, a list element by element as texts; an empty true list matches
nothing. Stricter than the reference in one thing: where the truth is a list, only a list can match it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keystep.errors import BadInput
from keystep.run.flags import Flag

_KEY = re.compile(r'"intermediate"\s*:')
_STEP = re.compile(r"^[ \t*#>-]*step[ *]*(\d+)[ *]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_FINAL = re.compile(r"^[ \t*#>-]*final(?: state)?[ *]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_AROUND = " \t\r*"
_LOOKED_AT, _BRACES = 20, 8  # keys of a text, from its end, and braces before each that may begin its object


class _Missing:
    """Stands where a prediction has no final state; equals nothing, as text neither."""


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Score:
    """`pml`: how many states are right before the first wrong one. `pa` = PML / max(|Y|, |Z|). `sm`: all are right, and no more than
    those. `fm`: the final one is right."""

    pml: int
    pa: float
    sm: bool
    fm: bool


def score(truth: Sequence[Any], predicted: Sequence[Any]) -> Score:
    """Score predicted states against the true ones; of both the last is the final state (`MISSING` where there is none)."""
    if not truth:
        raise BadInput("holds at least the final state", field="truth", value=list(truth))
    pml = 0
    while pml < min(len(truth), len(predicted)) and matches(truth[pml], predicted[pml]):
        pml += 1
    longest = max(len(truth), len(predicted))
    return Score(pml, pml / longest, pml == longest, bool(predicted) and matches(truth[-1], predicted[-1]))


def matches(truth: Any, predicted: Any) -> bool:
    """Whether a predicted state is the true one; any JSON value may be compared."""
    if isinstance(truth, list):
        same = isinstance(predicted, list) and len(truth) == len(predicted) > 0
        return same and all(_text(one) == _text(other) for one, other in zip(truth, predicted, strict=True))
    if isinstance(truth, int):
        try:
            return int(predicted) == truth
        except (TypeError, ValueError, OverflowError):
            return False
    return predicted is not None and predicted is not MISSING and bool(_text(truth) == _text(predicted))


def _text(value: Any) -> str | None:
    try:
        return str(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, a list deeper than it goes
        return None


def geometric(p: float, steps: int) -> tuple[float, float, float]:
    """(E[SM], E[PML], E[PA]) of a worker that is right in every step with probability p, independently, and never recovers:
    p^n, p (1 - p^n) / (1 - p), and that over n."""
    if not 0 <= p <= 1:
        raise BadInput("is from 0 to 1", field="p", value=p)
    if steps < 1:
        raise BadInput("is at least 1", field="steps", value=steps)
    length = float(steps) if p == 1 else p * (1 - p**steps) / (1 - p)
    return float(p**steps), length, length / steps


def extract(text: str) -> dict[str, Any]:
    """{"intermediate": [states], "final": state} from a worker's text.

    The last JSON object that has both; else a last line "final: …" with the lines "step 1: …", "step 2: …" before it.

    Raises:
        Flag: there is neither.
    """
    for at in _beginnings(text):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if isinstance(found.get("intermediate"), list) and "final" in found:
            return {"intermediate": found["intermediate"], "final": found["final"]}
    finals = list(_FINAL.finditer(text))
    if not finals or not finals[-1][1].strip(_AROUND):
        raise Flag("no states")
    steps = {int(number): written for number, written in _STEP.findall(text[: finals[-1].start()]) if len(number) < 10}
    return {"intermediate": [state_in(steps[number]) for number in sorted(steps)], "final": state_in(finals[-1][1])}


def _beginnings(text: str) -> Iterator[int]:
    """Where an object with the key may begin, whatever other keys it has before it; the last first."""
    for key in list(_KEY.finditer(text))[: -_LOOKED_AT - 1 : -1]:
        at = key.start()
        for _ in range(_BRACES):
            if (at := text.rfind("{", 0, at)) < 0:
                break
            yield at


def state_in(text: str) -> Any:
    """A state as it is written: JSON where it looks like a list or a quoted text, else the text itself, without blanks and asterisks."""
    text = text.strip(_AROUND)
    if text[:1] in ("[", '"'):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return text
