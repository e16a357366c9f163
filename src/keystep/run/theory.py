"""What the vote promises: the formulas of MAKER (Meyerson et al. 2025, arXiv 2511.09030) for first-to-be-ahead-by-k voting.

Symbols: p is the probability that a *valid* answer is right, q = 1 - p, r = q / p, k the margin, s the steps, m the steps per call,
t the wanted probability that the *whole* run is right, v the share of valid answers.

All but `race` are for one right answer against one wrong one. Where the wrong answers differ among themselves the vote does better than
that, so at a given p the formulas are a lower bound; `race` is exact for any number of candidates. None of them knows about steps that
are harder than others: a step with p < 1/2 loses however large k is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from keystep.errors import BadInput, TooWeak


def vote_success(p: float, k: int) -> float:
    """Probability that the right answer wins: p^k / (p^k + q^k) = 1 / (1 + r^k)."""
    return _logistic(_log_odds(p, k))


def vote_error(p: float, k: int) -> float:
    """Probability that the wrong answer wins: 1 / (1 + r^-k), exact also where 1 - `vote_success` would lose its digits."""
    return _logistic(-_log_odds(p, k))


def run_success(p: float, k: int, steps: int, per_call: int = 1) -> float:
    """Probability that all s steps are right: (1 + r^k)^(-s/m)."""
    _whole("steps", steps)
    _whole("per_call", per_call)
    return math.exp(-steps / per_call * _log_one_plus_exp(-_log_odds(p, k)))


def mean_votes(p: float, k: int) -> float:
    """Exact mean number of valid votes: k / (2p - 1) * (1 - r^k) / (1 + r^k), which goes to k^2 at p = 1/2."""
    _probability("p", p)
    _whole("k", k)
    lead = 2 * p - 1
    if abs(lead) == 1:
        return float(k)
    # (1 - r^k) / (1 + r^k) = tanh(k / 2 ln(p / q)) and ln(p / q) = 2 artanh(2p - 1)
    return k * math.tanh(k * math.atanh(lead)) / lead if lead else float(k * k)


def mean_votes_if_all_differ(p: float, k: int) -> float:
    """Exact mean number of valid votes where no two wrong answers are the same: (k + 1 - p^k) / p, and 1 for k = 1.

    From k = 2 on the right answer then always wins, with k votes in succession or else with the (k+1)-th, because one wrong vote is enough
    to raise the bar.

    Raises:
        BadInput: p = 0, where it never ends.
    """
    _probability("p", p)
    _whole("k", k)
    if p == 0:
        raise BadInput("is 0: the right answer never comes", field="p", value=p)
    return 1.0 if k == 1 else (k + 1 - p**k) / p


def approximate_mean_votes(p: float, k: int) -> float:
    """The paper's k / (2p - 1), an upper bound on `mean_votes` that is poor near p = 1/2.

    Raises:
        BadInput: p <= 1/2.
    """
    _winning(p)
    _whole("k", k)
    return k / (2 * p - 1)


def real_margin(p: float, steps: int, target: float, per_call: int = 1) -> float:
    """The margin that meets the target exactly: ln(t^(-m/s) - 1) / ln(q/p). Below 1 where one vote is more than enough.

    Raises:
        BadInput: p <= 1/2, where no margin helps.
    """
    _winning(p)
    _whole("steps", steps)
    _whole("per_call", per_call)
    if not 0 < target < 1:
        raise BadInput("is the wanted probability of the whole run, between 0 and 1", field="target", value=target)
    if p == 1:
        return 0.0
    # t^(-m/s) is within 1e-8 of 1 in a long run: expm1 keeps the digits that the difference would lose.
    return math.log(math.expm1(-per_call / steps * math.log(target))) / (math.log1p(-p) - math.log(p))


def least_margin(p: float, steps: int, target: float, per_call: int = 1) -> int:
    """k_min: the smallest whole margin (at least 1) with which the whole run is right with probability t or more (the paper's eq. 14)."""
    return max(1, math.ceil(real_margin(p, steps, target, per_call)))


def expected_cost(p: float, steps: int, target: float, *, cost: float = 1.0, per_call: int = 1, valid: float = 1.0) -> float:
    """Expected cost of the whole run at k_min: c s k_min / (v p^(m-1) (2p - 1)), with c the cost of one step of output.

    With m steps in a call the main rival of the right answer has one wrong step, so the odds stay r, and only the fraction p^(m-1) of the
    calls takes part in that race. Votes are counted by the paper's approximation.
    """
    _probability("valid", valid)
    if valid == 0:
        raise BadInput("no answer is valid", field="valid", value=valid)
    return cost * steps * least_margin(p, steps, target, per_call) / (valid * p ** (per_call - 1) * (2 * p - 1))


def undecided_after(p: float, k: int, rounds: int) -> float:
    """Probability that a vote is still open after its first k votes and `rounds` further rounds of two.

    The lead walks between -k and k, and has the parity of the votes: of an open vote at least two more are needed to change anything. For
    k = 2 it is (2pq)^(rounds+1), for k = 3 it is (3pq)^(rounds+1).
    """
    _probability("p", p)
    _whole("k", k)
    _whole("rounds", rounds, least=0)
    lead = [0.0] * (2 * k - 1)  # probability of every lead from -(k - 1) to k - 1
    lead[k - 1] = 1.0
    for _ in range(k + 2 * rounds):
        lead = [p * (lead[i - 1] if i else 0.0) + (1 - p) * (lead[i + 1] if i + 1 < len(lead) else 0.0) for i in range(len(lead))]
    return sum(lead)


def race(probabilities: Sequence[float], k: int, *, rest: float = 1e-10) -> list[float]:
    """Probability of every candidate to win the vote, exact but for `rest` (the chance of votes so long that they are not followed).

    `probabilities` are those of a valid answer for each candidate; they sum to 1. The chain runs over the votes above the last candidate's,
    so its size grows with the number of candidates: meant for up to about five.

    Raises:
        BadInput: they are no distribution.
    """
    _whole("k", k)
    if not probabilities or min(probabilities) < 0 or not math.isclose(sum(probabilities), 1, abs_tol=1e-9):
        raise BadInput("are not negative and sum to 1", field="probabilities", value=list(probabilities))
    wins = [0.0] * len(probabilities)
    if len(probabilities) == 1:
        return [1.0]
    live: dict[tuple[int, ...], float] = {(0,) * len(probabilities): 1.0}
    while sum(live.values()) > rest:
        after: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for votes, mass in live.items():
            for candidate, probability in enumerate(probabilities):
                if not probability:
                    continue
                got = votes[candidate] + 1
                if got - max(votes[:candidate] + votes[candidate + 1 :]) >= k:
                    wins[candidate] += mass * probability
                else:
                    counts = (*votes[:candidate], got, *votes[candidate + 1 :])
                    least = min(counts)
                    after[tuple(count - least for count in counts)] += mass * probability
        live = after
    return wins


def variance_of_votes(p: float, k: int) -> float:
    """Variance of the number of valid votes until one of two candidates leads by k.

    By Wald's second identity, and because a race from a tie takes as long whoever wins: ((1 - d^2) E - k^2 + d^2 E^2) / d^2, d = 2p - 1.
    """
    lead, mean = 2 * p - 1, mean_votes(p, k)
    if lead == 0:
        return 2 * k**2 * (k**2 - 1) / 3
    return max(0.0, ((1 - lead**2) * mean - k**2 + (lead * mean) ** 2) / lead**2)


def best_steps_per_call(measured: Mapping[int, tuple[float, float]], steps: int, target: float = 0.999) -> int:
    """How many steps to put into one call, of those measured: {m: (p per step at m steps a call, output tokens of a call)}.

    The cost is `expected_cost`; sizes at which p is 1/2 or less are left out.

    Raises:
        TooWeak: all are.
    """
    costs = {
        m: expected_cost(p, steps, target, cost=tokens / m, per_call=m) for m, (p, tokens) in measured.items() if p > 0.5
    }  # fmt: skip
    if not costs:
        raise TooWeak("is 1/2 or less at every size of call", field="p", value=dict(measured), mend="use a better model or prompt")
    return min(costs, key=lambda m: (costs[m], m))


def _log_odds(p: float, k: int) -> float:
    """k ln(p / q)."""
    _probability("p", p)
    _whole("k", k)
    if p in (0, 1):
        return math.inf if p else -math.inf
    return k * (math.log(p) - math.log1p(-p))


def _logistic(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _log_one_plus_exp(x: float) -> float:
    """ln(1 + e^x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _probability(field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadInput("is a probability, from 0 to 1", field=field, value=value)


def _winning(p: float) -> None:
    _probability("p", p)
    if p <= 0.5:
        raise BadInput(
            "is 1/2 or less: against one rival no margin helps", field="p", value=p, mend="use a better model or prompt, or split the step"
        )


def _whole(field: str, value: int, least: int = 1) -> None:
    if value < least:
        raise BadInput(f"must be at least {least}", field=field, value=value)
