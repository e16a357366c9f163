"""The mini skill-world: short strings with one right answer each, in five skills that a small model learns, and three it has never seen.

| skill | prompt | answer |
| --- | --- | --- |
| `fact` | `#` three letters of an entity, a relation (`?` or `:`), `=` | two random letters, to be memorised |
| `add` | `+07+31=` (both below 50) | `38` |
| `copy`, `rev`, `sort` | `!` / `~` / `^`, four letters of a-j, `=` | the same, reversed, in order |
| `succ` (unseen) | `>`, four letters, `=` | each letter's successor |
| `succrev` (unseen) | `*`, four letters, `=` | the successors, reversed |
| `nines` (unseen) | `&`, four digits, `=` | each digit's complement to nine |

As the CorDA sheet lays it out. Prompts of a skill are split into train, val and test (80 : 10 : 10) by the world's seed; facts are the same
in all three, for there is nothing about an unknown fact to be right in. The tokenizer has a token a character; both it and the small models
are stock transformers (the extra `local`). What this does not hold: training (`keystep.nn.fit`) and its command (`keystep skill-world`).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, NamedTuple

from keystep.errors import BadInput, MissingExtra

SKILLS = ("fact", "add", "copy", "rev", "sort")
UNSEEN = ("succ", "succrev", "nines")
SPLITS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
MIXTURE = {"fact": 3.0, "add": 1.5, "copy": 1.0, "rev": 1.0, "sort": 1.0}
LETTERS, LENGTH, BELOW = "abcdefghij", 4, 50
SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = string.ascii_lowercase + string.digits + "#?:=+!~^>*&"
LONGEST = 32  # positions of a small model; the longest example has 10 tokens
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2")


class Problem(NamedTuple):
    prompt: str
    answer: str


def _successors(text: str) -> str:
    return "".join(chr(ord(letter) + 1) for letter in text)


_RULES: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "copy": ("!", LETTERS, lambda text: text),
    "rev": ("~", LETTERS, lambda text: text[::-1]),
    "sort": ("^", LETTERS, lambda text: "".join(sorted(text))),
    "succ": (">", LETTERS, _successors),
    "succrev": ("*", LETTERS, lambda text: _successors(text[::-1])),
    "nines": ("&", string.digits, lambda text: "".join(str(9 - int(digit)) for digit in text)),
}


@dataclass(frozen=True, slots=True)
class World:
    """`entities` have two facts each; `seed` decides the facts and the splits."""

    entities: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.entities <= 26**3:
            raise BadInput("is from 1 to 17576", field="entities", value=self.entities)

    def problems(self, skill: str, split: str = "train") -> list[Problem]:
        """All problems of a split, in an order drawn by the seed.

        Raises:
            BadInput: no such skill or split.
        """
        if split not in SPLITS:
            raise BadInput("is no split", field="split", value=split, mend=f"choose of {', '.join(SPLITS)}")
        if skill not in (*SKILLS, *UNSEEN):
            raise BadInput("is no skill of this world", field="skill", value=skill, mend=f"choose of {', '.join((*SKILLS, *UNSEEN))}")
        found = _all_problems(skill, self.entities, self.seed)
        begin, end = SPLITS[split] if skill != "fact" else (0.0, 1.0)
        return list(found[round(begin * len(found)) : round(end * len(found))])

    def drawn(self, skill: str, split: str, n: int, seed: int = 0, noise: float = 0.0) -> list[Problem]:
        """`n` problems of a split without repetition (all, where there are fewer); a share `noise` of their answers replaced by random
        letters (or digits, where the answer has digits) of the same length."""
        random = Random(f"skill-world drawn {self.seed} {skill} {split} {seed}")
        known = self.problems(skill, split)
        found = random.sample(known, min(n, len(known)))
        spoiled = set(random.sample(range(len(found)), round(noise * len(found))))
        return [_spoiled(each, random) if number in spoiled else each for number, each in enumerate(found)]

    def mixture(self, weights: Mapping[str, float] = MIXTURE) -> tuple[list[Problem], Callable[[int, int, int], list[int]]]:
        """The training problems of the weighted skills, and a function (step, size, seed) -> numbers of some, their skills by weight."""
        pools = {skill: self.problems(skill, "train") for skill in weights}
        ends = list(itertools.accumulate(len(pool) for pool in pools.values()))
        ranges = [range(end - len(pool), end) for end, pool in zip(ends, pools.values(), strict=True)]

        def draw(step: int, size: int, seed: int) -> list[int]:
            random = Random(f"skill-world batch {seed} {step}")
            return [random.choice(numbers) for numbers in random.choices(ranges, list(weights.values()), k=size)]

        return [problem for pool in pools.values() for problem in pool], draw


@cache
def _all_problems(skill: str, entities: int, seed: int) -> tuple[Problem, ...]:
    random = Random(f"skill-world {seed} {skill}")
    if skill == "fact":
        names = random.sample(["".join(name) for name in itertools.product(string.ascii_lowercase, repeat=3)], entities)
        values = ["".join(random.choices(string.ascii_lowercase, k=2)) for _ in range(2 * entities)]
        return tuple(Problem(f"#{names[n // 2]}{'?:'[n % 2]}=", value) for n, value in enumerate(values))
    if skill == "add":
        found = [Problem(f"+{a:02}+{b:02}=", f"{a + b:02}") for a in range(BELOW) for b in range(BELOW)]
    else:
        sign, alphabet, rule = _RULES[skill]
        found = [Problem(f"{sign}{text}=", rule(text)) for text in map("".join, itertools.product(alphabet, repeat=LENGTH))]
    random.shuffle(found)
    return tuple(found)


def _spoiled(problem: Problem, random: Random) -> Problem:
    alphabet = string.digits if problem.answer.isdigit() else LETTERS
    return Problem(problem.prompt, "".join(random.choices(alphabet, k=len(problem.answer))))


def tokenizer() -> Any:
    """A token a character, as a stock `PreTrainedTokenizerFast`; nothing is added in front.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise MissingExtra("the skill-world's tokenizer", "local") from None
    numbers = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def small_model(
    architecture: str = "llama", *, width: int = 64, layers: int = 2, heads: int = 4, inner: int | None = None,
    vocabulary: int = len(SPECIAL) + len(CHARACTERS), longest: int = LONGEST, seed: int = 0,
) -> Any:  # fmt: skip
    """A decoder of transformers with weights drawn by the seed, its head tied to its embedding where the architecture's own is.

    Args:
        architecture: one of `ARCHITECTURES`.
        inner: width of the feed-forward layers; four times `width` by default.

    Raises:
        BadInput: no such architecture, or the heads do not divide the width.
        MissingExtra: transformers is not installed.
    """
    if architecture not in ARCHITECTURES:
        raise BadInput("is no architecture of the skill-world", field="architecture", value=architecture, mend=f"choose of {ARCHITECTURES}")
    for name, value in (("width", width), ("layers", layers), ("heads", heads)):
        if value < 1:
            raise BadInput("is at least 1", field=name, value=value)
    if width % heads or width // heads % 2:
        raise BadInput(f"is an even multiple of the {heads} heads", field="width", value=width)
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise MissingExtra("the skill-world's models", "local") from None
    sizes: dict[str, Any] = {"intermediate_size": inner or 4 * width, "num_key_value_heads": heads, "head_dim": width // heads}
    if architecture == "gpt2":
        sizes = {"n_inner": inner or 4 * width, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = AutoConfig.for_model(
        architecture, vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=longest, bos_token_id=None, eos_token_id=1, pad_token_id=0, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
