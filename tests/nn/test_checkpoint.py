"""Checkpoints: loaded as stock transformers does, refused by content, compared with the mismatch named, written whole."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from keystep.errors import BadInput
from keystep.files import whole
from keystep.nn.checkpoint import (
    check_same_kind,
    checkpoint_tensors,
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
    save_model,
    stored_tensors,
)
from keystep.worlds.skills import ARCHITECTURES, small_model, tokenizer


def made(folder: Path, architecture: str = "llama", **more) -> Path:
    save_model(small_model(architecture, **({"width": 16, "heads": 2} | more)), tokenizer(), folder)
    return folder


def raw(file: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_reloaded_in_stock_transformers(tmp_path, architecture):
    model = small_model(architecture, width=16, heads=2)
    save_model(model, tokenizer(), tmp_path / "m")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m")
    prompt = torch.tensor([load_tokenizer(tmp_path / "m")("~abcd=")["input_ids"]])
    with torch.no_grad():
        wanted = model(prompt).logits
        assert torch.equal(stock(prompt).logits, wanted) and torch.equal(ours(prompt).logits, wanted)
    assert load_config(tmp_path / "m").model_type == architecture and not ours.training
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_sharded_files_are_one_checkpoint(tmp_path):
    one, many = made(tmp_path / "one"), tmp_path / "many"
    model = small_model(width=16, heads=2)
    with whole(many) as part:
        part.mkdir()
        model.save_pretrained(part, max_shard_size="8KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    assert fingerprint(checkpoint_tensors(one)) == fingerprint(checkpoint_tensors(many))
    check_same_kind(one, many, tokenizers=False)
    shard = sorted(many.glob("*.safetensors"))[1]
    twice = next(iter(load_file(sorted(many.glob("*.safetensors"))[0])))
    save_file(load_file(shard) | {twice: torch.zeros(1)}, shard)
    with pytest.raises(BadInput, match=r"tensor .* stands in .*safetensors too"):
        load_model(many)
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(BadInput, match=r"has no tensor model\..*looks for there"):
        load_model(many)
    shard.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        load_model(many)
    (many / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../one/model.safetensors"}}')
    with pytest.raises(BadInput, match="has no weight_map of tensors to files beside it"):
        load_model(many)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_pickles_are_refused_by_content(tmp_path):
    folder = made(tmp_path / "m")
    for save in (lambda file: torch.save({"a": torch.zeros(2)}, file), lambda file: file.write_bytes(pickle.dumps(Evil()))):
        save(folder / "model.safetensors")
        with pytest.raises(BadInput, match=r"model\.safetensors: is a pickle"):
            load_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin: is a pickle"):
        load_model(folder)


F32 = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": F32 | {"data_offsets": [0, 8]}, "b": F32 | {"data_offsets": [4, 12]}}, 12, "tensor b overlaps tensor a"),
        ({"a": F32 | {"data_offsets": [0, 8]}, "b": F32 | {"data_offsets": [8, 16]}}, 12, "ends within tensor b"),
        ({"a": F32 | {"data_offsets": [0, 8]}, "b": F32 | {"data_offsets": [12, 20]}}, 20, "4 bytes of no tensor before tensor b"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8, "tensor a of shape [3] and dtype F32 cannot have 8 bytes"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8, "tensor a of shape [-2]"),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, 8, "unknown dtype X9"),
        ({"a": F32 | {"data_offsets": [0, 8]}}, 9, "1 bytes after its last tensor"),
        ({"a": 1}, 0, "not that of safetensors"),
        ([1], 0, "not that of safetensors"),
        (b"{nonsense", 0, "not that of safetensors"),
    ],
)
def test_broken_files_name_the_tensor(tmp_path, header, data, said):
    file = raw(tmp_path / "model.safetensors", header, b"\0" * data)
    with pytest.raises(BadInput) as error:
        stored_tensors(file)
    assert said in str(error.value) and "model.safetensors" in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, file)
    assert {name: each.shape for name, each in stored_tensors(file).items()} == {"a": (2,), "b": (3,)}
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(BadInput):
            stored_tensors(file)


def test_weights_and_config_must_fit(tmp_path):
    folder = made(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())

    def changed(**more):
        (folder / "config.json").write_text(json.dumps(config | more))
        with pytest.raises(BadInput) as error:
            load_model(folder)
        return str(error.value)

    assert "tensor model.layers.2." in changed(num_hidden_layers=3) and "is missing" in changed(num_hidden_layers=3)
    assert "tensor model.layers.1." in changed(num_hidden_layers=1) and "has no place" in changed(num_hidden_layers=1)
    assert "has another shape" in changed(intermediate_size=8)
    assert "config.json: cannot be loaded" in changed(model_type="nosuch")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "qwen2"}, "architecture differs: 'llama'"),
        ({"inner": 32}, "the shape of tensor model.layers.0.mlp.down_proj.weight differs: [16, 64]"),
        ({"layers": 1}, "tensor model.layers.1.input_layernorm.weight differs: 'there'"),
        ({"heads": 4}, "num_attention_heads of config.json differs: 2"),
    ],
)
def test_the_mismatch_is_named(tmp_path, change, said):
    base, other = made(tmp_path / "base"), made(tmp_path / "other", **change)
    with pytest.raises(BadInput) as error:
        check_same_kind(base, other)
    assert said in str(error.value)


def test_dtypes_and_tokenizers_are_compared(tmp_path):
    base, same = made(tmp_path / "base"), made(tmp_path / "same", seed=1)
    check_same_kind(base, same)
    assert fingerprint(checkpoint_tensors(base)) != fingerprint(checkpoint_tensors(same))
    save_model(small_model(width=16, heads=2).bfloat16(), tokenizer(), tmp_path / "half")
    with pytest.raises(BadInput, match=r"the dtype of tensor .* differs: 'F32' in .*, 'BF16' in "):
        check_same_kind(base, tmp_path / "half")
    assert load_model(tmp_path / "half").dtype == torch.bfloat16
    file = same / "tokenizer.json"
    table = json.loads(file.read_text())
    vocabulary = table["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    file.write_text(json.dumps(table))
    with pytest.raises(BadInput, match="the tokenizer's number of 'x' differs: 26"):
        check_same_kind(base, same)
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    file.write_text(json.dumps(table | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(BadInput, match="the tokenizer's normalizer differs"):
        check_same_kind(base, same)
    (same / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match="holds no tokenizer"):
        check_same_kind(base, same)
