"""Small language models for `keystep.worlds.ranked_arithmetic`: stock Llamas with a tokenizer, as ordinary folders, that have
random weights or have learned to solve without plans; and such a folder as a worker that answers all requests that wait together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from keystep.lm.base import LM, Request, Sample, draw_key
from keystep.reproduce import torch_for
from keystep.reproduce._nets import Batch, Net, trained
from keystep.solve.explore_execute.format import EXECUTION_END, PLAN_END
from keystep.worlds.ranked_arithmetic import LETTERS, MODULUS, OPERATORS, RULES, problem

PIECES = (
    "<end>", "?", "\\boxed{", "}", "\n", "=", ";", "<", ">", *OPERATORS, *LETTERS, *RULES,
    *(f"{step}." for step in range(1, len(LETTERS) + 1)), *map(str, range(MODULUS)),
)  # fmt: skip
PATTERN = r"\\boxed\{|\d+\.|\d+|[^\d]"
AT_ONCE = 256  # rows of a batch


def untrained(folder: Path, seed: int, width: int = 64, layers: int = 2, heads: int = 4, longest: int = 128) -> Path:
    """The model of a seed, as a folder.

    Raises:
        MissingExtra: torch is not installed.
    """
    torch_for(seed)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(PIECES)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    core.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=core, eos_token="<end>", pad_token="<end>", unk_token="?").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(PIECES), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=longest, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
        pad_token_id=0, initializer_range=width**-0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def solving(folder: Path, seed: int, updates: int, numbers: int, batch: int = 48, tick: Any = None) -> Path:
    """A model that has learned to write right executions after questions, without plans: what there is before chains."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    untrained(folder, seed)
    load: Any = AutoTokenizer.from_pretrained
    tokenizer = load(folder)

    def rows(draw: np.random.Generator) -> Batch:
        random = Random(int(draw.integers(2**62)))
        drawn = [problem(random, numbers) for _ in range(batch)]
        asked = [tokenizer(p.question)["input_ids"] for p in drawn]
        said = [[*tokenizer(p.execution())["input_ids"], 0] for p in drawn]
        longest = max(len(a) + len(s) for a, s in zip(asked, said, strict=True))
        tokens, counted = np.zeros((batch, longest), np.int64), np.zeros((batch, longest), bool)
        for row, (a, s) in enumerate(zip(asked, said, strict=True)):
            tokens[row, : len(a) + len(s)] = [*a, *s]
            counted[row, len(a) : len(a) + len(s)] = True
        return tokens, counted

    net = Net(
        data=f"ranked arithmetic of {numbers} numbers modulo {MODULUS}, {batch} a batch, pieces {PIECES}", vocabulary=len(PIECES),
        longest=128, updates=updates, seed=seed, heads=4,
    )  # fmt: skip
    weights = trained(net, rows, tick=tick).state_dict()
    model = LlamaForCausalLM.from_pretrained(folder)
    model.load_state_dict(weights)
    with torch.no_grad():
        model.save_pretrained(folder)
    return folder


class Chains(LM):
    """A folder's model; it knows the tags' tokens to stop at. Every draw is keyed by (seed, key, index)."""

    def __init__(self, folder: Path) -> None:
        from keystep.lm.local import fingerprint
        from keystep.nn import tuning
        from keystep.solve.explore_execute.data import tags_of

        self.name = folder.name
        self.model, self.tokenizer = tuning.loaded(str(folder))
        self.model.eval()
        self.print = fingerprint(self.model)
        tags = tags_of(self.tokenizer)
        assert tags is not None
        self.ends = {PLAN_END: tags.plan_end, EXECUTION_END: tags.execution_end}
        self._waiting: list[tuple[Request, int, asyncio.Future[list[int]]]] = []

    def identity(self) -> Any:
        return {"chains": self.print}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._work)
        mine = [(request, index, loop.create_future()) for index in range(request.first, request.first + request.n)]
        self._waiting += mine
        for _, index, future in mine:
            tokens = await future
            text = self.tokenizer.decode([token for token in tokens if token not in (0, *self._stops(request))])
            yield Sample(text, index, tokens_out=len(tokens), model=self.name)

    def _stops(self, request: Request) -> list[int]:
        return [self.ends[stop] for stop in request.stop]

    def _work(self) -> None:
        from keystep.nn.rollout import sampled
        from keystep.nn.tuning import prompt_tokens

        waiting, self._waiting = self._waiting, []
        kinds: dict[tuple[float, tuple[str, ...], int], list[tuple[Request, int, asyncio.Future[list[int]]]]] = {}
        for each in waiting:
            kinds.setdefault((each[0].temperature, each[0].stop, each[0].max_tokens), []).append(each)
        import torch

        for (temperature, _, most), every in kinds.items():
            for at in range(0, len(every), AT_ONCE):
                part = every[at : at + AT_ONCE]
                prompts = [prompt_tokens(self.tokenizer, str(request.prompt), request.prefix) for request, _, _ in part]
                keys = [draw_key(request.seed, request.key, index) for request, index, _ in part]
                numbers = torch.from_numpy(np.stack([np.random.Generator(np.random.Philox(key=key)).random(most) for key in keys]))
                ends = [0, *self._stops(part[0][0])]
                found = sampled(self.model, prompts, most, ends, temperature=temperature, numbers=numbers)
                for (_, _, future), tokens in zip(part, found, strict=True):
                    if not future.cancelled():
                        future.set_result(tokens)
