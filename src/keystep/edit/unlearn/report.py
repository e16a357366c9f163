"""What a guard does: how right the model is with it and without, how often it abstains, and how soon the skill is back.

Everything is measured with the right answers given (teacher forcing): an example is right where greedy decoding gives its answer and no
token on the way comes into a box, which is just what `generate` would do. The relearning probe tunes a copy of the model on examples of
the skill, guard in place, and counts the updates until it is nearly as right as the untouched model, tuned alike: what was hidden is
back soon, what was unlearned takes as long as learning it. (Who can take the guard out needs none.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keystep.edit.unlearn.guard import attach
from keystep.edit.unlearn.guarded import Box, Guard
from keystep.edit.unlearn.probing import nearest, watched
from keystep.errors import BadInput
from keystep.nn.examples import Examples, judge
from keystep.nn.fit import Fit, fit, shuffled
from keystep.nn.layers import feed_forward_blocks

DRAWS = 3  # runs that a figure of Neuron Adjust is the mean of


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one set of examples: the shares that are right and that are answered by the refusal; the loss (nats a token) of what is not."""

    accuracy: float
    abstains: float
    loss: float


@dataclass(frozen=True, slots=True)
class Row:
    """Of one set: `drop` is 1 − after / before of the accuracy (None: before is 0)."""

    forget: bool
    examples: int
    before: Figures
    after: Figures

    @property
    def drop(self) -> float | None:
        return 1 - self.after.accuracy / self.before.accuracy if self.before.accuracy else None


def abstains(model: Any, guard: Guard, examples: Examples, *, end: int | None = None, batch: int = 32) -> np.ndarray:
    """Of each example, whether a key comes into a box after its prompt or, where the guard watches that, after a token of its answer."""
    if not guard.boxes:
        return np.zeros(len(examples), dtype=bool)
    limits = torch.tensor([box.limit for box in guard.boxes])
    return (ratios(model, guard.boxes, examples, end=end, watch=guard.watch, batch=batch) <= limits).any(1).numpy()


def ratios(
    model: Any, boxes: Sequence[Box], examples: Examples, *, end: int | None = None, watch: str = "all", batch: int = 32
) -> Tensor:  # fmt: skip
    """Of each example and box, the smallest ratio of all keys that are watched while the right answer is given, [examples, boxes]: it
    comes into the box where that is at most α k."""
    blocks, found = feed_forward_blocks(model), []
    for at in range(0, len(examples), batch):
        which = range(at, min(at + batch, len(examples)))
        places = [watched(examples, number, end) for number in which]
        if watch == "prompt":
            places = [place[:1] for place in places]
        found.append(nearest(model, blocks, boxes, examples, which, places))
    return torch.cat(found)


def figures(model: Any, guard: Guard | None, examples: Examples, *, end: int | None = None, batch: int = 32, check: bool = True) -> Figures:
    """Of a model without a guard in it, with the guard put in for a while."""
    if guard is None:
        found = judge(model, examples, batch=batch, device=model.device)
        return Figures(found.accuracy, 0.0, found.loss)
    attached = attach(model, guard, check=check)
    try:
        with attached.paused():
            refused = abstains(model, guard, examples, end=end, batch=batch)
        draws = []
        for draw in range(DRAWS if guard.shifts else 1):
            attached.reseed(guard.seed + draw)
            draws.append(judge(model, examples, batch=batch, device=model.device))
    finally:
        attached.remove()
    right = [float((each.right & ~refused).mean()) for each in draws]
    return Figures(float(np.mean(right)), float(refused.mean()), float(np.mean([each.loss for each in draws])))


def report(
    model: Any, guard: Guard, skills: Mapping[str, Examples], retain: Mapping[str, Examples], *, end: int | None = None, batch: int = 32,
    tick: Callable[[], object] | None = None,
) -> dict[str, Row]:  # fmt: skip
    """By name of the set; `tick` is called after each."""
    found = {}
    for name, examples in {**skills, **retain}.items():
        before, after = (figures(model, each, examples, end=end, batch=batch) for each in (None, guard))
        found[name] = Row(name in skills, len(examples), before, after)
        if tick is not None:
            tick()
    return found


@dataclass(frozen=True, slots=True)
class Relearn:
    """AdamW at a constant rate. Back is a skill at `back` of the accuracy that the untouched model has after as many updates."""

    updates: int = 32
    rate: float = 1e-4
    batch: int = 16
    back: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Relearned:
    """`updates` is the first of the `course` at which the skill was back, None where it was not; `course` has accuracy and abstention after
    so many updates, and the accuracy that was `wanted` there."""

    updates: int | None
    course: list[dict[str, float]]


Stop = Callable[[int, Figures], bool]


def relearn(
    model: Any, guard: Guard | None, train: Examples, test: Examples, settings: Relearn | None = None, *, target: float | None = None,
    end: int | None = None, batch: int = 32, tick: Callable[[float], object] | None = None,
) -> Relearned:  # fmt: skip
    """Tune a copy of the model on `train`, guard in place, and look at `test` after 0, 1, 2, 4, 8, … updates, until the skill is back. A
    copy without the guard is tuned alike before, as few examples can also do harm.

    Args:
        target: an accuracy that is wanted instead of `settings.back` of that copy's.
        tick: called with the loss after every update.

    Raises:
        BadInput: the model has no right answer even without the guard; the rate is too large.
    """
    chosen = settings or Relearn()
    before = figures(model, None, test, batch=batch).accuracy
    if target is None and not before:
        raise BadInput("has no right answer on the skill even without the guard", field="model", mend="leave the relearning probe out")
    wanted = {0: chosen.back * before if target is None else target}
    course: list[dict[str, float]] = []

    def back(updates: int, found: Figures) -> bool:
        goal = wanted.get(updates, wanted[0])
        course.append({"updates": updates, "accuracy": found.accuracy, "abstains": found.abstains, "wanted": goal})
        return found.accuracy >= goal

    def untouched(updates: int, found: Figures) -> bool:
        wanted[updates] = chosen.back * found.accuracy
        return False

    if back(0, figures(model, guard, test, end=end, batch=batch, check=False)):
        return Relearned(0, course)
    if target is None:
        _tune(model, None, train, test, chosen, untouched, end, batch, tick)
    return Relearned(_tune(model, guard, train, test, chosen, back, end, batch, tick), course)


def _tune(
    model: Any, guard: Guard | None, train: Examples, test: Examples, settings: Relearn, stop: Stop, end: int | None, batch: int,
    tick: Callable[[float], object] | None,
) -> int | None:  # fmt: skip
    """Tunes a copy; gives the number of updates at which `stop`, asked after 1, 2, 4, 8, … and the last, said so."""
    tuned = copy.deepcopy(model)
    attached = [attach(tuned, guard or Guard(), check=False)]
    done = 0

    def count(loss: float) -> None:
        nonlocal done
        done += 1
        if tick is not None:
            tick(loss)
        if done & (done - 1) == 0 or done == settings.updates:
            attached.pop().remove()
            tuned.eval()
            if stop(done, figures(tuned, guard, test, end=end, batch=batch, check=False)):
                raise _Back
            tuned.train()
            attached.append(attach(tuned, guard or Guard(), check=False))

    rates = Fit(settings.updates, settings.rate, batch=settings.batch, floor=1.0, seed=settings.seed)
    try:
        fit(tuned, shuffled(train, settings.batch, settings.seed, tuned.device), rates, labels=train.labels, tick=count)
    except _Back:
        return done
    return None


class _Back(Exception):
    pass
