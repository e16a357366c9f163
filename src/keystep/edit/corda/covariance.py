"""Covariances C = X X^T of what the linear modules of a model read, in a streaming pass, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from keystep.errors import BadInput
from keystep.nn.layers import layers_name

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(slots=True)
class Covariance:
    """C of one tensor that `modules` read: `total` [d_in, d_in], the sum over `sequences` sequences of `tokens` tokens in all."""

    modules: list[str]
    total: Tensor = field(default_factory=lambda: torch.empty(0))
    sequences: int = 0
    tokens: int = 0

    def add(self, x: Tensor, mask: Tensor | None, normalise: str) -> None:
        """Inputs [..., d_in] of a batch; `mask` [sequences, length] is true at the tokens that count, None: one sequence, all count."""
        X = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        X, mask = _by_sequence(X, mask, self.modules[0])
        if normalise == "max":
            largest = X.masked_fill(~mask[..., None], -math.inf).amax((1, 2), keepdim=True).abs()
            if bool((largest == 0).any()):
                mend = 'leave it out of the targets, or take normalise="none"'
                raise BadInput("has no input above 0 in a sequence", field="module", value=self.modules[0], mend=mend)
            X = X / largest
        X = X[mask]
        if not self.sequences:
            self.total = X.new_zeros(X.shape[1], X.shape[1])
        self.total.addmm_(X.T, X)
        self.sequences, self.tokens = self.sequences + len(mask), self.tokens + len(X)

    @property
    def mean(self) -> Tensor:
        return self.total / self.sequences


def _by_sequence(X: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    if mask is not None and X.shape[:-1].numel() == mask.numel():
        return X.reshape(*mask.shape, X.shape[-1]), mask
    if mask is not None and (len(mask) > 1 or not bool(mask.all())):
        problem = f"reads {X.shape[:-1].numel()} rows of {mask.numel()}, so that padding cannot be told"
        raise BadInput(problem, field="module", value=name, mend="take batches of 1")
    flat = X.reshape(1, -1, X.shape[-1])
    return flat, torch.ones(flat.shape[:2], dtype=torch.bool, device=X.device)


class _Inputs:
    """While it is entered, adds up what modules read. Modules that read the very same tensor share one sum."""

    def __init__(self, model: nn.Module, names: Sequence[str], normalise: str) -> None:
        self.model, self.names, self.normalise = model, names, normalise
        self.sums: dict[str, Covariance] = {}
        self.owner: dict[str, str] = {}
        self.mask: Tensor | None = None
        self.seen: list[tuple[Tensor, str]] = []  # of this batch; holding on to them keeps two tensors from being taken for one

    def __enter__(self) -> _Inputs:
        self.hooks = [self.model.get_submodule(name).register_forward_pre_hook(self._hook(name)) for name in self.names]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seen.clear()
        for hook in self.hooks:
            hook.remove()

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        mask = batch.get("attention_mask")
        self.mask = None if mask is None else mask.bool()
        self.seen.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            first = next((owner for tensor, owner in self.seen if tensor is x), name)
            if name not in self.owner:
                self.owner[name] = first
                if first == name:
                    self.sums[name] = Covariance([name])
                else:
                    self.sums[first].modules.append(name)
            if self.owner[name] != first:
                problem = f"reads with {self.owner[name]} in one batch, with {first} in another"
                raise BadInput(problem, field="module", value=name, mend="leave it out of the targets")
            if first == name:
                self.seen.append((x, name))
                self.sums[name].add(x, None if self.mask is None else self.mask.to(x.device), self.normalise)

        return read

    def found(self) -> list[Covariance]:
        idle = next((name for name in self.names if name not in self.owner), None)
        if idle is not None:
            raise BadInput("read nothing of the sample", field="module", value=idle, mend="leave it out of the targets, or give more data")
        found, self.sums = list(self.sums.values()), {}  # whoever takes a sum decides how long it is kept
        return found


class _Stop(Exception):
    pass


class _Layers:
    """The layers of a decoder one at a time, each on what those before it gave. The model itself prepares masks and positions for a layer;
    layers before it hand through."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, batches: Batches) -> None:
        self.model, self.layers, self.batches = model, layers, batches
        self.hidden: list[Tensor] = []  # what the last layer gave for each batch
        self.tuples = False

    def run(self, number: int, begin: Callable[[Mapping[str, Tensor]], None]) -> None:
        """All batches through layer `number`, which has to be the next one."""
        before, kept = self.layers[:number], self.hidden
        given: list[Tensor] = []

        def swap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not number:
                return None
            now = args[0] if args else kwargs["hidden_states"]
            hidden = kept[len(given)].to(now.device)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        def catch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.tuples = isinstance(output, tuple)
            given.append((output[0] if self.tuples else output).detach().cpu())
            raise _Stop

        def through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self.tuples else hidden_states

        layer = self.layers[number]
        hooks = [layer.register_forward_pre_hook(swap, with_kwargs=True), layer.register_forward_hook(catch)]
        own = [vars(each).get("forward") for each in before]
        for each in before:
            each.forward = through
        try:
            for batch in self.batches:
                begin(batch)
                try:
                    self.model(**batch, use_cache=False)
                except _Stop:
                    continue
                raise BadInput(f"does not run layer {number}", field="model", value=type(self.model).__name__, mend="take another decoder")
        finally:
            for hook in hooks:
                hook.remove()
            for each, forward in zip(before, own, strict=True):
                del each.forward
                if forward is not None:
                    each.forward = forward
        self.hidden = given


@torch.no_grad()
def covariances(
    model: nn.Module, names: Sequence[str], batches: Batches, *, normalise: str = "max", begin: int = 0
) -> Iterator[list[Covariance]]:  # fmt: skip
    """C of what the named modules read, layer by layer from layer `begin` on; all at once where the model has no list of layers.

    Args:
        batches: keyword arguments of the model; `attention_mask` tells padding.

    Raises:
        BadInput: a module read nothing, only zeros (at `normalise="max"`: nothing above 0), or rows that cannot be told from padding.
    """
    model.eval()
    prefix = layers_prefix(model)
    if prefix is None:
        if begin:
            return
        with _Inputs(model, names, normalise) as inputs:
            for batch in batches:
                inputs.begin(batch)
                model(**batch)
        yield inputs.found()
        return
    layers: Any = model.get_submodule(prefix)
    work = _Layers(model, layers, batches)
    for number in range(len(layers) if begin < len(layers) else 0):
        own = [name for name in names if name.startswith(f"{prefix}.{number}.")] if number >= begin else []
        with _Inputs(model, own, normalise) as inputs:
            work.run(number, inputs.begin)
        if number >= begin:
            yield inputs.found()


def layers_prefix(model: nn.Module) -> str | None:
    """The name of a decoder's list of layers; None where the model is no decoder of transformers."""
    return layers_name(model) if hasattr(model, "config") and hasattr(model.config, "get_text_config") else None
