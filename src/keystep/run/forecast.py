"""What a run will take, and whether it will come out right, from a sample of its steps: choose k, calls, tokens, money, time beforehand.

Calibration follows MAKER (Meyerson et al. 2025, arXiv 2511.09030): p, the share of right among valid answers, and v, the share of valid
ones, are counted on a sample of steps; k is the least margin that meets the target with p at the *lower* end of its interval.

How truth is had, best first: labelled steps of the user's own; a reference model's voted answers; what the procedure itself knows
(`Procedure.truth`, `Procedure.right`); else how often two samples of a step agree, which sees no error that all samples share.

Intervals. p and v: Wilson's, on the number of samples, or fewer where the steps differ more among themselves than chance would have it
(a cluster-robust variance, so that many samples of few hard steps do not count as many steps). Calls: the theory's mean at both ends of
p and v, and on top the run's own scatter over its steps. Tokens, money and seconds: calls, times what a call took in real votes at the
chosen k on some of the sampled steps, each at the matching end of its interval (normal). Success: the theory's at both ends of p.

What it does not cover: steps harder than any sampled one; the journal's own time; other work on the machine; speculation.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Literal

from keystep.errors import BadInput, TooWeak, Undecided
from keystep.lm.base import LM, Prompt, as_finished
from keystep.run import theory
from keystep.run.ask import Asking, Key, ask
from keystep.run.budget import Meter
from keystep.run.canonical import dumps
from keystep.run.foreseen import CallSize, Estimate, Forecast, HardStep, MemberShare, Spent, Truth
from keystep.run.procedure import Procedure, adapted
from keystep.run.records import records
from keystep.run.vote import AheadBy, Counts, First, Rule
from keystep.trace import StepTrace, Vote

TARGET = 0.999  # probability that the whole run is right
SAMPLE = 200  # steps
PER_STEP = 4  # samples of each, rounded up to whole rounds over a model's members
AGAIN, SUSPECTS = 24, 20  # fresh samples of a step that was mostly wrong; of how many such steps at most
PACE = 24  # steps that are really voted on
SIZES = (1, 2, 4)  # steps per call
CAP = 100  # samples of one step, where that is enough
AT_ONCE = 16  # steps asked side by side where they do not depend on one another


@dataclass(frozen=True, slots=True)
class Labelled:
    """A step with its right answer; `name` addresses it."""

    name: str
    state: Any
    answer: Any


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A rule of voting that draws `least` samples at once before it looks for the winner of `rule`."""

    least: int
    rule: AheadBy

    @property
    def cap(self) -> int:
        return self.rule.cap

    def winner(self, counts: Counts) -> str | None:
        return None if sum(counts.values()) < self.least else self.rule.winner(counts)

    def wanted(self, counts: Counts) -> int:
        return max(self.least - sum(counts.values()), self.rule.wanted(counts))


@dataclass(slots=True)
class _Probe:
    """What was seen at one step: its first-round votes, and which valid ones were right (in agreement: which pairs agreed)."""

    name: str
    state: Any
    votes: list[Vote]
    right: list[bool]
    expected: Any = None

    @property
    def valid(self) -> list[Vote]:
        return [vote for vote in self.votes if vote.key is not None]


@dataclass(slots=True)
class _Sampler:
    """The model, the procedure, and what has been spent."""

    asking: Asking
    procedure: Procedure
    meter: Meter = field(default_factory=Meter)

    @property
    def key(self) -> Key | None:
        return None if type(self.procedure).key is Procedure.key else self.procedure.key

    def name_of(self, answer: Any) -> str:
        """The candidate that an answer is for."""
        return dumps(answer if self.key is None else self.key(answer))

    async def draw(self, state: Any, where: str, rule: Rule, lm: LM | None = None) -> StepTrace:
        """One ask at an address of its own; undecided ones are as good."""
        asking = replace(self.asking, rule=rule, lm=lm or self.asking.lm)
        parse = lambda text: self.procedure.parse(text, state)  # noqa: E731
        try:
            answer = await ask(asking, _prompts(self.procedure.prompt(state)), f"forecast/{where}", self.meter, parse=parse, key=self.key)
            return answer.trace(where)
        except Undecided as error:
            trace: StepTrace = error.ledger
            return trace

    def is_right(self, vote: Vote, state: Any, expected: Any) -> bool:
        """Whether a valid vote is right, by what is expected or, where nothing is, by the procedure's own judgement."""
        if expected is None and self.procedure.right is not None:
            return self.procedure.right(state, self.procedure.parse(vote.text, state))
        return vote.key == self.name_of(expected)


async def forecast(
    asking: Asking,
    procedure: Procedure,
    *,
    target: float = TARGET,
    sample: int = SAMPLE,
    per_step: int = PER_STEP,
    labels: Sequence[Labelled] | None = None,
    reference: LM | None = None,
    ahead_by: int | None = None,
    steps: int | None = None,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> Forecast:
    """Calibrate the model of `asking` (its rule is not used) on `sample` steps of `procedure`, and say what a whole run will take.

    It draws up to sample * per_step samples, AGAIN more for each of at most SUSPECTS steps, and PACE votes, all through `ask` at addresses
    below "forecast/". `progress` is called with (done, of).

    Raises:
        TooWeak: the lower end of p is 1/2 or less, or no sample was valid.
        BadInput: a setting out of range, or nobody knows how many steps there are.
        BudgetSpent, ModelError, Refused.
    """
    _check(asking, target, sample, per_step, ahead_by, steps, confidence)
    if procedure.done(procedure.start()):
        raise BadInput("is done before its first step", field="procedure", value=procedure.name)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    sampler = _Sampler(adapted(asking, procedure), procedure)
    members = asking.lm.members
    per_step = -(-per_step // members) * members
    moved = progress or (lambda done, of: None)
    notes: list[str] = []

    # What is seen at a sample of steps.
    counted: int | None = None  # steps of the whole procedure, where measuring shows it
    truth = _kind(procedure, labels, reference)
    if truth == "labels":
        known = list(labels or ())
        draw = random.Random(f"forecast {asking.seed}")
        chosen = known if len(known) <= sample else draw.sample(known, sample)
        probes = await _side_by_side(sampler, chosen, per_step, moved)
    elif truth == "procedure":
        counted, windows = _windows(procedure, sample, asking.seed)
        chosen = [window[0] for window in windows]
        probes = await _side_by_side(sampler, chosen, per_step, moved)
    else:
        if truth == "agreement":
            per_step = max(2, per_step - per_step % 2)
        probes, counted, stopped = await _chain(sampler, truth, reference, sample, per_step, moved)
        if not probes:
            raise BadInput(stopped, field="reference", value=reference and reference.name, mend="name a better one")
        notes += _about_chain(truth, len(probes), counted, stopped, reference)
    if not any(probe.right for probe in probes):
        reasons = Counter(vote.flag for probe in probes for vote in probe.votes if vote.flag).most_common(3)
        shown = ", ".join(f"{reason} ({count})" for reason, count in reasons)
        raise TooWeak(f"no sample was a valid answer: {shown}", field="v", value=0, mend="mend the prompt or the answer's form")

    # p and v, and the steps that no k can cure.
    v = share([(len(probe.valid), len(probe.votes)) for probe in probes], z)
    p = share([(sum(probe.right), len(probe.right)) for probe in probes], z)
    if truth == "agreement":
        p = Estimate(value=from_agreement(p.value), low=from_agreement(p.low), high=from_agreement(p.high))
    hard = [] if truth == "agreement" else await _hard(sampler, probes, z)
    if p.low <= 0.5:
        raise _too_weak(p, probes, hard, confidence)

    # What a whole run takes.
    steps, steps_from = _steps(procedure, steps, counted)
    least = theory.least_margin(p.low, steps, target)
    k = ahead_by or least
    cap = enough(p.low, v.low, k, steps, target)
    pace = []
    for number in range(min(PACE, len(probes))):
        probe = probes[number * len(probes) // min(PACE, len(probes))]
        pace.append(await sampler.draw(probe.state, f"{probe.name}/pace", AheadBy(k, cap)))
    calls = _calls(p, v, k, steps, z)
    sizes = [CallSize(steps_per_call=1, samples=sum(len(x.right) for x in probes), p=p, tokens_out_per_call=_mean_tokens(probes))]
    if truth == "procedure" and procedure.prompt_many is not None:
        sizes += await _call_sizes(sampler, windows, z)
    best = theory.best_steps_per_call({size.steps_per_call: (size.p.low, size.tokens_out_per_call) for size in sizes}, steps, target)
    sureness = [theory.run_success(end, k, steps) for end in (p.value, p.low, p.high)]
    for step in hard:
        if step.systematic:
            lost = [theory.vote_success(end, k) for end in (step.p.value, step.p.low, step.p.high)]
            sureness = [a * b for a, b in zip(sureness, lost, strict=True)]
    notes += _about(p, steps, steps_from, k, least, hard, asking, cap)
    meter = sampler.meter
    return Forecast(
        procedure=procedure.name, model=asking.lm.name, truth=truth, steps=steps, steps_from=steps_from, target=target,
        confidence=confidence, seed=asking.seed, sampled_steps=len(probes), samples=sum(len(probe.votes) for probe in probes),
        valid=sum(len(probe.valid) for probe in probes), right=sum(sum(probe.right) for probe in probes), p=p, v=v, least_k=least, k=k,
        cap=cap, success=Estimate(value=sureness[0], low=sureness[1], high=sureness[2]), calls=calls,
        tokens_in=_times(calls, pace, lambda trace: trace.tokens_in, z), tokens_out=_times(calls, pace, lambda trace: trace.tokens_out, z),
        cost=_times(calls, pace, lambda trace: trace.cost, z), seconds=_times(calls, pace, lambda trace: trace.seconds, z),
        members=[] if truth == "agreement" else _members(sampler, probes, members, z), hard_steps=hard, steps_per_call=sizes,
        best_steps_per_call=best, notes=notes,
        spent=Spent(
            samples=meter.calls, tokens_in=meter.tokens_in, tokens_out=meter.tokens_out, cost=meter.cost, seconds=round(meter.seconds, 3)
        ),
    )  # fmt: skip


def labelled(path: str | Path, procedure: Procedure) -> list[Labelled]:
    """The steps of a file of JSON lines {"state": …, "answer": …}; states and answers are the procedure's own.

    Raises:
        BadInput: the file cannot be read, or a line is no step of this procedure.
    """
    if Path(path).suffix != ".jsonl":
        raise BadInput("is a file of JSON lines", field="--truth", value=str(path), mend="name it NAME.jsonl")
    found = []
    try:
        lines = records(Path(path))[0]
    except BadInput as error:
        raise BadInput(error.problem, field="--truth", value=error.value, mend="give an existing file of JSON lines") from None
    for number, line in enumerate(lines, 1):
        where = f"--truth, record {number}"
        if not isinstance(line, dict) or line.keys() != {"state", "answer"} or line["answer"] is None:
            raise BadInput("is one state and its answer", field=where, value=line, mend='write {"state": …, "answer": …}')
        try:
            procedure.prompt(line["state"])
            procedure.key(line["answer"])
        except Exception as error:  # whatever a procedure does with a state that is none of its own
            kind = error if isinstance(error, BadInput) else type(error).__name__
            shown = dumps(procedure.start())[:200]
            mend = f"its states are like {shown}"
            raise BadInput(f"is no step of {procedure.name} ({kind})", field=where, value=line, mend=mend) from None
        found.append(Labelled(f"record {number}", line["state"], line["answer"]))
    if not found:
        raise BadInput("has no steps", field="--truth", value=str(path), mend="a few hundred are a good sample")
    return found


def wilson(right: float, of: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share; `of` may be an effective number of samples."""
    if of <= 0 or not 0 <= right <= of:
        raise BadInput("is between none and all of at least one", field="right", value=(right, of))
    centre = (right + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * math.sqrt(right * (of - right) / of + z * z / 4)
    # At none and all the end is exact, where the sums would miss it by a rounding.
    return (0.0 if right == 0 else centre - half), (1.0 if right == of else centre + half)


def share(counts: Iterable[tuple[int, int]], z: float = 1.959963984540054) -> Estimate:
    """The share of hits, and its Wilson interval, of (hits, tries) per step.

    The samples of one step resemble one another where steps are unequally hard. The interval is then that of the number of independent
    samples with the same variance: n^2 p q / (sum of (hits - p tries)^2), never more than n and never fewer than the steps.
    """
    tried = [(hits, tries) for hits, tries in counts if tries]
    total = sum(tries for _, tries in tried)
    value = sum(hits for hits, _ in tried) / total
    spread = sum((hits - value * tries) ** 2 for hits, tries in tried) * len(tried) / max(1, len(tried) - 1)
    independent = min(total, max(len(tried), total**2 * value * (1 - value) / spread)) if spread else total
    low, high = wilson(value * independent, independent, z)
    return Estimate(value=value, low=low, high=high)


def from_agreement(agreeing: float) -> float:
    """p of the share of pairs that agree: with one wrong answer that is p^2 + q^2, so p = (1 + sqrt(2a - 1)) / 2.

    Wrong answers that differ make it a lower bound; errors that all samples share, or hide in steps of their own, do not show.
    """
    return (1 + math.sqrt(max(0.0, 2 * agreeing - 1))) / 2


def enough(p: float, v: float, k: int, steps: int, target: float) -> int:
    """A cap on the samples of a step that leaves no step undecided, but for 1 - target of the runs.

    Chernoff: a sample moves the lead by +1 (vp), -1 (vq) or not at all, so P(lead < k after n) <= (1 - v + 2v sqrt(pq))^n (p/q)^(k/2).
    """
    if p == 1:
        return max(CAP, k)
    shrink = -math.log1p(-v * (1 - 2 * math.sqrt(p * (1 - p))))
    needed = (math.log(steps / (1 - target)) + k / 2 * math.log(p / (1 - p))) / shrink
    return max(CAP, 100 * math.ceil(max(needed, k) / 100))


# Sampling steps.


def _check(
    asking: Asking, target: float, sample: int, per_step: int, ahead_by: int | None, steps: int | None, confidence: float
) -> None:  # fmt: skip
    for name, share_ in (("target", target), ("confidence", confidence)):
        if not 0 < share_ < 1:
            raise BadInput("is a probability between 0 and 1", field=name, value=share_, mend="for instance 0.99")
    for name, number in (("sample", sample), ("per_step", per_step), ("ahead_by", ahead_by), ("steps", steps)):
        if number is not None and number < 1:
            raise BadInput("must be at least 1", field=name, value=number)
    if asking.sampling.temperature == 0 and asking.lm.members == 1:
        mend = "sample at a temperature above 0, or with several models"
        raise BadInput("at 0 all samples of a step are the same: votes buy nothing", field="temperature", value=0, mend=mend)


def _kind(procedure: Procedure, labels: Sequence[Labelled] | None, reference: LM | None) -> Truth:
    if labels is not None and reference is not None:
        raise BadInput("exclude each other", field="--truth and --reference", mend="choose one")
    if labels is not None:
        return "labels"
    if reference is not None:
        return "reference"
    if procedure.truth is not None:
        return "procedure"
    return "agreement" if procedure.right is None else "checker"


def _windows(procedure: Procedure, sample: int, seed: int) -> tuple[int, list[list[Labelled]]]:
    """How many steps there are, and a random sample of them, each with the few that follow it. Step 0 is always among them: the start
    is often unlike any other step."""
    assert procedure.truth is not None
    total = procedure.total()
    if total is None:
        total = sum(1 for _ in procedure.truth())
    drawn = random.Random(f"forecast {seed}").sample(range(1, total), min(sample, total) - 1)
    chosen = sorted([0, *drawn])
    longest = max(SIZES) if procedure.prompt_many is not None else 1
    windows: list[list[Labelled]] = []
    open_windows: list[list[Labelled]] = []
    waiting = iter(chosen)
    following = next(waiting)
    for number, (state, answer) in enumerate(islice(procedure.truth(), chosen[-1] + longest)):
        if number == following:
            windows.append([])
            open_windows.append(windows[-1])
            following = next(waiting, -1)
        for window in open_windows:
            window.append(Labelled(str(number), state, answer))
        open_windows = [window for window in open_windows if len(window) < longest]
    return total, windows


async def _side_by_side(sampler: _Sampler, steps: Sequence[Labelled], per_step: int, moved: Callable[[int, int], None]) -> list[_Probe]:
    """Probe steps whose truth is known, several at a time; in the order given."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def probe(number: int, step: Labelled) -> tuple[int, _Probe]:
        async with gate:
            trace = await sampler.draw(step.state, step.name, _Sampled(per_step, AheadBy(1, per_step)))
        right = [sampler.is_right(vote, step.state, step.answer) for vote in trace.votes if vote.key is not None]
        return number, _Probe(step.name, step.state, trace.votes, right, step.answer)

    found: dict[int, _Probe] = {}
    async for number, result in as_finished(probe(number, step) for number, step in enumerate(steps)):
        found[number] = result
        moved(len(found), len(steps))
    return [found[number] for number in range(len(steps))]


async def _chain(
    sampler: _Sampler, truth: Truth, reference: LM | None, sample: int, per_step: int, moved: Callable[[int, int], None]
) -> tuple[list[_Probe], int | None, str]:
    """Probe the procedure's first steps one after the other, going on from the voted answer (the reference's, where there is one).

    Returns: the probes, the number of steps if the procedure ended, and why it could not be followed further if it could not.
    """
    procedure = sampler.procedure
    state, probes, total, bound = procedure.start(), list[_Probe](), procedure.total(), procedure.max_steps
    of = min(number for number in (sample, total, bound) if number is not None)
    for number in range(of + 1):
        expected = None
        try:
            if procedure.done(state):
                return probes, number, ""
            if number == of:
                break
            if reference is not None:
                voted = await sampler.draw(state, f"{number}/reference", AheadBy(3), reference)
                trace = await sampler.draw(state, str(number), _Sampled(per_step, AheadBy(1, per_step)))
                expected = voted.answer
            else:
                trace = voted = await sampler.draw(state, str(number), _Sampled(per_step, AheadBy(3, max(CAP, 2 * per_step))))
            votes = sorted((vote for vote in trace.votes if vote.index < per_step), key=lambda vote: vote.index)
            valid = [vote for vote in votes if vote.key is not None]
            if truth == "agreement":
                right = [one.key == other.key for one, other in zip(valid[::2], valid[1::2], strict=False)]
            elif truth == "reference" and not voted.decided:
                return probes, None, f"the reference could not decide step {number}"
            else:
                right = [sampler.is_right(vote, state, expected) for vote in valid]
            probes.append(_Probe(str(number), state, votes, right, expected))
            moved(len(probes), of)
            if not voted.decided:
                return probes, None, f"step {number} stayed undecided"
            state = procedure.update(state, voted.answer)
        except BadInput as error:
            if not probes:
                raise
            return probes, None, f"step {number} cannot be asked: {error}"
    return probes, None, ""


async def _hard(sampler: _Sampler, probes: Sequence[_Probe], z: float) -> list[HardStep]:
    """Look again, on fresh samples, at the steps that were mostly wrong; those that are wrong again are hard."""
    found = []
    for probe in [probe for probe in probes if 2 * sum(probe.right) <= len(probe.right)][:SUSPECTS]:
        members = sampler.asking.lm.members
        samples = -(-AGAIN // members) * members
        trace = await sampler.draw(probe.state, f"{probe.name}/again", _Sampled(samples, AheadBy(1, samples)))
        valid = [vote for vote in trace.votes if vote.key is not None]
        right = sum(sampler.is_right(vote, probe.state, probe.expected) for vote in valid)
        if 2 * right > len(valid):
            continue
        # Where nothing was valid the step would stay undecided: as good as wrong.
        p = share([(right, len(valid))], z) if valid else Estimate(value=0, low=0, high=0)
        commonest = Counter(vote.key for vote in valid).most_common(1)
        text = next((vote.text for vote in valid if vote.key == commonest[0][0]), None)
        given = None if text is None else sampler.procedure.parse(text, probe.state)
        step = HardStep(
            step=probe.name, samples=len(trace.votes), valid=len(valid), right=right, p=p, systematic=p.high < 0.5,
            expected=probe.expected, given=given,
        )  # fmt: skip
        found.append(step)
    return found


async def _call_sizes(sampler: _Sampler, windows: Sequence[Sequence[Labelled]], z: float) -> list[CallSize]:
    """Measure calls of several steps, one sample each."""
    procedure, sizes = sampler.procedure, []
    prompt_many, parse_many = procedure.prompt_many, procedure.parse_many
    assert prompt_many is not None and parse_many is not None

    def name_of(answers: list[Any]) -> list[str]:
        return [sampler.name_of(answer) for answer in answers]

    for m in SIZES[1:]:
        hits: list[tuple[int, int]] = []
        tokens: list[int] = []
        for window in windows:
            if len(window) < m:
                continue
            state = window[0].state
            asking = replace(sampler.asking, rule=First(CAP))

            def parse(text: str, state: Any = state, m: int = m) -> list[Any]:
                return parse_many(text, state, m)

            where = f"forecast/{window[0].name}/{m}"
            try:
                answer = await ask(asking, _prompts(prompt_many(state, m)), where, sampler.meter, parse=parse, key=name_of)
            except Undecided:
                continue
            hits.append((int(name_of(answer.value) == name_of([step.answer for step in window[:m]])), 1))
            tokens.append(next(sample.tokens_out for sample, name, _ in answer.votes if name is not None))
        if hits:
            whole = share(hits, z)
            p = Estimate(value=whole.value ** (1 / m), low=whole.low ** (1 / m), high=whole.high ** (1 / m))
            sizes.append(CallSize(steps_per_call=m, samples=len(hits), p=p, tokens_out_per_call=fmean(tokens)))
    return sizes


# Figures.


def _steps(
    procedure: Procedure, given: int | None, counted: int | None
) -> tuple[int, Literal["given", "procedure", "chain", "max_steps"]]:  # fmt: skip
    if given is not None:
        return given, "given"
    total = procedure.total()
    if total is not None or (counted is not None and procedure.truth is not None):
        return total or counted or 1, "procedure"
    if counted is not None:
        return counted, "chain"
    if procedure.max_steps is not None:
        return procedure.max_steps, "max_steps"
    raise BadInput("nobody knows how many", field="steps", mend="say it with --steps, or give the procedure a max_steps")


def _calls(p: Estimate, v: Estimate, k: int, steps: int, z: float) -> Estimate:
    """Samples of a whole run. A valid vote takes 1 / v samples, so one step's variance is (E[N] (1 - v) + Var[N]) / v^2."""

    def mean(p: float, v: float) -> float:
        return steps * theory.mean_votes(p, k) / v

    def scatter(p: float, v: float) -> float:
        return z * math.sqrt(steps * (theory.mean_votes(p, k) * (1 - v) + theory.variance_of_votes(p, k))) / v

    low = mean(p.high, v.high) - scatter(p.value, v.value)
    return Estimate(value=mean(p.value, v.value), low=max(low, steps * k), high=mean(p.low, v.low) + scatter(p.low, v.low))


def _times(calls: Estimate, pace: Sequence[StepTrace], of: Callable[[StepTrace], float], z: float) -> Estimate:
    """`calls`, times what one took in the votes of `pace` (a ratio of sums, its error by the delta method)."""
    spent, drawn = [of(trace) for trace in pace], [trace.samples for trace in pace]
    each = sum(spent) / sum(drawn)
    squares = sum((x - each * n) ** 2 for x, n in zip(spent, drawn, strict=True))
    half = z * math.sqrt(squares * len(pace) / max(1, len(pace) - 1)) / sum(drawn)
    return Estimate(value=calls.value * each, low=calls.low * max(0.0, each - half), high=calls.high * (each + half))


def _members(sampler: _Sampler, probes: Sequence[_Probe], members: int, z: float) -> list[MemberShare]:
    """Each member's own share of right answers."""
    found = []
    for member in range(members if members > 1 else 0):
        votes = [(vote, probe) for probe in probes for vote in probe.votes if vote.index % members == member]
        right = [int(sampler.is_right(vote, probe.state, probe.expected)) for vote, probe in votes if vote.key is not None]
        p = share([(hit, 1) for hit in right], z) if right else Estimate(value=0, low=0, high=1)
        found.append(MemberShare(member=member, model=votes[0][0].model, samples=len(votes), valid=len(right), p=p))
    return found


def _mean_tokens(probes: Sequence[_Probe]) -> float:
    return fmean(vote.tokens_out for probe in probes for vote in probe.votes)


def _prompts(prompt: Prompt | list[Prompt]) -> Sequence[Prompt]:
    return prompt if isinstance(prompt, list) else [prompt]


# Words.


def _about_chain(truth: Truth, probed: int, counted: int | None, stopped: str, reference: LM | None) -> list[str]:
    notes = []
    if counted is None:
        notes.append(f"Measured on the first {probed:,} steps, not on a random sample: later steps may be harder.")
    if truth == "agreement":
        notes.insert(0, "Truth is not known: how often two samples of a step agree stands in for it. An error that all samples share "
                     "(a systematic one) cannot be seen this way; give --truth or --reference to see it.")  # fmt: skip
    if reference is not None:
        notes.insert(0, f"The voted answers of {reference.name} are taken as truth: where it errs, so does this forecast.")
    if stopped:
        notes.append(f"The steps could not be followed further: {stopped}.")
    return notes


def _about(
    p: Estimate, steps: int, steps_from: str, k: int, least: int, hard: Sequence[HardStep], asking: Asking, cap: int
) -> list[str]:  # fmt: skip
    notes = []
    if steps_from == "max_steps":
        notes.append(f"The number of steps is not known: all figures are for max_steps = {steps:,}, the most there can be.")
    systematic = [step.step for step in hard if step.systematic]
    if systematic:
        shown = ", ".join(systematic[:10])
        notes.append(f"Systematic errors at steps {shown}: wrong more often than right, so that no k can cure them. "
                     "Another model, an ensemble of unlike ones or another prompt can.")  # fmt: skip
    if k < least:
        notes.append(f"k = {k} does not meet the target: it takes k = {least}.")
    if cap > CAP:
        notes.append(f"A step may take up to {cap:,} samples: run with --cap {cap}.")
    if p.value - p.low > (p.value - 0.5) / 2:
        notes.append("The interval of p is wide: a larger --sample may allow a smaller k.")
    return notes


def _too_weak(p: Estimate, probes: Sequence[_Probe], hard: Sequence[HardStep], confidence: float) -> TooWeak:
    tries = sum(len(probe.right) for probe in probes)
    problem = (
        f"{p.value:.3f} at {len(probes):,} steps ({tries:,} counted), at least {p.low:.3f} with {confidence:.0%} confidence: "
        "where that is 1/2 or less no margin is sure to help"
    )
    if hard:
        first = hard[0]
        expected = "" if first.expected is None else f", expected {dumps(first.expected)[:80]}"
        problem += f"; at step {first.step} most said {dumps(first.given)[:80]}{expected}"
    better = "a larger --sample, for p itself is above 1/2; or " if p.value > 0.5 else ""
    return TooWeak(problem, field="p", value=round(p.low, 4), mend=f"use {better}a better model or prompt, or split the step")
