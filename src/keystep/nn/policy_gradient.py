"""The policy gradient of language models: the clipped losses of PPO and GRPO, their advantages, and the pull to a reference.

Papers: PPO, Schulman et al. 2017, arXiv 1707.06347; generalised advantages, Schulman et al. 2015, arXiv 1506.02438; GRPO, Shao et al.
2024, arXiv 2402.03300; dual clip, Ye et al. 2019, arXiv 1912.09729; asymmetric clip and token mean (DAPO), Yu et al. 2025, arXiv
2503.14476; KL as a penalty with an adaptive coefficient, Ziegler et al. 2019, arXiv 1909.08593; the estimators k1, k2, k3, Schulman 2020,
"Approximating KL divergence".

Every tensor of tokens is [rows, tokens], a float; `mask` is a bool of the same shape, true where the policy chose the token (not at
prompts, padding or what a tool wrote). Nothing here samples or knows a model (`keystep.nn.rollout` does), nothing is distributed.

Names: `new`, `old`, `reference` are log pi(a|s), log pi_old(a|s), log pi_ref(a|s); `low`, `high` are eps; `dual` is c;
rho = exp(new - old).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keystep.errors import BadInput

SMALL = 1e-6  # added to a group's standard deviation


@dataclass(frozen=True, slots=True)
class Clipped:
    """A loss and what is worth logging beside it: the share of tokens that the clip held, and the mean of rho."""

    loss: Tensor
    clipped: float
    ratio: float


def log_probabilities(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi of tokens [...] under logits [..., vocabulary], natural, at a temperature above 0."""
    scores = logits.float() / temperature
    return scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scores.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy [...] of the distributions that logits [..., vocabulary] give, in nats."""
    scores = torch.log_softmax(logits.float(), -1)
    return -(scores.exp() * scores).sum(-1)


def clipped_loss(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, weights: Tensor | None = None, low: float = 0.2,
    high: float | None = None, dual: float | None = None, per: str = "token",
) -> Clipped:  # fmt: skip
    """The clipped surrogate: mean of max(-A rho, -A clip(rho, 1 - low, 1 + high)), and where A < 0 at most -A dual.

    Args:
        advantages: A, [rows] (one of a whole answer, as in GRPO) or [rows, tokens] (as in PPO).
        weights: of tokens, [rows, tokens]; they multiply A. None is 1 everywhere.
        high: the upper eps; `low` where None (DAPO takes 0.28).
        dual: c of the dual clip, above 1; None leaves it out.
        per: "token": the mean over all tokens of the batch; "sequence": over the tokens of a row, then over rows (rows without any token
            count as 0).

    Raises:
        BadInput: a setting out of range.
    """
    if dual is not None and dual <= 1:
        raise BadInput("is above 1", field="dual", value=dual)
    if not 0 < low < 1:
        raise BadInput("is between 0 and 1", field="low", value=low)
    shares = advantages.unsqueeze(-1) if advantages.ndim == 1 else advantages
    shares = shares.expand_as(new) if weights is None else shares * weights
    ratio = torch.where(mask, new - old, 0.0).exp()
    held = ratio.clamp(1 - low, 1 + (low if high is None else high))
    losses = torch.maximum(-shares * ratio, -shares * held)
    if dual is not None:
        losses = torch.where(shares < 0, torch.minimum(losses, -shares * dual), losses)
    with torch.no_grad():
        clipped, mean = masked_mean((held != ratio).float(), mask).item(), masked_mean(ratio, mask).item()
    return Clipped(masked_mean(losses, mask, per), clipped, mean)


def kl(new: Tensor, reference: Tensor, kind: str = "k3") -> Tensor:
    """KL(pi || pi_ref) estimated at each token that pi drew: k1 = -d, k2 = d² / 2, k3 = exp(d) - d - 1 with d = reference - new.

    k1 and k3 are right in the mean; k2 and k3 are never negative.

    Raises:
        BadInput: `kind` is none of these.
    """
    d = reference - new
    if kind == "k1":
        return -d
    if kind == "k2":
        return d * d / 2
    if kind == "k3":
        return d.exp() - d - 1
    raise BadInput("is no estimator", field="kind", value=kind, mend="k1, k2 or k3")


def group_advantages(rewards: Tensor, size: int, *, scaled: bool = True) -> Tensor:
    """GRPO: (R - mean) / (std + 1e-6) within each group of `size` neighbouring rows; rewards and result are [rows].

    The standard deviation is that of a sample (n - 1). A group whose rewards are all equal, or of one row, gets zeros.

    Args:
        scaled: divide by the standard deviation (Dr. GRPO, arXiv 2503.20783, does not).

    Raises:
        BadInput: the rows are no whole number of groups.
    """
    if size < 1 or rewards.ndim != 1 or len(rewards) % size:
        raise BadInput("does not divide the rows", field="size", value=size, mend=f"there are rewards of shape {tuple(rewards.shape)}")
    groups = rewards.view(-1, size)
    level = (groups == groups[:, :1]).all(1, keepdim=True)  # rounding of the mean would else be blown up to an advantage
    apart = torch.where(level, 0.0, groups - groups.mean(1, keepdim=True))
    if scaled and size > 1:
        apart = apart / (groups.std(1, keepdim=True) + SMALL)
    return apart.flatten()


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """GAE: advantages sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t, and returns A + V; all [rows, tokens].

    The chosen tokens of a row follow one another across what lies between them; the value after the last is 0. Elsewhere both are 0.
    """
    advantages = torch.zeros_like(rewards)
    ahead = following = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        now = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * ahead
        ahead, following = torch.where(here, now, ahead), torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, now, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def value_loss(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2) -> Tensor:
    """Half the mean of max((V - R)², (V_clipped - R)²), V_clipped within `clip` of the value that the rollout had."""
    losses = (new - returns) ** 2
    if clip is not None:
        losses = torch.maximum(losses, (old + (new - old).clamp(-clip, clip) - returns) ** 2)
    return masked_mean(losses, mask) / 2


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """The masked values with mean 0 and variance 1; elsewhere 0. Values that are all equal become 0."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return torch.where(mask, (values - mean) * (variance + 1e-8).rsqrt(), 0.0)


def masked_mean(values: Tensor, mask: Tensor, per: str = "token") -> Tensor:
    """The mean of masked values over all tokens, or over each row's and then over rows; 0 where there are none.

    Raises:
        BadInput: `per` is neither "token" nor "sequence".
    """
    kept = torch.where(mask, values, 0.0)
    if per == "token":
        return kept.sum() / mask.sum().clamp(min=1)
    if per == "sequence":
        return (kept.sum(1) / mask.sum(1).clamp(min=1)).mean()
    raise BadInput("is no way to take the mean", field="per", value=per, mend="token or sequence")


class AdaptiveKL:
    """The coefficient of the KL penalty, led so that the KL of an answer comes to `target` (Ziegler et al., section 2.2).

    After every batch: coefficient *= 1 + clip(KL / target - 1, -0.2, 0.2) rows / horizon. Without a target it stays as it is.
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: float = 10_000) -> None:
        if coefficient < 0 or (target is not None and target <= 0):
            raise BadInput("coefficient is at least 0, target above 0", field="KL", value=[coefficient, target])
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, measured: float, rows: int) -> None:
        """`measured` is the mean over answers of the KL summed over their tokens."""
        if self.target is not None:
            self.coefficient *= 1 + min(max(measured / self.target - 1, -0.2), 0.2) * rows / self.horizon


class ValueHead(nn.Module):
    """V(s) = w · h + b on the last hidden states [..., width]; it begins at 0 everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
        return values
