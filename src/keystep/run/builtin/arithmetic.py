"""Long addition and long multiplication, one column a step, as they are taught at school.

A step is told the two digits, the carry and, in a multiplication, the digit that stands in the column already; it answers the column's
digit and the next carry, and both go into the state. Rows of a multiplication are added up as they are made (Knuth, The Art of Computer
Programming, vol. 2, 4.3.1, algorithm M), so n digits times m digits are n m steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.arithmetic import render
from keystep.run.builtin.items import Item, exclusive
from keystep.run.flags import Flag

MOST_DIGITS = 1000  # of either number

_DIGIT, _CARRY = (re.compile(rf"^\s*{word}\s*=\s*([0-9])\s*$", re.IGNORECASE | re.MULTILINE) for word in ("digit", "carry"))

_SIGN = r"[-+*/^%×·÷−]"
_ALONE = (
    rf"(?<!\d)(?<!\d[.,'_])(?<![.])(?<!{_SIGN})(?<!{_SIGN}\s)(?<!\dx)(?<!\d\sx\s)"  # not a piece of 12,345 or 1.5, no sign, no longer sum
)
_END = rf"(?!\d|[.,'_]\d|\s*{_SIGN}|\s*x\s*\d)"


def read(text: str) -> list[int]:
    """[digit, carry] of an answer; `Flag` where it is malformed."""
    digits, carries = _DIGIT.findall(text), _CARRY.findall(text)
    if len(digits) != 1 or len(carries) != 1:
        raise Flag("not one digit and one carry")
    return [int(digits[0]), int(carries[0])]


@dataclass
class _Columns(Item):
    """Two whole numbers `a` and `b`, and their digits from the right."""

    a: int | None = None
    b: int | None = None
    sampling = MappingProxyType({"max_tokens": 32, "temperature": 0.5})
    signs = "+"  # between the numbers of a question

    def __post_init__(self) -> None:
        exclusive(self.question, {"a": self.a, "b": self.b})
        a, b = (12345 if self.a is None else self.a, 67890 if self.b is None else self.b) if self.question is None else self._asked()
        for name, number in (("a", a), ("b", b)):
            if not 0 <= number < 10**MOST_DIGITS:
                raise BadInput(f"is a whole number of at most {MOST_DIGITS} digits, without a sign", field=name, value=str(number)[:40])
        if self.question is None and (self.a is None) != (self.b is None):
            raise BadInput("are given together, or neither", field="a and b", value=[self.a, self.b], mend="give both")
        self.numbers = a, b
        self._first, self._second = ([int(digit) for digit in reversed(str(number))] for number in self.numbers)
        if self.answer is not None and not re.fullmatch(r"\d{1,4000}", self.answer.strip(), re.ASCII):
            raise BadInput("is a whole number", field="answer", value=self.answer[:40])
        self.expected = None if self.answer is None else int(self.answer)

    def _asked(self) -> tuple[int, int]:
        found = re.findall(rf"{_ALONE}(\d+)\s*[{re.escape(self.signs)}]\s*(\d+){_END}", str(self.question), re.ASCII)
        if len(found) != 1 or max(map(len, found[0])) > MOST_DIGITS:
            shown = " or ".join(f"12 {sign} 34" for sign in self.signs)
            raise BadInput(
                "does not hold one pair of numbers", field="question", value=self.question, mend=f"write it as {shown}, in digits alone"
            )
        return int(found[0][0]), int(found[0][1])

    def parse(self, text: str, state: Any) -> Any:
        return read(text)

    def identity(self) -> Any:
        numbers = [str(number) for number in self.numbers]
        return {"builtin": self.name, "numbers": numbers, **self._told(), "prompt": self.prompt(self.start())}


@dataclass
class Add(_Columns):
    """Settings: two whole numbers `a` and `b`, or a `question` that holds "a + b" and perhaps its `answer`.

    State: {"column", "carry", "digits": the sum's, as far as they are known}, at the end {"sum"}; answer: [digit, carry].
    """

    name = "add"

    def start(self) -> Any:
        return {"column": 0, "carry": 0, "digits": ""}

    def prompt(self, state: Any) -> str:
        return render(*self._at(state["column"]), state["carry"])

    def update(self, state: Any, answer: Any) -> Any:
        digits = str(answer[0]) + state["digits"]
        if state["column"] + 1 == self.total():
            return {"sum": int(str(answer[1]) + digits)}
        return {"column": state["column"] + 1, "carry": answer[1], "digits": digits}

    def done(self, state: Any) -> bool:
        return "sum" in state

    def total(self) -> int:
        return max(len(self._first), len(self._second))

    def outcome(self) -> int:
        return sum(self.numbers)

    def answer_to(self, state: Any) -> list[int]:
        carry, digit = divmod(sum(self._at(state["column"])) + state["carry"], 10)
        return [digit, carry]

    def _at(self, column: int) -> tuple[int, int]:
        first, second = (digits[column] if column < len(digits) else 0 for digits in (self._first, self._second))
        return first, second


@dataclass
class Multiply(_Columns):
    """Settings: two whole numbers `a` and `b`, or a `question` that holds "a × b" and perhaps its `answer`.

    State: {"row": digit of b, "column": digit of a, both from the right, "carry", "sum": of the rows so far}, at the end {"product"};
    answer: [digit, carry].
    """

    name = "multiply"
    signs = "×*x"

    def start(self) -> Any:
        return {"row": 0, "column": 0, "carry": 0, "sum": 0}

    def prompt(self, state: Any) -> str:
        return render(self._first[state["column"]], self._second[state["row"]], state["carry"], self._below(state))

    def update(self, state: Any, answer: Any) -> Any:
        digit, carry = answer
        row, column = state["row"], state["column"] + 1
        total = state["sum"] + (digit - self._below(state)) * 10 ** (row + column - 1)
        if column < len(self._first):
            return {"row": row, "column": column, "carry": carry, "sum": total}
        total += carry * 10 ** (row + column)  # nothing stands there yet
        return {"row": row + 1, "column": 0, "carry": 0, "sum": total} if row + 1 < len(self._second) else {"product": total}

    def done(self, state: Any) -> bool:
        return "product" in state

    def total(self) -> int:
        return len(self._first) * len(self._second)

    def outcome(self) -> int:
        return self.numbers[0] * self.numbers[1]

    def answer_to(self, state: Any) -> list[int]:
        product = self._first[state["column"]] * self._second[state["row"]]
        carry, digit = divmod(product + self._below(state) + state["carry"], 10)
        return [digit, carry]

    def _below(self, state: Any) -> int:
        """The digit that stands in the column already."""
        return int(state["sum"] // 10 ** (state["row"] + state["column"]) % 10)
