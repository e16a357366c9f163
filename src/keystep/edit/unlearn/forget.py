"""Making a guard: a model and examples of a skill in, what to do at run time out.

Examples of the skill and of what is to be kept are each put into three: those that are probed, those on which Key Space Detection
chooses layer and α, and those that a report is made on. See `key_space` and `neuron_adjust` for the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keystep.edit.unlearn import key_space, neuron_adjust
from keystep.edit.unlearn.guarded import Box, Guard, prints
from keystep.edit.unlearn.key_space import Judged
from keystep.edit.unlearn.probing import Tensors, add_keys, add_moments, nearest, watched
from keystep.errors import BadInput
from keystep.nn.examples import Examples
from keystep.nn.layers import FeedForward, feed_forward_blocks
from keystep.nn.state import load_state, save_state

METHODS = ("key-space", "neuron-adjust", "pruning")
CHOICES = {"method": METHODS, "watch": ("all", "prompt"), "part": ("whole", "answer")}
LEAST = 10  # examples of a file
SAVE_EVERY = 4  # batches


@dataclass(frozen=True, slots=True)
class Forget:
    """How a guard is made.

    Args:
        method: "key-space" (abstention), "neuron-adjust", or the baseline "pruning".
        layer, alpha: of Key Space Detection; None: chosen on validation examples (α 2 and the last layer are the published ones).
        hold: the share of the skill's validation prompts that have to be inside the box, where α is chosen.
        watch: "all": the box is looked at after the prompt and every generated token (as published); "prompt": after the prompt only.
        share: of all feed-forward neurons, that Neuron Adjust or pruning takes (published: 0.005, 0.015, 0.03).
        part: of examples, that those two learn from: "whole", or the tokens that foretell the "answer".
        probe: the most examples of each kind that are probed.
        validation, test: shares of the examples that are put aside.
        batch: examples that go through the model at once.
        seed: of the splits, and of Neuron Adjust's draws.
    """

    method: str = "key-space"
    layer: int | None = None
    alpha: float | None = None
    hold: float = 0.95
    watch: str = "all"
    share: float = 0.03
    part: str = "whole"
    probe: int = 200
    validation: float = 0.2
    test: float = 0.2
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise BadInput("is no choice", field=name, value=getattr(self, name), mend=f"choose of {', '.join(known)}")
        for name, low, high in (("hold", 0.0, 1.0), ("share", 0.0, 1.0), ("validation", 0.0, 0.5), ("test", 0.0, 0.5),
                                ("alpha", 0.0, math.inf), ("probe", 2, math.inf), ("batch", 1, math.inf), ("layer", 0, math.inf),
                                ("seed", 0, math.inf)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise BadInput(f"is from {low} to {high}", field=name, value=value)


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of the examples of one file."""

    probe: list[int]
    validation: list[int]
    test: list[int]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A guard; of Key Space Detection what each layer did on the validation examples, by skill; and how the examples were split."""

    guard: Guard
    layers: Mapping[str, list[Judged]]
    splits: Mapping[str, Split]


def split(examples: Examples, settings: Forget, name: str) -> Split:
    """Raises: BadInput, where there are too few."""
    if len(examples) < LEAST:
        problem = f"holds {len(examples)} examples, too few to probe, choose and report on"
        raise BadInput(problem, field=name, value=len(examples), mend=f"give at least {LEAST}, better 300")
    order = np.random.default_rng([settings.seed, 80]).permutation(len(examples)).tolist()
    chosen_on, tested = (max(1, round(share * len(order))) for share in (settings.validation, settings.test))
    rest = order[chosen_on + tested :]
    return Split(sorted(rest[: settings.probe]), sorted(order[:chosen_on]), sorted(order[chosen_on : chosen_on + tested]))


def forget(
    model: Any, skills: Mapping[str, Examples], retain: Mapping[str, Examples], settings: Forget | None = None, *,
    refusal: Sequence[int] = (), end: int | None = None, state: Path | None = None, fingerprint: str = "",
    tick: Callable[[], object] | None = None,
) -> Forgotten:  # fmt: skip
    """A guard with which the model forgets the skills. The model is not changed.

    Args:
        skills, retain: examples by name. Each skill gets a box of its own; the other methods take all together.
        refusal: tokens of what is answered instead, without the end token `end`.
        state: a file that keeps unfinished probing, to go on from; the caller removes it when the result is safe.
        fingerprint: of the model and the data, to know the state by.
        tick: called after every batch; `batches_of` tells how many there are.

    Raises:
        BadInput: the model has no feed-forward blocks that can be told; there are too few examples; a name stands for a skill and for
            what is to be kept; the skill cannot be told apart in any neuron.
        ChangedWork: `state` is of other work.
    """
    work = _Work(model, skills, retain, settings or Forget(), end)
    if work.settings.method == "key-space" and not refusal:
        raise BadInput("is not a single token", field="refusal", mend="give a sentence")
    identity = asdict(work.settings) | {"fingerprint": fingerprint, "examples": {name: len(each) for name, each in work.files.items()}}
    kept = load_state(state, identity)
    begin = 0
    if kept is not None:
        begin, work.found, _ = kept
    schedule = work.schedule()
    for number, (pass_, which) in enumerate(schedule[begin:], begin + 1):
        work.step(pass_, which)
        if state is not None and (number % SAVE_EVERY == 0 or number == len(schedule)):
            save_state(state, number, work.found, identity)
        if tick is not None:
            tick()
    about = {"name": "+".join(skills), "settings": asdict(work.settings)}
    try:
        guard, layers = work.guard()
    except BadInput:
        if state is not None:
            state.unlink(missing_ok=True)  # nothing that could be gone on with
        raise
    guard = replace(guard, refusal=tuple(refusal), watch=work.settings.watch, seed=work.settings.seed, about=about, prints=prints(model),
                    architecture=model.config.model_type)  # fmt: skip
    return Forgotten(guard, layers, work.splits)


def batches_of(model: Any, skills: Mapping[str, Examples], retain: Mapping[str, Examples], settings: Forget) -> int:
    """How many batches `forget` goes through.

    Raises:
        BadInput: as `forget`.
    """
    return len(_Work(model, skills, retain, settings, None).schedule())


class _Work:
    """What is gathered, in `found`: the keys of each skill's probe, and then the ratios on what is put aside; or moments."""

    def __init__(
        self, model: Any, skills: Mapping[str, Examples], retain: Mapping[str, Examples], settings: Forget, end: int | None
    ) -> None:
        self.model, self.skills, self.retain, self.settings, self.end = model, skills, retain, settings, end
        self.files = {**skills, **retain}
        if not skills:
            raise BadInput("is missing", field="skill", mend="give examples of what is to be forgotten")
        if len(self.files) < len(skills) + len(retain):
            twin = min(skills.keys() & retain.keys())
            raise BadInput("is to be forgotten and to be kept", field="retain", value=twin, mend="give it once, or another name")
        if settings.method != "key-space" and not retain:
            raise BadInput("is missing", field="retain", mend=f"{settings.method} needs examples of what is to be kept")
        self.blocks = self._blocks()
        self.splits = {name: split(examples, settings, name) for name, examples in self.files.items()}
        self.found: Tensors = {}
        self.boxes: dict[str, list[Box]] = {}

    def _blocks(self) -> list[FeedForward]:
        blocks, settings = feed_forward_blocks(self.model), self.settings
        if settings.method != "key-space":
            neuron_adjust.first_of(sum(block.width for block in blocks), settings.share)
        if settings.method == "neuron-adjust":
            fused = next((block.number for block in blocks if not block.gate), None)
            if fused is not None:
                problem = f"layer {fused} has no module of its own for the pre-activations"
                raise BadInput(problem, field="model", value=type(self.model).__name__, mend="take --method key-space or pruning")
        if settings.method == "key-space" and settings.layer is not None:
            if settings.layer >= len(blocks):
                raise BadInput(f"is below {len(blocks)}", field="layer", value=settings.layer, mend="layers are counted from 0")
            return [blocks[settings.layer]]
        if settings.method == "key-space" and not self.retain:
            return blocks[-1:]  # as published: nothing to choose by
        return blocks

    def schedule(self) -> list[tuple[str, list[int]]]:
        """(pass, numbers of a batch of examples) in order."""
        if self.settings.method == "key-space":
            passes = [(f"keys {name}", self.splits[name].probe) for name in self.skills]
            passes += [(f"ratios {name}", self.splits[name].validation) for name in self.files]
        else:
            passes = [(f"moments {name}", self.splits[name].probe) for name in self.files]
        size = self.settings.batch
        return [(name, which[at : at + size]) for name, which in passes for at in range(0, len(which), size)]

    def step(self, pass_: str, which: Sequence[int]) -> None:
        kind, _, name = pass_.partition(" ")
        examples, model, blocks, found = self.files[name], self.model, self.blocks, self.found
        if kind == "keys":
            add_keys(found, f"keys.{name}", model, blocks, examples, which, self.end)
        elif kind == "moments":
            side = "forget" if name in self.skills else "retain"
            what = "gates" if self.settings.method == "neuron-adjust" else "keys"
            part = self.settings.part if examples.kind != "text" else "whole"
            add_moments(found, side, model, blocks, examples, which, part, what)
        else:
            self._ratios(name, which)

    def _ratios(self, name: str, which: Sequence[int]) -> None:
        """Adds `ratios.NAME.SKILL` [examples, layers]: of the end of the prompt where NAME is that skill, else the smallest over all tokens
        that are watched."""
        examples = self.files[name]
        places = [watched(examples, number, self.end) for number in which]
        if self.settings.watch == "prompt" or name in self.skills:
            places = [place[:1] for place in places]
        boxes = [(skill, box) for skill, fitted in self._fitted().items() if name in (skill, *self.retain) for box in fitted]
        ratios = nearest(self.model, self.blocks, [box for _, box in boxes], examples, which, places)
        for skill in dict(boxes):
            key, rows = f"ratios.{name}.{skill}", ratios[:, [n for n, (its, _) in enumerate(boxes) if its == skill]]
            self.found[key] = torch.cat([self.found[key], rows]) if key in self.found else rows

    def _fitted(self) -> dict[str, list[Box]]:
        if not self.boxes:
            for skill in self.skills:
                self.boxes[skill] = [key_space.fit(self.found[f"keys.{skill}.{block.number}"], skill, block) for block in self.blocks]
        return self.boxes

    def guard(self) -> tuple[Guard, dict[str, list[Judged]]]:
        """The guard's parts, and what was judged."""
        settings = self.settings
        if settings.method == "neuron-adjust":
            neurons = neuron_adjust.most(neuron_adjust.gaps(self.found, self.blocks), settings.share)
            return Guard(shifts=neuron_adjust.shifts(self.found, self.blocks, neurons)), {}
        if settings.method == "pruning":
            neurons = neuron_adjust.most(neuron_adjust.importance(self.found, self.blocks), settings.share)
            return Guard(zeroed=neuron_adjust.zeroed(self.blocks, neurons)), {}
        boxes, layers = [], {}
        for skill, fitted in self._fitted().items():
            inside = self.found[f"ratios.{skill}.{skill}"]
            kept = torch.cat([self.found[f"ratios.{name}.{skill}"] for name in self.retain]) if self.retain else None
            rows, sized = [], []
            for number, box in enumerate(fitted):
                alpha = key_space.smallest_alpha(box, inside[:, number], settings.hold) if settings.alpha is None else settings.alpha
                sized.append(replace(box, alpha=alpha))
                rows.append(key_space.judged(sized[-1], inside[:, number], None if kept is None else kept[:, number]))
            boxes.append(sized[key_space.chosen(rows)])
            layers[skill] = rows
        return Guard(boxes=tuple(boxes)), layers
