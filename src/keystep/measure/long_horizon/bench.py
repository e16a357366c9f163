"""Long-horizon execution as a benchmark of `keystep bench`: ways of putting the plan to a worker, and histories with errors in them.

Ways, each measured on the same plans:

    conversation   every turn's words as a message, the worker's own replies in the history
    window-N       the same, but of earlier turns only the last N are shown
    healed         the same, but the shown replies are the true sums
    fresh          no history: one word a call, with the running sum as the worker gave it (as in MAKER; the built-in ledger's prompt)
    single-turn    all words at once, the sum after each wanted

A vote on every turn is a matter of the run (`--majority N`, `--ahead-by K`). With `errors`, only turn `target` is asked, after histories in
which each answer is wrong at that rate, and turn 1 as a control: what is lost between turn 1 and a clean history is long context, what is
lost between clean and faulty histories is self-conditioning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from keystep.errors import BadInput
from keystep.lm.base import Prompt
from keystep.lm.embedded.ledger import MAX_WORDS, MIN_WORDS, render
from keystep.measure.bench import Measured, OneAnswer
from keystep.measure.chart import Chart, Line
from keystep.measure.long_horizon import task
from keystep.measure.long_horizon.measures import bootstrap, horizon, horizon_law, inject, step_accuracy
from keystep.measure.long_horizon.measures import score as score_answers
from keystep.run.builtin.ledger import read as read_ledger
from keystep.run.flags import Flag

_WAY = re.compile(r"conversation|healed|fresh|single-turn|window-([1-9]\d{0,5})")


class Settings(BaseModel):
    """`horizon`: steps (words) of a plan; `per_turn`: words of a turn. `words`: a word list of your own. `data_seed`: of the plans; 42 is
    the reference's. `drawn`: words drawn for each instance, of which the plan is the beginning; the reference's number, so that its plans
    come out. `errors`: rates of wrong answers in the history before turn `target`; empty measures whole runs instead.
    `shown_work`: the worker is asked to write its look-ups down (chain of thought). `draws`: of the bootstrap."""

    model_config = ConfigDict(extra="forbid")

    ways: list[str] = ["conversation"]
    instances: int = Field(default=20, ge=1, le=100_000)
    horizon: int = Field(default=100, ge=1)
    per_turn: int = Field(default=1, ge=1)
    size: int = Field(default=100, ge=1)
    limit: int = Field(default=99, ge=1)
    words: str | None = None
    data_seed: int = 42
    drawn: int = Field(default=50_000, ge=1, le=10_000_000)
    errors: list[float] = []
    target: int = Field(default=100, ge=2)
    shown_work: bool = False
    draws: int = Field(default=1000, ge=1, le=100_000)

    @field_validator("ways")
    @classmethod
    def _known(cls, ways: list[str]) -> list[str]:
        for way in ways:
            if not _WAY.fullmatch(way):
                raise ValueError(f"{way} is no way; there are conversation, window-N, healed, fresh and single-turn")
        if not ways or len(set(ways)) < len(ways):
            raise ValueError("names at least one way, and each once")
        return ways

    @field_validator("errors")
    @classmethod
    def _rates(cls, rates: list[float]) -> list[float]:
        if any(not 0 <= rate <= 1 for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError("are rates from 0 to 1, each once")
        return rates


def problems(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """{id, way, instance, error, dictionary, turns, shown}: `turns` are the words of every turn, `shown` the answers of the history that
    is given, if one is. The plans are those of `data_seed`; `seed` draws the errors.

    Raises:
        BadInput: a way does not go with the other settings, or there are too few words.
    """
    _check(settings)
    words = None if settings.words is None else task.words_of(settings.words)
    plan = task.generate(words, settings.size, settings.limit, settings.instances, settings.drawn, settings.data_seed)
    found = []
    for way in settings.ways:
        per_turn = 1 if way == "single-turn" else settings.per_turn
        for number, keys in enumerate(plan.keys):
            steps = keys[: settings.target * per_turn if settings.errors else settings.horizon]
            turns = [steps[start : start + per_turn] for start in range(0, len(steps), per_turn)]
            common = {"way": way, "instance": number, "dictionary": plan.dictionary}
            if not settings.errors:
                found.append({"id": f"{way}/{number:04}", **common, "error": None, "turns": turns, "shown": []})
                continue
            found.append({"id": f"{way}/turn-1/{number:04}", **common, "error": None, "turns": turns[:1], "shown": []})
            true = list(accumulate(sum(plan.dictionary[word] for word in turn) for turn in turns[:-1]))
            for rate in settings.errors:
                draw = np.random.default_rng([seed % 2**63, number, round(rate * 1e9)])
                shown = [int(total) for total in inject([true], rate, draw)[0]]
                found.append({"id": f"{way}/{rate:g}/{number:04}", **common, "error": rate, "turns": turns, "shown": shown})
    return found


def _check(settings: Settings) -> None:
    field = "set ways"
    name, steps = ("target", settings.target * settings.per_turn) if settings.errors else ("horizon", settings.horizon)
    if steps > settings.drawn:
        problem = f"is beyond the {settings.drawn} words drawn"
        raise BadInput(problem, field=f"set {name}", value=getattr(settings, name), mend="take fewer steps, or raise drawn")
    if "fresh" in settings.ways and settings.per_turn > 1:
        raise BadInput("is one word a call", field=field, value="fresh", mend="leave per_turn at 1")
    if "fresh" in settings.ways and not MIN_WORDS <= settings.size <= MAX_WORDS:
        raise BadInput(f"takes a dictionary of {MIN_WORDS} to {MAX_WORDS} words", field=field, value="fresh", mend="change size")
    if settings.errors:
        for way in {"healed", "fresh", "single-turn"} & set(settings.ways):
            raise BadInput("has no history to put errors into", field=field, value=way, mend="leave errors out, or use conversation")


def procedure(settings: Settings, problem: Mapping[str, Any]) -> Measured:
    if problem["way"] == "fresh":
        return Fresh(problem)
    if problem["way"] == "single-turn":
        return SingleTurn(problem)
    return Conversation(problem, settings.shown_work)


class Conversation(Measured):
    """State: the replies so far as [text, sum]. Answer: {"sum", "text"}; an unreadable one has the sum None. Votes go by the sum."""

    name = "long-horizon"
    sampling = MappingProxyType({"max_tokens": 1024})

    def __init__(self, problem: Mapping[str, Any], shown_work: bool = False) -> None:
        self.problem, self.how = problem, task.SHOWN if shown_work else task.ONLY
        window = _WAY.fullmatch(problem["way"])
        self.window = int(window[1]) if window and window[1] else None
        self.true = true_sums(problem) if problem["way"] == "healed" else None

    def start(self) -> Any:
        return []

    def prompt(self, state: Any) -> Prompt:
        given = self.true[: len(state)] if self.true is not None else self.problem["shown"]
        said = [f"<answer>{total}</answer>" for total in given]
        if self.true is None:
            said += [text for text, _ in state]
        return task.conversation(self.problem["dictionary"], self.problem["turns"], said, self.window, self.how)

    def read(self, text: str, state: Any) -> Any:
        total = task.whole(task.answer_in(text))
        if total is None and self.voted:
            raise Flag("no whole number in answer tags")
        return {"sum": total, "text": task.without_thoughts(text)}

    def key(self, answer: Any) -> Any:
        return answer and answer["sum"]

    def update(self, state: Any, answer: Any) -> Any:
        return [*state, ["", None] if answer is None else [answer["text"], answer["sum"]]]

    def done(self, state: Any) -> bool:
        return len(state) == self.total()

    def total(self) -> int:
        return len(self.problem["turns"]) - len(self.problem["shown"])

    def identity(self) -> Any:
        return {"long-horizon": self.problem["way"], "how": self.how, "voted": self.voted}


class Fresh(Measured):
    """One word a call. State: [words done, running sum]; after an unreadable answer the sum stays what it was. Answer: [value, sum]."""

    name = "long-horizon-fresh"
    sampling = MappingProxyType({"max_tokens": 64})

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = problem

    def start(self) -> Any:
        return [0, 0]

    def prompt(self, state: Any) -> Prompt:
        return render(self.problem["dictionary"], state[1], self.problem["turns"][state[0]][0])

    def read(self, text: str, state: Any) -> Any:
        return read_ledger(text)

    def update(self, state: Any, answer: Any) -> Any:
        return [state[0] + 1, state[1] if answer is None else answer[1]]

    def done(self, state: Any) -> bool:
        return bool(state[0] == self.total())

    def total(self) -> int:
        return len(self.problem["turns"])

    def identity(self) -> Any:
        return {"long-horizon": "fresh", "voted": self.voted}


class SingleTurn(OneAnswer):
    """Everything in one answer: the list of the sums, None where an entry is no whole number."""

    name = "long-horizon-single-turn"
    sampling = MappingProxyType({"max_tokens": 8192})

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = problem

    def prompt(self, state: Any) -> Prompt:
        words = [word for turn in self.problem["turns"] for word in turn]
        return task.conversation(self.problem["dictionary"], [words], [], None, task.ALL_AT_ONCE)

    def read(self, text: str, state: Any) -> Any:
        written = task.answer_in(text)
        if written is None:
            raise Flag("no answer tags")
        return [task.whole(part) for part in written.split(",")]

    def identity(self) -> Any:
        return {"long-horizon": "single-turn", "voted": self.voted}


def true_sums(problem: Mapping[str, Any]) -> list[int]:
    return list(accumulate(turn_values(problem)))


def turn_values(problem: Mapping[str, Any]) -> list[int]:
    return [sum(problem["dictionary"][word] for word in turn) for turn in problem["turns"]]


def predicted(settings: Settings, problem: Mapping[str, Any], record: Mapping[str, Any]) -> list[Any]:
    """A line has {"answers": [sum of every turn that was asked]}, whole numbers or texts of them."""
    given = record.get("answers")
    if not isinstance(given, list):
        return []
    asked = len(problem["turns"]) - len(problem["shown"])
    sums = [_sum(answer) for answer in given[:asked]]
    return [sums] if problem["way"] == "single-turn" else [{"sum": total, "text": ""} for total in sums]


def _sum(answer: Any) -> int | None:
    """The sum in any of the answers above; None where there is none."""
    if isinstance(answer, Mapping):
        answer = answer.get("sum")
    elif isinstance(answer, list):
        answer = answer[1] if len(answer) == 2 else None
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        return None
    return answer if isinstance(answer, int) else task.whole(answer)


def _row(problem: Mapping[str, Any], answers: Sequence[Any]) -> list[int | None]:
    """What was answered in every turn that was asked."""
    asked = len(problem["turns"]) - len(problem["shown"])
    given = answers
    if problem["way"] == "single-turn":
        given = answers[0] if answers and isinstance(answers[0], list) else []
    sums = [_sum(answer) for answer in given[:asked]]
    return sums + [None] * (asked - len(sums))


def score(settings: Settings, problems: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Whole runs: accuracies by turn, horizons and their intervals for every way. With `errors`: accuracy at the target by rate."""
    found = _self_conditioning if settings.errors else _runs
    ways = {}
    for way in settings.ways:
        rows = [(problem, _row(problem, given)) for problem, given in zip(problems, answers, strict=True) if problem["way"] == way]
        if rows:
            ways[way] = found(settings, way, rows)
    summary = {f"{way}: {name}" if len(ways) > 1 else name: value for way, one in ways.items() for name, value in one["summary"].items()}
    tables: dict[str, list[dict[str, Any]]] = {}
    for one in ways.values():
        for title, lines in one["tables"].items():
            tables.setdefault(title, []).extend(lines)
    return {"summary": {"problems": len(problems), **summary}, "tables": tables}


def _runs(settings: Settings, way: str, rows: Sequence[tuple[Mapping[str, Any], list[int | None]]]) -> dict[str, Any]:
    per_turn = 1 if way == "single-turn" else settings.per_turn
    shown = [true_sums(problem) for problem, _ in rows] if way == "healed" else None
    scores = score_answers([turn_values(problem) for problem, _ in rows], [row for _, row in rows], shown)
    turns = scores.prefix.shape[1]

    def at_most(steps: int | None) -> int | None:  # the last turn may be a shorter one
        return None if steps is None else min(steps, settings.horizon)

    band, band80 = (bootstrap(scores.prefix, share, per_turn, settings.draws) for share in (0.5, 0.8))
    step, prefix, index = scores.step.mean(axis=0), scores.prefix.mean(axis=0), scores.index.mean(axis=0)
    slope, low, high = _slope(scores.step, settings.draws)
    mean = float(step.mean())
    p = step_accuracy(mean, per_turn)
    summary = {
        "first turn": float(step[0]), "turn accuracy": mean, "step accuracy": p,
        "H 0.5": at_most(horizon(scores.prefix, 0.5, per_turn)) if len(rows) > 1 else None,  # of one instance it would say nothing
        "H 0.8": at_most(horizon(scores.prefix, 0.8, per_turn)) if len(rows) > 1 else None,
        "steps before the first error": float(np.minimum(scores.prefix.sum(axis=1) * per_turn, settings.horizon).mean()),
        "unreadable": float(scores.invalid.mean()),
    }  # fmt: skip
    about = {
        "way": way, "instances": len(rows), "turns": turns, **summary,
        "H 0.5 interval": _interval(at_most(band.horizon_low), at_most(band.horizon_high)),
        "H 0.8 interval": _interval(at_most(band80.horizon_low), at_most(band80.horizon_high)),
        "H 0.5 at constant p": horizon_law(p) if 0 < p < 1 else None,
        "slope of turn accuracy per 100 turns": slope * 100, "slope interval": f"{low * 100:.3g} to {high * 100:.3g}",
    }  # fmt: skip
    by_turn = [
        {
            "way": way, "turn": turn + 1, "steps": min((turn + 1) * per_turn, settings.horizon), "turn accuracy": float(step[turn]),
            "index accuracy": float(index[turn]), "prefix accuracy": float(prefix[turn]), "low": float(band.low[turn]),
            "high": float(band.high[turn]), "constant p": mean ** (turn + 1),
        }
        for turn in range(turns)
    ]  # fmt: skip
    return {"summary": summary, "tables": {"By way": [about], "By turn": by_turn}}


def _interval(low: int | None, high: int | None) -> str:
    return f"{'beyond' if low is None else low} to {'beyond' if high is None else high}"


def _slope(right: Any, draws: int) -> tuple[float, float, float]:
    """Least-squares slope of the mean over turns, with its 95% interval over instances; 0 for a single turn."""
    count, turns = right.shape
    if turns == 1:
        return 0.0, 0.0, 0.0
    centred = np.arange(turns) - (turns - 1) / 2
    each = right @ centred / (centred @ centred)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=draws) / count
    low, high = np.quantile(weights @ each, (0.025, 0.975))
    return float(each.mean()), float(low), float(high)


def _self_conditioning(settings: Settings, way: str, rows: Sequence[tuple[Mapping[str, Any], list[int | None]]]) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    for rate in (None, *settings.errors):
        some = [(problem, row[0]) for problem, row in rows if problem["error"] == rate]
        if not some:
            continue
        right = np.array([[answer is not None and answer == _due(problem)] for problem, answer in some])
        wrong = [shown != true for problem, _ in some for shown, true in zip(problem["shown"], true_sums(problem), strict=False)]
        band = bootstrap(right, draws=settings.draws)
        lines.append({
            "way": way, "history": "none (turn 1)" if rate is None else f"rate {rate:g}", "rate": rate,
            "wrong in it": sum(wrong) / len(wrong) if wrong else None, "instances": len(some), "accuracy": float(right.mean()),
            "low": float(band.low[0]), "high": float(band.high[0]), "unreadable": sum(answer is None for _, answer in some) / len(some),
        })  # fmt: skip
    at: dict[float | None, float] = {line["rate"]: line["accuracy"] for line in lines}
    histories = [line for line in lines if line["rate"] is not None]
    wrongs, rights = ([line[name] for line in histories] for name in ("wrong in it", "accuracy"))
    summary = {
        "turn 1": at.get(None), "clean history": at.get(0.0), "all wrong": at.get(1.0),
        "long context, drop": at[None] - at[0.0] if None in at and 0.0 in at else None,
        "self-conditioning, gap": at[0.0] - at[1.0] if 0.0 in at and 1.0 in at else None,
        "self-conditioning, slope": float(np.polyfit(wrongs, rights, 1)[0]) if len(set(wrongs)) > 1 else None,
    }  # fmt: skip
    return {"summary": summary, "tables": {f"Turn {settings.target} after histories with errors": lines}}


def _due(problem: Mapping[str, Any]) -> int:
    """The right answer to the turn asked, relative to the answer shown before it."""
    return int((problem["shown"] or [0])[-1] + turn_values(problem)[-1])


def charts(scores: Mapping[str, Any]) -> list[Chart]:
    by_turn = scores["tables"].get("By turn")
    if by_turn is None:
        [(title, lines)] = scores["tables"].items()
        curves = []
        for way in dict.fromkeys(line["way"] for line in lines):
            some = [line for line in lines if line["way"] == way and line["rate"] is not None]
            x, y, low, high = ([line[name] for line in some] for name in ("wrong in it", "accuracy", "low", "high"))
            curves.append(Line(way, x, y, low, high, "o-"))
        return [Chart(title, "share of wrong answers in the history", "accuracy of the next turn", curves)]
    prefix, steps = [], []
    for way in dict.fromkeys(row["way"] for row in by_turn):
        some = [row for row in by_turn if row["way"] == way]
        x = [row["steps"] for row in some]
        y, low, high = ([row[name] for row in some] for name in ("prefix accuracy", "low", "high"))
        prefix.append(Line(way, x, y, low, high))
        prefix.append(Line(f"{way}: at a constant rate", x, [row["constant p"] for row in some], style="--"))
        steps.append(Line(way, x, moving_average([row["turn accuracy"] for row in some])))
    return [
        Chart("All right so far", "steps", "prefix accuracy", prefix),
        Chart("Right relative to one's own last answer (moving average)", "steps", "turn accuracy", steps),
    ]


def moving_average(values: Sequence[float]) -> list[float]:
    """Each value averaged with its neighbours, a twentieth of the length on either side."""
    reach = len(values) // 20
    cut = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(some) / len(some) for some in cut]
