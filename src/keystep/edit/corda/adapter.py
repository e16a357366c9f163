"""A LoRA adapter for a model: the sample, both modes, the folder that stock PEFT loads, and the way back to an ordinary LoRA."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keystep.edit.corda.covariance import Batches, covariances, layers_prefix
from keystep.edit.corda.decomposition import decompose, regularised
from keystep.errors import BadInput, MissingExtra
from keystep.files import whole
from keystep.nn.checkpoint import load_tokenizer, stored_tensors, transformers_for
from keystep.nn.examples import Examples
from keystep.nn.state import load_state, save_state

ADAPTER, CONFIG, BASE, ABOUT = "adapter_model.safetensors", "adapter_config.json", "base", "corda.json"
CHOICES = {"mode": ("knowledge", "instruction"), "normalise": ("max", "none"), "part": ("", "prompt", "whole")}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class Corda:
    """How adapters are initialised.

    Args:
        mode: "knowledge": the r smallest components, to keep what the sample is about; "instruction": the r largest, to learn it.
        rank: r.
        alpha: lora_alpha, r by default (scaling 1).
        targets: last parts of the names of the modules that get an adapter; all Linear and Conv1D modules of the layers by default.
        normalise: "max": a sequence's inputs are divided by |max X| (as published); "none": taken as they are.
        damping, tolerance: of the inverse.
        samples: the most sequences of the sample, drawn by the seed.
        length: tokens of a sequence: windows drawn from all examples in a row (as published for questions); None: an example a sequence.
        part: of examples with an answer: "prompt" or "whole"; "" is the prompt to keep, the whole to learn.
        batch: sequences that go through the model at once.
    """

    mode: str = "knowledge"
    rank: int = 16
    alpha: int | None = None
    targets: tuple[str, ...] = ()
    normalise: str = "max"
    damping: float = 0.01
    tolerance: float = 0.05
    samples: int = 256
    length: int | None = None
    part: str = ""
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise BadInput("is no choice", field=name, value=getattr(self, name), mend=f"choose of {', '.join(filter(None, known))}")
        for name in ("rank", "alpha", "samples", "length", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput("is at least 1", field=name, value=value)
        if self.seed < 0:
            raise BadInput("is at least 0", field="seed", value=self.seed)
        for name in ("damping", "tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput("is above 0", field=name, value=getattr(self, name))

    @property
    def scaling(self) -> float:
        """lora_alpha / r."""
        return (self.alpha or self.rank) / self.rank


@dataclass(frozen=True, slots=True)
class Row:
    """What was done to one module. `tokens_per_input`: tokens of the sample for each of its d_in inputs; well above 1 is wanted."""

    module: str
    inputs: int
    outputs: int
    tokens_per_input: float
    damping: float
    share: float
    norm_a: float
    norm_b: float


@dataclass(frozen=True, slots=True)
class Adapted:
    """`model` is a `PeftModel` whose base weights have been changed; `rows` tell of every module."""

    model: Any
    rows: list[Row]


def linear_modules(model: nn.Module, targets: Sequence[str] = ()) -> dict[str, Any]:
    """The modules that get an adapter, by name: those of the layers whose last part of the name is one of `targets` (all by default).

    Raises:
        BadInput: a target names nothing, or something that CorDA cannot take apart.
    """
    conv = transformers_for("initialising adapters").pytorch_utils.Conv1D
    prefix = layers_prefix(model)
    inside = {name: module for name, module in model.named_modules() if name and (prefix is None or name.startswith(prefix + "."))}
    linear = {name: module for name, module in inside.items() if isinstance(module, nn.Linear | conv)}
    for target in targets:
        if not any(name.rsplit(".", 1)[-1] == target for name in linear):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise BadInput("is no Linear module of the layers", field="targets", value=target, mend=f"choose of {known}")
    found = {name: module for name, module in linear.items() if not targets or name.rsplit(".", 1)[-1] in targets}
    if not found:
        raise BadInput("has no Linear modules", field="model", value=type(model).__name__, mend="take a decoder of transformers")
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            twin = owners.setdefault(id(weight), name)
            if twin != name and (twin in found or name in found):
                raise BadInput(f"shares its weight with {twin}", field="targets", value=name, mend="leave it out of the targets")
    for name, module in found.items():
        if module.weight.dtype not in DTYPES:
            raise BadInput(f"has weights of {module.weight.dtype}", field="module", value=name, mend="load the model unquantised")
    return found


def sequences(examples: Examples, settings: Corda) -> list[list[int]]:
    """The tokens of the sample: some of the examples, or windows over all of them in a row.

    Raises:
        BadInput: all of them together are shorter than a window.
    """
    part = settings.part or ("prompt" if settings.mode == "knowledge" else "whole")
    cut = part == "prompt" and examples.kind == "answer"
    rows = [row.tokens[: row.start] if cut else row.tokens for row in examples.rows]
    draw = np.random.default_rng([settings.seed, 79])
    if settings.length is None:
        return [rows[number] for number in sorted(draw.permutation(len(rows))[: settings.samples].tolist())]
    text = [token for number in draw.permutation(len(rows)).tolist() for token in rows[number]]
    if len(text) < settings.length:
        raise BadInput(f"has {len(text)} tokens in all", field="length", value=settings.length, mend="give more data or a smaller length")
    starts = draw.integers(0, len(text) - settings.length + 1, settings.samples).tolist()
    return [text[start : start + settings.length] for start in starts]


@torch.no_grad()
def adapt(
    model: nn.Module, sample: Batches, settings: Corda | None = None, *, state: Path | None = None, fingerprint: str = "",
    tick: Callable[[], object] | None = None,
) -> Adapted:  # fmt: skip
    """A LoRA adapter for the model, which is changed in place: its target weights become W − scaling · B A.

    Args:
        sample: of `keystep.nn.examples.batches`, or any keyword arguments of the model.
        state: a file that keeps the layers that are done, to go on from; the caller removes it when the result is safe.
        fingerprint: of the weights and the sample, to know the state by.
        tick: called after every layer.

    Raises:
        BadInput: as `linear_modules` and `covariances`; or a module has fewer components than the rank.
        ChangedWork: `state` is of other work.
        MissingExtra: peft is not installed.
    """
    chosen = settings or Corda()
    modules = linear_modules(model, chosen.targets)
    for name, module in modules.items():
        if chosen.rank > min(module.weight.shape):
            problem = f"module {name} has only {min(module.weight.shape)} components"
            raise BadInput(problem, field="rank", value=chosen.rank, mend="take a smaller rank")
    identity = asdict(chosen) | {"targets": sorted(modules), "fingerprint": fingerprint}
    kept = load_state(state, identity)
    begin, tensors, more = kept if kept is not None else (0, dict[str, Tensor](), {"rows": []})
    rows = [Row(**row) for row in more["rows"]]
    for number, layer in enumerate(covariances(model, list(modules), sample, normalise=chosen.normalise, begin=begin), begin):
        while layer:
            shared = layer.pop(0)
            C = regularised(shared.mean, chosen.damping, chosen.tolerance, shared.modules[0])
            for name in shared.modules:
                weight = _oriented(modules[name])
                found = decompose(weight, C, chosen.rank, chosen.mode, chosen.scaling)
                tensors |= {f"{name}.A": found.A, f"{name}.B": found.B}
                rows.append(Row(name, weight.shape[1], weight.shape[0], shared.tokens / weight.shape[1], C.damping, found.share,
                                float(found.A.norm()), float(found.B.norm())))  # fmt: skip
        if state is not None:
            save_state(state, number + 1, tensors, identity, {"rows": [asdict(row) for row in rows]})
        if tick is not None:
            tick()
    order = {name: number for number, name in enumerate(modules)}
    return Adapted(_with_adapter(model, modules, tensors, chosen), sorted(rows, key=lambda row: order[row.module]))


def _oriented(module: Any) -> Tensor:
    """The weight as [d_out, d_in]; Conv1D keeps the transpose."""
    weight: Tensor = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def peft_for(what: str) -> Any:
    """The library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtra(what, "local") from None
    return peft


def _with_adapter(model: nn.Module, modules: Mapping[str, Any], tensors: Mapping[str, Tensor], settings: Corda) -> Any:
    peft = peft_for("initialising adapters")
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha or settings.rank, target_modules=sorted(_suffixes(model, modules)), lora_dropout=0.0,
        fan_in_fan_out=any(not isinstance(module, nn.Linear) for module in modules.values()),
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    )  # fmt: skip
    found = peft.get_peft_model(model, config)
    for name, module in modules.items():
        layer = found.base_model.model.get_submodule(name)
        weight = module.weight
        A, B = (tensors[f"{name}.{part}"].to(weight.device) for part in ("A", "B"))
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = A.clone(), B.clone()
        taken = settings.scaling * (B @ A)
        weight.data = (weight.data.to(taken.dtype) - (taken if isinstance(module, nn.Linear) else taken.T)).to(weight.dtype)
    return found


def _suffixes(model: nn.Module, modules: Mapping[str, Any]) -> set[str]:
    """What PEFT is told to target: the last parts of the names, or whole names where those would take in other modules."""
    short = {name.rsplit(".", 1)[-1] for name in modules}
    matched = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in short}
    return short if matched == set(modules) else set(modules)


def save(adapted: Adapted, out: Path, *, source: Path, settings: Corda) -> None:
    """A folder that stock PEFT loads: the adapter, the changed base in `base/`, and `corda.json` with what was done.

    The adapter only fits that base. The `PeftModel` of `adapted` is taken apart.

    Args:
        source: the folder of the model before.

    Raises:
        BadInput: something stands there already, or it cannot be written.
    """
    tokenizer = load_tokenizer(source) if (source / "tokenizer_config.json").is_file() else None
    with whole(out) as part:
        adapted.model.peft_config["default"].base_model_name_or_path = str(out.resolve() / BASE)
        adapted.model.save_pretrained(part, save_embedding_layers=False)
        (part / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
        base = adapted.model.unload()
        base.save_pretrained(part / BASE)
        if tokenizer is not None:
            tokenizer.save_pretrained(part / BASE)
        about = {"model": str(source.resolve()), "settings": asdict(settings), "modules": [asdict(row) for row in adapted.rows]}
        (part / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")


def to_lora(initial: Path, trained: Path, out: Path, *, model: Path | None = None) -> int:
    """Write a trained adapter as an ordinary LoRA of rank 2r on the model as it was before: B A − B_0 A_0, stacked; gives 2r.

    Args:
        initial: the folder that `save` wrote, or the adapter in it.
        trained: the folder of the adapter after training.
        model: the base that the new adapter names; the one that `initial` was made of by default.

    Raises:
        BadInput: one of them is no LoRA adapter, or they do not belong together; the message names what differs.
    """
    from safetensors.torch import save_file

    (config, before), (other, after) = (_adapter(folder) for folder in (initial, trained))
    for key in ("r", "lora_alpha", "use_rslora", "fan_in_fan_out"):
        if config.get(key) != other.get(key):
            raise BadInput(f"{key} differs: {config.get(key)!r} before, {other.get(key)!r} after", field="trained", value=str(trained))
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "modules_to_save"):
        if other.get(key):
            raise BadInput(f"has {key}, which an ordinary LoRA cannot take over", field="trained", value=str(trained))
    for name in sorted(before.keys() | after.keys()):
        shapes = [each[name].shape if name in each else None for each in (before, after)]
        if shapes[0] != shapes[1]:
            problem = f"tensor {name} differs: {_shape(shapes[0])} before, {_shape(shapes[1])} after"
            raise BadInput(problem, field="trained", value=str(trained), mend="give the adapter that was trained from the initial one")
    stacked = {}
    for name, tensor in after.items():
        is_a = ".lora_A." in name
        stacked[name] = torch.cat([tensor, before[name].to(tensor.dtype) * (1 if is_a else -1)], dim=0 if is_a else 1).contiguous()
    rank = 2 * int(other["r"])
    if model is not None and not model.is_dir():
        raise BadInput(
            "is no folder of this machine", field="model", value=str(model), mend="give the folder of the model as it was before"
        )
    named = str(model.resolve()) if model is not None else _source(initial / ABOUT)
    alpha = other["lora_alpha"] * (math.sqrt(2) if other.get("use_rslora") else 2)
    with whole(out) as part:
        part.mkdir()
        save_file(stacked, part / ADAPTER, metadata={"format": "pt"})
        changed = {**other, "r": rank, "lora_alpha": alpha, "base_model_name_or_path": named, "init_lora_weights": True}
        (part / CONFIG).write_text(json.dumps(changed, indent=2), "utf-8")
    return rank


def _source(about: Path) -> str | None:
    """The model that an adapter was made of, as `save` wrote it; None where it wrote nothing."""
    if not about.is_file():
        return None
    try:
        return str(json.loads(about.read_text("utf-8"))["model"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        mend = "name the model with --model"
        raise BadInput(f"does not tell the model ({type(error).__name__}: {error})", field=str(about), mend=mend) from None


def _adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
            raise ValueError("it is not that of a LoRA")
    except (OSError, ValueError) as error:
        raise BadInput(f"has no {CONFIG} that can be read ({error})", field="adapter", value=str(folder)) from None
    stored = stored_tensors(folder / ADAPTER)
    odd = next((name for name in sorted(stored) if not name.endswith((".lora_A.weight", ".lora_B.weight"))), None)
    if odd is not None:
        raise BadInput(f"has the tensor {odd}, which is no part of a LoRA", field="adapter", value=str(folder))
    return config, load_file(folder / ADAPTER)


def _shape(shape: torch.Size | None) -> object:
    return "missing" if shape is None else list(shape)
