"""Key Space Detection: the box that a skill's prompts fill in the key space of one feed-forward layer; what comes into it is not answered.

Paper: Li, Sun, Weng 2025, Effective Skill Unlearning through Intervention and Abstention, NAACL 2025, arXiv 2503.21730. The box is
m ± α k s: mean and sample standard deviation of the probed keys, the smallest k for which all of them are inside, and α, the one
hyperparameter. In closed form k = max over samples and dimensions of |v − m| / s, where the published program halves intervals.
As published the layer is the last one and α is 2 for tasks, 0.06 for languages. Own to keystep: both can be chosen on held-out
prompts (`judged`, `chosen`): in every layer the smallest α with which a wanted share of the skill's prompts is inside; of the layers
the one where that box hits the fewest of the prompts that are to be kept. The run time is in `guarded`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keystep.edit.unlearn.guarded import Box, ratio
from keystep.errors import BadInput
from keystep.nn.layers import FeedForward


class Judged(NamedTuple):
    """A layer on held-out examples. `inside`: the share of the skill's prompts in the box m ± α k s; `false_hits`: the share of those to
    be kept (None: there were none); `margin`: the ratio of the nearest one of those to α k, above 1 where it is outside."""

    layer: int
    k: float
    alpha: float
    inside: float
    false_hits: float | None
    margin: float | None


def fit(keys: Tensor, name: str, block: FeedForward, alpha: float = 1.0) -> Box:
    """The box of probed keys [n, d_ff]. At α = 1 all of them are inside, and one at least touches it. Dimensions in which all are the same
    are left out.

    Raises:
        BadInput: there are fewer than two keys, they are all the same or no numbers.
    """
    if len(keys) < 2:
        raise BadInput("is probed with two prompts at least", field="skill", value=name, mend="give more examples")
    exact = keys.double()
    if not bool(torch.isfinite(exact).all()):
        raise BadInput("has keys that are no numbers", field="module", value=block.down, mend="load the model in another dtype")
    mean, std = exact.mean(0).float(), exact.std(0).float()
    std = torch.where(std > 0, std, math.inf)
    if not bool(torch.isfinite(std).any()):
        raise BadInput("has the same keys for all prompts", field="skill", value=name, mend="give prompts that differ")
    return Box(name, block.number, block.down, float(ratio(keys, mean, std).max()), alpha, mean, std)


def smallest_alpha(box: Box, ratios: Tensor, share: float) -> float:
    """The smallest α with which at least a share of keys, of which the ratios [n] are given, is inside."""
    wanted = float(ratios.sort().values[max(0, math.ceil(share * len(ratios) - 1e-9) - 1)])
    alpha = wanted / box.k
    while alpha * box.k < wanted:
        alpha = math.nextafter(alpha, math.inf)
    return alpha


def judged(box: Box, forget: Tensor, retain: Tensor | None) -> Judged:
    """A box on the ratios of held-out prompts of the skill [n] and of examples to be kept (their smallest over all watched tokens) [m]."""
    inside = float((forget <= box.limit).float().mean())
    if retain is None:
        return Judged(box.layer, box.k, box.alpha, inside, None, None)
    nearest = float(retain.min()) / box.limit if box.limit else math.inf
    return Judged(box.layer, box.k, box.alpha, inside, float((retain <= box.limit).float().mean()), nearest)


def chosen(layers: Sequence[Judged]) -> int:
    """Number of the entry with the fewest false hits; of equal ones that with the widest margin; without examples to be kept the last."""
    if any(each.false_hits is None or each.margin is None for each in layers):
        return len(layers) - 1
    return min(range(len(layers)), key=lambda n: (layers[n].false_hits, -(layers[n].margin or 0.0), -n))
