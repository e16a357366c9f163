"""The mask of a graft: which few parameters of a tuned model, put into its base, bring the skill along.

Paper: Panigrahi, Saunshi, Zhao, Arora 2023, Task-Specific Skill Localization in Fine-tuned Language Models, arXiv 2302.06600. Names:
base, tuned: θ_pre, θ_ft; `D` = θ_ft − θ_pre; `start`: γ_base (basepatch); `S`: the scores; γ(S) = γ_base + (1 − 2 γ_base) σ(S − bias).
Minimised is the loss of θ_pre + γ(S) D, by gradient descent on S from a point where γ is nearly γ_base; kept is the hard mask that does
best on the training and the validation examples together.

As published (`PUBLISHED`): γ_base from the largest |D| over all tensors jointly, S uniform in [0, 1), bias 10, plain descent at rate 1e7,
batches of 8, up to 128 of them averaged, masks rounded. `Locate()` is the same with Adam on S and a bias of 4, which needs no rate of 1e7
and suits small float32 models. Own to keystep: the budget is enforced (never more than ⌊sparsity · N⌋ parameters; the published way only
starts within it), the start itself is a candidate, ties go to the lower loss, and the top-movement mask has k entries where the published
program's ">" keeps k − 1. What is not covered: classification heads (decoders tell a label by its token), further training of what is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from keystep.edit.localize.patch import Patch, patch_of
from keystep.errors import BadInput
from keystep.nn.examples import Examples, Judged, judge, loss_of
from keystep.nn.layers import layer_parameters
from keystep.nn.state import load_state, optimizer_tensors, restore_optimizer, save_state

SAVE_EVERY = 10  # steps
CHOICES = {"start": ("movement", "zero"), "optimizer": ("adam", "descent"), "keep": ("largest", "rounded"), "scope": ("layers", "all")}
Masks = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Locate:
    """How a mask is learned.

    Args:
        sparsity: s, the largest share of the parameters in scope that may be changed.
        start: γ_base: "movement" (largest |D|) or "zero".
        optimizer: of S: "adam", or "descent" (as published).
        rate, bias, steps: of S.
        l1: weight of the mean of γ over all parameters in scope, added to the loss.
        batch, accumulate: examples of a batch, and batches whose mean gradient makes a step (all examples once, where there are fewer).
        keep: "largest": the ⌊s N⌋ largest γ; "rounded": γ > ½, and of those the largest where they are too many.
        scope: "layers": the transformer layers only; "all": embeddings and head too.
        validation: share of the examples that are put aside for choosing the step, where no file of their own is given.
        judged: the most examples of each kind that a step is judged on.
    """

    sparsity: float = 0.03
    start: str = "movement"
    optimizer: str = "adam"
    rate: float = 0.15
    bias: float = 4.0
    steps: int = 40
    l1: float = 0.0
    batch: int = 128
    accumulate: int = 4
    keep: str = "largest"
    scope: str = "layers"
    validation: float = 0.2
    judged: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise BadInput("is no choice", field=name, value=getattr(self, name), mend=f"choose of {', '.join(known)}")
        for name, low, high in (("sparsity", 0.0, 1.0), ("validation", 0.0, 1.0), ("rate", 0.0, math.inf), ("l1", 0.0, math.inf),
                                ("steps", 0, math.inf), ("batch", 1, math.inf), ("accumulate", 1, math.inf), ("judged", 1, math.inf),
                                ("bias", -math.inf, math.inf), ("seed", 0, math.inf)):  # fmt: skip
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise BadInput(f"is from {low} to {high}", field=name, value=value)


PUBLISHED = Locate(sparsity=1e-5, optimizer="descent", rate=1e7, bias=10.0, steps=10, batch=8, accumulate=128, keep="rounded")


@dataclass(frozen=True, slots=True)
class Located:
    """A patch and how it was found: `course` has, for the start and every step, the loss of the soft graft before it, the hard mask's
    size, and its accuracies; `best` is the step that was kept. `outside`: how far the parameters out of scope moved, in parts of all
    movement (Σ|D|); a graft cannot bring that along. `evenness`: (Σ|D|)² / (N ΣD²) over the tensors in scope that moved, 1 where every
    parameter moved by the same amount, as AdamW makes it (about 0.65); SGD gives about 0.3, and smaller grafts."""

    patch: Patch
    course: list[dict[str, Any]]
    best: int
    outside: float
    evenness: float


def budget(sparsity: float, parameters: int) -> int:
    """k = ⌊s N⌋.

    Raises:
        BadInput: it is none.
    """
    k = int(sparsity * parameters + 1e-9)
    if k < 1:
        raise BadInput(
            f"leaves not one of {parameters:,} parameters", field="sparsity", value=sparsity, mend=f"at least {1 / parameters:.2g}"
        )
    return k


def largest(scores: Mapping[str, Tensor], k: int) -> Masks:
    """True at the k largest scores over all tensors jointly; among equals the earlier ones. −inf is never taken."""
    top = torch.empty(0)
    for score in scores.values():
        flat = score.flatten()
        top = torch.cat([top.to(flat), flat.topk(min(k, flat.numel())).values])
        top = top.topk(min(k, top.numel())).values
    limit = top[-1]
    left = k - int(sum(int((score > limit).sum()) for score in scores.values()))
    found = {}
    for name, score in scores.items():
        equal = (score == limit) & (score > -math.inf)
        if left < int(equal.sum()):
            flat = equal.flatten()
            equal = (flat & (flat.cumsum(0) <= left)).view_as(equal)
        left -= int(equal.sum())
        found[name] = (score > limit) | equal
    return found


def movement(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], k: int) -> Masks:
    """The top-movement mask: the k parameters with the largest |θ_ft − θ_pre| of all tensors jointly. Unmoved ones are never taken."""
    moved = {name: (tuned[name].float() - base[name].float()).abs() for name in base}
    return largest({name: D.masked_fill(D == 0, -math.inf) for name, D in moved.items()}, k)


def gamma(start: Tensor, scores: Tensor, bias: float) -> Tensor:
    """γ = γ_base + (1 − 2 γ_base) σ(S − bias), in [0, 1]."""
    return start + (1 - 2 * start) * torch.sigmoid(scores - bias)


def score_gradient(gradient: Tensor, D: Tensor, start: Tensor, scores: Tensor, bias: float, l1: float = 0.0) -> Tensor:
    """∂/∂S of the loss + l1 Σγ, from the loss's `gradient` at the grafted point: (g D + l1) (1 − 2 γ_base) σ (1 − σ)."""
    sigmoid = torch.sigmoid(scores - bias)
    return (gradient * D + l1) * (1 - 2 * start) * sigmoid * (1 - sigmoid)


def in_scope(model: nn.Module, scope: str) -> dict[str, Tensor]:
    """The parameters that a mask may choose of, by name; tied ones once."""
    found = layer_parameters(model) if scope == "layers" else dict(model.named_parameters())
    return {name: parameter.detach() for name, parameter in found.items() if parameter.is_floating_point()}


def locate(
    model: nn.Module, tuned: Mapping[str, Tensor], examples: Examples, settings: Locate | None = None, *,
    validation: Examples | None = None, start: Patch | None = None, state: Path | None = None, fingerprint: str = "", name: str = "",
    tick: Callable[[float], object] | None = None,
) -> Located:  # fmt: skip
    """Learn which parameters of the tuned model carry its skill.

    Args:
        model: the base; it is not changed.
        tuned: the tuned model's parameters by name, of the base's shapes and dtypes.
        examples: of the skill. Without `validation` a share of them is put aside for choosing the step.
        start: a patch whose places are γ_base, of another seed or task for instance, in place of `settings.start`.
        state: a file that keeps unfinished work, to go on from; removed at the end.
        fingerprint, name: of the patch.
        tick: called with the loss after every step.

    Raises:
        BadInput: a tensor does not fit; nothing moved; the budget is not one parameter.
        ChangedWork: `state` is of other work.
    """
    chosen = settings or Locate()
    base = in_scope(model, chosen.scope)
    tuned = {key: tensor.detach() for key, tensor in tuned.items()}
    _check_fits(base, tuned)
    k = budget(chosen.sparsity, sum(tensor.numel() for tensor in base.values()))
    D = {key: tuned[key].to(base[key].device).float() - base[key].float() for key in base}
    D = {key: value for key, value in D.items() if bool((value != 0).any())}
    if not D:
        raise BadInput("no parameter in scope moved", field="tuned", value=chosen.scope, mend="tune the layers, or take the scope all")
    train, aside = examples.split(chosen.validation, chosen.seed) if validation is None else (list(range(len(examples))), [])
    work = _Graft(model, tuned, D, chosen, k, start)
    judged = [_some(train, chosen), _some(list(range(len(validation))) if validation is not None else aside, chosen)]
    sources = [examples, examples if validation is None else validation]

    def candidate(step: int, loss: float | None) -> dict[str, Any]:
        masks = work.hard()
        found = [judge(work.call(masks), source, which, device=work.device) for source, which in zip(sources, judged, strict=True)]
        return {"step": step, "soft_loss": loss, "size": sum(int(mask.sum()) for mask in masks.values()), "train": found[0].accuracy,
                "validation": found[1].accuracy, "loss": found[0].loss + found[1].loss}  # fmt: skip

    identity = asdict(chosen) | {"k": k, "examples": len(examples), "fingerprint": fingerprint, "from": start.name if start else ""}
    kept = load_state(state, identity)
    if kept is None:
        begin, course, best = 0, [candidate(0, None)], 0
        best_masks = work.hard()
    else:
        begin, tensors, more = kept
        course, best = more["course"], more["best"]
        best_masks = work.restore(tensors)
    for step in range(begin, chosen.steps):
        loss = work.step(step, examples, train)
        course.append(candidate(step + 1, loss))
        if _merit(course[-1]) > _merit(course[best]):
            best, best_masks = step + 1, work.hard()
        if state is not None and (step + 1) % SAVE_EVERY == 0 and step + 1 < chosen.steps:
            save_state(state, step + 1, work.tensors(best_masks), identity, {"course": course, "best": best})
        if tick is not None:
            tick(loss)
    masks = {key: best_masks.get(key, torch.zeros(tensor.shape, dtype=torch.bool)) for key, tensor in base.items()}
    about = {"settings": asdict(chosen), "best_step": best}
    patch = patch_of(base, tuned, masks, fingerprint=fingerprint, name=name, about=about)
    if state is not None:
        state.unlink(missing_ok=True)
    return Located(patch, course, best, _outside(model, tuned, D), _evenness(D))


def _merit(candidate: Mapping[str, Any]) -> tuple[float, float]:
    return candidate["train"] + candidate["validation"], -candidate["loss"]


def _check_fits(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
    for name, tensor in base.items():
        if name not in tuned:
            raise BadInput(f"has no tensor {name}", field="tuned", mend="give the model that was tuned from the base")
        for what, mine, its in (("shape", tensor.shape, tuned[name].shape), ("dtype", tensor.dtype, tuned[name].dtype)):
            if mine != its:
                problem = f"the {what} of tensor {name} differs: {mine} in the base, {its} in the tuned model"
                raise BadInput(problem, field="tuned", mend="give the model that was tuned from the base")


def _some(numbers: list[int], settings: Locate) -> list[int]:
    if len(numbers) <= settings.judged:
        return numbers
    drawn = np.random.default_rng([settings.seed, 78]).choice(numbers, settings.judged, replace=False)
    return sorted(drawn.tolist())


def _evenness(D: Mapping[str, Tensor]) -> float:
    total = sum(float(each.abs().sum(dtype=torch.float64)) for each in D.values())
    squares = sum(float(each.double().square().sum()) for each in D.values())
    return total**2 / (sum(each.numel() for each in D.values()) * squares)


def _outside(model: nn.Module, tuned: Mapping[str, Tensor], D: Mapping[str, Tensor]) -> float:
    inside = sum(float(each.abs().sum()) for each in D.values())
    others = [(parameter, tuned[name]) for name, parameter in model.named_parameters() if name not in D and name in tuned]
    out = sum(float((its.to(own.device).float() - own.detach().float()).abs().sum()) for own, its in others if own.is_floating_point())
    return out / (inside + out)


class _Graft:
    """The scores being learned. Everything is float32; frozen tensors have no scores."""

    def __init__(
        self, model: nn.Module, tuned: Mapping[str, Tensor], D: Mapping[str, Tensor], settings: Locate, k: int, start: Patch | None
    ) -> None:
        self.settings, self.k, self.D = settings, k, D
        self.device = next(iter(D.values())).device
        self.parameters = sum(tensor.numel() for tensor in in_scope(model, settings.scope).values())
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        own = dict(self.model.named_parameters())
        self.base = {name: own[name].detach() for name in D}
        self.tuned = {name: tuned[name].to(self.device).float() for name in D}
        if start is not None:
            given = start.masks()
            masks = {name: given[name].to(self.device) for name in D if name in given and given[name].shape == D[name].shape}
            if masks.keys() != D.keys():
                name = min(D.keys() - masks.keys())
                raise BadInput(f"says nothing of tensor {name}", field="start", value=start.name, mend="take a patch of the same model")
        elif settings.start == "movement":
            masks = movement(self.base, self.tuned, k)
        else:
            masks = {name: torch.zeros_like(each, dtype=torch.bool) for name, each in D.items()}
        self.start = {name: mask.float() for name, mask in masks.items()}
        drawn = torch.Generator().manual_seed(settings.seed)
        self.scores = {name: torch.rand(each.shape, generator=drawn).to(self.device) for name, each in D.items()}
        kind: Any = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind(list(self.scores.values()), lr=settings.rate)

    def step(self, step: int, examples: Examples, numbers: list[int]) -> float:
        """One step on S; gives the mean loss (nats) of the soft graft before it."""
        own = self.settings
        order = np.random.default_rng([own.seed, step]).permutation(numbers)[: own.batch * own.accumulate].tolist()
        batches = [order[at : at + own.batch] for at in range(0, len(order), own.batch)]
        theta = {}
        for name, D in self.D.items():
            soft = gamma(self.start[name], self.scores[name], own.bias)
            theta[name] = (self.base[name] + soft * D).requires_grad_()
        total = 0.0
        for chunk in batches:
            batch = examples.batch(chunk, self.device)
            given = {"input_ids": batch.tokens, "attention_mask": batch.attended}
            loss = loss_of(functional_call(self.model, theta, (), given).logits, batch, examples.labels) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        for name, tensor in theta.items():
            assert tensor.grad is not None
            l1 = own.l1 / self.parameters
            self.scores[name].grad = score_gradient(tensor.grad, self.D[name], self.start[name], self.scores[name], own.bias, l1)
        self.optimizer.step()
        return total

    def hard(self) -> Masks:
        """The mask at this point, within the budget."""
        soft = {}
        for name, D in self.D.items():
            value = gamma(self.start[name], self.scores[name], self.settings.bias).masked_fill(D == 0, -math.inf)
            soft[name] = value if self.settings.keep == "largest" else value.masked_fill(value <= 0.5, -math.inf)
        return largest(soft, self.k)

    def call(self, masks: Masks) -> Callable[..., Any]:
        """The model with the tuned values where the masks are true."""
        theta = {name: torch.where(mask, self.tuned[name], self.base[name]) for name, mask in masks.items()}
        return lambda **given: functional_call(self.model, theta, (), given)

    def tensors(self, best: Masks) -> dict[str, Tensor]:
        found = {f"score.{name}": tensor for name, tensor in self.scores.items()}
        found |= {f"best.{name}": mask.to(torch.uint8) for name, mask in best.items()}
        return found | optimizer_tensors(self.optimizer)

    def restore(self, tensors: Mapping[str, Tensor]) -> Masks:
        """Where an earlier try stood; gives its best mask."""
        for name, score in self.scores.items():
            score.copy_(tensors[f"score.{name}"])
        restore_optimizer(self.optimizer, tensors)
        return {name: tensors[f"best.{name}"].bool().to(self.device) for name in self.scores}


def compare(models: Mapping[str, Callable[..., Any]], examples: Examples, *, against: str = "tuned", device: Any = None) -> dict[str, Any]:
    """Accuracy, calibration (ECE of the token predictions) and loss (nats) of models on the same examples, and the share of examples on
    which each says the same as the model `against`."""
    judged: dict[str, Judged] = {name: judge(model, examples, device=device) for name, model in models.items()}
    return {
        name: {"accuracy": each.accuracy, "ece": each.ece, "loss": each.loss, "agreement": each.agreement(judged[against])}
        for name, each in judged.items()
    }
