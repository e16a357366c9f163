"""The forecast: its statistics against scipy and exact sums, what it says of workers whose errors are known, what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from worker import Scripted, Worker, written

from keystep.errors import BadInput, BudgetSpent, TooWeak
from keystep.lm.base import Sample
from keystep.lm.replay import Record, Replay
from keystep.lm.rotation import Rotation
from keystep.run import AheadBy, Budget, Run, Sampling, theory
from keystep.run.builtin import builtin
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.forecast import AGAIN, Labelled, enough, forecast, from_agreement, labelled, share, wilson
from keystep.run.procedure_file import from_file
from keystep.run.theory import best_steps_per_call, variance_of_votes

MILLION = 2**20 - 1


def ledger(steps=200):
    return builtin("ledger", {"steps": steps, "words": 5})


def made(lm, procedure=None, *, seed=0, sampling=None, budget=None, **options):
    asking = Run(lm, seed=seed, sampling=sampling, budget=budget).asking
    return asyncio.run(forecast(asking, procedure or ledger(), **options))


def yaml(tmp_path, **changes):
    form = {
        "name": "count", "state": {"total": 0}, "prompt": "{{ total }}", "answer": {"regex": "-?[0-9]+", "type": "int"},
        "update": {"total": "answer"}, "until": "step >= 30", "max_steps": 40,
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(json.dumps({**form, **changes}))
    return from_file(tmp_path / "p.yaml")


def counting(wrong=lambda request, index: False):
    """Answers a number with the next one, or with a number 100 higher where `wrong`."""
    return Scripted(lambda request, index: str(int(request.prompt) + (101 if wrong(request, index) else 1)))


# Statistics.


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts):
    right, of = counts
    known = scipy.stats.binomtest(right, of).proportion_ci(method="wilson")
    assert wilson(right, of) == pytest.approx((known.low, known.high), abs=1e-9)


def test_wilson_at_the_edges():
    assert wilson(0, 7)[0] == 0.0 and wilson(7, 7)[1] == 1.0
    for right, of in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(BadInput, match="right"):
            wilson(right, of)


def test_samples_of_one_step_count_fully_only_where_steps_are_alike():
    alike, all_right = share([(3, 4)] * 100), share([(4, 4)] * 100)
    assert (alike.low, alike.high) == pytest.approx(wilson(300, 400))
    assert (all_right.low, all_right.high) == pytest.approx(wilson(400, 400))
    unlike = share([(4, 4)] * 75 + [(0, 4)] * 25)  # a step is wrong throughout or right throughout: 100 independent things were seen
    assert unlike.value == 0.75 and (unlike.low, unlike.high) == pytest.approx(wilson(75, 100))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    inside = {"p": 0, "v": 0}
    for seed in range(120):
        found = made(Worker([0.88, 0.05, 0.02]), seed=seed, sample=60, steps=100)  # p = .88 / .95, v = .95
        inside["p"] += found.p.low <= 0.88 / 0.95 <= found.p.high
        inside["v"] += found.v.low <= 0.95 <= found.v.high
    for name, hits in inside.items():
        assert scipy.stats.binomtest(hits, 120, 0.95).pvalue > 0.001, (name, hits)


@pytest.mark.parametrize(("p", "k"), [(0.75, 2), (0.6, 3), (0.9, 4), (0.51, 3)])
def test_variance_of_votes(p, k):
    lead, first, second = {0: 1.0}, 0.0, 0.0
    for n in range(1, 4000):
        after: dict[int, float] = {}
        for at, mass in lead.items():
            for to, chance in ((at + 1, p), (at - 1, 1 - p)):
                after[to] = after.get(to, 0.0) + mass * chance
        ended = after.pop(k, 0.0) + after.pop(-k, 0.0)
        first, second, lead = first + n * ended, second + n * n * ended, after
    assert first == pytest.approx(theory.mean_votes(p, k))
    assert variance_of_votes(p, k) == pytest.approx(second - first**2)
    assert variance_of_votes(0.5, 3) == pytest.approx(variance_of_votes(0.5 + 1e-5, 3), rel=1e-4)
    assert variance_of_votes(p, 1) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("p", "k"), [(0.64, 29), (0.8, 10), (0.55, 5), (0.999, 3)])
def test_a_cap_that_is_enough(p, k):
    cap = enough(p, 1.0, k, 4095, 0.999)
    assert 4095 * theory.undecided_after(p, k, (cap - k) // 2) <= 0.001
    assert enough(p, 0.5, k, 4095, 0.999) >= cap and enough(1, 0.5, 120, 10, 0.9) == 120


def test_p_from_agreement():
    for p in (0.5, 0.75, 0.9, 1.0):
        assert from_agreement(p * p + (1 - p) ** 2) == pytest.approx(p)
    assert from_agreement(0.2) == 0.5
    assert from_agreement(0.9**2 + 2 * 0.05**2) < 0.9  # wrong answers that differ agree less


def test_steps_per_call_of_the_sheet():
    sizes = range(1, 60)
    assert best_steps_per_call({m: (0.99, 20.0 * m) for m in sizes}, 1023, 0.95) == 3
    assert best_steps_per_call({m: (0.9, 20.0 * m) for m in sizes}, MILLION, 0.95) == 1
    assert best_steps_per_call({1: (0.99, 20), 2: (0.6, 40), 4: (0.4, 80)}, 1023) == 1  # p falls: longer calls do not pay
    assert best_steps_per_call({1: (0.99, 500), 4: (0.99, 520)}, 1023) == 4  # nearly free steps do
    with pytest.raises(TooWeak, match="at every size"):
        best_steps_per_call({1: (0.5, 20), 2: (0.3, 40)}, 1023)


# What is measured.


def test_figures_of_a_known_worker():
    found = made(Worker([0.85, 0.1]), ledger(1000), seed=3)
    assert (found.truth, found.steps, found.steps_from, found.sampled_steps, found.samples) == ("procedure", 1000, "procedure", 200, 800)
    assert found.p.low < 0.85 / 0.95 < found.p.high and found.v.low < 0.95 < found.v.high
    assert found.p.value == found.right / found.valid and found.v.value == found.valid / found.samples
    assert found.k == found.least_k == theory.least_margin(found.p.low, 1000, 0.999) >= theory.least_margin(found.p.value, 1000, 0.999)
    assert 0.999 <= found.success.low < found.success.value < found.success.high <= 1
    expected = 1000 * theory.mean_votes(found.p.value, found.k) / found.v.value
    assert found.calls.value == pytest.approx(expected) and found.calls.low < expected < found.calls.high
    assert found.cost.high == 0 and found.members == [] and found.hard_steps == [] and found.promising and found.notes == []
    assert found.spent.samples > 800 and found.best_steps_per_call == 1


@pytest.mark.parametrize(
    ("p", "k"), [(0.3571, 29), (0.0040, 4), (0.0022, 3), (0.1839, 12), (0.0358, 6), (0.2342, 15), (0.0569, 6), (0.0393, 6)]
)
def test_margins_of_the_sheet(p, k):
    """With so many samples that the lower end of p is the table's p, k is the table's."""
    low = share([(round((1 - p) * 10**12), 10**12)]).low
    assert theory.least_margin(low, MILLION, 0.95) == k


def test_the_same_seed_gives_the_same_forecast_and_asks_at_its_own_addresses():
    lms = [Worker([0.8, 0.1], pause=pause) for pause in (False, True)]
    one, other = (made(lm, seed=5, sample=40) for lm in lms)
    differ = {"seconds", "spent"}
    assert one.model_dump(exclude=differ) == other.model_dump(exclude=differ)
    assert {key.split("/")[0] for key, _ in lms[0].asked} == {"forecast"} and len(lms[0].asked) == one.spent.samples
    assert one.p != made(Worker([0.8, 0.1]), seed=6, sample=40).p


def test_a_replayed_forecast_asks_for_what_was_recorded(tmp_path):
    record = Record(Worker([0.8, 0.1]), tmp_path / "r.jsonl")
    first = made(record, sample=20)
    asyncio.run(record.close())
    again = made(Replay(tmp_path / "r.jsonl"), sample=20)
    assert again.p == first.p and again.calls == first.calls and again.tokens_out == first.tokens_out


def test_the_outcome_lies_where_it_was_expected():
    """Ten runs under seeds of their own: nearly all of the 95 % intervals hold."""
    held = 0
    found = made(Worker([0.82, 0.1]), ledger(300), seed=1)
    for seed in range(100, 110):
        run = Run(Worker([0.82, 0.1]), vote=AheadBy(found.k, found.cap), seed=seed)
        came = run.execute_sync(ledger(300))
        assert came.correct
        held += found.calls.low <= came.samples <= found.calls.high
        held += found.tokens_in.low <= came.tokens_in <= found.tokens_in.high
        held += found.tokens_out.low <= came.tokens_out <= found.tokens_out.high
    assert held >= 27


def test_a_systematic_error_is_found_and_named():
    bad = ["forecast/7", "forecast/7/again"]
    found = made(Worker([0.95, 0.02], wrong_at=bad))
    (hard,) = found.hard_steps
    assert (hard.step, hard.right, hard.valid, hard.systematic, hard.samples) == ("7", 0, AGAIN, True, AGAIN)
    assert hard.expected[1] != hard.given[1] and hard.p.high < 0.5
    assert found.success.value == 0 and found.success.high < 0.5 and not found.promising
    assert any("Systematic errors at steps 7:" in note for note in found.notes)


def test_a_step_that_was_wrong_by_chance_is_not_named():
    found = made(Worker([0.95, 0.02], wrong_at=["forecast/7"]))
    assert found.hard_steps == [] and found.promising


def test_a_step_without_a_valid_answer_is_hard():
    lm = Scripted(lambda request, index: "?" if "/0" in request.key else written(request.prompt, 0))
    (hard,) = made(lm).hard_steps
    assert (hard.step, hard.valid, hard.systematic, hard.given) == ("0", 0, True, None)


def test_step_0_is_always_in_the_sample():
    lm = Worker()
    made(lm, ledger(5000), sample=3)
    steps = {int(key.split("/")[1]) for key, _ in lm.asked}
    assert 0 in steps and len(steps) == 3


def test_every_member_has_a_share_of_its_own():
    good, bad = Worker([1.0]), Worker([0.5, 0.5])
    good.name, bad.name = "good", "bad"
    found = made(Rotation([good, bad]), per_step=3)
    assert found.samples == 4 * 200  # whole rounds
    assert [member.samples for member in found.members] == [400, 400]
    assert found.members[0].p.value == 1 and found.members[1].p.low < 0.5 < found.members[1].p.high


def test_a_margin_of_ones_own_is_forecast_as_it_is():
    found = made(Worker([0.8, 0.2]), ahead_by=2)
    assert found.k == 2 < found.least_k and found.success.high < 0.9 and not found.promising
    assert any("does not meet the target" in note for note in found.notes)


def test_a_weak_worker_needs_a_higher_cap():
    found = made(Worker([0.62, 0.38]), sample=200)
    assert found.k > 15 and found.cap > 100 and any(f"--cap {found.cap}" in note for note in found.notes)


# Truth from elsewhere.


def test_labelled_steps(tmp_path):
    procedure = ledger(50)
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"state": state, "answer": answer}) for state, answer in procedure.truth()))
    labels = labelled(path, procedure)
    found = made(Worker([0.9, 0.1]), procedure, labels=labels, sample=30)
    assert (found.truth, found.sampled_steps, found.steps) == ("labels", 30, 50) and found.p.low < 0.9 < found.p.high


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no steps"),
        ("{", "line 1 of t.jsonl"),
        ("7", 'record 1: is one state and its answer.*write {"state"'),
        ('{"state": [0, 0]}', "record 1: is one state and its answer"),
        ('{"state": [0, 0], "answer": [1, 1]}\n{"state": {"sum": 3}, "answer": [1, 1]}', r"record 2: is no step of ledger.*like \[0,0\]"),
    ],
)
def test_bad_labels(tmp_path, text, message):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        labelled(path, ledger())
    assert "--truth" in str(caught.value) and re.search(message, str(caught.value), re.DOTALL)


def test_labels_that_are_not_there(tmp_path):
    for name in ("none.jsonl", "t.csv"):
        with pytest.raises(BadInput, match="--truth"):
            labelled(tmp_path / name, ledger())


def test_a_reference_counts_as_truth(tmp_path):
    lm = counting(lambda request, index: index % 4 == 3)
    reference = counting()
    reference.name = "the-good-one"
    found = made(lm, yaml(tmp_path), reference=reference)
    assert (found.truth, found.steps, found.steps_from, found.sampled_steps) == ("reference", 30, "chain", 30)
    assert found.p.value == 0.75 and "the-good-one" in found.notes[0]
    assert {request.key.split("/")[2] for request in reference.requests} == {"reference"}
    assert all(int(request.prompt) < 30 for request in lm.requests)  # the chain follows the reference


def test_a_procedures_own_check_counts_as_truth(tmp_path):
    procedure = yaml(tmp_path, check={"step": "answer == total + 1"})
    found = made(counting(lambda request, index: index == 2), procedure)
    assert (found.truth, found.p.value, found.steps_from, found.sampled_steps) == ("checker", 0.75, "chain", 30)
    assert not any("later steps may be harder" in note for note in found.notes)
    assert any("first 20 steps" in note for note in made(counting(), procedure, sample=20).notes)


def test_the_check_finds_a_systematic_error_that_agreement_cannot_see(tmp_path):
    def broken(request, index):
        return request.prompt == "5"

    seen = made(counting(broken), yaml(tmp_path, check={"step": "answer == total + 1"}))
    assert [step.step for step in seen.hard_steps if step.systematic] == ["5"] and not seen.promising
    unseen = made(counting(broken), yaml(tmp_path))
    assert (unseen.truth, unseen.p.value, unseen.hard_steps, unseen.promising) == ("agreement", 1.0, [], True)
    assert "cannot be seen this way" in unseen.notes[0]


def test_agreement_of_a_worker_with_one_wrong_answer():
    procedure = ledger(400)
    procedure.truth = None
    found = made(Worker([0.9, 0.1]), procedure, sample=400)
    assert found.truth == "agreement" and found.p.low < 0.9 < found.p.high and found.right < found.valid


def test_who_knows_the_number_of_steps(tmp_path):
    assert made(counting(), yaml(tmp_path), sample=10).steps_from == "max_steps"
    found = made(counting(), yaml(tmp_path), sample=10)
    assert found.steps == 40 and any("max_steps = 40" in note for note in found.notes)
    assert made(counting(), yaml(tmp_path), sample=10, steps=77).steps == 77
    procedure = yaml(tmp_path)
    procedure.max_steps = None
    with pytest.raises(BadInput, match="steps: nobody knows"):
        made(counting(), procedure, sample=10)


def test_a_chain_that_breaks_off_says_where(tmp_path):
    def torn(request, index):
        return str(index % 2) if request.prompt == "25" else str(int(request.prompt) + 1)

    lm = Scripted(torn)
    found = made(lm, yaml(tmp_path, check={"step": "answer == total + 1"}))
    assert found.sampled_steps == 26 and any("step 25 stayed undecided" in note for note in found.notes)
    found = made(counting(), yaml(tmp_path), reference=Scripted(torn))
    assert found.sampled_steps == 25 and any("the reference could not decide step 25" in note for note in found.notes)


def test_a_reference_that_cannot_begin(tmp_path):
    with pytest.raises(BadInput, match="reference: the reference could not decide step 0"):
        made(counting(), yaml(tmp_path), reference=Scripted(lambda request, index: str(index % 2)))


def test_a_procedure_that_is_done_at_once(tmp_path):
    with pytest.raises(BadInput, match="done before its first step"):
        made(counting(), yaml(tmp_path, until="true"))
    with pytest.raises(BadInput, match="done before its first step"):
        made(counting(), builtin("sort", {"values": [3]}))


# Several steps in a call.


@dataclass
class Long(Hanoi):
    """A Hanoi whose prompts can ask for several moves; answers are joined by a line."""

    def prompt_many(self, state, m):
        return f"{m} moves\n{self.prompt(state)}"

    def parse_many(self, text, state, m):
        answers = []
        for part in text.split("---"):
            answers.append(self.parse(part, state))
            state = self.update(state, answers[-1])
        return answers


def test_calls_of_several_steps_are_measured():
    def answer(request, index):
        if not request.prompt[0].isdigit():
            return Sample(written(request.prompt, 0), tokens_out=100)
        m = int(request.prompt[0])
        procedure, prompt, parts = Long(disks=6), request.prompt.partition("\n")[2], []
        for _ in range(m):
            parts.append(written(prompt, 0))
            last = prompt
            prompt = procedure.prompt(procedure.update(None, procedure.parse(parts[-1], None)))
        if m == 4 and int(request.key.split("/")[1]) % 2:
            parts[-1] = written(last, 1)
        return Sample("---".join(parts), tokens_out=110 + m)

    found = made(Scripted(answer), Long(disks=6))
    sizes = {size.steps_per_call: (size.samples, round(size.p.value, 3), size.tokens_out_per_call) for size in found.steps_per_call}
    assert sizes[1] == (63 * 4, 1.0, 100) and sizes[2] == (62, 1.0, 112)
    assert sizes[4][0] == 60 and sizes[4][1] == pytest.approx(0.5**0.25, abs=1e-3)
    assert found.best_steps_per_call == 2


# Refusals.


def test_a_worker_that_is_wrong_as_often_as_right_is_refused():
    with pytest.raises(TooWeak) as caught:
        made(Worker([0.5, 0.5]))
    error = caught.value
    assert (error.exit_code, error.field) == (2, "p") and error.value <= 0.5 and "no margin" in error.problem and error.mend


def test_a_worker_that_may_be_too_weak_is_told_to_be_measured_longer():
    lm = Scripted(lambda request, index: written(request.prompt, index % 4 == 3))
    with pytest.raises(TooWeak, match="larger --sample"):
        made(lm, sample=2)
    assert made(lm, sample=50).p.value == 0.75


def test_labels_of_the_wrong_form_are_shown_beside_what_was_said():
    labels = [Labelled(str(number), state, [str(part) for part in answer]) for number, (state, answer) in enumerate(ledger(20).truth())]
    with pytest.raises(TooWeak, match=r'at step 0 most said \[-?\d+,-?\d+\], expected \["'):
        made(Worker(), ledger(20), labels=labels)


def test_nothing_valid_is_refused_with_the_reasons():
    with pytest.raises(TooWeak, match=r"no sample was a valid answer: not one value and one sum \(\d+\)"):
        made(Scripted(["no idea"]))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"target": 1.0}, "target"),
        ({"target": 0}, "target"),
        ({"confidence": 1.5}, "confidence"),
        ({"sample": 0}, "sample"),
        ({"per_step": 0}, "per_step"),
        ({"ahead_by": 0}, "ahead_by"),
        ({"steps": 0}, "steps"),
        ({"sampling": Sampling(temperature=0)}, "temperature"),
        ({"labels": [], "reference": Worker()}, "--truth and --reference"),
    ],
)
@pytest.mark.filterwarnings("ignore:at temperature 0")
def test_bad_settings(options, field):
    with pytest.raises(BadInput) as caught:
        made(Worker(), **options)
    assert caught.value.field == field


def test_a_forecast_keeps_to_its_budget():
    lm = Worker()
    with pytest.raises(BudgetSpent):
        made(lm, budget=Budget(calls=100))
    assert len(lm.asked) == 100


@pytest.mark.parametrize("procedure", [Hanoi(5), ledger(40)])
def test_the_built_in_truth_passes_the_built_in_check(procedure):
    answers = [answer for _, answer in procedure.truth()]
    assert procedure.check(answers) is None and len(answers) == procedure.total()
    state = procedure.start()
    for given_state, answer in procedure.truth():
        assert state == given_state
        state = procedure.update(state, answer)
