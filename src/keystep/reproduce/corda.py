"""CorDA at small scale, on models of the mini skill-world, a base of its own for every seed.

Truncation, without any training: every linear weight of the layers loses its smallest components, as the plain SVD, ASVD or CorDA order
them, the latter two by a sample of facts or of reversals. Asked is whether a skill is kept longest by the order that its own sample gives.

Fine-tuning on a skill that the base has never seen, at several learning rates, each run stopped once it answers `GOAL` of the validation
problems, so that all are compared at the same accuracy: LoRA, PiSSA, CorDA in both modes, CorDA that keeps the wrong skill (the control),
and all weights of the layers. Asked is what is left of the facts at the rate that leaves most within `MOST` steps, and after how many
steps the fastest rate is there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from rich.progress import Progress

from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import Reproduction, machine, torch_for
from keystep.reproduce._skill_world import Base, accuracies, cached_base, examples
from keystep.reproduce._tables import checks, table
from keystep.worlds.skills import SKILLS, World

SAMPLE = 256  # sequences of a calibration sample
DOMAINS = ("fact", "rev")  # of the truncation
DROPPED = (16, 32, 40, 48, 52, 56, 60)  # components of the 64 of every weight
ALPHA = 0.5  # of ASVD
PLAIN = "plain SVD"
NEW, RANK = "succ", 8
GOAL, MOST, EVERY = 0.95, 300, 2  # of the validation problems; steps; steps between looks
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
TRAINED, BATCH, VALIDATED, TESTED = 2048, 64, 200, 500
LEVELS = (0.25, 0.5, 0.75, GOAL)  # of the new skill, at which the facts are looked at
ARMS = {
    "LoRA": (), "PiSSA": (), "all weights": (), "CorDA to learn": ("instruction", NEW), "CorDA to keep": ("knowledge", "fact"),
    "CorDA to keep rev": ("knowledge", "rev"),
}  # fmt: skip
LEARN, KEEP, CONTROL = "CorDA to learn", "CorDA to keep", "CorDA to keep rev"
LEAST = 1.2  # times as many facts as LoRA's
SETTINGS_TRIED = [
    "the pilots of the plan, another program on one seed: truncation at 48 and 52 of 64 components kept .75 and .21 of the facts by their "
    "own sample, .65 and .05 by the plain SVD; at rate 5e-4 and 95 % of the new skill CorDA kept .52 of the facts, with the wrong "
    "skill's covariance .50, PiSSA .29, LoRA .24, all weights .34; steps 70 (to learn), 110 (PiSSA), 185 (LoRA)",
    "seed 100, 60 steps of three ways at rate 1e-5, to see how long a step takes",
    "the setting reported, run once",
]


def _weights(model: Any) -> dict[str, Any]:
    from keystep.edit.corda import linear_modules

    return {name: module.weight.detach() for name, module in linear_modules(model).items()}


def plain(model: Any) -> dict[str, Any]:
    """What the plain SVD multiplies a weight by: nothing."""
    import torch

    from keystep.edit.corda import Regularised

    ones = {name: torch.eye(weight.shape[1]) for name, weight in _weights(model).items()}
    return {name: Regularised(one, one, 0.0) for name, one in ones.items()}


def by_corda(model: Any, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """C' and its inverse for every module, by name."""
    from keystep.edit.corda import batches, covariances, regularised

    found: dict[str, Any] = {}
    for layer in covariances(model, list(_weights(model)), batches(rows, BATCH)):
        for shared in layer:
            found |= dict.fromkeys(shared.modules, regularised(shared.mean))
    return found


def by_asvd(model: Any, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """diag(s) and its inverse, s_j = (sum over sequences of the mean |x_j| of their tokens)^ALPHA + 1e-6; rows of one length."""
    import torch

    from keystep.edit.corda import Regularised, batches

    sums: dict[str, Any] = {}

    def read(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            sums[name] = args[0].abs().mean(1).sum(0)

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(read(name)) for name in _weights(model)]
    with torch.no_grad():
        model(**batches(rows, len(rows))[0])
    for each in hooks:
        each.remove()
    scales = {name: total**ALPHA + 1e-6 for name, total in sums.items()}
    return {name: Regularised(scale.diag(), (1 / scale).diag(), 0.0) for name, scale in scales.items()}


def truncated(model: Any, parts: Mapping[str, tuple[Any, Any, Any]], dropped: int) -> Any:
    """A copy of the model, its weights without their last components; `parts` are those of `keystep.edit.corda.components`."""
    found = copy.deepcopy(model)
    for name, (U, S, V) in parts.items():
        kept = len(S) - dropped
        found.get_submodule(name).weight.data.copy_(U[:, :kept] * S[:kept] @ V[:kept])
    return found


def _truncation(model: Any, world: World) -> list[dict[str, Any]]:
    """Accuracy and loss (nats an answer token) of both skills by order, sample and components left out."""
    from keystep.edit.corda import components
    from keystep.nn.examples import judge

    rows = {skill: [row.tokens for row in examples(world.drawn(skill, "train", SAMPLE)).rows] for skill in DOMAINS}
    asked = {skill: examples(world.drawn(skill, "test", TESTED)) for skill in DOMAINS}
    orders = {(PLAIN, ""): plain(model)}
    for skill in DOMAINS:
        orders |= {("ASVD", skill): by_asvd(model, rows[skill]), ("CorDA", skill): by_corda(model, rows[skill])}
    found = []
    for (order, sample), metric in orders.items():
        parts = {name: components(weight, metric[name]) for name, weight in _weights(model).items()}
        for dropped in (0, *DROPPED):
            cut = truncated(model, parts, dropped)
            for skill in DOMAINS:
                judged = judge(cut, asked[skill])
                found.append({"order": order, "sample": sample, "dropped": dropped, "skill": skill,
                              "accuracy": round(judged.accuracy, 4), "loss": round(judged.loss, 4)})  # fmt: skip
    return found


def _start(arm: str, base: Any, samples: Mapping[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    """A copy of the base as an arm begins, and what it trains, by name."""
    import torch

    from keystep.edit.corda import Corda, adapt, batches, linear_modules, peft_for, sequences
    from keystep.nn.layers import layer_parameters

    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    if arm == "all weights":
        return model, dict(layer_parameters(model))
    if arm in ("LoRA", "PiSSA"):
        peft = peft_for("a LoRA adapter")
        targets = sorted({name.rsplit(".", 1)[-1] for name in linear_modules(model)})
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights="pissa" if arm == "PiSSA" else True)
        model = peft.get_peft_model(model, config)
    else:
        mode, skill = ARMS[arm]
        settings = Corda(mode=mode, rank=RANK, samples=SAMPLE, seed=seed)
        model = adapt(model, batches(sequences(samples[skill], settings), BATCH), settings).model
    return model, {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class _Reached(Exception):
    pass


def _tuned(model: Any, trained: Mapping[str, Any], data: Any, watched: Mapping[str, Any], rate: float, seed: int) -> dict[str, Any]:
    """Train until the new skill is learned; the steps (None: not within MOST), and the facts at every level of the new skill."""
    from keystep.nn.examples import judge
    from keystep.nn.fit import Fit, fit, shuffled

    losses, levels = list[float](), dict[str, float]()

    def tick(loss: float) -> None:
        losses.append(loss)
        if len(losses) % EVERY:
            return
        learned = judge(model, watched[NEW]).accuracy
        for level in LEVELS:
            if learned >= level and str(level) not in levels:
                levels[str(level)] = round(judge(model, watched["fact"]).accuracy, 4)
        if learned >= GOAL:
            raise _Reached

    with suppress(_Reached):
        settings = Fit(MOST, rate, batch=BATCH, floor=1.0, seed=seed)
        fit(model, shuffled(data, BATCH, seed), settings, trainable=trained.items(), tick=tick)
    return {"steps": len(losses) if str(GOAL) in levels else None, "facts_at": levels, "loss_after_20": round(losses[19], 4)
            if len(losses) >= 20 else None}  # fmt: skip


def _fine_tuning(base: Any, world: World, seed: int, done: Any) -> list[dict[str, Any]]:
    """All arms at all rates."""
    data = examples(world.drawn(NEW, "train", TRAINED, seed))
    watched = {NEW: examples(world.drawn(NEW, "val", VALIDATED)), "fact": examples(world.problems("fact"))}
    samples = {skill: examples(world.drawn(skill, "train", SAMPLE, seed)) for skill in (NEW, "fact", "rev")}
    found = []
    for arm in ARMS:
        for rate in RATES:
            model, trained = _start(arm, base, samples, seed)
            run = _tuned(model, trained, data, watched, rate, seed)
            after = accuracies(model, world, (*SKILLS, NEW))
            found.append({"arm": arm, "rate": rate, **run, "after": {skill: round(value, 4) for skill, value in after.items()}})
        done()
    return found


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Both experiments at every seed."""
    began, busy = time.perf_counter(), time.process_time()
    bar = progress.add_task("CorDA", total=seeds * (2 + len(ARMS))) if progress else None

    def done() -> None:
        if progress and bar is not None:
            progress.advance(bar)

    runs = []
    for seed in range(seeds):
        torch_for(seed)
        base = Base(seed=seed)
        model = cached_base(base)
        done()
        run: dict[str, Any] = {"seed": seed, "base": accuracies(model, base.world, (*SKILLS, NEW))}
        run["truncation"] = _truncation(model, base.world)
        done()
        run["tuning"] = _fine_tuning(model, base.world, seed, done)
        runs.append(run)
    return report(runs, time.perf_counter() - began, time.process_time() - busy)


def lost(run: Mapping[str, Any], order: str, sample: str, skill: str) -> float:
    """The loss that leaving components out adds, mean over DROPPED, nats an answer token."""
    losses: dict[int, float] = {
        row["dropped"]: row["loss"]
        for row in run["truncation"]
        if (row["order"], row["sample"], row["skill"]) == (order, sample, skill)
    }  # fmt: skip
    return mean(losses[dropped] for dropped in DROPPED) - losses[0]


def best(runs: Sequence[Mapping[str, Any]], arm: str, by: str) -> dict[str, Any] | None:
    """An arm at the rate that `by` ("facts": most of them are kept, "steps": fewest are needed) finds best of those that reached the goal
    at every seed, with the values of the seeds; None where no rate did."""
    found: list[dict[str, Any]] = []
    for rate in RATES:
        rows = [next(row for row in run["tuning"] if (row["arm"], row["rate"]) == (arm, rate)) for run in runs]
        if all(row["steps"] is not None for row in rows):
            kept = [row["after"]["fact"] / max(run["base"]["fact"], 1 / TESTED) for row, run in zip(rows, runs, strict=True)]
            found.append({"rate": rate, "facts": [round(each, 4) for each in kept], "steps": [row["steps"] for row in rows],
                          "at": {str(level): [row["facts_at"][str(level)] for row in rows] for level in LEVELS}})  # fmt: skip
    return max(found, key=lambda each: mean(each["facts"]) if by == "facts" else -mean(each["steps"]), default=None)


def report(runs: Sequence[dict[str, Any]], seconds: float, cpu: float) -> Reproduction:
    """The verdict on what all seeds gave."""
    keeping, fastest = ({arm: best(runs, arm, by) for arm in ARMS} for by in ("facts", "steps"))
    losses = {
        f"{order}{f' by {sample}' if sample else ''} on {skill}": [round(lost(run, order, sample, skill), 4) for run in runs]
        for order, sample in ((PLAIN, ""), *((order, sample) for order in ("ASVD", "CorDA") for sample in DOMAINS))
        for skill in DOMAINS
    }

    def less(other: str) -> bool:
        pairs = [(losses[f"CorDA by {skill} on {skill}"], losses[other.format(own=skill, wrong=wrong)])
                 for skill, wrong in zip(DOMAINS, reversed(DOMAINS), strict=True)]  # fmt: skip
        return all(mine < its for ours, theirs in pairs for mine, its in zip(ours, theirs, strict=True))

    def facts(arm: str) -> list[float]:
        row = keeping[arm]
        return row["facts"] if row else [0.0] * len(runs)

    def steps(arm: str) -> float:
        row = fastest[arm]
        return mean(row["steps"]) if row else float("inf")

    ratio = mean(facts(KEEP)) / max(mean(facts("LoRA")), 1e-4)
    found = {
        "truncation: a skill's own sample loses less than the plain SVD, both skills, every seed": less(PLAIN + " on {own}"),
        "truncation: a skill's own sample loses less than ASVD's": less("ASVD by {own} on {own}"),
        "truncation: a skill's own sample loses less than the other skill's": less("CorDA by {wrong} on {own}"),
        f"to keep: at {GOAL:.0%} of the new skill more facts are left than by LoRA, at every seed": all(
            mine > its for mine, its in zip(facts(KEEP), facts("LoRA"), strict=True)
        ),
        f"to keep: at least {LEAST} times as many": ratio >= LEAST,
        "to learn: fewer steps than LoRA": steps(LEARN) < steps("LoRA"),
        "to learn: fewer steps than PiSSA": steps(LEARN) < steps("PiSSA"),
    }
    controls = {
        "to keep: more facts are left than with the covariance of the wrong skill, at every seed": all(
            mine > its for mine, its in zip(facts(KEEP), facts(CONTROL), strict=True)
        ),
        "to keep: more facts are left than by PiSSA, on the mean": mean(facts(KEEP)) > mean(facts("PiSSA")),
        "to keep: more facts are left than by training all weights, on the mean": mean(facts(KEEP)) > mean(facts("all weights")),
    }
    ours = (LEARN, KEEP, CONTROL)
    return Reproduction(
        name="corda", room="edit",
        paper="Yang et al. 2024, CorDA: Context-Oriented Decomposition Adaptation of Large Language Models, arXiv 2406.05223",
        claim="Decomposing weights by the covariance of a sample gathers what the sample needs in the first components: leaving the last "
        "ones out costs it less than with the plain SVD or ASVD. Adapters that begin in the last ones keep more knowledge than LoRA "
        "(0.55 instead of 0.08 of NQ-open, 0.84 instead of 0.69 at 13B) at no less of the new skill; adapters that begin in the first "
        "ones learn better than LoRA (1.25 times) and PiSSA (1.04 times).",
        setting={
            "base": repr(Base()) + ", its seed that of the run", "new skill": NEW, "rank": RANK, "rates": RATES, "goal": GOAL,
            "most steps": MOST, "looked at every": EVERY, "examples": TRAINED, "batch": BATCH,
            "optimizer": "AdamW, constant rate, clipped at norm 1", "sample": SAMPLE, "dropped": DROPPED, "tested on": TESTED,
        },
        baseline={"keeping": {arm: row for arm, row in keeping.items() if arm not in ours},
                  "fastest": {arm: row for arm, row in fastest.items() if arm not in ours},
                  "truncation": {name: values for name, values in losses.items() if not name.startswith("CorDA")}},
        measured={
            "checks": found, "controls": controls, "keeping": {arm: keeping[arm] for arm in ours},
            "fastest": {arm: fastest[arm] for arm in ours},
            "truncation": {name: values for name, values in losses.items() if name.startswith("CorDA")},
            "runs": list(runs), "cpu_seconds": round(cpu, 1),
        },
        ratio=round(ratio, 4), held=all(found.values()), seeds=[run["seed"] for run in runs], seconds=round(seconds, 1),
        settings_tried=SETTINGS_TRIED, machine=machine(),
    )  # fmt: skip


def _arms(found: Reproduction, what: str) -> dict[str, dict[str, Any] | None]:
    return {arm: {**found.baseline[what], **found.measured[what]}[arm] for arm in ARMS}


def tables(found: Reproduction) -> str:
    """The figures as Markdown: means over seeds."""
    runs = found.measured["runs"]
    cut = []
    for order, sample in ((PLAIN, ""), *((order, sample) for order in ("ASVD", "CorDA") for sample in DOMAINS)):
        row: dict[str, Any] = {"order": f"{order}, sample of {sample}" if sample else order}
        for skill in DOMAINS:
            row |= {f"{skill}, {dropped} of 64 dropped": f"{_accuracy(runs, order, sample, skill, dropped)[0]:.2f}" for dropped in (48, 52)}
            row[f"{skill}, loss added"] = f"{mean(lost(run, order, sample, skill) for run in runs):.2f}"
        cut.append(row)
    keeping, fastest = _arms(found, "keeping"), _arms(found, "fastest")
    tuned = []
    for arm, row_kept in keeping.items():
        row_fast = fastest[arm]
        if row_kept is None or row_fast is None:
            tuned.append({"way": arm, "facts kept": "–", "at rate": "–", "in steps": "–", "fewest steps": "–", "at rate ": "–"})
            continue
        tuned.append({"way": arm, "facts kept": f"{mean(row_kept['facts']):.2f}", "at rate": f"{row_kept['rate']:g}",
                      "in steps": f"{mean(row_kept['steps']):.0f}", "fewest steps": f"{mean(row_fast['steps']):.0f}",
                      "at rate ": f"{row_fast['rate']:g}"})  # fmt: skip
    judged = (checks(found.measured["checks"]), checks(found.measured["controls"]))
    heads = ("Without training: accuracy by what is left out", f"Tuned to {GOAL:.0%} of the new skill", "Judged by", "Controls")
    return "\n".join(f"### {head}\n\n{part}" for head, part in zip(heads, (table(cut), table(tuned), *judged), strict=True))


def _accuracy(runs: Sequence[Mapping[str, Any]], order: str, sample: str, skill: str, dropped: int) -> tuple[float, float, float]:
    """Mean, least and most over the seeds."""
    wanted = (order, sample, skill, dropped)
    values = [
        row["accuracy"]
        for run in runs
        for row in run["truncation"]
        if (row["order"], row["sample"], row["skill"], row["dropped"]) == wanted
    ]  # fmt: skip
    return mean(values), min(values), max(values)


def picture(found: Reproduction, path: Path) -> None:
    """Both skills by components left out; the facts by what was learned of the new skill, and by rate; the steps that were needed."""
    runs, charts = found.measured["runs"], []
    at = (0, *DROPPED)
    for skill in DOMAINS:
        lines = []
        for order, sample in ((PLAIN, ""), ("ASVD", skill), *(("CorDA", each) for each in DOMAINS)):
            middle, low, high = zip(*(_accuracy(runs, order, sample, skill, dropped) for dropped in at), strict=True)
            lines.append(Line(f"{order}, sample of {sample}" if sample else order, at, middle, low, high, "o-"))
        charts.append(Chart(f"Accuracy of {skill}, smallest components left out", "components left out of 64", "accuracy", lines))
    keeping = {arm: row for arm, row in _arms(found, "keeping").items() if row}
    lines = []
    for arm, row in keeping.items():
        values = [row["at"][str(level)] for level in LEVELS]
        lines.append(Line(arm, LEVELS, [mean(each) for each in values], style="o-"))
    charts.append(
        Chart("Facts left while the new skill is learned, best rate", "accuracy of the new skill", "accuracy of the facts", lines)
    )
    lines = []
    for arm in ARMS:
        each = [[row["after"]["fact"] for row in run["tuning"] if row["arm"] == arm] for run in runs]
        lines.append(Line(arm, RATES, [mean(values) for values in zip(*each, strict=True)], style="o-"))
    charts.append(Chart("Facts left at the end, by rate", "learning rate", "accuracy of the facts", lines, log="x"))
    fastest = {arm: row for arm, row in _arms(found, "fastest").items() if row}
    bars = Line("", list(range(len(fastest))), [mean(row["steps"]) for row in fastest.values()], style="bars")
    charts.append(Chart(f"Steps to {GOAL:.0%} of the new skill, fastest rate", "", "steps", [bars], names=list(fastest), share=False))
    save(charts, path)
