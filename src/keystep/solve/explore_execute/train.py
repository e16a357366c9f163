"""The training of chains: E²C-SFT on causal pairs, EF-SFT on plans alone, and the two-stage RL with weights on the plan's tokens.

Yang et al. 2025, arXiv 2509.23946 (see `solver`; settings are those of the released configuration). The model is the folder of any causal
language model, and what comes out is one, with the four tags in its tokenizer; the solver uses it: `tagged=true`, `--model hf:FOLDER`.

*sft*: cross-entropy on plan and execution. What makes pairs causal is how they were written: the execution from the plan (the solver's
`way=causal`). *ef-sft*: cross-entropy on the plan alone, for a new domain. *rl*: GRPO; of a group of responses to a question a right one
is rewarded with 1, or in the main phase with its adherence s, a wrong one with 0; A = (r - mean) / (std + 1e-6), times lambda
(`plan_weight`) at the tokens before the split. At lambda = 1 it is plain GRPO.

A training that was stopped goes on from its last checkpoint in OUT.unfinished, and ends as if it had not been stopped. What this does not
cover: adapters, several devices, a KL to the first model (its published coefficient is 0), an inference server for the rollouts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from keystep.errors import BadInput
from keystep.files import whole
from keystep.lm.base import draw_key
from keystep.lm.local import fingerprint
from keystep.nn import tuning
from keystep.nn.tuning import Supervised, Tell
from keystep.solve.explore_execute import data
from keystep.solve.explore_execute.adherence import adherence, overlong, reward
from keystep.solve.explore_execute.answers import last_box, normal
from keystep.solve.explore_execute.data import Row, Tags
from keystep.solve.explore_execute.format import PLAN, execution_in
from keystep.solve.explore_execute.solver import ExploreExecute
from keystep.solve.settings import made

Stage = Literal["sft", "ef-sft", "rl"]
STEPS = {"sft": 1000, "ef-sft": 500}
RATES = {"sft": 2e-5, "ef-sft": 2e-5, "rl": 1e-6}
DAPO_HIGH, DAPO_DUAL = 0.28, 10.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How chains are learned.

    Args:
        rate: the peak one of AdamW; None: 2e-5 for sft and ef-sft, 1e-6 for rl.
        micro_batch: rows that go through the model at once. `device`, `dtype`: of torch.
        prompts: a folder with a `question.txt` of the user's own, as of the solver.
        steps: None: 1000 for sft, 500 for ef-sft; never more than `epochs` times through the data. `batch`: rows of a step.
        longest: tokens of a row; longer ones are left out, and counted.
        least_adherence: pairs whose execution follows its plan less are left out.
        warm_epochs, warm_rollouts, warm_temperature, warm_weight: of the first phase of rl, in which adherence does not count.
        main_epochs, rollouts, temperature, plan_weight: of the second.
        questions: of a batch of rl; `mini`: questions of one step of the optimiser. `most_updates`: batches of a phase at most.
        prompt_tokens: questions with longer prompts are left out, and counted. `response`: tokens of a response.
        adherence: whether s is the reward of a right answer in the second phase. `in_order`: s by the stricter rule.
        clip: eps. `dapo`: the upper eps 0.28, a dual clip of 10, groups without a difference left out.
        overlong: tokens before `response` over which a penalty grows to -1; 0 leaves it out.
        save_every: steps of the optimiser (sft, ef-sft) or batches (rl) between checkpoints.
    """

    rate: float | None = None
    micro_batch: int = 8
    device: str | None = None
    dtype: str = "float32"
    prompts: str | None = None
    save_every: int = 50

    steps: int | None = None
    epochs: float = 3
    batch: int = 160
    longest: int = 16384
    least_adherence: float = 0.0

    warm_epochs: int = 1
    warm_rollouts: int = 32
    warm_temperature: float = 1.3
    warm_weight: float = 1.0
    main_epochs: int = 2
    rollouts: int = 8
    temperature: float = 1.0
    plan_weight: float = 2.0
    questions: int = 256
    mini: int = 32
    most_updates: int | None = None
    prompt_tokens: int = 712
    response: int = 8192
    adherence: bool = True
    in_order: bool = False
    clip: float = 0.2
    dapo: bool = False
    overlong: int = 0

    def __post_init__(self) -> None:
        for field in ("micro_batch", "save_every", "batch", "longest", "questions", "mini", "prompt_tokens", "response"):
            if getattr(self, field) < 1:
                raise BadInput("is at least 1", field=field, value=getattr(self, field))
        for field in ("rate", "epochs", "warm_temperature", "temperature", "steps", "most_updates"):
            if getattr(self, field) is not None and not 0 < getattr(self, field) < float("inf"):
                raise BadInput("is above 0", field=field, value=getattr(self, field))
        for field in ("warm_epochs", "main_epochs", "warm_weight", "plan_weight", "overlong", "least_adherence"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise BadInput("is at least 0", field=field, value=getattr(self, field))
        for field in ("warm_rollouts", "rollouts"):
            if getattr(self, field) < 2:
                raise BadInput("is at least 2: a group is compared within itself", field=field, value=getattr(self, field))
        if not 0 < self.clip < 1:
            raise BadInput("is between 0 and 1", field="clip", value=self.clip)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Settings by name.

        Raises:
            BadInput: one is unknown, of another type or out of range.
        """
        return made(cls, values, "training")


class Report(BaseModel):
    """What came of a training; it lies in the model's folder as `keystep-training.json`.

    `tokens` are those that the loss counted, a row as often as it was seen; `log` holds losses (sft) or an entry per batch (rl).
    """

    model_config = ConfigDict(extra="forbid")

    stage: str
    model: str
    rows: int
    left_out: int
    steps: int
    tokens: int
    log: list[Any]
    identity: dict[str, Any]


def train(
    model: str, rows: Path, out: Path, stage: str, settings: Settings | None = None, *, seed: int = 0, tell: Tell | None = None
) -> Report:
    """Train the model of a folder on a file's rows into a new folder.

    Raises:
        MissingExtra: torch, transformers, trl or datasets is not installed.
        BadInput: something cannot be read or does not fit; `out` is there already and is no result of this very training, or an unfinished
            training of another kind stands in its place.
    """
    return _Training(model, rows, out, stage, settings or Settings(), seed, tell or (lambda *_: None)).run()


class _Training:
    def __init__(self, model: str, rows: Path, out: Path, stage: str, settings: Settings, seed: int, tell: Tell) -> None:
        if stage not in data.WANTED:
            raise BadInput("is no stage", field="--stage", value=stage, mend=f"there are {', '.join(data.WANTED)}")
        tuning.check_seed(seed)
        self.out, self.stage, self.settings, self.seed, self.tell = out, stage, settings, seed, tell
        self.rows = data.load(rows, stage, settings.least_adherence)
        self.solver = ExploreExecute(prompts=settings.prompts)
        self.folder = model
        self.model, self.tokenizer = tuning.loaded(model, settings.device, settings.dtype)
        self.identity = {
            "stage": stage, "settings": asdict(settings), "seed": seed, "model": fingerprint(self.model),
            "rows": blake2b(repr(self.rows).encode(), digest_size=16).hexdigest(), "prompt": self.solver.prompt_text("question.txt"),
        }  # fmt: skip
        self.tags = self._tags()
        self.begun = out.with_name(f"{out.name}.unfinished")

    def _tags(self) -> Tags:
        import torch

        torch.manual_seed(self.seed)  # new embeddings are drawn
        if self.stage == "sft":
            return data.add_tags(self.model, self.tokenizer)
        tags = data.tags_of(self.tokenizer)
        if tags is None:
            raise BadInput("does not know the tags of chains", field="MODEL", value=self.folder, mend="train it with --stage sft first")
        return tags

    def run(self) -> Report:
        if self.out.exists():
            return self._finished()
        self._begin()
        try:
            report = self._reinforce() if self.stage == "rl" else self._fine_tune()
        except BaseException:
            if [file.name for file in self.begun.iterdir()] == ["identity.json"]:  # nothing that could be gone on with
                shutil.rmtree(self.begun)
            raise
        with whole(self.out) as part:
            part.mkdir()
            self.model.save_pretrained(part)
            self.tokenizer.save_pretrained(part)
            (part / "keystep-training.json").write_text(report.model_dump_json(indent=2), "utf-8")
        shutil.rmtree(self.begun, ignore_errors=True)
        return report

    def _finished(self) -> Report:
        """The report of this very training, where it ended before."""
        try:
            report = Report.model_validate_json((self.out / "keystep-training.json").read_text("utf-8"))
        except (OSError, ValueError):
            report = None
        if report is None or report.identity != json.loads(json.dumps(self.identity)):
            raise BadInput("is there already", field="--out", value=str(self.out), mend="name another folder; nothing was changed")
        return report

    def _begin(self) -> None:
        """The folder of what is unfinished, new or of this very training."""
        file = self.begun / "identity.json"
        try:
            if file.exists():
                if json.loads(file.read_text("utf-8")) != json.loads(json.dumps(self.identity)):
                    mend = "give the same settings, or remove that folder"
                    raise BadInput("another training stands unfinished there", field="--out", value=str(self.begun), mend=mend)
                return
            self.begun.mkdir(parents=True, exist_ok=True)
            tuning.write_json(file, self.identity)
        except (OSError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"cannot be used ({error})", field="--out", value=str(self.out), mend="name another folder") from None

    def prompt(self, row: Row) -> str:
        return self.solver.prompt("question.txt", question=row.question)

    # sft, ef-sft

    def _fine_tune(self) -> Report:
        settings = self.settings
        longest = min(settings.longest, tuning.room(self.model))
        every = [data.example(self.tokenizer, self.tags, self.prompt(row), row, self.stage) for row in self.rows]
        kept = [each for each in every if len(each["input_ids"]) <= longest]
        if not kept:
            raise BadInput("no row fits into it", field="longest", value=longest, mend="raise it, or use a model that reads more")
        batch = min(settings.batch, len(kept))
        steps = min(settings.steps or STEPS[self.stage], max(1, round(settings.epochs * len(kept) / batch)))
        supervised = Supervised(
            steps=steps, rate=settings.rate or RATES[self.stage], batch=batch, micro_batch=settings.micro_batch,
            save_every=settings.save_every,
        )  # fmt: skip
        losses = tuning.fine_tune(self.model, self.tokenizer, kept, self.begun, supervised, self.seed, self.tell)
        counted = sum(label >= 0 for each in kept for label in each["labels"])
        return Report(
            stage=self.stage, model=self.folder, rows=len(kept), left_out=len(every) - len(kept), steps=steps,
            tokens=round(counted * steps * batch / len(kept)), log=losses, identity=self.identity,
        )  # fmt: skip

    # rl

    def _reinforce(self) -> Report:
        settings = self.settings
        prompts = [tuning.prompt_tokens(self.tokenizer, self.prompt(row), PLAN) for row in self.rows]
        longest = min(settings.prompt_tokens, tuning.room(self.model) - 1)
        kept = [number for number, prompt in enumerate(prompts) if len(prompt) <= longest]
        if not kept:
            raise BadInput("no prompt fits into it", field="prompt_tokens", value=longest, mend="raise it, or use a model that reads more")
        batches = list(self._batches(kept))
        learner = _Learner(self.model, self.tags, settings)
        state: dict[str, Any] = {"done": 0, "tokens": 0, "log": []}
        checkpoint = self.begun / "state"
        if checkpoint.exists():
            learner.load(checkpoint)
            state = json.loads((checkpoint / "state.json").read_text("utf-8"))
        while state["done"] < len(batches):
            main, numbers = batches[state["done"]]
            found = self._rollouts(state["done"], main, [prompts[number] for number in numbers], [self.rows[number] for number in numbers])
            logged = learner.update(found, settings.plan_weight if main else settings.warm_weight)
            state["log"].append({"phase": "main" if main else "warm-up", **logged})
            state["tokens"] += sum(map(len, found.responses))
            state["done"] += 1
            self.tell("main phase" if main else "warm-up", state["done"], len(batches), f"right {logged['right']:.2f}")
            if state["done"] % settings.save_every == 0 and state["done"] < len(batches):
                with whole(checkpoint, replace=True) as part:
                    learner.save(part, state)
        return Report(
            stage=self.stage, model=self.folder, rows=len(kept), left_out=len(prompts) - len(kept), steps=state["done"],
            tokens=state["tokens"], log=state["log"], identity=self.identity,
        )  # fmt: skip

    def _batches(self, kept: Sequence[int]) -> list[tuple[bool, list[int]]]:
        """All batches of both phases, each of questions in an order of its own: (whether of the main phase, rows)."""
        settings, found = self.settings, list[tuple[bool, list[int]]]()
        for main, epochs in ((False, settings.warm_epochs), (True, settings.main_epochs)):
            phase: list[tuple[bool, list[int]]] = []
            for epoch in range(epochs):
                order = list(kept)
                Random(f"{self.seed} {main} {epoch}").shuffle(order)
                phase += [(main, order[at : at + settings.questions]) for at in range(0, len(order), settings.questions)]
            found += phase[: settings.most_updates]
        return found

    def _rollouts(self, done: int, main: bool, prompts: list[list[int]], rows: list[Row]) -> Rollouts:
        """A group of rewarded responses to each question, side by side."""
        import torch

        from keystep.nn.rollout import sampled

        settings = self.settings
        size, temperature = (settings.rollouts, settings.temperature) if main else (settings.warm_rollouts, settings.warm_temperature)
        every = [prompt for prompt in prompts for _ in range(size)]
        most = min(settings.response, tuning.room(self.model) - max(map(len, prompts)))
        generator = torch.Generator().manual_seed(draw_key(self.seed, "rollouts", done) % 2**63)
        self.model.eval()
        responses: list[list[int]] = []
        at_once = max(1, 16 * settings.micro_batch)  # without gradients there is room for more
        for at in range(0, len(every), at_once):
            part = every[at : at + at_once]
            ends = [self.tags.execution_end, self.tags.end]
            responses += sampled(self.model, part, most, ends, generator, temperature=temperature)
        scored = [self._rewarded(response, rows[number // size], main) for number, response in enumerate(responses)]
        return Rollouts(size, temperature, every, responses, *(list(column) for column in zip(*scored, strict=True)))

    def _rewarded(self, response: list[int], row: Row, main: bool) -> tuple[float, bool, float]:
        """The reward of a response, whether it is right, and its adherence."""
        settings = self.settings
        at = data.split(response, self.tags)
        parts = (response[:at], [] if at is None else response[at:])
        plan, execution = (self.tokenizer.decode(part, skip_special_tokens=True) for part in parts)
        execution = execution_in(execution)
        box = last_box(execution)
        right = box is not None and normal(box.content) == normal(row.answer)
        found = reward(plan, execution, right, adhering=main and settings.adherence, in_order=settings.in_order)
        if settings.overlong:
            found += overlong(len(response), settings.response, settings.overlong)
        return found, right, adherence(plan, execution, in_order=settings.in_order)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Responses to prompts (tokens), in groups of `size` neighbours; `rewards`, `right` and `adhering` are of each."""

    size: int
    temperature: float
    prompts: list[list[int]]
    responses: list[list[int]]
    rewards: list[float]
    right: list[bool]
    adhering: list[float]


def token_weights(batch: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], tags: Tags, weight: float) -> Any:
    """`weight` at the tokens of plans and 1 elsewhere, [rows, length - 1] as a batch's `counted`.

    The split token is the execution's first; a response without one is all plan.
    """
    import torch

    found = torch.ones(batch.counted.shape, device=batch.counted.device)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        at = data.split(response, tags)
        start = len(prompt) - 1
        found[row, start : start + (len(response) if at is None else at)] = weight
    return found


class _Learner:
    """Moves a model by the clipped loss with weighted tokens."""

    def __init__(self, model: Any, tags: Tags, settings: Settings) -> None:
        import torch

        self.model, self.tags, self.settings = model, tags, settings
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate or RATES["rl"], weight_decay=0.01)

    def update(self, found: Rollouts, weight: float) -> dict[str, float]:
        """One pass over a batch, a step of the optimiser for every `mini` questions; gives what is worth logging."""
        import torch

        from keystep.nn.policy_gradient import group_advantages, masked_mean
        from keystep.nn.rollout import rows

        settings, size, device = self.settings, found.size, self.model.device
        batch = rows(found.prompts, found.responses, device)
        weights = token_weights(batch, found.prompts, found.responses, self.tags, weight)
        in_plan = token_weights(batch, found.prompts, found.responses, self.tags, 0.0) == 0
        gained = torch.tensor(found.rewards, device=device)
        advantages = group_advantages(gained, size)
        groups = list(range(len(gained) // size))
        if settings.dapo:
            groups = [group for group in groups if len(set(found.rewards[group * size : (group + 1) * size])) > 1]
        old = self._old(batch, found.temperature)
        clipped: list[float] = []
        for at in range(0, len(groups), settings.mini):
            chosen = [group * size + k for group in groups[at : at + settings.mini] for k in range(size)]
            clipped.append(self._step(batch, old, advantages, weights, chosen, found.temperature))
        logged = {
            "reward": gained.mean().item(), "right": _mean(found.right), "adherence": _mean(found.adhering),
            "plan_entropy": -masked_mean(old, batch.counted & in_plan).item(),  # in the mean -log p of what was drawn is the entropy
            "execution_entropy": -masked_mean(old, batch.counted & ~in_plan).item(),
            "length": _mean([len(response) for response in found.responses]), "clipped": _mean(clipped),
        }  # fmt: skip
        return {name: round(value, 6) for name, value in logged.items()}

    def _old(self, batch: Any, temperature: float) -> Any:
        import torch

        from keystep.nn.rollout import scored

        with torch.no_grad():
            parts = range(0, len(batch.tokens), self.settings.micro_batch)
            return torch.cat(
                [scored(self.model, batch.part(slice(at, at + self.settings.micro_batch)), None, temperature)[0] for at in parts]
            )

    def _step(self, batch: Any, old: Any, advantages: Any, weights: Any, chosen: list[int], temperature: float) -> float:
        """One step of the optimiser on some rows, a few at a time; gives the share of clipped tokens."""
        import torch

        from keystep.nn.policy_gradient import clipped_loss
        from keystep.nn.rollout import scored

        settings, clipped = self.settings, 0.0
        tokens = batch.counted[chosen].sum().clamp(min=1)
        self.optimiser.zero_grad()
        for at in range(0, len(chosen), settings.micro_batch):
            part = chosen[at : at + settings.micro_batch]
            some = batch.part(part)
            new, _ = scored(self.model, some, None, temperature)
            high, dual = (DAPO_HIGH, DAPO_DUAL) if settings.dapo else (None, None)
            found = clipped_loss(
                new, old[part], advantages[part], some.counted, weights=weights[part], low=settings.clip, high=high, dual=dual
            )
            share = some.counted.sum() / tokens
            (found.loss * share).backward()
            clipped += found.clipped * share.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return clipped

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        self.model.save_pretrained(folder)
        tuning.save_optimiser(self.optimiser, folder / "optimiser.safetensors")
        tuning.write_json(folder / "state.json", state)

    def load(self, folder: Path) -> None:
        import transformers

        saved: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=self.model.dtype, use_safetensors=True)
        self.model.load_state_dict(saved.state_dict())
        tuning.load_optimiser(self.optimiser, folder / "optimiser.safetensors")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
