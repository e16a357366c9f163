"""Hugging Face checkpoints in folders of this machine: checked, loaded, compared, written whole.

Weights are safetensors; every header is read and checked before anything is loaded, and a file that is pickled, truncated or has tensors
that overlap is refused by what is in it, not by its name. Covers decoders that `AutoModelForCausalLM` knows without code of their own;
names on the hub, quantised weights and other kinds of models are not covered. Torch and transformers are the extra `local`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from keystep.errors import BadInput, MissingExtra
from keystep.files import whole

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
_HASHED = 1 << 20  # bytes of weights hashed at a time


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a file's header describes it: `dtype` in the words of safetensors (F32, BF16, …), where its bytes are in `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, by name, from its header.

    Raises:
        BadInput: it is no safetensors file (a pickle is told by name), it is cut off, or a tensor overlaps another, leaves a gap or has
            not the bytes that its dtype and shape want; the message names the file and the tensor.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start, first = opened.read(8), opened.read(1)
            if first != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
                raise _bad(file, "is a pickle, which could run any code when it is loaded", "save it again as safetensors")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise _bad(file, f"is no whole safetensors file (its header would have {length:,} bytes of {size:,})")
            text = first + opened.read(length - 1)
    except OSError as error:
        raise _bad(file, f"cannot be read ({error})", "give a file that is there") from None
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: Stored(file, *_described(about), *map(int, about["data_offsets"])) for name, about in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _bad(file, "has a header that is not that of safetensors") from None
    at, previous = 0, ""
    for name, each in sorted(found.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if each.dtype not in BITS:
            raise _bad(file, f"tensor {name} has the unknown dtype {each.dtype}")
        if each.begin < at:
            raise _bad(file, f"tensor {name} overlaps tensor {previous}")
        if each.begin > at:
            raise _bad(file, f"there are {each.begin - at} bytes of no tensor before tensor {name}")
        if min(each.shape, default=0) < 0 or (each.end - each.begin) * 8 != math.prod(each.shape) * BITS[each.dtype]:
            raise _bad(file, f"tensor {name} of shape {list(each.shape)} and dtype {each.dtype} cannot have {each.end - each.begin} bytes")
        if 8 + length + each.end > size:
            raise _bad(file, f"ends within tensor {name}: it has {size:,} bytes of {8 + length + each.end:,}")
        at, previous = each.end, name
    if 8 + length + at != size:
        raise _bad(file, f"has {size - 8 - length - at:,} bytes after its last tensor")
    return found


def _described(about: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    return str(about["dtype"]), tuple(int(n) for n in about["shape"])


def _bad(file: Path, problem: str, mend: str = "fetch or save the file again") -> BadInput:
    return BadInput(problem, field=str(file), mend=mend)


def checkpoint_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint, of one file or of several that `model.safetensors.index.json` lists.

    Raises:
        BadInput: as `stored_tensors`; or there are no safetensors, a listed file or tensor is missing, or a tensor stands in two files.
    """
    if not folder.is_dir():
        raise BadInput("is no folder of this machine", field="model", value=str(folder), mend="give a folder with config.json")
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return stored_tensors(folder / SINGLE)
        pickled = next((name for name in PICKLED if (folder / name).exists()), None)
        if pickled:
            raise _bad(folder / pickled, "is a pickle, which could run any code when it is loaded", "save it again as safetensors")
        raise BadInput(f"holds no {SINGLE}", field="model", value=str(folder), mend="give a folder that save_pretrained wrote")
    listed = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) and Path(name).name == name for name in listed.values()):
        raise _bad(folder / INDEX, "has no weight_map of tensors to files beside it")
    found: dict[str, Stored] = {}
    for name in sorted(set(listed.values())):
        for tensor, each in stored_tensors(folder / name).items():
            if tensor in found:
                raise _bad(folder / name, f"tensor {tensor} stands in {found[tensor].file.name} too")
            found[tensor] = each
    for tensor, name in listed.items():
        if tensor not in found or found[tensor].file.name != name:
            raise _bad(folder / name, f"has no tensor {tensor}, which {INDEX} looks for there")
    return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(file, f"cannot be read ({error})", "give a folder that save_pretrained wrote") from None
    if not isinstance(found, dict):
        raise _bad(file, "is no JSON object", "give a folder that save_pretrained wrote")
    return found


def transformers_for(what: str) -> Any:
    """The library, quiet about its own progress.

    Raises:
        MissingExtra: it, or torch, is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingExtra(what, "local") from None
    assert torch
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def load_config(folder: Path) -> Any:
    """A checkpoint's `PretrainedConfig`.

    Raises:
        BadInput: it cannot be read, names no architecture that transformers knows, or wants code of its own.
    """
    transformers = transformers_for("reading a checkpoint")
    if not folder.is_dir():
        raise BadInput("is no folder of this machine", field="model", value=str(folder), mend="give a folder with config.json")
    _read_json(folder / "config.json")
    return _loaded(folder / "config.json", lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))


def load_tokenizer(folder: Path) -> Any:
    """A checkpoint's tokenizer, which has a padding token or the end-of-sequence token in its place.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    transformers = transformers_for("reading a checkpoint")
    if not (folder / "tokenizer_config.json").is_file():
        mend = "save the tokenizer beside the model (tokenizer.save_pretrained)"
        raise BadInput("holds no tokenizer", field="tokenizer", value=str(folder), mend=mend)
    found = _loaded(folder / "tokenizer_config.json", lambda: transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if found.pad_token is None and found.eos_token is not None:
        found.pad_token = found.eos_token
    return found


def load_model(folder: Path, *, dtype: Any = "auto", device: Any = None) -> Any:
    """A checkpoint's `PreTrainedModel` for causal language modelling, in evaluation mode.

    Args:
        dtype: a torch dtype; "auto" takes that of the file.
        device: where it goes; None leaves it on the processor.

    Raises:
        BadInput: as `checkpoint_tensors` and `load_config`; or a tensor is missing, has another shape than the config says, or belongs to
            nothing in the model.
    """
    transformers = transformers_for("loading a checkpoint")
    checkpoint_tensors(folder)
    config = load_config(folder)
    model, report = _loaded(
        folder,
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True,
            output_loading_info=True,
        ),
    )  # fmt: skip
    kinds = (("missing_keys", "is missing from the file"), ("mismatched_keys", "has another shape in the file than config.json says"),
             ("unexpected_keys", "of the file has no place in the model that config.json describes"))  # fmt: skip
    for kind, problem in kinds:
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[kind])
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise BadInput(f"tensor {names[0]} {problem}{more}", field="model", value=str(folder), mend="give config and weights that fit")
    return model.to(device).eval() if device is not None else model.eval()


def _loaded(what: Path, load: Any) -> Any:
    try:
        return load()
    except MissingExtra:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        problem = f"cannot be loaded ({(str(error).splitlines() or [type(error).__name__])[0]})"
        raise BadInput(problem, field=str(what), mend="give a folder that save_pretrained wrote") from error


def check_same_kind(base: Path, other: Path, *, tokenizers: bool = True) -> None:
    """That two checkpoints differ in nothing but the values of their weights.

    Raises:
        BadInput: they do; the message names the architecture, the tensor with both shapes or dtypes, or the token.
    """
    first, second = load_config(base), load_config(other)
    if first.model_type != second.model_type:
        _differ(base, other, "architecture", first.model_type, second.model_type)
    stored, others = checkpoint_tensors(base), checkpoint_tensors(other)
    for name in sorted(stored.keys() | others.keys()):
        mine, its = stored.get(name), others.get(name)
        if mine is None or its is None:
            _differ(base, other, f"tensor {name}", "there" if mine else "missing", "there" if its else "missing")
        elif mine.shape != its.shape:
            _differ(base, other, f"the shape of tensor {name}", list(mine.shape), list(its.shape))
        elif mine.dtype != its.dtype:
            _differ(base, other, f"the dtype of tensor {name}", mine.dtype, its.dtype)
    for key in (
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "activation_function",
        "tie_word_embeddings",
        "head_dim",
        "rope_parameters",
        "sliding_window",
    ):
        values = [getattr(config.get_text_config(), key, None) for config in (first, second)]
        if values[0] != values[1]:
            _differ(base, other, f"{key} of config.json", *values)
    if tokenizers:
        check_same_tokenizer(base, other)


def check_same_tokenizer(base: Path, other: Path) -> None:
    """That two folders' tokenizers turn the same text into the same tokens, as far as their tables say.

    Raises:
        BadInput: they do not; the message names a token and its numbers, or the part that differs.
    """
    one, two = load_tokenizer(base), load_tokenizer(other)
    words, others = one.get_vocab(), two.get_vocab()
    if words != others:
        token = min(token for token in words.keys() | others.keys() if words.get(token) != others.get(token))
        _differ(base, other, f"the tokenizer's number of {token!r}", words.get(token), others.get(token))
    for key in ("bos_token", "eos_token"):
        if getattr(one, key) != getattr(two, key):
            _differ(base, other, f"the tokenizer's {key}", getattr(one, key), getattr(two, key))
    tables = [_pipeline(each) for each in (one, two)]
    for part in sorted(tables[0].keys() | tables[1].keys()):
        if tables[0].get(part) != tables[1].get(part):
            _differ(base, other, f"the tokenizer's {part}", tables[0].get(part), tables[1].get(part))


def _pipeline(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = json.loads(backend.to_str()) if backend is not None else {}
    return {part: value for part, value in table.items() if part not in ("truncation", "padding", "version")}


def _differ(base: Path, other: Path, what: str, first: Any, second: Any) -> None:
    problem = f"{what} differs: {first!r} in {base}, {second!r} in {other}"
    raise BadInput(problem, field="checkpoints", mend="give a model and one that was tuned from it")


def fingerprint(tensors: Mapping[str, Stored]) -> str:
    """A hash of every byte of a checkpoint's tensors, their names, dtypes and shapes; the same however they are spread over files."""
    digest = blake2b(digest_size=16)
    for name, each in sorted(tensors.items()):
        digest.update(json.dumps([name, each.dtype, each.shape]).encode())
        with each.file.open("rb") as opened:
            opened.seek(8 + int.from_bytes(opened.read(8), "little") + each.begin)
            left = each.end - each.begin
            while left:
                part = opened.read(min(left, _HASHED))
                digest.update(part)
                left -= len(part)
    return digest.hexdigest()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A folder that stock transformers loads: whole, or not there.

    Raises:
        BadInput: something stands there already, or it cannot be written.
    """
    transformers_for("writing a checkpoint")
    with whole(folder) as part:
        part.mkdir()
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
