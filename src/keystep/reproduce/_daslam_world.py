"""The small world of DaSLaM's reproduction: problems of dependent quantities, the frozen solver that is good at short ones, its words.

A problem is a tree of people: one is told ("Ann has 7."), every other one depends on one told before ("Ben beats Ann by 3."). Asked is
somebody `depth` operations away; one or two others are of no use. Amounts are counted modulo 20, so that every amount is one word. The
solver, a transformer trained from scratch, has only seen questions that are one or two operations away from what is told or was asked
before. It writes the facts that it goes back along, the amounts on the way forth, and marks the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep.lm.base import Prompt
from keystep.reproduce._nets import Batch, Batched, Net, trained

MODULUS, CHANGES = 20, 5  # amounts are 0 … 19, changes 1 … 5
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
WORDS = (
    "<pad>", "</s>", "<unk>", ".", "?", "[[Answer:", "]]", "How", "many", "has", "beats", "trails", "by", "Tried:", "Ask:", *NAMES,
    *map(str, range(MODULUS)),
)  # fmt: skip
PATTERN = r"\[\[Answer:|\]\]|Tried:|Ask:|\w+|[.?]"
NUMBER = {word: number for number, word in enumerate(WORDS)}
PAD, END, UNKNOWN = 0, 1, 2
LONGEST = 140  # tokens of a prompt
SAID = 36  # tokens of an answer of the solver, at most
PROMPTS = {
    "solver.txt": "{% if context %}{{ context }}. {% endif %}"
    "{% for pair in earlier %}{{ pair.question.partition('has ')[2].rstrip('?').strip() }} has "
    "{{ pair.answer.rpartition('[[Answer: ')[2].partition(']]')[0] }}. {% endfor %}{{ question }}",
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
        """How the one asked for is worked out from the path's person number `since`: the facts back to there, the amounts from there."""
        told = {fact[0]: sentence(fact) for fact in self.told}
        return [*(told[who] for who in self.path[:since:-1]), *(f"{who} has {self.amounts[who]}." for who in self.path[since:])]


def sentence(fact: tuple[str, int, str]) -> str:
    who, change, whom = fact
    return f"{who} has {change}." if not whom else f"{who} {'beats' if change > 0 else 'trails'} {whom} by {abs(change)}."


def asked(who: str) -> str:
    return f"How many has {who}?"


def story(random: Random, depth: int, useless: int) -> Story:
    names = random.sample(NAMES, depth + 1 + useless)
    path, others = names[: depth + 1], names[depth + 1 :]
    order = list(path)
    for name in others:
        order.insert(random.randint(1, len(order)), name)
    amounts = {path[0]: random.randrange(MODULUS)}
    told = [(path[0], amounts[path[0]], "")]
    for name in order[1:]:
        whom = path[path.index(name) - 1] if name in path else random.choice([known for known, _, _ in told])
        change = random.choice([-1, 1]) * random.randint(1, CHANGES)
        amounts[name] = (amounts[whom] + change) % MODULUS
        told.append((name, change, whom))
    return Story(tuple(told), tuple(path), amounts)


def row(made: Story, random: Random | None = None) -> dict[str, Any]:
    """A line of training data. With `random` its sub-questions are imperfect: each is left out with 0.3, one about somebody useless comes
    in with 0.2, two neighbours change places with 0.3."""
    subs = list(made.path[1:-1])
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
    """A prompt of the solver with the answer that it is to give: one or two operations beyond what is told or answered before."""
    distance, depth = random.choice((1, 2)), random.choice((1, 2, 3, 4, 5))
    made = story(random, max(depth, distance), random.choice((0, 1, 2)))
    known = len(made.path) - 1 - distance  # the path up to here is told or answered
    earlier = [*(who for who in made.path[1:known] if random.random() < 0.7), *made.path[max(1, known) : known + 1]]
    useless = [who for who, _, _ in made.told if who not in made.path]
    if useless and random.random() < 0.3:
        earlier.insert(random.randint(0, len(earlier)), random.choice(useless))
    told = " ".join([*map(sentence, made.told), *(f"{who} has {made.amounts[who]}." for who in earlier), asked(made.path[-1])])
    return told, f"{' '.join(made.steps(known))} [[Answer: {made.answer}]]"


def lessons(size: int) -> Callable[[np.random.Generator], Batch]:
    def batch(draw: np.random.Generator) -> Batch:
        random = Random(int(draw.integers(2**62)))
        rows = [(encode(prompt), [*encode(said), END]) for prompt, said in (lesson(random) for _ in range(size))]
        length = max(len(prompt) + len(said) for prompt, said in rows)
        tokens, counted = np.zeros((size, length), np.int64), np.zeros((size, length), bool)
        for at, (prompt, said) in enumerate(rows):
            tokens[at, : len(prompt) + len(said)] = prompt + said
            counted[at, len(prompt) : len(prompt) + len(said)] = True
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


def solver(seed: int, updates: int, width: int = 64, layers: int = 3, batch: int = 48, tick: Callable[[], object] | None = None) -> Talker:
    """A solver trained from scratch, or taken from the cache."""
    net = Net(
        data=f"daslam lessons of 1 and 2 operations, {batch} a batch, modulo {MODULUS}", vocabulary=len(WORDS), longest=LONGEST + SAID,
        updates=updates, seed=seed, width=width, layers=layers, heads=4,
    )  # fmt: skip
    return Talker(f"solver-{seed}-{width}", trained(net, lessons(batch), tick=tick), net.name)


def blank(folder: Path, seed: int, width: int, layers: int) -> Path:
    """A decomposer that knows nothing yet, as a Hugging Face folder."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(dict(NUMBER), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True)
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=LONGEST + SAID, tie_word_embeddings=False, bos_token_id=None, eos_token_id=END,
        pad_token_id=PAD,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
