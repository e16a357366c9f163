"""The four algorithms: problems with a known answer, the split, the prompt of a call, its parser, putting together, and the metrics.

Everything is JSON: a problem is {"n", "truth", …}, a part {"size", …}. Answers are read as the paper's program does (the last number, the
last list); a call that says nothing of use answers 0, [] or None and is counted as wrong, never drawn again.
"""

from __future__ import annotations

import heapq
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

from keystep.errors import BadInput
from keystep.measure.llm_algorithms.costs import overlapping, sizes

Problem = dict[str, Any]
Part = dict[str, Any]


class Algorithm(ABC):
    """One of the four. `main` names the metric that is its error; `least` the smallest useful size of a problem."""

    name: str
    main: str
    least = 1
    final = False  # whether a last call answers from what the parts gave

    @abstractmethod
    def problem(self, n: int, random: Random) -> Problem:
        """A problem of size n."""

    @abstractmethod
    def parts(self, problem: Problem, m: int) -> list[Part]:
        """Its parts of size m."""

    @abstractmethod
    def prompt(self, problem: Problem, part: Part) -> str:
        """The task, the part, the form of the answer, and nothing else."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """The answer in a model's text."""

    @abstractmethod
    def errors(self, problem: Problem, part: Part, answer: Any) -> dict[str, float]:
        """What is wrong with one call's answer; the names are the algorithm's own."""

    @abstractmethod
    def together(self, problem: Problem, answers: Sequence[Any]) -> Any:
        """The result."""

    @abstractmethod
    def metrics(self, problem: Problem, result: Any, answers: Sequence[Any]) -> dict[str, float]:
        """How far the result is from the truth."""

    def samples(self, problem: Problem, m: int, random: Random) -> list[Part]:
        """Parts for a pilot: one of full size, drawn."""
        return [random.choice(self.whole(problem, m))]

    def whole(self, problem: Problem, m: int) -> list[Part]:
        """The parts of full size."""
        return [part for part in self.parts(problem, m) if part["size"] == min(m, problem["n"])]

    def final_prompt(self, problem: Problem, found: Any) -> str:
        raise NotImplementedError

    def read_final(self, text: str) -> Any:
        raise NotImplementedError


class Counting(Algorithm):
    """How many digits are in a string; the sum of the parts' counts."""

    name, main = "counting", "error"

    def problem(self, n: int, random: Random) -> Problem:
        share = random.uniform(0.3, 0.7)
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        text = "".join(random.choice("0123456789") if random.random() < share else random.choice(letters) for _ in range(n))
        return {"n": n, "text": text, "truth": _digits(text)}

    def parts(self, problem: Problem, m: int) -> list[Part]:
        found, at = [], 0
        for size in sizes(problem["n"], m):
            found.append({"size": size, "text": problem["text"][at : at + size]})
            at += size
        return found

    def prompt(self, problem: Problem, part: Part) -> str:
        return f"How many digits (0 to 9) are in the text below? Answer with the number only.\n{part['text']}"

    def read(self, text: str) -> int:
        return int(_last_run(text) or 0)

    def errors(self, problem: Problem, part: Part, answer: Any) -> dict[str, float]:
        return {"signed": float(answer - _digits(part["text"]))}

    def together(self, problem: Problem, answers: Sequence[Any]) -> int:
        return int(sum(answers))

    def metrics(self, problem: Problem, result: Any, answers: Sequence[Any]) -> dict[str, float]:
        error = abs(result - problem["truth"])
        return {"error": float(error), "error_per_n": error / problem["n"]}


class Sorting(Algorithm):
    """n numbers of two decimals; parts sorted by the worker, merged exactly."""

    name, main = "sorting", "exact_error"

    def problem(self, n: int, random: Random) -> Problem:
        numbers = [round(random.random(), 2) for _ in range(n)]
        return {"n": n, "numbers": numbers, "truth": sorted(numbers)}

    def parts(self, problem: Problem, m: int) -> list[Part]:
        found, at = [], 0
        for size in sizes(problem["n"], m):
            found.append({"size": size, "numbers": problem["numbers"][at : at + size]})
            at += size
        return found

    def prompt(self, problem: Problem, part: Part) -> str:
        numbers = ", ".join(f"{number:.2f}" for number in part["numbers"])
        return f"Sort the numbers below from small to large. Answer with the list only, like [0.10, 0.20].\n[{numbers}]"

    def read(self, text: str) -> list[float]:
        start, end = text.rfind("["), text.rfind("]")
        try:
            numbers = json.loads(text[start : end + 1]) if 0 <= start < end else []
        except (ValueError, RecursionError):
            return []
        good = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in numbers)
        return [float(x) for x in numbers] if good else []

    def errors(self, problem: Problem, part: Part, answer: Any) -> dict[str, float]:
        return distances(answer, sorted(part["numbers"])) | {"non_monotonicity": falls(answer)}

    def together(self, problem: Problem, answers: Sequence[Any]) -> list[float]:
        return merged(answers)

    def metrics(self, problem: Problem, result: Any, answers: Sequence[Any]) -> dict[str, float]:
        return distances(result, problem["truth"]) | {
            "non_monotonicity": falls(result), "non_monotonicity_of_parts": sum(map(falls, answers)),
        }  # fmt: skip


class Retrieving(Algorithm):
    """A six-digit code among look-alikes, in windows that overlap by half; the mode of the answers that are not "unknown"."""

    name, main, least = "retrieval", "error", 100

    def problem(self, n: int, random: Random) -> Problem:
        at_least(self.least, n)
        objects = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
        codes = dict(zip(objects, random.sample(range(100_000, 1_000_000), len(objects)), strict=True))
        target = random.choice(objects)
        needle = sentence(target, codes[target])
        others = [name for name in objects if name != target]
        lines, length = list[str](), len(needle)
        while length < n:
            other = random.choice(others)
            lines.append(sentence(other, codes[other]))
            length += 1 + len(lines[-1])
        place = int(random.uniform(0.05, 0.55) * len(lines))
        text = " ".join([*lines[:place], needle, *lines[place:]])[:n]
        start = text.index(needle)
        return {"n": len(text), "text": text, "target": target, "needle": [start, start + len(needle)], "truth": str(codes[target])}

    def parts(self, problem: Problem, m: int) -> list[Part]:
        low, high = problem["needle"]
        return [
            {"size": end - start, "text": problem["text"][start:end], "present": start <= low and high <= end}
            for start, end in overlapping(problem["n"], m)
        ]

    def prompt(self, problem: Problem, part: Part) -> str:
        return (
            f"What is the code of the {problem['target']}? Answer with its digits only, or with unknown if the text below does not tell."
            f"\n{part['text']}"
        )

    def read(self, text: str) -> str | None:
        return _last_run(text)

    def errors(self, problem: Problem, part: Part, answer: Any) -> dict[str, float]:
        if part["present"]:
            return {"miss": float(answer is None), "wrong": float(answer not in (None, problem["truth"]))}
        return {"false": float(answer is not None and answer != problem["truth"])}

    def samples(self, problem: Problem, m: int, random: Random) -> list[Part]:
        parts = self.whole(problem, m)
        present, absent = ([part for part in parts if part["present"] is there] for there in (True, False))
        return [random.choice(some) for some in (present, absent) if some]

    def together(self, problem: Problem, answers: Sequence[Any]) -> list[str]:
        """All answers with the most votes."""
        votes = Counter(answer for answer in answers if answer is not None)
        most = max(votes.values(), default=0)
        return [answer for answer, count in votes.items() if count == most]

    def metrics(self, problem: Problem, result: Any, answers: Sequence[Any]) -> dict[str, float]:
        return {"error": 1 - 1 / len(result) if problem["truth"] in result else 1.0}


class RetrievalAugmented(Algorithm):
    """The six digits of a passcode, each in a sentence of its own: every part gives the sentences that tell of it, a last call answers."""

    name, main, least, final = "retrieval-augmented", "exact_error", 500, True

    def problem(self, n: int, random: Random) -> Problem:
        at_least(self.least, n)
        objects = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
        target = random.choice(objects)
        digits = [random.randint(1, 9) for _ in ORDINALS]
        needles = [digit_sentence(target, place, digit) for place, digit in enumerate(digits)]
        others = [name for name in objects if name != target]
        lines, length = list[str](), sum(map(len, needles)) + len(needles)
        while length < n:
            lines.append(digit_sentence(random.choice(others), random.randrange(len(ORDINALS)), random.randint(1, 9)))
            length += 1 + len(lines[-1])
        for needle in random.sample(needles, len(needles)):
            lines.insert(int(random.uniform(0.05, 0.95) * len(lines)), needle)
        text = " ".join(lines)[:n]  # the last line tells nothing
        return {"n": len(text), "text": text, "target": target, "needles": needles, "truth": digits}

    def parts(self, problem: Problem, m: int) -> list[Part]:
        text = problem["text"]
        return [{"size": end - start, "text": text[start:end]} for start, end in overlapping(problem["n"], m)]

    def prompt(self, problem: Problem, part: Part) -> str:
        return (
            f"Copy every whole sentence of the text below that tells a digit of the passcode of the {problem['target']}. "
            f"Answer with these sentences only, or with none.\n{part['text']}"
        )

    def read(self, text: str) -> str | None:
        text = text.strip()
        return text if re.search(r"\d", text) else None

    def errors(self, problem: Problem, part: Part, answer: Any) -> dict[str, float]:
        due = [needle for needle in problem["needles"] if needle in part["text"]]
        return {"missed": 1 - sum(needle in (answer or "") for needle in due) / len(due)} if due else {}

    def samples(self, problem: Problem, m: int, random: Random) -> list[Part]:
        telling = [part for part in self.whole(problem, m) if any(needle in part["text"] for needle in problem["needles"])]
        return [random.choice(telling)] if telling else []

    def together(self, problem: Problem, answers: Sequence[Any]) -> str:
        """What the last call is given."""
        return " ... ".join(answer for answer in answers if answer is not None)

    def final_prompt(self, problem: Problem, found: Any) -> str:
        return (
            f"What are the six digits of the passcode of the {problem['target']}? Answer with the list only, like [1, 2, 3, 4, 5, 6]; "
            f"write 0 for a digit that the text below does not tell.\n{found}"
        )

    def read_final(self, text: str) -> list[int]:
        digits = [int(digit) for digit in re.findall(r"[0-9]", text[text.rfind("[") + 1 :])] if "[" in text else []
        return (digits + [0] * len(ORDINALS))[: len(ORDINALS)]

    def metrics(self, problem: Problem, result: Any, answers: Sequence[Any]) -> dict[str, float]:
        wrong = [a != b for a, b in zip(result, problem["truth"], strict=True)]
        return {"exact_error": float(any(wrong)), "wrong_digits": sum(wrong) / len(wrong)}


COLOURS = ("red", "blue", "green", "white", "black", "golden")
THINGS = ("door", "chest", "locker", "vault")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
TASKS: dict[str, Algorithm] = {task.name: task for task in (Counting(), Sorting(), Retrieving(), RetrievalAugmented())}


def at_least(least: int, n: int) -> None:
    if n < least:
        raise BadInput(f"is at least {least} here", field="n", value=n)


def sentence(name: str, code: int) -> str:
    return f"The code of the {name} is {code}."


def digit_sentence(name: str, place: int, digit: int) -> str:
    return f"The {ORDINALS[place]} digit of the passcode of the {name} is {digit}."


def cut(problem: Problem, n: int) -> Problem:
    """The first n of a counting or sorting problem, so that problems of several sizes are nested."""
    if "text" in problem and "needle" not in problem and "needles" not in problem:
        text = problem["text"][:n]
        return {"n": len(text), "text": text, "truth": _digits(text)}
    if "numbers" in problem:
        numbers = problem["numbers"][:n]
        return {"n": len(numbers), "numbers": numbers, "truth": sorted(numbers)}
    raise BadInput("cannot be cut: its answer may be in what is left out", field="problem", value=sorted(problem))


def merged(lists: Sequence[Sequence[float]]) -> list[float]:
    """Exact merge of lists by comparing their heads; of lists that are not sorted the result need not be."""
    return list(heapq.merge(*lists))


def distances(answer: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """exact_error (1 where max norm >= 1e-6), linf and l1 (per n; both 1 where the length differs), the fuzzy ones with the answer
    extended by its last value or cut to the right length, and the difference in length per n."""
    n = len(truth)
    fitted = [*answer[:n], *[answer[-1] if answer else 0.0] * (n - len(answer))]
    gaps = [abs(a - b) for a, b in zip(fitted, truth, strict=True)]
    fuzzy_linf, fuzzy_l1 = max(gaps), sum(gaps) / n
    same = len(answer) == n
    linf, l1 = (fuzzy_linf, fuzzy_l1) if same else (1.0, 1.0)
    return {
        "exact_error": float(linf >= 1e-6), "linf": linf, "l1": l1, "fuzzy_linf": fuzzy_linf, "fuzzy_l1": fuzzy_l1,
        "length": abs(len(answer) - n) / n,
    }  # fmt: skip


def falls(numbers: Sequence[float]) -> float:
    """How far a list is from rising: the sum of its steps down."""
    return sum(max(a - b, 0.0) for a, b in pairwise(numbers))


def _digits(text: str) -> int:
    return sum(character.isdigit() for character in text)


def _last_run(text: str) -> str | None:
    runs = re.findall(r"[0-9]+", text)
    return runs[-1][:18] if runs else None
