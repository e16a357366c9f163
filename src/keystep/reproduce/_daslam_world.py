"""The small world of DaSLaM's reproduction: problems of dependent quantities, the frozen solver that is good at short ones, its words.

A problem is a row of people: the first is told ("Ann= 7."), every other one depends on the one before ("Ben: Ann +3."). Asked is somebody
`depth` operations away; who comes after is of no use. Amounts are counted modulo 10, so that every amount is one word. The solver, a
transformer trained from scratch, has only seen sums, words said twice, and questions that are one operation away from what is told or was
asked before. It writes down the fact, the amount that it starts from and the sum, and marks the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep.lm.base import Prompt
from keystep.reproduce._nets import Batch, Batched, Net, trained

MODULUS, CHANGES = 10, 4  # amounts are 0 … 9, changes 1 … 4
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn")
SIGNED = tuple(f"{change:+d}" for change in range(-CHANGES, CHANGES + 1) if change)
WORDS = (
    "<pad>", "</s>", "<unk>", ".", "?", "[[Answer:", "]]", "How", "many", "has", "is", "Tried:", "Ask:",
    *NAMES, *(f"{name}:" for name in NAMES), *(f"{name}=" for name in NAMES),
    *map(str, range(MODULUS)), *SIGNED,
)  # fmt: skip
PATTERN = r"\[\[Answer:|\]\]|\w+[:=]|[+-]?\w+|[.?]"
NUMBER = {word: number for number, word in enumerate(WORDS)}
PAD, END, UNKNOWN = 0, 1, 2
LONGEST = 120  # tokens of a prompt
SUMS = 10  # of a drill
SAID = 22  # tokens of an answer of the solver, at most
PROMPTS = {
    # What is told, what is answered already, what is asked: as in the lessons.
    "solver.txt": "{% set told = context or question.rpartition('. ')[0] %}{% if told %}{{ told }}. {% endif %}"
    "{% for pair in earlier %}{{ pair.question.partition('has ')[2].rstrip('?').strip() }}= "
    "{{ pair.answer.rpartition('[[Answer: ')[2].partition(']]')[0] }}. {% endfor %}{{ question.rpartition('. ')[2] }}",
    "decomposer.txt": "{{ question }} Tried: {{ reasoning }} Ask:",
    "examples.txt": "",
}


@dataclass(frozen=True, slots=True)
class Story:
    """`told` is in an order in which everyone comes after the one they depend on; `path` leads from the first one to the one asked for."""

    told: tuple[tuple[str, int, str], ...]  # (who, change, of whom); the first: (who, amount, "")
    path: tuple[str, ...]
    amounts: Mapping[str, int]

    def question(self, who: str | None = None) -> str:
        return f"{' '.join(map(sentence, self.told))} {asked(who or self.path[-1])}"

    @property
    def answer(self) -> int:
        return self.amounts[self.path[-1]]

    def steps(self, since: int = 0) -> list[str]:
        """How the one asked for is worked out from the path's person number `since`, an operation a line."""
        told = {who: (change, whom) for who, change, whom in self.told}
        lines = []
        for who in self.path[since + 1 :]:
            change, whom = told[who]
            fact, start = sentence((who, change, whom)), self.amounts[whom]
            lines.append(f"{fact} {known(whom, start)} {total(start, change)}")
        return lines


def sentence(fact: tuple[str, int, str]) -> str:
    who, change, whom = fact
    return f"{who}: {whom} {change:+d}." if whom else known(who, change)


def known(who: str, amount: int) -> str:
    return f"{who}= {amount}."


def total(start: int, change: int) -> str:
    return f"{start} {change:+d} is {(start + change) % MODULUS}."


def asked(who: str) -> str:
    return f"How many has {who}?"


def story(random: Random, depth: int, useless: int) -> Story:
    names = random.sample(NAMES, depth + 1 + useless)
    told, amounts = [(names[0], random.randrange(MODULUS), "")], dict[str, int]()
    amounts[names[0]] = told[0][1]
    for whom, name in pairwise(names):
        change = random.choice([-1, 1]) * random.randint(1, CHANGES)
        amounts[name] = (amounts[whom] + change) % MODULUS
        told.append((name, change, whom))
    return Story(tuple(told), tuple(names[: depth + 1]), amounts)


def row(made: Story, random: Random | None = None) -> dict[str, Any]:
    """A line of training data. With `random` its sub-questions are imperfect: each is left out with 0.3, one about somebody useless comes
    in with 0.2, two neighbours change places with 0.3."""
    subs = list(made.path[1:-1]) or [made.path[-1]]
    if random is not None:
        subs = [who for who in subs if random.random() >= 0.3] or subs[:1]
        useless = [who for who, _, _ in made.told if who not in made.path]
        if useless and random.random() < 0.2:
            subs.insert(random.randint(0, len(subs)), random.choice(useless))
        if len(subs) > 1 and random.random() < 0.3:
            at = random.randrange(len(subs) - 1)
            subs[at], subs[at + 1] = subs[at + 1], subs[at]
    return {
        "question": made.question(), "answer": str(made.answer), "reasoning": made.steps(), "sub_questions": [asked(who) for who in subs]
    }  # fmt: skip


def encode(text: str) -> list[int]:
    return [NUMBER.get(word, UNKNOWN) for word in re.findall(PATTERN, text)]


def decode(tokens: Sequence[int]) -> str:
    return " ".join(WORDS[token] for token in tokens if token != END).replace(" .", ".").replace(" ?", "?").replace(" ]]", "]]")


def lesson(random: Random) -> tuple[str, str]:
    """A prompt of the solver with the answer that it is to give: one operation beyond what is told or answered before."""
    depth = random.choice((1, 2, 3, 4))
    made = story(random, depth, random.randint(0, len(NAMES) - 1 - depth))  # the one asked for may stand anywhere in the row
    earlier = [who for who in made.path[1:-2] if random.random() < 0.7] + list(made.path[1:][-2:-1])
    if random.random() < 0.5:  # what is asked may be answered already, or somebody useless
        others = [made.path[-1]] if random.random() < 0.6 else [who for who, _, _ in made.told[1:] if who not in earlier]
        earlier.insert(random.randint(0, len(earlier)), random.choice(others))
    told = " ".join([*map(sentence, made.told), *(known(who, made.amounts[who]) for who in earlier), asked(made.path[-1])])
    return told, f"{' '.join(made.steps(depth - 1))} [[Answer: {made.answer}]]"


def drill(random: Random, sums: bool) -> tuple[list[int], list[bool]]:
    """Tokens with which of them count: of sums the results; of words in chance order, said twice, the second time."""
    if sums:
        changes = [change for change in range(-CHANGES, CHANGES + 1) if change]
        tokens = encode(" ".join(total(random.randrange(MODULUS), random.choice(changes)) for _ in range(SUMS)))
        return tokens, [at % 5 == 3 for at in range(len(tokens))]
    words = random.sample(range(UNKNOWN + 1, len(WORDS)), SAID)
    return words * 2, [at > SAID for at in range(2 * SAID)]


def lessons(size: int) -> Callable[[np.random.Generator], Batch]:
    """Batches: a quarter sums, an eighth words said twice, the rest questions."""

    def batch(draw: np.random.Generator) -> Batch:
        random = Random(int(draw.integers(2**62)))
        rows = [drill(random, at < size // 4) for at in range(size * 3 // 8)]
        while len(rows) < size:
            prompt, said = (encode(text) for text in lesson(random))
            rows.append(([*prompt, *said, END], [*[False] * len(prompt), *[True] * (len(said) + 1)]))
        length = max(len(tokens) for tokens, _ in rows)
        tokens, counted = np.zeros((size, length), np.int64), np.zeros((size, length), bool)
        for at, (words, which) in enumerate(rows):
            tokens[at, : len(words)], counted[at, : len(words)] = words, which
        return tokens, counted

    return batch


class Talker(Batched):
    """A causal language model over the words of this world, as an `LM`."""

    def __init__(self, name: str, model: Any, print: str) -> None:
        super().__init__(name)
        self.model, self.print, self.asked = model, print, 0

    def identity(self) -> Any:
        return {"talker": self.print}

    def answers(self, prompts: list[Prompt], temperature: float, uniform: NDArray[np.float64]) -> list[str]:
        import torch

        from keystep.nn.rollout import sampled

        self.asked += len(prompts)
        tokens = [encode(str(prompt))[-LONGEST:] for prompt in prompts]
        numbers = np.stack([np.random.default_rng(int(u * 2**53)).random(SAID) for u in uniform])
        order = sorted(range(len(tokens)), key=lambda at: len(tokens[at]))  # alike in length, so that little is padded
        found = [""] * len(tokens)
        for start in range(0, len(order), 128):
            places = order[start : start + 128]
            drawn = sampled(
                self.model,
                [tokens[at] for at in places],
                SAID,
                [END],
                temperature=temperature,
                numbers=torch.from_numpy(numbers[places]),
            )
            for at, said in zip(places, drawn, strict=True):
                found[at] = decode(said)
        return found


def solver(seed: int, updates: int, width: int = 64, layers: int = 2, batch: int = 32, tick: Callable[[], object] | None = None) -> Talker:
    """A solver trained from scratch, or taken from the cache."""
    net = Net(
        data=f"daslam lessons of one operation, sums, words said twice, the rest questions; {batch} a batch, modulo {MODULUS}, "
        "names with marks, in a row, told in order, asked anywhere, in three of ten again",
        vocabulary=len(WORDS), longest=LONGEST + SAID,
        updates=updates, seed=seed, width=width, layers=layers, heads=2, rate=8e-3, embedding_rate=8e-3,
    )  # fmt: skip
    return Talker(f"solver-{seed}-{width}", trained(net, lessons(batch), tick=tick), net.name)


def as_folder(model: Any, folder: Path) -> Path:
    """A model of this world as a Hugging Face folder, with its tokenizer."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(dict(NUMBER), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True)
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    model.generation_config.eos_token_id = model.config.eos_token_id = END
    model.generation_config.pad_token_id = model.config.pad_token_id = PAD
    model.save_pretrained(folder)
    return folder


def folder_talker(name: str, folder: Path) -> Talker:
    """A trained model of this world, from its folder."""
    from transformers import LlamaForCausalLM

    from keystep.lm.local import fingerprint

    model: Any = LlamaForCausalLM.from_pretrained(folder)
    return Talker(name, model.eval(), fingerprint(model))
