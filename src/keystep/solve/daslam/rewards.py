"""The five rewards of DaSLaM, of one decomposition: what the sub-questions cover, how the sub-answers fit them, whether the last answer is
right, whether the chain of thought came nearer to the reference, whether it computes in the reference's order.

Three forms. "code" is the released program's, word for word: r1 may be far below 0, r2 grows with the number of sub-questions, r4 takes 1
off for every line that came no nearer, r5 compares operations in the order of a fixed list. "paper" has r1 as a ratio and adds to r2
whether a sub-answer's result stands in the reference; its wording was not available to us in full, so that r4 and r5 are the code's.
"clean", the default, keeps every part in [-1, 1] and weighs correctness most.

spaCy's vectors and NLTK's nouns need downloads. In their place: word counts, and content words (words that are no stop words, and numbers).
Both are arguments.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass

from keystep.errors import BadInput
from keystep.solve.daslam.text import answer_of, same_answer

Similarity = Callable[[str, str], float]
Nouns = Callable[[str], Set[str]]

FORMS = ("clean", "paper", "code")
OPERATIONS = ("+", "-", "*", "/", "sin", "log", "^", "cos", "tan", "cot", "sec", "cosec", "sqrt", "pi", "exp")  # in the code's order
_OPERATION = re.compile(r"[+\-*/^]|(?<![a-z])(?:sin|log|cosec|cos|tan|cot|sec|sqrt|pi|exp)(?![a-z])")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
_STOP = """a about after again all also am an and any are as at be because been before being both but by can could did do does doing down
    during each few for from further had has have having he her here hers him his how i if in into is it its itself just many me
    more most much my no nor not now of off on once only or other our out over own same she should so some such than that the
    their them then there these they this those through to too under until up very was we were what when where which while who
    whom whose why will with would you your"""
_STOPS = frozenset(_STOP.split())


@dataclass(frozen=True, slots=True)
class Parts:
    """r1 to r5."""

    coverage: float = 0.0
    consistency: float = 0.0
    correctness: float = 0.0
    proximity: float = 0.0
    order: float = 0.0


WEIGHTS = {
    "clean": Parts(coverage=0.2, consistency=0.2, correctness=2.0, proximity=0.2, order=0.2),
    "paper": Parts(1.0, 1.0, 1.0, 1.0, 1.0),
    "code": Parts(1.0, 1.0, 1.0, 1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one decomposition: texts. `reference` is the gold chain of thought, a step a line; empty where there is none."""

    question: str
    context: str
    sub_questions: Sequence[str]
    sub_answers: Sequence[str]
    first: str
    final: str
    expected: str
    reference: str = ""


def parts(outcome: Outcome, form: str = "clean", similarity: Similarity | None = None, nouns: Nouns | None = None) -> Parts:
    """The five rewards of an outcome.

    Raises:
        BadInput: there is no such form.
    """
    if form not in FORMS:
        raise BadInput("is no form of the rewards", field="reward", value=form, mend=f"there are: {', '.join(FORMS)}")
    alike, named = similarity or cosine, nouns or content_words
    asked = frozenset[str]().union(*(named(sub) for sub in outcome.sub_questions))
    texts = [f"{outcome.context} {sub}" for sub in outcome.sub_questions]
    fits = [alike(text, answer) for text, answer in zip(texts, outcome.sub_answers, strict=True)]
    lines = [steps(text) for text in (outcome.reference, outcome.first, outcome.final)]
    near = [(alike(gold, first), alike(gold, new)) for gold, first, new in zip(*lines, strict=False)]
    answer = answer_of(outcome.final)
    found = [bool(said) and said in outcome.reference for said in map(answer_of, outcome.sub_answers) if outcome.reference]
    return Parts(
        coverage=coverage(named(outcome.question), asked, form),
        consistency=consistency(fits, found, form),
        correctness=float(answer.strip() == outcome.expected.strip() if form == "code" else same_answer(answer, outcome.expected)),
        proximity=proximity(near, form),
        order=order(outcome.reference, outcome.final, form) if outcome.reference else 0.0,
    )


def total(parts: Parts, weights: Parts) -> float:
    """The sum of the parts, each by its weight."""
    by = asdict(weights)
    return float(sum(value * by[name] for name, value in asdict(parts).items()))


def coverage(question: Set[str], asked: Set[str], form: str = "clean") -> float:
    """r1, of the nouns of the question and of all sub-questions: the share of the question's that were named; code: 1 - |xor| / |question|.

    1 where the question has none."""
    if not question:
        return 1.0
    if form == "code":
        return 1 - len(question ^ asked) / len(question)
    return len(question & asked) / len(question)


def consistency(fits: Sequence[float], found: Sequence[bool], form: str = "clean") -> float:
    """r2, of how alike each sub-question (with its context) and its answer are: the mean; code: a quarter of the sum; paper: the mean, and
    the share of answers that stand in the reference. 0 where there are none."""
    if not fits:
        return 0.0
    if form == "code":
        return 0.25 * sum(fits)
    mean = sum(fits) / len(fits)
    return mean + sum(found) / len(found) if form == "paper" and found else mean


def proximity(near: Sequence[tuple[float, float]], form: str = "clean") -> float:
    """r4, of each line's likeness to the reference in the first answer (c1) and in the last (c2): the mean of c2 - c1; code: the sum of
    c1 / 2 where c2 > c1, else of -1 - c1 / 2."""
    if form == "clean":
        return sum(new - first for first, new in near) / len(near) if near else 0.0
    return sum(0.5 * first if new > first else -1 - 0.5 * first for first, new in near)


def order(reference: str, final: str, form: str = "clean") -> float:
    """r5, of the operations in reference and last answer: twice the longest common subsequence by both lengths, 1 where neither has any;
    code: of the operations that occur at all, in the order of OPERATIONS, half a point for each pair that agrees, minus half for each that
    does not."""
    if form != "clean":
        return sum(0.5 if one == other else -0.5 for one, other in zip(operations(reference), operations(final), strict=False))
    gold, new = _OPERATION.findall(reference.lower()), _OPERATION.findall(final.lower())
    return 2 * _common(gold, new) / (len(gold) + len(new)) if gold or new else 1.0


def operations(text: str) -> list[str]:
    """Those of OPERATIONS that the text contains anywhere, inside words too, in their own order: the released code's reading."""
    return [operation for operation in OPERATIONS if operation in text]


def steps(text: str) -> list[str]:
    """The lines of a chain of thought that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def content_words(text: str) -> frozenset[str]:
    """Words that are no stop words, and numbers; in lower case."""
    return frozenset(word for word in _WORD.findall(text.lower()) if word not in _STOPS)


def cosine(one: str, other: str) -> float:
    """Cosine of two texts' word counts, in [0, 1]; 0 where one has no words."""
    left, right = Counter(_WORD.findall(one.lower())), Counter(_WORD.findall(other.lower()))
    length = math.sqrt(sum(n * n for n in left.values()) * sum(n * n for n in right.values()))
    return sum(n * right[word] for word, n in left.items()) / length if length else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for left in one:
        diagonal = 0
        for at, right in enumerate(other, 1):
            diagonal, row[at] = row[at], diagonal + 1 if left == right else max(row[at], row[at - 1])
    return row[-1]
