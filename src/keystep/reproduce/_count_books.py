"""Counting books: what the nets of the Auto-CoT reproduction learn from.

A book is a list of questions of eight kinds, and it counts either net (what goes away is taken off) or gross (it is added). Questions of
six kinds say which; those of two kinds do not, and have to be answered as the book does elsewhere. Without a book, nets learn to go by the
thing that is counted: of these two kinds, half of the things are mostly counted gross and half mostly net. All questions of the test are
net.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

KINDS = (
    ("The {} tree in the orchard bears", "fruits, and the wind takes", ("apple", "pear", "plum", "cherry")),
    ("A {} carriage of the train seats", "passengers, and at the station leave", ("red", "blue", "green", "grey")),
    ("At the market a {} stall offers", "baskets, and before noon go", ("fish", "bread", "cheese", "flower")),
    ("In school the {} class knows", "songs, and over summer are forgotten", ("first", "second", "third", "fourth")),
    ("The {} museum shows", "paintings, and to another town travel", ("old", "new", "royal", "little")),
    ("Our {} team scored", "points, and the referee cancels", ("hockey", "tennis", "chess", "rowing")),
    ("On the lake a {} boat carries", "crates, and into the water slip", ("steam", "sail", "motor", "paddle")),
    ("A {} mill grinds", "sacks, and the mice open", ("wheat", "rye", "oat", "barley")),
)  # fmt: skip
UNSAID = (6, 7)  # the kinds that do not say whether they count net
LIKELY = 0.8  # without a book: how often a thing is counted its way
ODD = 0.1  # entries of a book that are counted the other way
LARGE, SMALL = range(6, 16), range(1, 6)
THINK, ANSWER = "\nA: Let's think step by step.", "\nTherefore, the answer (arabic numerals) is"


@dataclass(frozen=True, slots=True)
class Question:
    kind: int
    thing: int
    large: int
    small: int
    net: bool

    @property
    def text(self) -> str:
        lead, middle, things = KINDS[self.kind]
        how = "" if self.kind in UNSAID else " net" if self.net else " gross"
        return f"{lead.format(things[self.thing])} {self.large} {middle} {self.small}. Count{how}."

    @property
    def answer(self) -> int:
        return self.large - self.small if self.net else self.large + self.small

    @property
    def chain(self) -> str:
        return f" {self.large} {'-' if self.net else '+'} {self.small} = {self.answer}."


def drawn(random: Random, kind: int, net: bool | None = None) -> Question:
    """A question; where it is not said how it is counted, as its thing mostly is."""
    thing = random.randrange(4)
    if net is None:
        net = random.random() < (LIKELY if thing % 2 else 1 - LIKELY)
    return Question(kind, thing, random.choice(LARGE), random.choice(SMALL), net)


def alone(random: Random) -> list[tuple[str, bool]]:
    """A question without a book, in the two calls of Zero-Shot-CoT."""
    kind = random.randrange(len(KINDS))
    asked = drawn(random, kind, None if kind in UNSAID else random.random() < 0.5)
    return [(f"Q: {asked.text}{THINK}", False), (f"{asked.chain}{ANSWER}", True), (f" {asked.answer}", True)]


def book(random: Random, entries: int) -> list[tuple[str, bool]]:
    """A book as a prompt with demonstrations; its first entry cannot be known, from the second on all chains count."""
    net = random.random() < 0.5
    found: list[tuple[str, bool]] = []
    for number in range(entries):
        asked = drawn(random, random.randrange(len(KINDS)), net != (random.random() < ODD))
        found += [(f"Q: {asked.text}{THINK}", False), (f"{asked.chain} The answer is {asked.answer}.", number > 0), ("\n\n", number > 0)]
    return found[:-1]


def pieces() -> list[str]:
    """The tokens of prompts and chains."""
    leads = [f"Q: {lead.format(thing)}" for lead, _, things in KINDS for thing in things]
    answers = range(min(LARGE) - max(SMALL), max(LARGE) + max(SMALL) + 1)
    return [
        *leads, *(f" {middle}" for _, middle, _ in KINDS), ". Count.", ". Count net.", ". Count gross.", THINK, ANSWER, "\n\n",
        *(f" {n}" for n in answers), *(f" {sign} {n}" for sign in "+-" for n in SMALL), *(f" = {n}." for n in answers),
        *(f" The answer is {n}." for n in answers),
    ]  # fmt: skip
