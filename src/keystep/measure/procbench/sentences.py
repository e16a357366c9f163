"""The three tasks that are made from sentences (a text file of the user's; the reference draws from Wikipedia).

Where the reference takes words in the order of a set, which differs from run to run, here it is the order in which they first appear.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from keystep.measure.procbench.kind import LETTERS, Config, Kind, found, listed


class FromSentences(Kind):
    """`corpus` is set before anything is drawn; `needs` says which sentences of it can be used for so many steps."""

    sentences = True
    corpus: Sequence[str] = ()
    needs: ClassVar[str]

    def words(self, draw: random.Random) -> list[str]:
        return re.findall(r"\b\w+\b", draw.choice(self.corpus))


class Count2(FromSentences):
    number, name = 14, "Count2"
    needs = "of exactly so many different words"
    rule = (
        "Keep a list of 26 numbers, all 0 at first, one for each letter from a to z. Every word of the sentence, in order, adds to it how "
        "often each letter occurs in the word, capital or small. The state is the list."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        return {"words": list(dict.fromkeys(self.words(draw)))}

    def question(self, config: Config) -> str:
        return f"Sentence:\n{' '.join(config['words'])}"

    def read(self, question: str) -> Config:
        return {"words": found(r"Sentence:\n(.*)", question)[1].split()}

    def init(self, config: Config) -> Any:
        return [0] * len(LETTERS)

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["words"]):
            return None
        word = config["words"][number].lower()
        return [before + word.count(letter) for before, letter in zip(states[-1], LETTERS, strict=True)]

    def now(self, config: Config, number: int) -> str:
        return f"the word {config['words'][number]}"


class FillWord(FromSentences):
    number, name = 18, "FillWord"
    needs = "of at least so many words"
    rule = "Every pair (i, word), in order, puts the word in the place of [i] in the sentence. The state is the whole sentence."

    def draw(self, draw: random.Random, steps: int) -> Config:
        words = self.words(draw)
        if len(words) < steps:
            return {"sentence": "", "pairs": []}
        fills = []
        for number, place in enumerate(draw.sample(range(len(words)), steps), 1):
            fills.append((number, words[place]))
            words[place] = f"[{number}]"
        return {"sentence": " ".join(words), "pairs": fills}

    def question(self, config: Config) -> str:
        return f"Sentence:\n{config['sentence']}\nList:\n[{', '.join(f'({number}, {word})' for number, word in config['pairs'])}]"

    def read(self, question: str) -> Config:
        match = found(r"Sentence:\n(.*)\nList:\n\[(.*)\]", question)
        return {"sentence": match[1], "pairs": [(int(number), word) for number, word in re.findall(r"\((\d+), ([^()]*)\)", match[2])]}

    def init(self, config: Config) -> Any:
        return config["sentence"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["pairs"]):
            return None
        place, word = config["pairs"][number]
        return states[-1].replace(f"[{place}]", word, 1)

    def now(self, config: Config, number: int) -> str:
        place, word = config["pairs"][number]
        return f"the pair ({place}, {word})"


class DeleteWord(FromSentences):
    number, name = 20, "DeleteWord"
    needs = "of more different words than that, and at least five"
    rule = "For every word listed, in order, delete its first occurrence from the sentence. The state is what is left of the sentence."

    def draw(self, draw: random.Random, steps: int) -> Config:
        words = self.words(draw)
        distinct = sorted(set(words))
        if len(distinct) <= max(steps, 4):  # the reference wants at least 5 different ones
            return {"sentence": "", "words": []}
        return {"sentence": " ".join(words), "words": draw.sample(distinct, steps)}

    def question(self, config: Config) -> str:
        return f"Sentence:\n{config['sentence']}\nWords: [{', '.join(config['words'])}]"

    def read(self, question: str) -> Config:
        match = found(r"Sentence:\n(.*)\nWords: \[(.*)\]", question)
        return {"sentence": match[1], "words": listed(match[2])}

    def init(self, config: Config) -> Any:
        return config["sentence"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["words"]):
            return None
        words = states[-1].split(" ")
        words.remove(config["words"][number])
        return " ".join(words)

    def now(self, config: Config, number: int) -> str:
        return f"delete the first {config['words'][number]}"
