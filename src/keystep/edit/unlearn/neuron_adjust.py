"""Neuron Adjust, and its baseline Selective Pruning: some feed-forward neurons are changed while the model runs.

Paper: Li, Sun, Weng 2025, Effective Skill Unlearning through Intervention and Abstention, NAACL 2025, arXiv 2503.21730. Names: the
pre-activation of a neuron has mean and standard deviation μ1, s1 (`retain`) on texts that are to be kept, μ2, s2 (`forget`) on those of
the skill. Taken are the neurons with the largest signed difference μ2 − μ1 over all layers; the adjustment itself is
`guarded.adjusted`. Selective Pruning (Pochinkov and Schoots 2024, arXiv 2403.01267) takes those with the largest
mean |key| on forget / (mean |key| on retain + 1e-8) and sets their keys to zero.

The published program takes the forget mean for the forget deviation, variances for deviations, and one random number for all neurons and
tokens; here it is as the paper has it: densities in the log domain, deviations not below 1e-6, a draw a token and neuron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from keystep.edit.unlearn.guarded import Shift, Zeroed
from keystep.errors import BadInput
from keystep.nn.layers import FeedForward

LEAST_STD = 1e-6
EPSILON = 1e-8


def first_of(neurons: int, share: float) -> int:
    """Index, in ascending order, from which on scores are among the top share: int(N (1 − share)).

    Raises:
        BadInput: the share is not one neuron.
    """
    index = int(neurons * (1 - share) + 1e-9)
    if index >= neurons:
        raise BadInput(f"leaves not one of {neurons:,} neurons", field="share", value=share, mend=f"at least {1 / neurons:.2g}")
    return index


def most(scores: Mapping[int, Tensor], share: float) -> dict[int, Tensor]:
    """Numbers of the neurons, by layer, whose scores are among the top share over all layers; equal ones may make them more.

    Raises:
        BadInput: the share is not one neuron, or all scores are the same.
    """
    together = torch.cat(list(scores.values())).sort().values
    index = first_of(len(together), share)
    if bool(together[0] == together[-1]):
        raise BadInput("has the same statistics as what is to be kept", field="skill", mend="give examples that differ from --retain")
    found = {layer: (score >= together[index]).nonzero()[:, 0] for layer, score in scores.items()}
    return {layer: neurons for layer, neurons in found.items() if len(neurons)}


def gaps(moments: Mapping[str, Tensor], blocks: Sequence[FeedForward]) -> dict[int, Tensor]:
    """μ2 − μ1 of every neuron, by layer, from the moments `forget.LAYER.…` and `retain.LAYER.…` of pre-activations."""
    return {block.number: moments[f"forget.{block.number}.mean"] - moments[f"retain.{block.number}.mean"] for block in blocks}


def importance(moments: Mapping[str, Tensor], blocks: Sequence[FeedForward]) -> dict[int, Tensor]:
    """Selective Pruning's score of every neuron, by layer, from the moments of |key|."""
    return {
        block.number: moments[f"forget.{block.number}.mean"] / (moments[f"retain.{block.number}.mean"] + EPSILON) for block in blocks
    }  # fmt: skip


def shifts(moments: Mapping[str, Tensor], blocks: Sequence[FeedForward], neurons: Mapping[int, Tensor]) -> tuple[Shift, ...]:
    """Neuron Adjust of these neurons, by layer, with the moments of their pre-activations."""

    def values(which: str, layer: int, own: Tensor) -> list[Tensor]:
        of = int(moments[f"{which}.{layer}.n"])
        std = (moments[f"{which}.{layer}.squares"] / max(1, of - 1)).sqrt().clamp(min=LEAST_STD)
        return [moments[f"{which}.{layer}.mean"][own].float(), std[own].float()]

    chosen = [(block, neurons[block.number]) for block in blocks if block.number in neurons]
    return tuple(
        Shift(block.number, block.gate, own, *values("retain", block.number, own), *values("forget", block.number, own))
        for block, own in chosen
    )


def zeroed(blocks: Sequence[FeedForward], neurons: Mapping[int, Tensor]) -> tuple[Zeroed, ...]:
    """Selective Pruning of these neurons, by layer."""
    return tuple(Zeroed(block.number, block.down, neurons[block.number]) for block in blocks if block.number in neurons)
