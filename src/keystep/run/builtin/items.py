"""What the procedures share whose work is one item of a file of questions: `{"id": …, "question": …, "answer": …}`, texts all three."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from keystep.errors import BadInput
from keystep.run.procedure import Procedure


@dataclass(kw_only=True)
class Item(Procedure):
    """Settings: instead of the procedure's own, the `question` that holds them; the `answer` that `check` compares the result with
    (where there is none, with the truth alone); an `id`, which is not used."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None

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
