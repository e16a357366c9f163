"""A guard's folder, and a guard in a model: saved whole, read back with every part checked, put in and taken out.

The folder holds `guard.safetensors` (means and deviations, numbers of neurons), `guard.json` (everything else) and
`custom_generate/generate.py`, with which stock transformers runs the guard without keystep. With the model saved into the same folder,
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` is guarded by itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keystep.edit.unlearn import guarded
from keystep.edit.unlearn.guarded import ABOUT, FORMAT, WEIGHTS, Guard, guard_of, misfit
from keystep.errors import BadInput
from keystep.files import whole
from keystep.nn.checkpoint import stored_tensors
from keystep.nn.layers import feed_forward_blocks

MAKE = "make one with: keystep edit forget"
OTHER = "take the model it was made for"


class Attached(guarded.Attached):
    """A guard in a model (`attach`)."""

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """As `guarded.Attached.generate`.

        Raises:
            BadInput: an option with which a box cannot be watched.
        """
        name, why = self.unwatchable(options) if not self.off else ("", "")
        if name:
            raise BadInput(f"cannot be used with a guard, as {why}", field=name, mend="leave it out, or pause the guard")
        return super().generate(*inputs, **options)


def attach(model: Any, guard: Guard, *, check: bool = True) -> Attached:
    """Put a guard into a model: its forward passes are adjusted, its `generate` abstains. Several guards may be put in.

    Args:
        check: whether the model has to be the one that the guard was made for; of a model tuned since only the shapes can be right.

    Raises:
        BadInput: the guard does not belong to the model; the message names the tensor or module.
    """
    problem = misfit(guard, model) if check else ""
    if problem:
        raise BadInput(f"the model {problem}", field="guard", value=str(guard.about.get("name", "")), mend=OTHER)
    blocks = {block.number: block for block in feed_forward_blocks(model)}
    parts: tuple[Any, ...] = (*guard.boxes, *guard.shifts, *guard.zeroed)
    for part in parts:
        block, name = blocks.get(part.layer), part.gate if isinstance(part, guarded.Shift) else part.down
        if block is None or name not in (block.gate, block.down):
            raise BadInput(f"the model has no module {name} in layer {part.layer}", field="guard", mend=OTHER)
        if isinstance(part, guarded.Box):
            if len(part.mean) != block.width:
                problem = f"module {name} reads {block.width} keys, the guard's box has {len(part.mean)}"
                raise BadInput(problem, field="guard", value=part.name, mend=OTHER)
        elif int(part.neurons.max()) >= block.width:
            raise BadInput(f"module {name} has no neuron {int(part.neurons.max())}", field="guard", mend=OTHER)
    return Attached(model, guard)


def load(folder: Path) -> Guard:
    """The guard in a folder.

    Raises:
        BadInput: it is none, a file is cut off or pickled, a tensor is missing, has a shape or values that cannot be, or belongs to
            nothing; the message names it.
    """
    from safetensors.torch import load_file

    if not folder.is_dir():
        raise BadInput("is no folder of this machine", field="guard", value=str(folder), mend=MAKE)
    stored_tensors(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        found = guard_of(about, tensors)
        wanted = {f"{kind}.{number}.{name}" for kind, parts in _kinds(found).items() for number, part in enumerate(parts)
                  for name in _tensors(part)}  # fmt: skip
        _check_words(found)
    except KeyError as error:
        problem = f"is no whole guard ({error.args[0]} is missing)"
        raise BadInput(problem, field="guard", value=str(folder), mend=MAKE) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"is no guard ({error})", field="guard", value=str(folder), mend=MAKE) from None
    odd = next((name for name in sorted(tensors) if name not in wanted), None)
    if odd is not None:
        raise BadInput(f"tensor {odd} belongs to no part of the guard", field="guard", value=str(folder), mend=MAKE)
    for kind, parts in _kinds(found).items():
        for number, part in enumerate(parts):
            _check_tensors(_tensors(part), f"{kind}.{number}", folder)
    return found


def _kinds(guard: Guard) -> dict[str, tuple[Any, ...]]:
    return {"boxes": guard.boxes, "shifts": guard.shifts, "zeroed": guard.zeroed}


def _tensors(part: Any) -> dict[str, Tensor]:
    return {name: getattr(part, name) for name in part.__dataclass_fields__ if isinstance(getattr(part, name), Tensor)}


def _check_words(guard: Guard) -> None:
    if guard.watch not in ("all", "prompt"):
        raise ValueError(f"watch is {guard.watch!r}")
    if not isinstance(guard.seed, int) or not all(isinstance(token, int) for token in guard.refusal):
        raise TypeError("seed or refusal are no whole numbers")
    if not isinstance(guard.prints, Mapping) or not isinstance(guard.about, Mapping):
        raise TypeError("prints or about are no objects")
    for box in guard.boxes:
        if not (box.k > 0 and box.alpha >= 0 and isinstance(box.layer, int)):
            raise ValueError(f"the box {box.name!r} has k = {box.k!r}, alpha = {box.alpha!r}")
    if guard.boxes and not guard.refusal:
        raise ValueError("it has boxes, but no refusal")


def _check_tensors(tensors: Mapping[str, Tensor], where: str, folder: Path) -> None:
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        wrong = ""
        if tensor.ndim != 1 or tensor.shape != first.shape or not len(tensor):
            wrong = f"has the shape {list(tensor.shape)}"
        elif name == "neurons":
            if tensor.dtype != torch.int64 or int(tensor.min()) < 0 or bool((tensor[1:] <= tensor[:-1]).any()):
                wrong = "does not hold ascending numbers of neurons"
        elif tensor.dtype != torch.float32 or bool(tensor.isnan().any()):
            wrong = "does not hold float32 numbers"
        elif name.endswith("std") and not bool((tensor > 0).all()):
            wrong = "has deviations that are not above 0"
        if wrong:
            raise BadInput(f"tensor {where}.{name} {wrong}", field="guard", value=str(folder), mend=MAKE)


def save(guard: Guard, folder: Path, *, model: Any = None, tokenizer: Any = None) -> None:
    """Write a guard's folder, and the model into it where one is given: whole, or not there.

    Raises:
        BadInput: something stands there already, or it cannot be written.
    """
    with whole(folder) as part:
        part.mkdir()
        _write(guard, part)
        if model is not None:
            model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)


def _write(guard: Guard, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    about = {**asdict(guard), "format": FORMAT}
    for kind, parts in _kinds(guard).items():
        about[kind] = []
        for number, each in enumerate(parts):
            own = _tensors(each)
            tensors |= {f"{kind}.{number}.{name}": tensor.cpu().contiguous() for name, tensor in own.items()}
            about[kind].append({name: getattr(each, name) for name in each.__dataclass_fields__ if name not in own})
    save_file(tensors, folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    (folder / "custom_generate").mkdir()
    shutil.copyfile(guarded.__file__, folder / "custom_generate" / "generate.py")
