"""The task: a dictionary, plans of words to add, and the messages that put them to a worker.

The generator draws in the reference's order: one sampler, seeded once; the words; a value for each; then every instance's keys. With the
reference's word list it gives the reference's data; the words here are made up, so that no list is needed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from keystep.errors import BadInput
from keystep.lm.base import Message
from keystep.worlds import ledger

LENGTH = 5  # letters of a word

STATEMENT = """\
You keep a running sum. Each word of the dictionary stands for a whole number. The sum is 0 at first. Every message names one or more \
words, with commas between; look their numbers up and add them to the running sum.

Three examples, with a small dictionary of their own ({small}), each beginning at 0:
{examples}

The dictionary:
{dictionary}

{how}
"""
ONLY = "Answer with the running sum after the last word and nothing else, inside answer tags: <answer>12</answer>"
SHOWN = (
    "First write down the number of every word and the additions, one after the other; then, inside answer tags, the running sum after the "
    "last word: <answer>12</answer>"
)
ALL_AT_ONCE = (
    "Answer with the running sum after every single word, in order, with commas between, and nothing else, inside answer tags: "
    "<answer>3, 12, 7</answer>"
)
_SMALL = {"anvil": 7, "birch": -3, "cedar": 12, "delta": -8, "ember": 5, "fjord": 1}
_GROUPS = (["cedar", "birch"], ["delta", "anvil", "fjord"], ["ember", "cedar", "birch", "birch", "delta", "anvil"])
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Plan:
    """The dictionary, the same for all instances, and the words of each, as long as the horizon."""

    dictionary: dict[str, int]
    keys: list[list[str]]


def generate(
    words: Sequence[str] | None = None, size: int = 100, limit: int = 99, instances: int = 100, horizon: int = 50_000, seed: int = 42
) -> Plan:
    """Plans by the reference's rule: `size` words of five letters without repetition, a value uniform on [-limit, limit] for each, and for
    every instance `horizon` words with repetition.

    Raises:
        BadInput: there are not so many words, or a number is below 1.
    """
    for name, number in (("size", size), ("limit", limit), ("instances", instances), ("horizon", horizon)):
        if number < 1:
            raise BadInput("is at least 1", field=name, value=number)
    known = ledger.WORDS if words is None else [word for word in words if len(word) == LENGTH]
    if len(known) < size:
        raise BadInput(f"there are {len(known)} words of {LENGTH} letters", field="size", value=size, mend="name a longer list")
    draw = random.Random(seed)
    dictionary = {word: draw.randint(-limit, limit) for word in draw.sample(known, size)}
    return Plan(dictionary, [draw.choices(list(dictionary), k=horizon) for _ in range(instances)])


def words_of(path: str) -> list[str]:
    """The words of a text file, one a line, in its order."""
    try:
        words = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise BadInput(problem, field="set words", value=path, mend="name a text file with a word a line") from None
    return list(dict.fromkeys(word for word in words if word))


def statement(dictionary: Mapping[str, int], how: str) -> Message:
    """The system message; what is wanted is said by `how`. The examples are worked out here, so they are right."""
    examples = []
    for group in _GROUPS:
        sums = list(accumulate(_SMALL[word] for word in group))
        answer = ", ".join(map(str, sums)) if how == ALL_AT_ONCE else str(sums[-1])
        worked = f"{' + '.join(f'({_SMALL[word]})' for word in group)} = {sums[-1]}; " if how == SHOWN else ""
        examples.append(f"{', '.join(group)} -> {worked}<answer>{answer}</answer>")
    small = ", ".join(f"{word} = {value}" for word, value in _SMALL.items())
    entries = "\n".join(f"{word} = {value}" for word, value in dictionary.items())
    return Message("system", STATEMENT.format(small=small, examples="\n".join(examples), dictionary=entries, how=how))


def conversation(
    dictionary: Mapping[str, int], turns: Sequence[Sequence[str]], said: Sequence[str], window: int | None, how: str
) -> tuple[Message, ...]:
    """The messages up to turn len(said) + 1; of earlier turns only the last `window`, where there is one."""
    messages = [statement(dictionary, how)]
    for turn in range(0 if window is None else max(0, len(said) - window), len(said)):
        messages += [Message("user", ", ".join(turns[turn])), Message("assistant", said[turn])]
    return (*messages, Message("user", ", ".join(turns[len(said)])))


def without_thoughts(text: str) -> str:
    return _THOUGHT.sub("", text).strip()


def answer_in(text: str) -> str | None:
    """What stands in the first pair of answer tags; None where there is none."""
    found = _ANSWER.search(without_thoughts(text))
    return None if found is None else found[1].strip()


def whole(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
