"""The training of DaSLaM's decomposer: the solver's first answers, supervised fine-tuning, then a policy gradient with five rewards.

Paper: Juneja et al. 2023, arXiv 2310.18338 (see `solver`). The solver is a black box: whatever stands behind a name of `keystep.lm`, asked
for text alone, and never changed. All of its answers go through one `Run`, so that they are journaled, budgeted and not asked twice; a
training that was stopped goes on from its last checkpoint, and answers given since come from the journal. Random draws are keyed by seed
and step, so that it ends as if it had not been stopped.

Stage 1 is `trl.SFTTrainer` on question, first answer and the file's sub-questions. Stage 2 draws sub-questions, lets the solver answer
them, and moves the policy by PPO with a value head (the reward at the last token, less a KL to the model of stage 1 at every token) or by
GRPO (groups, KL in the loss). As published, only problems that the solver first got wrong are drawn, repeated until the batch is full.

What differs from the released code, on purpose: it reads the gold solution where the first answer belongs (`feedback="gold"` does that),
trains on test files (some problems are held out here, and judged by), and draws sub-questions at temperature 0.2 and top-p 0.18, which
leaves little to learn from (here 1 and 1). Not covered: its 8-bit base model; several devices.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict

from keystep.errors import BadInput
from keystep.files import whole, write_text
from keystep.nn.tuning import Supervised, Tell, check_seed, fine_tune, write_json
from keystep.run.flags import Flag
from keystep.run.run import Context, Run
from keystep.run.vote import First
from keystep.solve.daslam import rewards
from keystep.solve.daslam.policy import Policy
from keystep.solve.daslam.problems import Problem, apart
from keystep.solve.daslam.solver import DaSLaM
from keystep.solve.daslam.text import answer_of, context_of, same_answer
from keystep.solve.settings import made
from keystep.task import Task

FEEDBACK = ("attempt", "gold", "none")
AT_ONCE = 64  # prompts that the policy answers in one batch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a decomposer is trained; the defaults are those of the released code but where it says so.

    Args:
        held_out: problems that are not trained on but judged by, before and after the policy gradient.
        feedback: what the decomposer reads beside the question: the solver's first attempt, the gold solution, or none.
        share_answers, fewest, prompts: as of `DaSLaM`.
        device, dtype: of torch; the device is cuda where there is one.
        lora_rank, lora_alpha, lora_dropout, lora_modules: of the adapters; rank 0 trains the model's own weights.
        sft_epochs, sft_rate, sft_batch, sft_warmup: of stage 1; 0 epochs leave it out. `sft_on_prompt`: the loss counts the prompt too.
        micro_batch: rows that go through the model at once, in both stages.
        longest: tokens of prompt and answer; longer rows are left out of stage 1, and counted.
        steps: batches of stage 2; 0 leaves it out.
        batch: problems of a batch. `group`: decompositions drawn for each.
        algorithm: "ppo" or "grpo"; of "grpo" the group is at least 2.
        only_failed: draw only problems that the solver got wrong at first.
        rate: of Adam. `epochs`: times that a batch is gone through. `clip`: eps. `value_weight`: of the value's loss.
        gamma, lam: of the generalised advantages. `max_norm`: of the gradient.
        ppo_layers: how many of the last layers may change (0: all).
        kl, kl_target: the coefficient to begin with, and the KL of an answer that it is led to (None: it stays).
        temperature, top_p, max_tokens: of the decomposer's draws (the released code: 0.2 and 0.18).
        solver_temperature, solver_top_p, solver_tokens: of the solver.
        reward: "clean", "paper" or "code"; `weights`: of the parts by name, in place of the form's own.
        save_every: steps between checkpoints. `judge_every`: steps between judgements on the held-out problems (0: at the ends only).
        most_damage: end stage 2 where a judgement finds more than this share of right first answers turned wrong.
        concurrency: decompositions that the solver works on at once.
    """

    held_out: int = 100
    feedback: str = "attempt"
    share_answers: bool = True
    fewest: int = 1
    prompts: str | None = None
    device: str | None = None
    dtype: str = "float32"

    lora_rank: int = 4
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_modules: tuple[str, ...] = ("q_proj", "v_proj")

    sft_epochs: float = 8
    sft_rate: float = 2e-5
    sft_batch: int = 128
    sft_warmup: int = 100
    sft_on_prompt: bool = True
    micro_batch: int = 4
    longest: int = 1024

    steps: int = 200
    batch: int = 8
    group: int = 1
    algorithm: str = "ppo"
    only_failed: bool = True
    rate: float = 1.41e-5
    epochs: int = 4
    clip: float = 0.2
    value_weight: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    max_norm: float = 1.0
    ppo_layers: int = 4
    kl: float = 0.01
    kl_target: float | None = 4.0
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    solver_temperature: float = 0.9
    solver_top_p: float = 0.18
    solver_tokens: int = 256
    reward: str = "clean"
    weights: dict[str, float] | None = None

    save_every: int = 20
    judge_every: int = 0
    most_damage: float | None = None
    concurrency: int = 64

    def __post_init__(self) -> None:
        for name, kinds in (("feedback", FEEDBACK), ("algorithm", ("ppo", "grpo")), ("reward", rewards.FORMS)):
            if getattr(self, name) not in kinds:
                raise BadInput("is none of them", field=name, value=getattr(self, name), mend=f"there are: {', '.join(kinds)}")
        least = {"sft_batch": 1, "micro_batch": 1, "longest": 2, "batch": 1, "group": 1, "epochs": 1, "max_tokens": 1, "solver_tokens": 1,
                 "save_every": 1, "concurrency": 1, "fewest": 1}  # fmt: skip
        least |= dict.fromkeys(
            ("held_out", "lora_rank", "sft_epochs", "sft_warmup", "sft_rate", "steps", "judge_every", "ppo_layers", "rate", "kl"), 0
        )
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise BadInput(f"is at least {value}", field=name, value=getattr(self, name))
        if not 0 < self.clip < 1:
            raise BadInput("is between 0 and 1", field="clip", value=self.clip)
        for name, low, high in (("temperature", 0, 10), ("top_p", 0, 1), ("gamma", 0, 1), ("lam", 0, 1)):
            if not low < getattr(self, name) <= high:
                raise BadInput(f"is above {low} and at most {high}", field=name, value=getattr(self, name))
        if self.algorithm == "grpo" and self.group < 2:
            raise BadInput("is at least 2 for grpo", field="group", value=self.group, mend="for instance 8")
        unknown = (self.weights or {}).keys() - asdict(rewards.Parts()).keys()
        if unknown:
            mend = f"there are: {', '.join(asdict(rewards.Parts()))}"
            raise BadInput("is no part of the reward", field="weights", value=min(unknown), mend=mend)

    def weighting(self) -> rewards.Parts:
        return rewards.WEIGHTS[self.reward] if self.weights is None else rewards.Parts(**self.weights)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Settings by name.

        Raises:
            BadInput: one is unknown, of another type or out of range.
        """
        return made(cls, values, "training")


class Judgement(BaseModel):
    """What decompositions did to held-out problems. `rescue`: of the wrong first answers, the share made right; `damage`: of the right
    ones, the share made wrong; None where there are none."""

    model_config = ConfigDict(extra="forbid")

    problems: int
    direct: float
    decomposed: float
    rescue: float | None
    damage: float | None
    sub_questions: float
    parts: dict[str, float]


class Report(BaseModel):
    """What a training gave: `judged` by stage ("sft", "step-N"), steps that had nothing to learn from, rows too long for stage 1."""

    model_config = ConfigDict(extra="forbid")

    problems: int
    held_out: int
    solver_right: float
    judged: dict[str, Judgement]
    steps: int
    skipped: int
    left_out: int
    stopped_early: bool
    decomposer: str


@dataclass(slots=True)
class Rollout:
    """One decomposition and what came of it."""

    problem: int
    asked: list[str]
    parts: rewards.Parts
    reward: float
    correct: bool


async def train(
    model: str, problems: Sequence[Problem], solver: Any, out: Path, settings: Settings | None = None, *, seed: int = 0,
    tell: Tell | None = None, **options: Any,
) -> Report:  # fmt: skip
    """Train the model at a folder (or name) to decompose for `solver`, an `LM`; the result is in `out/decomposer`.

    The same call again goes on where it stopped. `options` go to `Run` (a budget, a vote, tracing).

    Raises:
        BadInput: the folder holds something else, or a setting does not fit.
        ChangedWork: it was begun with another model, other problems or settings.
        Stopped: its budget is spent; all that was answered is kept.
    """
    training = Training(model, problems, out, settings or Settings(), seed, tell or (lambda *about: None))
    run = Run(solver, journal=out / "asked.db", id="daslam", seed=seed, **{"vote": First(), **options})
    try:
        found: Report = await run.solve(training, Task(goal="train a decomposer"))
        return found
    finally:
        run.close()


def cyclic(failed: Sequence[int], size: int) -> list[int]:
    """`size` of them, from the first on, again and again; none where there are none."""
    return [failed[at % len(failed)] for at in range(size)] if failed else []


class Training:
    """A training as a method for `Run.solve`; the run's model is the solver."""

    def __init__(self, model: str, problems: Sequence[Problem], out: Path, settings: Settings, seed: int, tell: Tell) -> None:
        self.out, self.settings, self.seed, self.tell = out, settings, seed, tell
        check_seed(seed)
        _own_folder(out)
        local = Path(model)
        self.policy = Policy(str(local.resolve()) if local.exists() else model, settings, seed)
        self.trained, self.held = apart(problems, settings.held_out, seed)
        self.problems = [*self.trained, *self.held]  # numbers of problems are places in here
        self.solver = DaSLaM(
            feedback=settings.feedback != "none", share_answers=settings.share_answers, fewest=settings.fewest, prompts=settings.prompts,
            marked=False,
        )  # fmt: skip
        self.sampling = {
            "temperature": settings.solver_temperature, "top_p": settings.solver_top_p, "max_tokens": settings.solver_tokens
        }  # fmt: skip
        self.gate = asyncio.Semaphore(settings.concurrency)
        self.firsts: list[str] = []
        self.right: list[bool] = []
        self._orders: dict[int, list[int]] = {}

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON."""
        kept = {name: value for name, value in asdict(self.settings).items() if name not in ("save_every", "concurrency", "device")}
        data = blake2b(json.dumps([asdict(problem) for problem in self.problems]).encode(), digest_size=16).hexdigest()
        return {
            "name": "train daslam", "settings": json.loads(json.dumps(kept)), "model": self.policy.print, "problems": data,
            "solver": self.solver.identity(),
        }  # fmt: skip

    async def solve(self, task: Task, ctx: Context) -> Report:
        done = self.out / "report.json"
        if done.exists():
            return Report.model_validate_json(done.read_text("utf-8"))
        self.place = ctx
        await self._ask_first(ctx)
        left_out = self._fine_tune()
        judged = {"sft": await self._judge(ctx, "sft")}
        steps, skipped, early = await self._policy_gradient(ctx, judged)
        final = self.out / "decomposer"
        with whole(final, replace=True) as part:
            self.policy.save(part)
        report = Report(
            problems=len(self.trained), held_out=len(self.held), solver_right=sum(self.right) / len(self.right), judged=judged, steps=steps,
            skipped=skipped, left_out=left_out, stopped_early=early, decomposer=str(final),
        )  # fmt: skip
        write_json(done, report.model_dump(mode="json"))
        return report

    # The solver.

    async def _ask_first(self, ctx: Context) -> None:
        """The solver's first answer to every problem, and whether it is right."""
        done = 0

        async def ask(number: int, problem: Problem) -> str:
            nonlocal done
            async with self.gate:
                found = await self.solver.first(problem.question, ctx.at(f"first-{number}"), **self.sampling)
            done += 1
            self.tell("first answers", done, len(self.problems), "")
            return found

        self.firsts = await _all(ask(number, problem) for number, problem in enumerate(self.problems))
        self.right = [same_answer(answer_of(said), p.answer) for said, p in zip(self.firsts, self.problems, strict=True)]

    def prompt(self, number: int) -> str:
        """What the decomposer reads of a problem."""
        problem = self.problems[number]
        said = problem.reasoning if self.settings.feedback == "gold" else self.firsts[number]
        return self.solver.decomposer_prompt(problem.question, said)

    async def _rollouts(self, ctx: Context, numbers: Sequence[int], texts: Sequence[str]) -> list[Rollout]:
        """The solver's work on decompositions, each text one of the problem of its number. Equal ones are asked once; of a solver at
        temperature 0 once in the whole training."""
        if not self.settings.solver_temperature:
            ctx = self.place.at("asked")

        def read(text: str) -> tuple[str, ...]:
            try:
                return tuple(self.solver.read(text))
            except Flag:
                return ()

        async def work(number: int, asked: tuple[str, ...]) -> Rollout:
            problem = self.problems[number]
            place = blake2b("\n".join(asked).encode(errors="replace"), digest_size=8).hexdigest()  # what was asked there, and nothing else
            async with self.gate:
                final, answers = await self.solver.in_turn(problem.question, asked, ctx.at(f"{number}-{place}"), **self.sampling)
            context, first = context_of(problem.question), self.firsts[number]
            outcome = rewards.Outcome(problem.question, context, asked, answers, first, final, problem.answer, problem.reasoning)
            found = rewards.parts(outcome, self.settings.reward)
            correct = same_answer(answer_of(final), problem.answer)
            return Rollout(number, list(asked), found, rewards.total(found, self.settings.weighting()), correct)

        wanted = [(number, read(text)) for number, text in zip(numbers, texts, strict=True)]
        different = list(dict.fromkeys(wanted))
        found = await _all(work(*each) for each in different)
        by = dict(zip(different, found, strict=True))
        return [by[each] for each in wanted]

    async def _judge(self, ctx: Context, stage: str) -> Judgement:
        """Greedy decompositions of the held-out problems (of the others where none are)."""
        numbers = range(len(self.trained), len(self.problems)) if self.held else range(len(self.trained))
        texts = self._sampled([self.policy.prompt(self.prompt(number)) for number in numbers], None)
        found = await self._rollouts(ctx.at(f"judged-{stage}"), numbers, [self.policy.text(tokens) for tokens in texts])
        was = [self.right[number] for number in numbers]
        wrong = [each.correct for each, right in zip(found, was, strict=True) if not right]
        good = [not each.correct for each, right in zip(found, was, strict=True) if right]
        parts = [asdict(each.parts) for each in found]
        return Judgement(
            problems=len(found), direct=_mean(was), decomposed=_mean([each.correct for each in found]),
            rescue=_mean(wrong) if wrong else None, damage=_mean(good) if good else None,
            sub_questions=_mean([len(each.asked) for each in found]),
            parts={name: _mean([each[name] for each in parts]) for name in parts[0]},
        )  # fmt: skip

    # Stage 1.

    def _fine_tune(self) -> int:
        """Supervised fine-tuning; gives how many rows were too long for it."""
        done, settings, policy = self.out / "sft", self.settings, self.policy
        rows, left_out = [], 0
        for number, problem in enumerate(self.trained):
            if problem.sub_questions:
                prompt, answer = policy.prompt(self.prompt(number)), policy.answer("\n".join(problem.sub_questions))
                if len(prompt) + len(answer) <= min(settings.longest, policy.room):
                    labels = prompt if settings.sft_on_prompt else [-100] * len(prompt)
                    rows.append({"input_ids": [*prompt, *answer], "labels": [*labels, *answer]})
                else:
                    left_out += 1
        if done.exists():
            policy.load(done)
            return left_out
        if settings.sft_epochs and left_out and not rows:
            raise BadInput("no problem with sub-questions fits into it", field="longest", value=settings.longest, mend="raise it")
        if rows and settings.sft_epochs:
            steps = max(1, round(settings.sft_epochs * len(rows) / min(settings.sft_batch, len(rows))))
            how = Supervised(
                steps=steps, rate=settings.sft_rate, batch=settings.sft_batch, micro_batch=settings.micro_batch,
                warmup=min(1.0, settings.sft_warmup / steps), betas=(0.9, 0.999), decay=0.0,
            )  # fmt: skip
            policy.only(policy.moved())
            fine_tune(policy.model, policy.tokenizer, rows, self.out / "sft-checkpoints", how, self.seed, self.tell)
        with whole(done, replace=True) as part:
            policy.save(part)
        shutil.rmtree(self.out / "sft-checkpoints", ignore_errors=True)
        return left_out

    # Stage 2.

    def _sampled(self, prompts: list[list[int]], key: int | None) -> list[list[int]]:
        """Answers of the policy to prompts: drawn by a key, greedy without one. A prompt that leaves no room for `max_tokens` gets none."""
        import torch

        from keystep.nn.rollout import sampled

        self.policy.model.eval()
        settings, found = self.settings, [list[int]() for _ in prompts]
        fits = [at for at, prompt in enumerate(prompts) if len(prompt) + settings.max_tokens <= self.policy.room]
        if not fits:
            mend = f"the model reads {self.policy.room} tokens; lower max_tokens or shorten the prompts"
            raise BadInput("leaves no room for a prompt", field="max_tokens", value=settings.max_tokens, mend=mend)
        generator = torch.Generator().manual_seed(0 if key is None else key)
        temperature = 0.0 if key is None else settings.temperature
        for start in range(0, len(fits), AT_ONCE):
            places = fits[start : start + AT_ONCE]
            some, ends = [prompts[at] for at in places], [self.policy.end]
            drawn = sampled(self.policy.model, some, settings.max_tokens, ends, generator, temperature=temperature, top_p=settings.top_p)
            for at, answer in zip(places, drawn, strict=True):
                found[at] = answer
        return found

    async def _policy_gradient(self, ctx: Context, judged: dict[str, Judgement]) -> tuple[int, int, bool]:
        """PPO or GRPO; gives steps done, steps without any failed problem, and whether it ended early."""
        from keystep.solve.daslam.gradient import Learner

        settings = self.settings
        learner = Learner(self.policy, settings)
        state: dict[str, Any] = {"step": 0, "skipped": 0, "judged": {}, "early": False}
        last = _latest(self.out / "checkpoints")
        if last is not None:
            self.policy.load(last)
            state = learner.load(last)
            judged |= {name: Judgement(**values) for name, values in state["judged"].items()}
        saved = state["step"]
        _cut(self.out / "log.jsonl", saved)

        def save() -> None:
            nonlocal saved
            if state["step"] > saved:
                with whole(self.out / "checkpoints" / f"step-{state['step']:06d}", replace=True) as part:
                    self.policy.save(part)
                    learner.save(part, state)
                for old in sorted((self.out / "checkpoints").glob("step-*"))[:-1]:
                    shutil.rmtree(old)
                saved = state["step"]

        try:
            while state["step"] < settings.steps and not state["early"]:
                step = state["step"]
                learned = await self._step(ctx.at(f"step-{step}"), step, learner)
                state["step"] += 1
                state["skipped"] += learned is None
                note = "" if learned is None else f"reward {learned['reward']:.2f}, right {learned['correct']:.2f}"
                self.tell("policy gradient", step + 1, settings.steps, note)
                if settings.judge_every and (step + 1) % settings.judge_every == 0 and step + 1 < settings.steps:
                    found = judged[f"step-{step + 1}"] = await self._judge(ctx, f"step-{step + 1}")
                    state["judged"][f"step-{step + 1}"] = found.model_dump()
                    state["early"] = settings.most_damage is not None and (found.damage or 0) > settings.most_damage
                if (step + 1) % settings.save_every == 0:
                    save()
        finally:
            if not learner.torn:
                save()
        name = f"step-{state['step']}"
        if state["step"] and name not in judged:
            judged[name] = await self._judge(ctx, name)
        return state["step"], state["skipped"], state["early"]

    async def _step(self, ctx: Context, step: int, learner: Any) -> dict[str, float] | None:
        """One batch: problems, decompositions, rewards, an update. None where the solver got all of them right."""
        settings = self.settings
        wanted = [self._drawn(step * settings.batch + at) for at in range(settings.batch)]
        kept = [number for number in wanted if not (settings.only_failed and self.right[number])]
        numbers = [number for number in cyclic(kept, settings.batch) for _ in range(settings.group)]
        if not numbers:
            return None
        prompts = [self.policy.prompt(self.prompt(number)) for number in numbers]
        answers = self._sampled(prompts, int.from_bytes(blake2b(f"{self.seed} {step}".encode(), digest_size=6).digest()))
        found = await self._rollouts(ctx, numbers, [self.policy.text(tokens) for tokens in answers])
        learned: dict[str, float] = learner.update(prompts, answers, [each.reward for each in found])
        parts = [asdict(each.parts) for each in found]
        learned |= {name: _mean([each[name] for each in parts]) for name in parts[0]}
        learned |= {"correct": _mean([each.correct for each in found]), "sub_questions": _mean([len(each.asked) for each in found])}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step + 1, **{name: round(value, 6) for name, value in learned.items()}}) + "\n")
        return learned

    def _drawn(self, at: int) -> int:
        """The problem at a place of the endless order of training: every one once, in a fresh order, again and again."""
        n = len(self.trained)
        order = self._orders.get(at // n)
        if order is None:
            order = list(range(n))
            Random(f"order {self.seed} {at // n}").shuffle(order)
            self._orders = {at // n: order}
        return order[at % n]


async def _all(waits: Iterable[Any]) -> list[Any]:
    """Results in order; the first failure cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(wait) for wait in waits]
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _own_folder(out: Path) -> None:
    """Make it, or see that it is one of these.

    Raises:
        BadInput: it holds something else, or cannot be made.
    """
    try:
        if out.exists() and any(out.iterdir()) and not (out / "asked.db").exists():
            raise BadInput(
                "holds something else", field="--out", value=str(out), mend="name a new folder, or that of a training to go on with"
            )
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot be used ({error})", field="--out", value=str(out), mend="name another folder") from None


def _cut(log: Path, step: int) -> None:
    """Take off the lines of later steps: they are made again."""
    if log.exists():
        lines = [line for line in log.read_text("utf-8").splitlines() if json.loads(line)["step"] <= step]
        write_text(log, "".join(f"{line}\n" for line in lines))


def _latest(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None) if folder.exists() else None
