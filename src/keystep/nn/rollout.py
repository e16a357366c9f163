"""Rollouts of a Hugging Face causal language model: answers sampled in a batch, and the log-probabilities and values of what was said.

For training loops, where the weights change with every batch; a worker that answers requests is `keystep.lm.local`. Sampling pads prompts
on the left and keeps a key-value cache; scoring pads on the right. What this does not cover: models without `position_ids`, many devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keystep.nn.examples import Batch, Encoded, batch_of
from keystep.nn.policy_gradient import log_probabilities


def rows(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: Any = None) -> Batch:
    """Prompts (each of at least one token) and their answers as one batch."""
    each = [Encoded([*prompt, *answer], len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
    return batch_of(each, device=device)


def scored(model: Any, batch: Batch, head: Any = None, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """log pi of every token but the first, and the values before each where there is a head; both [rows, length - 1]."""
    out = model(input_ids=batch.tokens, attention_mask=batch.attended, output_hidden_states=head is not None)
    values = None if head is None else head(out.hidden_states[-1][:, :-1])
    return log_probabilities(out.logits[:, :-1], batch.tokens[:, 1:], temperature), values


@torch.no_grad()
def sampled(
    model: Any, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], generator: torch.Generator | None = None, *,
    temperature: float = 1.0, top_p: float = 1.0, numbers: Tensor | None = None,
) -> list[list[int]]:  # fmt: skip
    """One answer for each prompt, at most `most` tokens of it, its end token included where it was drawn.

    Args:
        ends: tokens that end an answer.
        generator: of the draws, on the CPU; a temperature of 0 is greedy and needs none.
        top_p: draw among the likeliest tokens that hold this share.
        numbers: [rows, most] in [0, 1), the draws themselves, so that a row does not depend on those beside it; in place of a generator.
    """
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), length, dtype=torch.long)
    attended = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = torch.tensor(list(prompt))
        attended[row, length - len(prompt) :] = 1
    tokens, attended = tokens.to(device), attended.to(device)
    places = (attended.cumsum(1) - 1).clamp(min=0)
    ending = torch.tensor(list(ends), dtype=torch.long, device=device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    drawn: list[Tensor] = []
    cache = None
    for at in range(most):
        out = model(input_ids=tokens, attention_mask=attended, position_ids=places, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chosen = _drawn(out.logits[:, -1].float(), temperature, top_p, generator, None if numbers is None else numbers[:, at])
        drawn.append(torch.where(going, chosen, -1))
        going = going & ~torch.isin(chosen, ending)
        if not bool(going.any()):
            break
        tokens, places = chosen[:, None], places[:, -1:] + 1
        attended = torch.cat([attended, attended.new_ones(len(prompts), 1)], 1)
    found = torch.stack(drawn, 1).tolist() if drawn else [[] for _ in prompts]
    return [[token for token in row if token >= 0] for row in found]


def _drawn(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None, numbers: Tensor | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    shares = torch.softmax(logits / temperature, -1)
    if top_p < 1:
        ranked, order = shares.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0.0  # what comes before it holds the share already
        shares = torch.zeros_like(shares).scatter(-1, order, ranked)
    if numbers is not None:
        reached = shares.double().cumsum(-1)
        found = torch.searchsorted(reached, (numbers.to(reached) * reached[:, -1])[:, None], right=True).squeeze(-1)
        return found.clamp(max=shares.shape[-1] - 1)
    return torch.multinomial(shares.cpu(), 1, generator=generator).squeeze(-1).to(logits.device)
