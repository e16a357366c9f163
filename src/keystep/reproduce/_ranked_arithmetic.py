"""A small language model for `keystep.worlds.ranked_arithmetic`: a stock Llama of random weights with its tokenizer, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keystep.reproduce import torch_for
from keystep.worlds.ranked_arithmetic import LETTERS, MODULUS, OPERATORS

_PIECES = r"\\boxed\{|\d+\.|\d+|[^\d]"


def untrained(folder: Path, seed: int, width: int = 64, layers: int = 3, heads: int = 4, longest: int = 192) -> Path:
    """Write the model of a seed, if it is not there.

    Raises:
        MissingExtra: torch is not installed.
    """
    if (folder / "config.json").exists():
        return folder
    torch_for(seed)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<end>", "?", "\\boxed{", "}", "\n", "=", ";", "<", ">", *OPERATORS, *LETTERS]
    pieces += [f"{step}." for step in range(1, len(LETTERS) + 1)] + [str(value) for value in range(MODULUS)]
    core = tokenizers.Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated")
    core.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=core, eos_token="<end>", pad_token="<end>", unk_token="?")
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=longest, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
        pad_token_id=0, initializer_range=width**-0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
