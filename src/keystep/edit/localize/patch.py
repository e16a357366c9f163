"""A patch: where in a model a skill lives (flat indices, tensor by tensor), and the values that stand there with the skill and without.

The file is safetensors: for every tensor that is changed NAME.indices (int64, ascending), NAME.values and NAME.before (of the tensor's own
dtype), and metadata that tell the base. The values before make it small work to see that a patch belongs to a model, in place, and to
revert it bit for bit without the base at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from keystep.errors import BadInput
from keystep.files import whole
from keystep.nn.checkpoint import stored_tensors
from keystep.nn.layers import place

FORMAT = "keystep-patch-1"
_PARTS = ("indices", "values", "before")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Part(NamedTuple):
    """What is changed in one tensor: `indices` into it laid flat, ascending; the `values` there, and those of the base `before`."""

    indices: Tensor
    values: Tensor
    before: Tensor


class Row(NamedTuple):
    """How many of the parameters of a kind (q, up, norm, …) in a layer (None: outside the layers) a patch changes."""

    layer: int | None
    kind: str
    chosen: int
    of: int


@dataclass(frozen=True, slots=True)
class Patch:
    """Args:
    shapes: of all tensors that could have been changed; the density is counted over them.
    base: the fingerprint of the base's checkpoint (`keystep.nn.checkpoint.fingerprint`), "" where it was never in a file.
    about: settings and measures, as JSON.
    """

    parts: Mapping[str, Part]
    shapes: Mapping[str, tuple[int, ...]]
    base: str = ""
    name: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Changed parameters."""
        return sum(len(part.indices) for part in self.parts.values())

    @property
    def of(self) -> int:
        """Parameters that could have been changed."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def density(self) -> float:
        return self.size / self.of

    def histogram(self) -> list[Row]:
        """Where in the model the patch is, layer by layer, kind by kind."""
        found: dict[tuple[int | None, str], list[int]] = {}
        for name, shape in self.shapes.items():
            counts = found.setdefault(place(name), [0, 0])
            counts[0] += len(self.parts[name].indices) if name in self.parts else 0
            counts[1] += math.prod(shape)
        return [Row(*where, *counts) for where, counts in found.items()]

    def masks(self) -> dict[str, Tensor]:
        """True where a parameter is changed; of all tensors in `shapes`."""
        found = {}
        for name, shape in self.shapes.items():
            flat = torch.zeros(math.prod(shape), dtype=torch.bool)
            if name in self.parts:
                flat[self.parts[name].indices] = True
            found[name] = flat.view(shape)
        return found

    def check(self, model: nn.Module) -> None:
        """That the patch can be applied to the model, or is.

        Raises:
            BadInput: a tensor is missing, has another shape or dtype, or holds other values than the base's or the patch's where the patch
                is; the message names the tensor.
        """
        own = {name: tensor.detach() for name, tensor in model.named_parameters(remove_duplicate=False)}
        for name, shape in self.shapes.items():
            if name not in own:
                raise BadInput(f"the model has no tensor {name}", field="patch", value=self.name, mend="take the model it was made for")
            kind = self.parts[name].values.dtype if name in self.parts else own[name].dtype
            for what, mine, its in (("shape", shape, tuple(own[name].shape)), ("dtype", kind, own[name].dtype)):
                if mine != its:
                    problem = f"tensor {name} has the {what} {its}, the patch is for {mine}"
                    raise BadInput(problem, field="patch", value=self.name, mend="take the model it was made for")
        for name, part in self.parts.items():
            now = _bits(own[name].take(part.indices.to(own[name].device)).cpu())
            strange = (now != _bits(part.before)) & (now != _bits(part.values))
            if bool(strange.any()):
                problem = f"tensor {name} holds neither the base's values nor the patch's at {int(strange.sum())} of {len(now)} places"
                raise BadInput(problem, field="patch", value=self.name, mend="take the base it was made for, without patches that overlap")

    def apply(self, model: nn.Module) -> None:
        """Put the skill's values in, in place; on a model that has them nothing changes.

        Raises:
            BadInput: as `check`; nothing is changed then.
        """
        self.check(model)
        self._put(model, "values")

    def revert(self, model: nn.Module) -> None:
        """Put the base's values back, in place and bit for bit. On the tuned model itself this purges the skill.

        Raises:
            BadInput: as `check`; nothing is changed then.
        """
        self.check(model)
        self._put(model, "before")

    @torch.no_grad()
    def _put(self, model: nn.Module, which: str) -> None:
        own = dict(model.named_parameters(remove_duplicate=False))
        for name, part in self.parts.items():
            tensor = own[name]
            tensor.data.put_(part.indices.to(tensor.device), getattr(part, which).to(tensor.device))

    def save(self, file: Path) -> None:
        """Raises: BadInput, where something stands there already or it cannot be written."""
        from safetensors.torch import save_file

        tensors = {f"{name}.{kind}": getattr(part, kind).cpu() for name, part in self.parts.items() for kind in _PARTS}
        about = {"format": FORMAT, "name": self.name, "base": self.base, "shapes": json.dumps(self.shapes), "about": json.dumps(self.about)}
        with whole(file) as part:
            save_file(tensors, part, metadata=about)

    @classmethod
    def load(cls, file: Path) -> Patch:
        """Raises: BadInput, where it is no patch, or one with indices that do not fit their tensor; the message names the tensor."""
        from safetensors import safe_open

        stored_tensors(file)
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            names = sorted(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names}
        try:
            if about["format"] != FORMAT:
                raise KeyError
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in json.loads(about["shapes"]).items()}
            parts = {name: Part(*(tensors.pop(f"{name}.{kind}") for kind in _PARTS)) for name in shapes if f"{name}.indices" in tensors}
            found = cls(parts, shapes, about["base"], about["name"], json.loads(about["about"]))
        except (KeyError, ValueError, TypeError, AttributeError):
            raise BadInput("is no patch", field="patch", value=str(file), mend="make one with: keystep edit locate") from None
        if tensors:
            raise BadInput(f"tensor {min(tensors)} belongs to no part of the patch", field="patch", value=str(file), mend="make it again")
        for name, part in parts.items():
            indices, of = part.indices, math.prod(shapes[name])
            fits = indices.dtype == torch.int64 and indices.ndim == 1 and part.values.shape == part.before.shape == indices.shape
            fits = fits and part.values.dtype == part.before.dtype and bool((indices[1:] > indices[:-1]).all())
            if not fits or (len(indices) and not 0 <= int(indices[0]) <= int(indices[-1]) < of):
                problem = f"tensor {name} has indices or values that do not fit its shape {list(shapes[name])}"
                raise BadInput(problem, field="patch", value=str(file), mend="make it again")
        return found


def _bits(tensor: Tensor) -> Tensor:
    """The same bits as whole numbers, so that nan is nan and −0 is not 0."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def patch_of(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, fingerprint: str = "", name: str = "",
    about: Mapping[str, Any] | None = None,
) -> Patch:  # fmt: skip
    """The tuned values where the masks are true; places where both models have the same bits are left out.

    Args:
        base, tuned: tensors by name, of the same shapes and dtypes.
        masks: of the tensors that may be changed.
    """
    parts, shapes = {}, {}
    for key, mask in masks.items():
        before, after = base[key].detach().cpu(), tuned[key].detach().cpu()
        if before.shape != after.shape or before.dtype != after.dtype or mask.shape != before.shape:
            raise BadInput(f"tensor {key} differs in shape or dtype", field="tuned", value=(tuple(before.shape), tuple(after.shape)))
        shapes[key] = tuple(before.shape)
        indices = mask.cpu().flatten().nonzero()[:, 0]
        first, second = before.take(indices), after.take(indices)
        moved = _bits(first) != _bits(second)
        if bool(moved.any()):
            parts[key] = Part(indices[moved], second[moved], first[moved])
    return Patch(parts, shapes, fingerprint, name, about or {})


def overlap(first: Patch, second: Patch) -> float:
    """|first and second| / |second|: the share of the second's places that the first has too. Of independent random masks it is the
    first's density; nan where the second is empty.

    Raises:
        BadInput: the patches are of different models: they have no tensor in common, or one of another shape.
    """
    both = first.shapes.keys() & second.shapes.keys()
    odd = next((name for name in sorted(both) if first.shapes[name] != second.shapes[name]), None)
    if odd is not None or not both:
        problem = "have no tensor in common" if odd is None else f"differ in tensor {odd}: {first.shapes[odd]} and {second.shapes[odd]}"
        raise BadInput(problem, field="patches", value=[first.name, second.name], mend="give patches of one model")
    shared = sum(
        len(np.intersect1d(part.indices.numpy(), first.parts[name].indices.numpy(), assume_unique=True))
        for name, part in second.parts.items()
        if name in first.parts
    )
    return shared / second.size if second.size else math.nan


def union(patches: Iterable[Patch]) -> dict[str, Tensor]:
    """True where any of the patches changes a parameter.

    Raises:
        BadInput: a tensor has different shapes in two of them.
    """
    found: dict[str, Tensor] = {}
    for patch in patches:
        for name, mask in patch.masks().items():
            if name in found and found[name].shape != mask.shape:
                raise BadInput(f"tensor {name} has another shape in the patches", field="patch", value=patch.name, mend="of one model")
            found[name] = found[name] | mask if name in found else mask
    return found
