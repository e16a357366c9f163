"""A guard at work in a model: Neuron Adjust's and Key Space Detection's run time, with stock transformers and nothing of keystep.

A copy of this file lies in every guard's folder as `custom_generate/generate.py`, where transformers finds `generate`; so it imports torch,
transformers and safetensors only. Paper: Li, Sun, Weng 2025, Effective Skill Unlearning through Intervention and Abstention, arXiv
2503.21730. Names: `keys`: what a layer's down projection reads, act(W_gate x) * (W_up x), [rows, tokens, d_ff]; `Box`: m ± α k s;
`Shift`: the normals of retain N(μ1, s1) and forget N(μ2, s2) of some neurons' pre-activations.

Covers greedy decoding, sampling and beam search of decoders. Not covered, and refused: answers that leave before they are whole (a
streamer), tokens that are checked several at once (assisted decoding, prompt lookup), prompts read in pieces.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

FORMAT = "keystep-guard-1"
ABOUT, WEIGHTS = "guard.json", "guard.safetensors"
SAMPLED = 1024  # values of a tensor that its print is made of
REFUSED = {  # options of generate that a box cannot watch over
    "streamer": "what is streamed cannot be taken back", "assistant_model": "assisted decoding reads several tokens at once",
    "prompt_lookup_num_tokens": "prompt lookup reads several tokens at once", "assistant_early_exit": "it reads several tokens at once",
    "prefill_chunk_size": "a prompt in pieces has several last tokens",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Box:
    """The key space of a skill in one layer: m ± α k s around its prompts' keys at their last token.

    Args:
        down: name of the module whose input the keys are.
        k: the smallest for which all probed keys are inside.
        mean, std: m, s [d_ff], float32; s is infinite where all probed keys are the same, which leaves that dimension out.
    """

    name: str
    layer: int
    down: str
    k: float
    alpha: float
    mean: Tensor
    std: Tensor

    @property
    def limit(self) -> float:
        return self.alpha * self.k


@dataclass(frozen=True, slots=True)
class Shift:
    """Neurons of one layer whose pre-activations (the output of module `gate`) are adjusted; all tensors [n], float32 but `neurons`."""

    layer: int
    gate: str
    neurons: Tensor
    retain_mean: Tensor
    retain_std: Tensor
    forget_mean: Tensor
    forget_std: Tensor


@dataclass(frozen=True, slots=True)
class Zeroed:
    """Neurons of one layer whose keys are zero: Selective Pruning."""

    layer: int
    down: str
    neurons: Tensor


@dataclass(frozen=True, slots=True)
class Guard:
    """What is done in a model to forget. Any of `boxes`, `shifts` and `zeroed` may be empty.

    Args:
        refusal: the tokens that take the place of an answer, without the end token.
        watch: "all": a box is looked at after the prompt and after every generated token; "prompt": after the prompt only.
        seed: of Neuron Adjust's draws, begun anew at every `generate`.
        architecture: `model_type` of the model that it was made for.
        prints: of that model's parameters, by name (`prints`).
        about: settings and measures, as JSON.
    """

    boxes: tuple[Box, ...] = ()
    shifts: tuple[Shift, ...] = ()
    zeroed: tuple[Zeroed, ...] = ()
    refusal: tuple[int, ...] = ()
    watch: str = "all"
    seed: int = 0
    architecture: str = ""
    prints: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def ratio(keys: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """max_j |v_j − m_j| / s_j of keys [..., d_ff]: the k at which the box reaches them, [...]."""
    return ((keys.float() - mean).abs() / std).amax(-1)


def flip_log_odds(x: Tensor, shift: Shift) -> Tensor:
    """log d2 − log d1 of pre-activations [..., n]: above 0 they are likelier under forget; the flip probability is its sigmoid."""
    z1, z2 = (x - shift.retain_mean) / shift.retain_std, (x - shift.forget_mean) / shift.forget_std
    return (z1.square() - z2.square()) / 2 + (shift.retain_std / shift.forget_std).log()


def adjusted(x: Tensor, shift: Shift, draw: Tensor) -> Tensor:
    """Pre-activations [..., n] after Neuron Adjust: 2 μ1 − t, t = (x − μ2) / s2 · s1 + μ1, where d1 <= d2 and a draw, from [0, 1), is below
    the flip probability."""
    odds = flip_log_odds(x, shift)
    mirrored = shift.retain_mean - (x - shift.forget_mean) / shift.forget_std * shift.retain_std
    return torch.where((odds >= 0) & (draw < odds.sigmoid()), mirrored, x)


def prints(model: nn.Module) -> dict[str, str]:
    """Shape and a hash of some values of every parameter, by name; the same in float32 and bfloat16."""
    found = {}
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].to(torch.bfloat16).cpu().view(torch.int16)
        found[name] = f"{list(parameter.shape)} {blake2b(some.numpy().tobytes(), digest_size=6).hexdigest()}"
    return found


def misfit(guard: Guard, model: Any) -> str:
    """Why a guard does not belong to a model; "" where it does."""
    if guard.architecture and model.config.model_type != guard.architecture:
        return f"is of architecture {model.config.model_type}, the guard is for {guard.architecture}"
    own = prints(model) if guard.prints else {}
    for name in sorted(own.keys() ^ guard.prints.keys()):
        return f"has a tensor {name}, the guard knows none" if name in own else f"has no tensor {name}"
    for which in (0, 2):  # shapes first
        for name, mine in guard.prints.items():
            parts = [each.rpartition(" ") for each in (own[name], mine)]
            if parts[0][which] != parts[1][which]:
                shapes = f"the shape {parts[0][0]}, the guard is for {parts[1][0]}"
                return f"has other values in tensor {name}" if which else f"has a tensor {name} of {shapes}"
    return ""


def guard_of(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Guard:
    """A guard from what its two files hold. What is wrong in them shows as a KeyError, TypeError or ValueError. Tensors are copied: those
    that safetensors gives are the file itself, mapped, and it may be written anew."""
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r}")

    def parts(kind: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
        rows = enumerate(about[kind])
        return [{**row, **{name: tensors[f"{kind}.{number}.{name}"].clone() for name in names}} for number, row in rows]

    boxes = [Box(**row) for row in parts("boxes", ("mean", "std"))]
    shifts = [Shift(**row) for row in parts("shifts", ("neurons", "retain_mean", "retain_std", "forget_mean", "forget_std"))]
    zeroed = [Zeroed(**row) for row in parts("zeroed", ("neurons",))]
    return Guard(tuple(boxes), tuple(shifts), tuple(zeroed), tuple(about["refusal"]), about["watch"], about["seed"], about["architecture"],
                 about["prints"], about["about"])  # fmt: skip


def read(folder: Path) -> Guard:
    """The guard in a folder."""
    return guard_of(json.loads((folder / ABOUT).read_text("utf-8")), load_file(folder / WEIGHTS))


class Attached:
    """A guard in a model: hooks in its feed-forward layers, and a `generate` that abstains. Taken out, the model is as it was.

    `flagged` tells of each row of the last `generate` whether it was replaced.
    """

    def __init__(self, model: Any, guard: Guard) -> None:
        self.model, self.guard, self.off = model, guard, False
        self.flagged: list[bool] = []
        self.draws: dict[torch.device, torch.Generator] = {}
        self.hooks = [model.get_submodule(each.gate).register_forward_hook(self._shifting(each)) for each in guard.shifts]
        self.hooks += [model.get_submodule(each.down).register_forward_pre_hook(self._zeroing(each)) for each in guard.zeroed]
        self.before = vars(model).get("generate")
        self.stock = model.generate
        model.generate = self.generate

    def remove(self) -> None:
        """Take the guard out. Of several, the last one put in goes first."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        if vars(self.model).get("generate") == self.generate:
            del self.model.generate
            if self.before is not None:
                self.model.generate = self.before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model without its guard, for a while."""
        before, self.off = self.off, True
        try:
            yield
        finally:
            self.off = before

    def reseed(self, seed: int | None = None) -> None:
        """Begin Neuron Adjust's draws anew."""
        for device, draw in self.draws.items():
            self.draws[device] = draw.manual_seed(self.guard.seed if seed is None else seed)

    def _draw(self, shape: torch.Size, device: torch.device) -> Tensor:
        if device not in self.draws:
            self.draws[device] = torch.Generator(device).manual_seed(self.guard.seed)
        return torch.rand(shape, generator=self.draws[device], device=device)

    def _shifting(self, shift: Shift) -> Callable[..., Tensor | None]:
        now = [shift]

        def adjust(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.off:
                return None
            now[0] = own = _on(now[0], output.device)
            chosen = output[..., own.neurons].float()
            found = adjusted(chosen, own, self._draw(chosen.shape, output.device))
            return output.index_copy(-1, own.neurons, found.to(output.dtype))

        return adjust

    def _zeroing(self, zeroed: Zeroed) -> Callable[..., tuple[Any, ...] | None]:
        now = [zeroed]

        def zero(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self.off:
                return None
            now[0] = own = _on(now[0], args[0].device)
            return (args[0].index_fill(-1, own.neurons, 0), *args[1:])

        return zero

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """transformers' own `generate`, but an answer whose keys come into a box is replaced as a whole by the refusal. A refusal is not
        cut by `max_new_tokens`; scores and the like in a returned dict stay those of the answer that was begun.

        Raises:
            ValueError: an option with which a box cannot be watched.
        """
        self.reseed()
        self.flagged = []
        if self.off or not self.guard.boxes:
            return self.stock(*inputs, **options)
        name, why = self.unwatchable(options)
        if name:
            raise ValueError(f"{name}: cannot be used with a guard, as {why}")
        ends = _option(self.model, options, "eos_token_id")
        ends = [] if ends is None else [ends] if isinstance(ends, int) else torch.as_tensor(ends).flatten().tolist()
        padding = _option(self.model, options, "pad_token_id")
        padding = int(padding) if padding is not None else ends[0] if ends else 0
        prompt = inputs[0] if inputs else options.get("inputs")
        prompt = options.get("input_ids") if prompt is None else prompt
        beams = int(_option(self.model, options, "num_beams") or 1)
        watch = _Watch(self.model, self.guard, [*ends, padding], beams, options.pop("stopping_criteria", None))
        with watch:
            found = self.stock(*inputs, stopping_criteria=StoppingCriteriaList([watch]), **options)
        rows = found if isinstance(found, Tensor) else found.sequences
        flags = watch.flags(len(rows))
        self.flagged = flags.tolist()
        if any(self.flagged):
            width = prompt.shape[1] if prompt is not None else 0 if options.get("inputs_embeds") is not None else 1
            rows = self._replaced(rows, flags, width, ends, padding)
        if isinstance(found, Tensor):
            return rows
        found.sequences = rows
        return found

    def unwatchable(self, options: Mapping[str, Any]) -> tuple[str, str]:
        """The option of `generate` with which a box cannot be watched, and why; ("", "") where there is none."""
        given = (pair for pair in REFUSED.items() if self.guard.boxes and _option(self.model, options, pair[0]) not in (None, False))
        return next(given, ("", ""))

    def _replaced(self, rows: Tensor, flags: Tensor, width: int, ends: list[int], padding: int) -> Tensor:
        refusal = [*self.guard.refusal, *ends[:1]]
        kept = [row[:width].tolist() + refusal if flag else row.tolist() for row, flag in zip(rows, flags.tolist(), strict=True)]
        longest = max(len(row) for row in kept)
        return torch.tensor([row + [padding] * (longest - len(row)) for row in kept], dtype=rows.dtype, device=rows.device)


def _on(part: Any, device: torch.device) -> Any:
    """A box, shift or zeroed with its tensors on a device."""
    values = {name: getattr(part, name) for name in part.__dataclass_fields__}
    if all(value.device == device for value in values.values() if isinstance(value, Tensor)):
        return part
    return type(part)(**{name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()})


def _option(model: Any, options: Mapping[str, Any], name: str) -> Any:
    """Of one call of `generate`: as given, as in the given config, or the model's own."""
    for config in (options.get("generation_config"), model.generation_config):
        if options.get(name) is None and getattr(config, name, None) is not None:
            return getattr(config, name)
    return options.get(name)


class _Watch(StoppingCriteria):
    """Looks at the keys of one `generate`, not at those of another thread's. A row whose answer has ended is not looked at any more; a
    flagged one ends.

    In beam search rows change places, so an example is flagged when any of its beams is, also one that is not returned.
    """

    def __init__(self, model: Any, guard: Guard, ends: list[int], beams: int, others: Any) -> None:
        self.model, self.guard, self.ends, self.beams = model, guard, ends, beams
        self.others = StoppingCriteriaList(others or [])
        self.thread = threading.get_ident()
        self.now: Tensor | None = None  # rows inside a box in this forward pass
        self.last: Tensor | None = None  # index of each row's last token, where it is not the end of the row
        self.flagged: Tensor | None = None
        self.live: Tensor | None = None  # rows whose answer has not ended
        self.ended = torch.empty(0)
        self.hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        self.hooks = [self.model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self.hooks += [self.model.get_submodule(box.down).register_forward_pre_hook(self._reading(box)) for box in self.guard.boxes]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if threading.get_ident() != self.thread:
            return
        self.now = self.last = None
        mask = options.get("attention_mask")
        if self.flagged is None and isinstance(mask, Tensor) and mask.ndim == 2:
            order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            self.last = (order * (mask != 0)).argmax(1) - mask.shape[1]

    def _reading(self, box: Box) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        now = [box]

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            if threading.get_ident() != self.thread:
                return
            keys = args[0]
            if keys.ndim != 3:
                raise RuntimeError(f"{box.down} reads {keys.ndim} dimensions instead of rows, tokens and keys: the guard cannot watch it")
            now[0] = own = _on(now[0], keys.device)
            last = keys[:, -1] if self.last is None else keys[torch.arange(len(keys), device=keys.device), self.last.to(keys.device)]
            hit = ratio(last, own.mean, own.std) <= own.limit
            self.now = hit if self.now is None else self.now | hit.to(self.now.device)

        return look

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        if self.now is None and (self.guard.watch == "all" or self.flagged is None):
            raise RuntimeError("the guard saw no keys in a forward pass, and cannot vouch for this answer")
        if self.now is not None:
            self._count(self.now, input_ids)
            self.now = None
            if self.guard.watch == "prompt":
                self.__exit__()
        assert self.flagged is not None and self.live is not None
        if self.beams > 1:
            nothing = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            return self.others(input_ids, scores, **options) if self.others else nothing
        if not self.others:
            return self.flagged.to(input_ids.device)
        over = self.others(input_ids, scores, **options) | self.flagged.to(input_ids.device)
        self.live &= ~over.to(self.live.device)
        return over

    def _count(self, hit: Tensor, input_ids: Tensor) -> None:
        if self.flagged is None or self.live is None:
            self.flagged, self.live = torch.zeros_like(hit), torch.ones_like(hit)
            self.ended = torch.tensor(self.ends, dtype=input_ids.dtype, device=hit.device)
        if self.beams > 1:
            self.flagged |= hit
        else:
            self.flagged |= hit & self.live
            self.live &= ~torch.isin(input_ids[:, -1].to(hit.device), self.ended)

    def flags(self, rows: int) -> Tensor:
        """Of each returned row."""
        if self.flagged is None:
            return torch.zeros(rows, dtype=torch.bool)
        flagged = self.flagged.cpu()
        if self.beams > 1:
            flagged = flagged.view(-1, self.beams).any(1)
            flagged = flagged.repeat_interleave(rows // len(flagged))
        return flagged


def generate(*inputs: Any, model: Any, guard: Any = None, **options: Any) -> Any:
    """What transformers calls for a folder with a guard in it: `from_pretrained(FOLDER, trust_remote_code=True)` where the model lies there
    too, `model.generate(…, custom_generate=FOLDER, guard=FOLDER, trust_remote_code=True)` where it does not.

    Raises:
        ValueError: the guard was made for another model.
    """
    folder = str(guard or model.name_or_path)
    known = vars(model).setdefault("_keystep_guards", {})
    if folder not in known:
        made = read(Path(folder))
        problem = misfit(made, model)
        if problem:
            raise ValueError(f"model: {problem}")
        known[folder] = made
    before = vars(model).pop("generate", None)  # this function itself, where from_pretrained put it
    attached = Attached(model, known[folder])
    try:
        return attached.generate(*inputs, **{name: value for name, value in options.items() if value is not None})
    finally:
        attached.remove()
        if before is not None:
            model.generate = before
