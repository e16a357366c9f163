"""Supervised training of a causal language model on answers: one loop, keyed by step, that can be stopped and resumed.

Batches are asked for by the number of the step, so that a resumed training is the undisturbed one, bit for bit on the same machine. What
it does not cover: many devices, mixed precision, gradient accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keystep.errors import BadInput
from keystep.nn.examples import Batch, Examples, loss_of
from keystep.nn.state import load_state, optimizer_tensors, restore_optimizer, save_state

OPTIMIZERS = ("adamw", "sgd")
SAVE_EVERY = 250  # steps


@dataclass(frozen=True, slots=True)
class Fit:
    """`rate` is the peak; it rises in a line over `warmup` steps and falls along a cosine to `floor` of the peak (1: stays)."""

    steps: int
    rate: float
    optimizer: str = "adamw"
    batch: int = 64
    warmup: int = 0
    floor: float = 0.0
    clip: float = 1.0  # norm of the gradient; 0 leaves it
    weight_decay: float = 0.0
    momentum: float = 0.0  # of sgd
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise BadInput("is no optimizer", field="optimizer", value=self.optimizer, mend=f"choose of {', '.join(OPTIMIZERS)}")
        for name, least in (("steps", 1), ("batch", 1), ("rate", 0.0), ("warmup", 0), ("floor", 0.0), ("clip", 0.0)):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) < least:
                raise BadInput(f"is at least {least}", field=name, value=getattr(self, name))

    def rate_at(self, step: int) -> float:
        up = min(1.0, (step + 1) / (self.warmup + 1))
        return self.rate * up * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def shuffled(examples: Examples, size: int, seed: int, device: Any = None) -> Callable[[int], Batch]:
    """Batches by the number of the step: epoch after epoch, each in an order of its own drawn by the seed."""

    def batch(step: int) -> Batch:
        per_epoch = math.ceil(len(examples) / size)
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        return examples.batch(order[place * size : (place + 1) * size].tolist(), device)

    return batch


def fit(
    model: Any, batch: Callable[[int], Batch], settings: Fit, *, trainable: Iterable[tuple[str, Any]] | None = None,
    labels: Mapping[str, int] | None = None, state: Path | None = None,
    identity: Mapping[str, Any] | None = None, tick: Callable[[float], object] | None = None,
) -> list[float]:  # fmt: skip
    """Train in place; gives the losses (nats) of the steps that this call made.

    Args:
        batch: the examples of a step, by its number.
        trainable: (name, parameter) pairs that are trained, all others are frozen meanwhile; None takes those that ask for a gradient.
        labels: of `loss_of`.
        state: a file to keep the training in every `SAVE_EVERY` steps, and to go on from; removed at the end.
        identity: what else than the settings decides the result.
        tick: called with the loss after every step.

    Raises:
        ChangedWork: `state` is of other work.
        BadInput: the loss is no number any more.
    """
    chosen = dict(trainable) if trainable is not None else {n: p for n, p in model.named_parameters() if p.requires_grad}
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    kind: Any = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.SGD
    more = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    optimizer = kind(chosen.values(), lr=settings.rate, weight_decay=settings.weight_decay, **more)
    own, begin, losses = {**asdict(settings), **(identity or {})}, 0, list[float]()
    kept = load_state(state, own)
    if kept is not None:
        begin, tensors, _ = kept
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(tensors[f"model.{name}"])
        restore_optimizer(optimizer, tensors)

    def save(step: int) -> None:
        if state is not None:
            save_state(state, step, {f"model.{n}": p for n, p in chosen.items()} | optimizer_tensors(optimizer), own)

    model.train()
    try:
        for step in range(begin, settings.steps):
            torch.manual_seed(settings.seed * 1_000_003 + step)  # of dropout
            for group in optimizer.param_groups:
                group["lr"] = settings.rate_at(step)
            now = batch(step)
            loss = loss_of(model(input_ids=now.tokens, attention_mask=now.attended).logits, now, labels or {})
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(chosen.values(), settings.clip)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise BadInput("the loss is no number any more", field="rate", value=settings.rate, mend="take a smaller rate")
            optimizer.step()
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < settings.steps:
                save(step + 1)
            if tick is not None:
                tick(losses[-1])
    finally:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name])
    if state is not None:
        state.unlink(missing_ok=True)
    return losses
