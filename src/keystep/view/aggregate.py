"""What the steps of a run come to: sums, bins over the step numbers, the hardest steps, the reasons of flags. In one pass, each step once.

`Aggregate.read` takes in what is new since it was last called: the report calls it once, the live view again and again. A place (a run's
main procedure, a row, a skill within a plan) has its steps numbered from 0 and mostly in that order, so what is new is what lies behind the
last number seen, and what has filled the gaps before it. Reads are short (`BATCH` steps), on a connection of their own.

Memory does not grow with the steps: there are never more than `MOST_BINS` bins, which double their width, and a fixed number of hard steps.
It grows with the places, by some hundred bytes each.

The steps of a run on a cluster are those of its chunks.

Limit: of the gaps in a place only the last `GAPS` are looked at again. A step that is decided after that many later ones have been seen is
missing in a live view; never in a report of a run that has ended.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from keystep.lm.redact import redact
from keystep.run.journal import Journal
from keystep.run.journal_reader import with_chunks
from keystep.run.tables import samples, scopes, steps

MOST_BINS = 240
HARDEST, PER_BIN = 40, 5  # hard steps that are kept, of the run and of every bin
BATCH = 20_000  # steps of one query
PAIRS = 200  # steps that one query names
PLACES = 400  # places of one query
GAPS = 1000
REASONS = 200  # different reasons of flags that are told apart

Hard = tuple[int, int, int, int]  # samples, flagged, -scope, -number: the hardest is the greatest, of equals the first

_c = steps.c
_STEPS = sa.select(
    _c.scope, _c.seq, _c.samples, _c.flagged, _c.tokens_in, _c.tokens_out, _c.seconds, _c.cost, _c.candidates.is_not(None)
).order_by(_c.scope, _c.seq)  # fmt: skip


@dataclass(slots=True)
class Sums:
    """Over some steps. `sampled` are those that asked a model, `disputed` those with more than one candidate or a flagged sample, `most`
    the most samples of one."""

    steps: int = 0
    sampled: int = 0
    samples: int = 0
    most: int = 0
    flagged: int = 0
    disputed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    @property
    def mean(self) -> float:
        """Samples per sampled step."""
        return self.samples / self.sampled if self.sampled else 0.0

    def add(self, other: Sums) -> None:
        most = max(self.most, other.most)
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.most = most


_SUMMED = [each.name for each in fields(Sums)]


@dataclass(slots=True)
class Bin(Sums):
    """Steps whose numbers lie within one width, with the hardest of them."""

    hard: list[Hard] = field(default_factory=list)

    def merge(self, other: Bin) -> None:
        self.add(other)
        self.hard = heapq.nlargest(PER_BIN, self.hard + other.hard)
        heapq.heapify(self.hard)


@dataclass(slots=True)
class Place(Sums):
    """A place of the run: `next` is one more than the last number seen, `gaps` are the numbers before it that had no step yet."""

    id: int = 0
    path: str = ""
    next: int = 0
    gaps: set[int] = field(default_factory=set)
    due: int = 0  # the turn at which it is looked at again, and after how many turns then
    rest: int = 1


class Aggregate:
    """What is known of a run's steps so far.

    Attributes:
        bins: bin i holds the steps number i * `width` to (i + 1) * `width` - 1 of all places.
        end: one more than the last number of any place.
        sizes: how many sampled steps took how many samples.
        reasons: how often samples were flagged for what.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.total = Sums()
        self.bins: list[Bin] = []
        self.width = 1
        self.end = 0
        self.places: dict[int, Place] = {}
        self.sizes: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self._hard: list[Hard] = []
        self._turn = 0

    def hardest(self) -> list[Hard]:
        """The hardest disputed steps, hardest first."""
        return sorted(self._hard, reverse=True)

    def read(self, journal: Journal, *, everywhere: bool = False) -> bool:
        """Take in the steps that are new, and say whether there were any.

        A place that had none is looked at ever more rarely, unless `everywhere` says otherwise: for the first read after a run has ended
        or gone on.
        """
        self._turn += 1
        before = self.total.steps
        known = [place for place in self.places.values() if everywhere or place.due <= self._turn]
        new = [Place(id=row.id, path=row.path) for row in journal.select(_places(self.run, max(self.places, default=0)))]
        self.places.update((place.id, place) for place in new)
        for place in known:
            had = place.steps
            self._read_on(journal, place)
            place.rest = 1 if place.steps > had else place.rest * 2
            place.due = self._turn + place.rest
        while new:
            new = self._read_new(journal, new[:PLACES]) + new[PLACES:]
        return self.total.steps > before

    def _read_new(self, journal: Journal, new: list[Place]) -> list[Place]:
        """Read places not looked at before, many by one query; gives those that are left."""
        found = list(journal.select(_STEPS.where(_c.scope.in_([place.id for place in new])).limit(BATCH)))
        self._add(journal, found)
        if len(found) < BATCH:
            return []
        last = found[-1].scope
        self._read_on(journal, self.places[last])
        return [place for place in new if place.id > last]

    def _read_on(self, journal: Journal, place: Place) -> None:
        gaps = sorted(place.gaps)
        if gaps:
            self._add(journal, list(journal.select(_STEPS.where(_c.scope == place.id, _c.seq.in_(gaps)))))
        while True:
            found = list(journal.select(_STEPS.where(_c.scope == place.id, _c.seq >= place.next).limit(BATCH)))
            self._add(journal, found)
            if len(found) < BATCH:
                return

    def _add(self, journal: Journal, found: Sequence[Any]) -> None:
        if not found:
            return
        self._widen(max(row[1] for row in found))
        for (scope, number), stretch in groupby(found, lambda row: (row[0], row[1] // self.width)):
            rows = list(stretch)
            sums, hard = _sums(rows)
            place, bin = self.places[scope], self.bins[number]
            for whole in (place, bin, self.total):
                whole.add(sums)
            for each in hard:
                _keep(bin.hard, each, PER_BIN)
                _keep(self._hard, each, HARDEST)
            self.sizes.update(row[2] for row in rows if row[2])
            _note_gaps(place, [row[1] for row in rows])
        self._read_reasons(journal, [(row[0], row[1]) for row in found if row[3]])

    def _widen(self, last: int) -> None:
        """Make room for the step of this number."""
        self.end = max(self.end, last + 1)
        while last >= MOST_BINS * self.width:
            self.width *= 2
            for left, right in zip(self.bins[::2], self.bins[1::2], strict=False):
                left.merge(right)
            self.bins = self.bins[::2]
        self.bins.extend(Bin() for _ in range(len(self.bins), last // self.width + 1))

    def _read_reasons(self, journal: Journal, flagged: list[tuple[int, int]]) -> None:
        flag = samples.c.flag
        query = sa.select(flag, sa.func.count().label("times")).where(flag.is_not(None)).group_by(flag)
        for chosen in _chosen(samples, flagged):
            for row in journal.select(query.where(chosen)):
                reason = redact(row.flag.partition(":")[0].strip())[:60] or "flagged"
                self.reasons[reason if reason in self.reasons or len(self.reasons) < REASONS else "other"] += row.times


def steps_of(journal: Journal, hard: Iterable[Hard]) -> Iterator[Any]:
    """The journal's rows of these steps: scope, seq, name, skill, answer, candidates, samples, flagged."""
    query = sa.select(_c.scope, _c.seq, _c.name, _c.skill, _c.answer, _c.candidates, _c.samples, _c.flagged)
    for chosen in _chosen(steps, [(-scope, -seq) for _, _, scope, seq in hard]):
        yield from journal.select(query.where(chosen))


def samples_of(journal: Journal, hard: Iterable[Hard], limit: int) -> Iterator[Any]:
    """The first kept samples of these steps, in order."""
    c = samples.c
    query = sa.select(c.scope, c.seq, c.idx, c.text, c.key, c.flag, c.model).where(c.idx < limit).order_by(c.scope, c.seq, c.idx)
    for chosen in _chosen(samples, [(-scope, -seq) for _, _, scope, seq in hard]):
        yield from journal.select(query.where(chosen))


def _places(run: str, after: int) -> sa.Select[Any]:
    return sa.select(scopes.c.id, scopes.c.path).where(scopes.c.run.in_(with_chunks(run)), scopes.c.id > after).order_by(scopes.c.id)


def _chosen(table: sa.Table, pairs: list[tuple[int, int]]) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that together choose the rows of these (scope, number); written so that a database looks them up by its primary key."""
    for at in range(0, len(pairs), PAIRS):
        numbers: dict[int, list[int]] = {}
        for scope, number in pairs[at : at + PAIRS]:
            numbers.setdefault(scope, []).append(number)
        yield sa.or_(*(sa.and_(table.c.scope == scope, table.c.seq.in_(some)) for scope, some in numbers.items()))


def _sums(rows: Sequence[Any]) -> tuple[Sums, list[Hard]]:
    """Over steps of one place and bin; and those that were disputed."""
    _, _, drawn, flagged, tokens_in, tokens_out, seconds, cost, _ = zip(*rows, strict=True)
    hard = [(row[2], row[3], -row[0], -row[1]) for row in rows if row[8] or row[3]]
    return Sums(
        steps=len(rows), sampled=len(rows) - drawn.count(0), samples=sum(drawn), most=max(drawn), flagged=sum(flagged), disputed=len(hard),
        tokens_in=sum(tokens_in), tokens_out=sum(tokens_out), seconds=sum(seconds), cost=sum(cost),
    ), hard  # fmt: skip


def _keep(heap: list[Hard], each: Hard, most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, each)
    elif each > heap[0]:
        heapq.heapreplace(heap, each)


def _note_gaps(place: Place, numbers: list[int]) -> None:
    """`numbers`, in order, are all behind the last one seen, or all in the gaps before it."""
    last = numbers[-1]
    if last < place.next:
        place.gaps.difference_update(numbers)
        return
    if last - place.next + 1 > len(numbers):
        place.gaps.update(range(max(place.next, last - GAPS), last))
        place.gaps.difference_update(numbers)
        place.gaps = set(sorted(place.gaps)[-GAPS:])
    place.next = last + 1
