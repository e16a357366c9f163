"""The tokenizer of the embedded reader of word problems: whose things a sentence is about, and what it does to their number.

The reader knows the sentences of `TEMPLATES` with the people, things and numbers below, and no others: what does not fit one of them is
refused. A token is a word; a number in digits is three tokens, one for each place. An answer has a line for everybody whose things are
concerned: an operation, a number, or two where so many times so many things come or go, and the things.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

NAMES = (
    "Ada", "Ann", "Ben", "Bob", "Carl", "Clara", "Dan", "Dora", "Emma", "Eva", "Finn", "Fred", "Gina", "Greta", "Hans", "Hugo", "Ida",
    "Ivan", "Jack", "Jill", "Karl", "Kim", "Leo", "Lisa", "Mary", "Max", "Nina", "Noah", "Olga", "Otto", "Paul", "Rosa", "Sam", "Tina",
    "Tom", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "badges", "balloons", "beads", "books", "buttons", "candles", "cards", "cherries", "coins", "cookies", "crayons", "cups",
    "dolls", "eggs", "feathers", "keys", "lemons", "marbles", "muffins", "nuts", "oranges", "pears", "pencils", "pens", "plums",
    "postcards", "ribbons", "roses", "sandwiches", "shells", "stamps", "stickers", "stones", "tickets", "toys",
)  # fmt: skip
NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
LEAST, MOST = 2, 999  # numbers in sentences
SENTENCE = 16  # tokens of the longest sentence


Reading = list[Any]  # [who, what, operation, numbers …]


@dataclass(frozen=True)
class Template:
    """A sentence about people {a} and {b}, numbers {n} and {m}, and things {t}; `changes` says what it does for whom.

    A change is an operation and numbers' names or numbers: `= n`, `- m x n`, `* 2`; `?` asks how many there are.
    """

    kind: str
    text: str
    changes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def parts(self) -> list[str]:
        """Its words and what stands for something."""
        return re.findall(r"\{\w\}|\w+|'s|[.,?]", self.text)

    def reading(self, said: Mapping[str, str]) -> list[Reading]:
        """What it says, for everybody whose things are concerned; `said` is what stands in it, as it is written."""
        found = []
        for role, change in self.changes.items():
            operation, *numbers = change.replace(" x ", " ").split()
            found.append([said[role], said["t"], operation, *(value_of(said.get(number, number)) for number in numbers)])
        return found

    def tokens(self, said: Mapping[str, str]) -> list[int]:
        """Its tokens with these people, things and numbers in it."""
        return [token for part in self.parts for token in _tokens(said[part[1]] if part.startswith("{") else part)]


def _of(kind: str, change: str, *texts: str) -> list[Template]:
    return [Template(kind, text, {"a": change} if change else {}) for text in texts]


def _passed_on(kind: str, a: str, b: str, *texts: str) -> list[Template]:
    return [Template(kind, text, {"a": a, "b": b}) for text in texts]


TEMPLATES = (
    *_of(
        "told", "= n", "{a} has {n} {t}.", "{a} starts with {n} {t}.", "At first {a} owns {n} {t}.", "There are {n} {t} in {a}'s bag.",
        "In the morning {a} counts {n} {t}.",
    ),
    *_of(
        "more", "+ n", "{a} buys {n} more {t}.", "{a} finds {n} {t} in the garden.", "Then {a} picks another {n} {t}.",
        "{a} wins {n} {t} at the fair.",
    ),
    *_passed_on("passed on", "- n", "+ n", "{a} gives {b} {n} {t}.", "{a} gives {n} {t} to {b}.", "{a} hands {n} of the {t} over to {b}."),
    *_passed_on("passed on", "+ n", "- n", "{a} gets {n} {t} from {b}.", "{a} takes {n} {t} from {b}.", "{a} borrows {n} of {b}'s {t}."),
    *_of(
        "fewer", "- n", "{a} loses {n} {t}.", "{a} sells {n} of the {t}.", "{a} throws {n} {t} away.", "After that {n} of {a}'s {t} break.",
    ),
    *_of("times", "* n", "Soon {a} has {n} times as many {t}.", "Now there are {n} times as many {t} in {a}'s bag."),
    *_of("times", "* 2", "{a} doubles the number of {t}.", "Then {a} has twice as many {t}."),
    *_of("times", "* 3", "{a} triples the number of {t}."),
    *_of(
        "shared", "/ n", "{a} sorts the {t} into {n} equal piles and keeps one of them.", "Only one in {n} of {a}'s {t} is left.",
        "{a} shares the {t} equally among {n} people and keeps one share.",
    ),
    *_of("shared", "/ 2", "{a} keeps only half of the {t}."),
    *_of("shared", "/ 3", "A third of {a}'s {t} is left."),
    *_of(
        "so many more", "+ m x n", "{a} buys {m} boxes of {n} {t}.", "{a} gets {n} {t} from each of {m} friends.",
        "For {m} days {a} finds {n} {t} a day.",
    ),
    *_of(
        "so many fewer", "- m x n", "{a} gives {n} {t} to each of {m} friends.", "{a} fills {m} bags with {n} {t} each and sells them.",
    ),
    *_of(
        "no change", "", "{a} likes {t}.", "{a} puts the {t} on the table.", "{b} looks at {a}'s {t}.", "{a} is {n} years old.",
        "It takes {a} {n} minutes to count the {t}.", "{a} and {b} talk about {t}.", "{a} walks {n} miles.",
    ),
    *_of(
        "question", "?", "How many {t} does {a} have now?", "How many {t} does {a} have in the end?", "How many {t} are left in {a}'s bag?",
        "With how many {t} does {a} end up?", "What is the number of {t} that {a} owns at last?",
    ),
)  # fmt: skip
OPERATIONS = ("none", "=", "+", "-", "*", "/", "?")

END, PAD, READ, EACH, OPERATION = 0, 1, 2, 3, 4
DIGIT = OPERATION + len(OPERATIONS)  # the first of 10 tokens for hundreds, 10 for tens, 10 for ones
NUMBER = DIGIT + 30
NAME = NUMBER + len(NUMBER_WORDS)
THING = NAME + len(NAMES)
WORD = THING + len(THINGS)
WORDS = tuple(dict.fromkeys(part for template in TEMPLATES for part in template.parts if not part.startswith("{")))
VOCABULARY = WORD + len(WORDS)
PROMPT = SENTENCE + 1

KNOWS = "a sentence of a templated word problem, in the words of the built-in procedure `problem`"

READING = """\
One sentence of a word problem. What does it say about whose things?
Sentence: {sentence}

Answer with a line for each person whose number of things it tells, changes or asks for, in the order of the sentence, and nothing else:
[name]: [= 12 where it tells how many, + 12 or - 12 where so many come or go, + 4 x 12 or - 4 x 12 where it is so many times so many,
* 3 or / 3 where they are multiplied or divided, ? where it asks how many] [things]
If there is nobody, answer with the one word: none
"""

_PARTS = {
    **dict.fromkeys("ab", "|".join(NAMES)),
    **dict.fromkeys("nm", rf"[2-9]|[1-9][0-9]{{1,2}}|{'|'.join(NUMBER_WORDS)}"),
    "t": "|".join(THINGS),
    "sentence": ".*",
}


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", lambda found: f"(?P<{found[1]}>{_PARTS[found[1]]})", re.escape(text)))


_READING = _pattern(READING)
_SENTENCES = [(template, _pattern(template.text)) for template in TEMPLATES]


def render(sentence: str) -> str:
    """The prompt that has a sentence read."""
    return READING.format(sentence=sentence)


def fitting(sentence: str) -> tuple[Template, dict[str, str]] | None:
    """The template that a sentence is of, and what stands in it, as it is written; None where there is none."""
    for template, known in _SENTENCES:
        if found := known.fullmatch(sentence):
            said = found.groupdict()
            return None if said["a"] == said.get("b") else (template, said)
    return None


def value_of(number: str) -> int:
    """The value of a number in digits or in words."""
    return int(number) if number.isdecimal() else NUMBER_WORDS.index(number) + LEAST


def field_of(tokens: Sequence[int]) -> list[int]:
    """A prompt's tokens, of those of its sentence."""
    return [*tokens, *[PAD] * (SENTENCE - len(tokens)), READ]


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    found = _READING.fullmatch(text)
    known = fitting(found["sentence"]) if found else None
    return None if known is None else (field_of(known[0].tokens(known[1])), 0)


def answer_of(reading: Sequence[Reading]) -> list[int]:
    """The tokens of a right answer, without an end."""
    tokens = []
    for who, what, operation, *numbers in reading:
        tokens += [_TOKENS[who], OPERATION + OPERATIONS.index(operation)]
        for place, number in enumerate(numbers):
            tokens += [EACH] * (place > 0) + _digits(number)
        tokens.append(_TOKENS[what])
    return tokens or [OPERATION]


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    written, rest = "", list(tokens)
    while rest:
        places = [divmod(token - DIGIT, 10) for token in rest[:3]]
        if [place for place, _ in places] == [0, 1, 2]:
            written += f" {int(''.join(str(digit) for _, digit in places))}"
            rest = rest[3:]
        else:
            token = rest.pop(0)
            written += f"\n{_WRITTEN[token]}:" if NAME <= token < THING else f" {_WRITTEN.get(token, '!')}"
    return written.strip()


def _tokens(word: str) -> list[int]:
    return _digits(int(word)) if word.isdecimal() else [_TOKENS[word]]


def _digits(number: int) -> list[int]:
    return [DIGIT + 10 * place + number // 10 ** (2 - place) % 10 for place in range(3)]


_TOKENS = {
    word: first + at
    for first, words in ((NUMBER, NUMBER_WORDS), (NAME, NAMES), (THING, THINGS), (WORD, WORDS))
    for at, word in enumerate(words)
}
_WRITTEN = {token: word for word, token in _TOKENS.items() if NAME <= token < WORD} | {
    OPERATION + at: operation for at, operation in enumerate(OPERATIONS)
}
_WRITTEN[EACH] = "x"
