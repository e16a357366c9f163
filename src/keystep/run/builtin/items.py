"""What the procedures share whose work is one item of a file of questions: `{"id": …, "question": …, "answer": …}`, texts all three."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, cast

from keystep.errors import BadInput
from keystep.run.procedure import Procedure


@dataclass(kw_only=True)
class Item(Procedure):
    """Settings: instead of the procedure's own, the `question` that holds them; the `answer` that `check` compares the result with
    (where there is none, with the truth alone); an `id`, which is not used."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None
    expected = cast(Any, None)  # what the `answer` says, as `outcome` says it

    @abstractmethod
    def answer_to(self, state: Any) -> Any:
        """The right answer to a state."""

    @abstractmethod
    def outcome(self) -> Any:
        """What it comes to."""

    def truth(self) -> Iterable[tuple[Any, Any]]:
        state = self.start()
        while not self.done(state):
            answer = self.answer_to(state)
            yield state, answer
            state = self.update(state, answer)

    def total(self) -> int:
        return self._steps

    @cached_property
    def _steps(self) -> int:
        return sum(1 for _ in self.truth())

    def check(self, answers: Iterable[Any]) -> int | None:
        wrong = first_wrong(answers, self.truth())
        return self.total() if wrong is None and self.expected not in (None, self.outcome()) else wrong

    def _told(self) -> dict[str, Any]:
        return {} if self.answer is None else {"answer": self.answer}


def exclusive(question: str | None, own: dict[str, Any]) -> None:
    """Refuse a question beside settings that say the same."""
    if question is not None and (given := [name for name, value in own.items() if value is not None]):
        raise BadInput("exclude each other", field=f"question and {' and '.join(given)}", mend="give one of them")


def first_wrong(answers: Iterable[Any], truth: Iterable[tuple[Any, Any]]) -> int | None:
    """The number of the first answer that is not the true one, or is missing; None where there is none."""
    missing = object()
    pairs = zip_longest(answers, (right for _, right in truth), fillvalue=missing)
    return next((number for number, (answer, right) in enumerate(pairs) if answer != right), None)
