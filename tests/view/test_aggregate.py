"""The one pass over the steps against sums made the long way."""

import heapq
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from filled import Filled, many, sample, step
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep.run import Journal
from keystep.view import aggregate as module
from keystep.view.aggregate import Aggregate


@contextmanager
def filled(*runs):
    with tempfile.TemporaryDirectory() as folder:
        made = Filled(Path(folder) / "a.db", *runs)
        yield made
        made.close()


# Steps of up to four places, as (place, number, samples, flagged, whether more than one candidate), in the order in which they are written;
# the lists between are what is written between two reads.
one = st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 9), st.integers(0, 2), st.booleans())
written = st.lists(st.lists(one, max_size=30), min_size=1, max_size=5)


@given(written, st.booleans())
@settings(max_examples=40)
def test_whatever_the_order_it_is_what_brute_force_finds(parts, once):
    seen = set()
    parts = [[each for each in part if not (each[:2] in seen or seen.add(each[:2]))] for part in parts]
    with filled("r", "other") as made, pytest.MonkeyPatch.context() as small:
        for name, value in {"MOST_BINS": 8, "BATCH": 7, "HARDEST": 5, "PER_BIN": 2, "PAIRS": 3, "PLACES": 2}.items():
            small.setattr(module, name, value)
        made.put("steps", [step(made.place("0", "other"), 3, 99, 1)])
        scopes: dict[int, int] = {}
        found = Aggregate("r")
        for part in parts:
            for place, seq, samples, flagged, split in part:
                if place not in scopes:
                    scopes[place] = made.place(f"row{place}")
                made.put("steps", [step(scopes[place], seq, samples, flagged, candidates='{"1":2,"2":1}' if split else None)])
                made.put("samples", [sample(scopes[place], seq, i, flag=f"bad {i}: {seq}") for i in range(flagged)])
            if not once:
                assert found.read(made.journal, everywhere=True) == bool(part)
        found.read(made.journal, everywhere=True)
    steps = [each for part in parts for each in part]
    assert_sums(found.total, steps)
    end = max((seq for _, seq, *_ in steps), default=-1) + 1
    assert found.end == end and len(found.bins) <= 8 and len(found.bins) == -(-end // found.width)
    assert found.width == 1 or end > 4 * found.width
    for number, bin in enumerate(found.bins):
        within = [each for each in steps if each[1] // found.width == number]
        assert_sums(bin, within)
        assert sorted(bin.hard, reverse=True) == hardest(within, scopes, 2)
    assert found.hardest() == hardest(steps, scopes, 5)
    assert found.sizes == Counter(samples for _, _, samples, _, _ in steps if samples)
    assert found.reasons == Counter(f"bad {i}" for *_, flagged, _ in steps for i in range(flagged))
    for place, scope in scopes.items():
        assert_sums(found.places[scope], [each for each in steps if each[0] == place])


def assert_sums(sums, steps):
    drawn = [samples for _, _, samples, _, _ in steps]
    assert (sums.steps, sums.samples, sums.most, sums.sampled) == (len(steps), sum(drawn), max(drawn, default=0), sum(map(bool, drawn)))
    assert sums.flagged == sum(flagged for *_, flagged, _ in steps)
    assert sums.disputed == sum(bool(flagged or split) for *_, flagged, split in steps)
    assert (sums.tokens_in, sums.tokens_out, sums.seconds, sums.cost) == tuple(each * len(steps) for each in (10, 2, 0.25, 0.5))


def hardest(steps, scopes, most):
    disputed = [(samples, flagged, -scopes[place], -seq) for place, seq, samples, flagged, split in steps if flagged or split]
    return heapq.nlargest(most, disputed)


class Counting(Journal):
    """Counts the rows that it gave."""

    given = 0

    def select(self, statement):
        for row in super().select(statement):
            self.given += 1
            yield row


def test_a_second_look_reads_only_what_is_new(tmp_path):
    made = Filled(tmp_path / "a.db")
    many(made, 5000)
    counting, found = Counting(tmp_path / "a.db"), Aggregate("r")
    assert found.read(counting) and counting.given < 5100  # the steps, the place and a line per reason
    made.put("steps", (step(1, seq) for seq in range(5000, 5010)))
    counting.given = 0
    assert found.read(counting)
    assert (counting.given, found.total.steps) == (10, 5010)
    counting.given = 0
    assert not found.read(counting) and counting.given == 0
    counting.close()
    made.close()


def test_a_quiet_place_is_looked_at_ever_more_rarely_but_not_forgotten(tmp_path):
    made = Filled(tmp_path / "a.db")
    scopes = [made.place(f"row{i}") for i in range(50)]
    made.put("steps", [step(scope, 0) for scope in scopes])
    asked = []
    counting, found = Counting(tmp_path / "a.db"), Aggregate("r")
    counting_select = counting.select
    counting.select = lambda statement: asked.append(statement) or counting_select(statement)
    for _ in range(64):
        found.read(counting)
    assert len(asked) < 64 + 50 * 8
    made.put("steps", [step(scopes[7], 1)])
    assert not found.read(counting) and found.read(counting, everywhere=True)
    assert found.total.steps == 51
    counting.close()
    made.close()


def test_many_different_reasons_are_kept_together(tmp_path):
    made = Filled(tmp_path / "a.db")
    scope = made.place()
    made.put("steps", [step(scope, seq, flagged=1) for seq in range(500)])
    made.put("samples", [sample(scope, seq, 0, flag=f"{seq} is odd") for seq in range(500)])
    found = Aggregate("r")
    found.read(made.journal)
    assert len(found.reasons) == 201 and found.reasons["other"] == 300 and sum(found.reasons.values()) == 500
    made.close()
