"""One update of the decomposer from a batch of rewarded decompositions, by PPO or GRPO, and the optimiser's state on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from keystep.nn import policy_gradient as pg
from keystep.nn.examples import Batch
from keystep.nn.rollout import rows, scored
from keystep.nn.tuning import load_optimiser, save_optimiser, write_json

if TYPE_CHECKING:
    from keystep.solve.daslam.policy import Policy
    from keystep.solve.daslam.train import Settings


class Learner:
    """Moves a policy; the reference is the policy as it was when this was made.

    Attributes:
        torn: whether an update was broken off in its middle, so that what there is now is no state to keep.
    """

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self.policy, self.settings, self.torn = policy, settings, False
        self.moved: dict[str, Any] = policy.moved(settings.ppo_layers)
        policy.only(self.moved)
        policy.model.eval()  # without dropout: else rho is not 1 at the first pass
        self.reference = {name: weight.detach().clone() for name, weight in self.moved.items()}
        self.head = policy.head if settings.algorithm == "ppo" else None
        self.weights = [*self.moved.values(), *(self.head.parameters() if self.head is not None else ())]
        self.optimiser = torch.optim.Adam(self.weights, lr=settings.rate)
        self.kl = pg.AdaptiveKL(settings.kl, settings.kl_target)

    def update(self, prompts: Sequence[list[int]], answers: Sequence[list[int]], rewards: Sequence[float]) -> dict[str, float]:
        """Go through a batch `epochs` times; gives what is worth logging.

        Rows that belong together (a group) stand side by side.
        """
        self.torn = True
        batch = rows(prompts, answers, self.policy.device)
        gained = torch.tensor(rewards, device=self.policy.device)
        with torch.no_grad():
            old, values = self._scored(batch)
            with self._as_reference():
                reference, _ = self._scored(batch)
        gap = torch.where(batch.counted, old - reference, 0.0)
        if self.head is not None and values is not None:
            given = -self.kl.coefficient * gap
            ends = batch.counted.long().cumsum(1).argmax(1)  # of the last counted token; rows without one are masked anyway
            given[torch.arange(len(given)), ends] += gained
            advantages, returns = pg.generalised_advantages(given, values, batch.counted, self.settings.gamma, self.settings.lam)
            advantages = pg.whitened(advantages, batch.counted)
        else:
            returns = None
            advantages = pg.group_advantages(gained, self.settings.group)[:, None].expand_as(old)
        logged: dict[str, float] = {}
        for _ in range(self.settings.epochs):
            logged = self._epoch(batch, old, values, reference, advantages, returns)
        kl = gap.sum(1).mean().item()
        self.kl.update(kl, len(prompts))
        self.torn = False
        return {"reward": gained.mean().item(), "kl": kl, "kl_coefficient": self.kl.coefficient, **logged}

    def _epoch(
        self, batch: Batch, old: Tensor, values: Tensor | None, reference: Tensor, advantages: Tensor, returns: Tensor | None
    ) -> dict[str, float]:  # fmt: skip
        """One step of the optimiser on the whole batch, a few rows at a time."""
        settings = self.settings
        tokens = batch.counted.sum().clamp(min=1)
        self.optimiser.zero_grad()
        logged = {"loss": 0.0, "clipped": 0.0, "ratio": 0.0}
        for at in range(0, len(old), settings.micro_batch):
            part = slice(at, at + settings.micro_batch)
            some = batch.part(part)
            share = some.counted.sum() / tokens
            new, now = scored(self.policy.model, some, self.head)
            found = pg.clipped_loss(new, old[part], advantages[part], some.counted, low=settings.clip)
            loss = found.loss
            if now is not None and values is not None and returns is not None:
                loss = loss + settings.value_weight * pg.value_loss(now, values[part], returns[part], some.counted)
            else:
                loss = loss + self.kl.coefficient * pg.masked_mean(pg.kl(new, reference[part]), some.counted)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            for name, value in (("loss", loss.item()), ("clipped", found.clipped), ("ratio", found.ratio)):
                logged[name] += value * share.item()
        torch.nn.utils.clip_grad_norm_(self.weights, settings.max_norm)
        self.optimiser.step()
        return logged

    def _scored(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        found = []
        for at in range(0, len(batch.tokens), self.settings.micro_batch):
            part = slice(at, at + self.settings.micro_batch)
            found.append(scored(self.policy.model, batch.part(part), self.head))
        values = [each for _, each in found if each is not None]
        return torch.cat([each for each, _ in found]), torch.cat(values) if values else None

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """The policy with the weights of the reference, for a while."""
        now = {name: weight.detach().clone() for name, weight in self.moved.items()}
        with torch.no_grad():
            try:
                for name, weight in self.moved.items():
                    weight.copy_(self.reference[name])
                yield
            finally:
                for name, weight in self.moved.items():
                    weight.copy_(now[name])

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """The value head, Adam's moments and what else goes on, beside the weights of the policy."""
        save_file(self.policy.head.state_dict(), folder / "value-head.safetensors")
        save_optimiser(self.optimiser, folder / "adam.safetensors")
        write_json(folder / "learner.json", {**state, "kl_coefficient": self.kl.coefficient})

    def load(self, folder: Path) -> dict[str, Any]:
        """What `save` wrote; gives the state."""
        self.policy.head.load_state_dict(load_file(folder / "value-head.safetensors"))
        load_optimiser(self.optimiser, folder / "adam.safetensors")
        state: dict[str, Any] = json.loads((folder / "learner.json").read_text("utf-8"))
        self.kl.coefficient = state.pop("kl_coefficient")
        return state
