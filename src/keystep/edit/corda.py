"""CorDA: LoRA adapters that begin in the directions which a data sample uses least (to keep a skill) or most (to learn one).

Paper: Yang, Li, Zhou, Song, Wu, Nie, Ghanem 2024, CorDA: Context-Oriented Decomposition Adaptation of Large Language Models, NeurIPS 2024,
arXiv 2406.05223. For a linear layer y = W x with inputs X [d_in, tokens] on the sample: C = X X^T, a mean over sequences;
C' = C + damping · mean(diag C) · I, the damping doubled until ‖C' C'^-1 − I‖_F < tolerance; SVD(W C') = U S V^T; `V` below is V^T C'^-1,
so that W = U S V. Mode "knowledge" (the paper's knowledge-preserved, KPM) takes the last r components, the sample being of what is to be
kept; "instruction" (instruction-previewed, IPM) the first r, the sample being of what is to be learned. B = U_r √S_r, A = √S_r V_r, and
the frozen weight becomes W − scaling · B A with S_r divided by scaling = alpha / r first. Before training the model is what it was.

The result is an ordinary PEFT LoRA adapter on a changed base. As in PEFT's own initialisation every sequence's inputs are divided by
|max X| (`normalise="max"`); unlike it, sequences may be batched (padding never counts), layers are done one after another on what the
layers before them gave, and modules that read the same tensor (q, k, v; gate, up) share C and its inverse: no more than one layer's
covariances are there at a time. Not covered: embeddings and head, expert weights that are no Linear modules, quantised weights, ranks
chosen layer by layer (CorDA++).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from keystep.errors import BadInput, MissingExtra
from keystep.nn.checkpoint import load_tokenizer, stored_tensors, transformers_for, whole
from keystep.nn.examples import Examples
from keystep.nn.layers import layers_name
from keystep.nn.state import load_state, save_state

ADAPTER, CONFIG, BASE, ABOUT = "adapter_model.safetensors", "adapter_config.json", "base", "corda.json"
CHOICES = {"mode": ("knowledge", "instruction"), "normalise": ("max", "none"), "part": ("", "prompt", "whole")}
DOUBLINGS = 60  # of the damping, before it is given up
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Batches = Sequence[Mapping[str, Tensor]]


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
        for name in ("damping", "tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput("is above 0", field=name, value=getattr(self, name))

    @property
    def scaling(self) -> float:
        """lora_alpha / r."""
        return (self.alpha or self.rank) / self.rank


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
    prefix = _prefix(model)
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


def _prefix(model: nn.Module) -> str | None:
    return layers_name(model) if hasattr(model, "config") and hasattr(model.config, "get_text_config") else None


class Regularised(NamedTuple):
    """C' and its inverse, both [d_in, d_in], and the damping that was needed."""

    matrix: Tensor
    inverse: Tensor
    damping: float


def regularised(C: Tensor, damping: float = 0.01, tolerance: float = 0.05, name: str = "") -> Regularised:
    """C' = C + damping · mean(diag C) · I, the damping doubled until ‖C' C'^-1 − I‖_F < tolerance.

    Raises:
        BadInput: C is zero or not finite.
    """
    mean = float(C.diagonal().mean())
    if not math.isfinite(mean) or mean <= 0:
        raise BadInput("reads only zeros, or values that are no numbers", field="module", value=name, mend="leave it out of the targets")
    for _ in range(DOUBLINGS):
        matrix = C.clone()
        matrix.diagonal().add_(mean * damping)
        try:
            inverse = torch.linalg.inv(matrix)
            product = matrix @ inverse
            product.diagonal().sub_(1)
            if float(product.norm()) < tolerance:
                return Regularised(matrix, inverse, damping)
        except RuntimeError:  # torch's LinAlgError: singular
            pass
        damping *= 2
    raise BadInput("has a covariance that cannot be inverted", field="module", value=name, mend="give more data")


def components(weight: Tensor, C: Regularised) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, R], S [R] descending, V [R, d_in], R = min(d_out, d_in), with weight = U S V and SVD(weight C') = U S (V C')."""
    U, S, Vt = torch.linalg.svd(weight.to(C.matrix.dtype) @ C.matrix, full_matrices=False)
    return U, S, Vt @ C.inverse


class Factors(NamedTuple):
    """A [r, d_in] and B [d_out, r]; `share` is the part of Σ S² that they stand for."""

    A: Tensor
    B: Tensor
    share: float


def decompose(weight: Tensor, C: Regularised, rank: int, mode: str, scaling: float = 1.0) -> Factors:
    """The adapter of one weight [d_out, d_in]: the last `rank` components in mode "knowledge", the first in "instruction"."""
    U, S, V = components(weight, C)
    chosen = slice(len(S) - rank, None) if mode == "knowledge" else slice(rank)
    root = (S[chosen] / scaling).sqrt()
    share = float(S[chosen].square().sum() / S.square().sum())
    return Factors((root[:, None] * V[chosen]).contiguous(), (U[:, chosen] * root).contiguous(), share)


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
    prefix = _prefix(model)
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


def batches(rows: Sequence[Sequence[int]], size: int, *, padding: int = 0, device: Any = None) -> list[dict[str, Tensor]]:
    """Right-padded batches: `input_ids` and `attention_mask` [size, length]."""
    found = []
    for at in range(0, len(rows), size):
        chunk = rows[at : at + size]
        length = max(map(len, chunk))
        tokens = torch.tensor([[*row, *[padding] * (length - len(row))] for row in chunk])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in chunk])
        found.append({"input_ids": tokens.to(device), "attention_mask": mask.to(device)})
    return found


@torch.no_grad()
def adapt(
    model: nn.Module, sample: Batches, settings: Corda | None = None, *, state: Path | None = None, fingerprint: str = "",
    tick: Callable[[], object] | None = None,
) -> Adapted:  # fmt: skip
    """A LoRA adapter for the model, which is changed in place: its target weights become W − scaling · B A.

    Args:
        sample: of `batches`, or any keyword arguments of the model.
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


def sample_fingerprint(weights: str, rows: Sequence[Sequence[int]]) -> str:
    """Of a checkpoint's fingerprint and the tokens of a sample."""
    return blake2b(json.dumps([weights, [list(row) for row in rows]]).encode(), digest_size=16).hexdigest()


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
    about = initial / ABOUT
    named = str(model.resolve()) if model is not None else json.loads(about.read_text("utf-8"))["model"] if about.is_file() else None
    alpha = other["lora_alpha"] * (math.sqrt(2) if other.get("use_rslora") else 2)
    with whole(out) as part:
        part.mkdir()
        save_file(stacked, part / ADAPTER, metadata={"format": "pt"})
        changed = {**other, "r": rank, "lora_alpha": alpha, "base_model_name_or_path": named, "init_lora_weights": True}
        (part / CONFIG).write_text(json.dumps(changed, indent=2), "utf-8")
    return rank


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
