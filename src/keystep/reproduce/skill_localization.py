"""Skill localization at small scale: models of the mini skill-world tuned by SGD on a skill that they had never seen, and grafts of it.

Six questions, each over all seeds (a seed draws the tuning examples, their order and the masks; the bases are trained once a width):
how much of the accuracy a graft keeps by its size, beside random masks and those of the largest movement; how the smallest sufficient
graft changes with the width of the model; calibration where a share of the tuning answers is wrong; whether the masks of two skills of one
tuned model are apart, and each brings its own skill only; what tuning and grafts leave of the five old skills; what is left of skills that
were learned one after another, when of each tuning only the graft is kept. At this size a sufficient graft has per cents of the parameters,
not hundredths of one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.progress import Progress

from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import Reproduction, machine, torch_for
from keystep.reproduce._skill_world import Base, Tune, accuracies, cached_base, examples, tuned
from keystep.reproduce._tables import checks, table
from keystep.worlds.skills import SKILLS

BASES = (Base(width=32, steps=1200, rate=6e-3), Base(width=64, steps=1000), Base(width=128, steps=600, rate=3e-3))
MAIN = 1  # the base of all but the widths
SIZES = (0.01, 0.03, 0.08)  # shares of the layers' parameters
GRID = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)  # of which the smallest sufficient one is looked for, by halving
SUFFICIENT = 0.95  # of the tuned model's accuracy
MASK = {"steps": 30, "rate": 0.2, "accumulate": 2, "judged": 128}
STEPS, NOISE, NOISY_STEPS, NOISY_SIZE = 150, 0.15, 500, 0.08
TWO, TWO_STEPS, TWO_SIZE, TWO_START = ("succ", "nines"), 400, 0.12, "movement"
TASKS, TASK_STEPS, TASK_SIZE = ("succ", "nines", "succrev"), 200, 0.12
TRAINED, VALIDATED, TESTED = 512, 128, 500
SETTINGS_TRIED = [
    "base of width 64 (1200 steps, seed 0), tuned 150 steps, masks of 40 steps at rate 0.15, s = 0.01, 0.03, 0.1: kept accuracy 0, 0.41, 1",
    "widths 32, 64, 128, seed 100, tuned 300 steps, masks as above, s = 0.05: kept accuracy 0.78, 0.95, 0.97",
    "as those, with 30 steps at rate 0.2 and fewer examples judged, to be done within the time allowed; two skills tuned 200 steps, masks "
    "of 5 % from no start: nines was not learned (0.27 to 0.34) and neither mask brought its skill, so that their overlap said nothing",
    "two skills, seed 100, 400 steps: masks of 12 % from no start bring neither skill (30 steps at rate 0.2, 100 at 0.3), from the largest "
    "movement each brings its own (0.99, 0.96) and less of the other (0.19, 0.30), overlap 0.80",
    "the setting reported, with skills learned one after another, run once",
]


class _Tuned:
    """A tuned model beside its base, and what grafts of it can do."""

    def __init__(self, base: Any, world: Any, tune: Tune) -> None:
        from keystep.edit.localize.graft import in_scope

        self.base, self.world, self.tune = base, world, tune
        self.model = tuned(copy.deepcopy(base), tune, world)
        self.values = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        self.scope = in_scope(base, "layers")
        self.parameters = sum(tensor.numel() for tensor in self.scope.values())

    def learned(self, size: float, skill: str, start: str = "movement") -> Any:
        """The graft of a skill, learned on its tuning examples (spoiled ones too), its step chosen on validation problems like them."""
        from keystep.edit.localize import Locate, locate

        own, tune = self.world, self.tune
        data = examples(own.drawn(skill, "train", TRAINED, tune.seed, tune.noise))
        chosen_on = examples(own.drawn(skill, "val", VALIDATED, tune.seed, tune.noise))
        settings = Locate(sparsity=size, seed=tune.seed, start=start, **MASK)  # type: ignore[arg-type]
        return self._with(locate(self.base, self.values, data, settings, validation=chosen_on).patch)

    def top(self, size: float) -> Any:
        from keystep.edit.localize import movement

        return self._masked(movement(self.scope, self.values, int(size * self.parameters)))

    def random(self, size: float) -> Any:
        import torch

        from keystep.edit.localize.graft import largest

        drawn = torch.Generator().manual_seed(self.tune.seed)
        scores = {name: torch.rand(tensor.shape, generator=drawn) for name, tensor in self.scope.items()}
        return self._masked(largest(scores, int(size * self.parameters)))

    def _masked(self, masks: Any) -> Any:
        from keystep.edit.localize import patch_of

        return self._with(patch_of(self.scope, self.values, masks))

    def _with(self, patch: Any) -> Any:
        model = copy.deepcopy(self.base)
        patch.apply(model)
        return model, patch


def _figures(model: Any, reference: Any, world: Any, skill: str) -> dict[str, float]:
    """On clean test problems."""
    from keystep.edit.localize import compare

    found = compare({"this": model, "tuned": reference}, examples(world.drawn(skill, "test", TESTED)))["this"]
    return {name: round(value, 4) for name, value in found.items()}


def _sizes(pair: _Tuned, seed: int) -> dict[str, Any]:
    """Grafts of every size by every way, and the largest of them beside tuning on the old skills."""
    rows, tuned_alone = [], _figures(pair.model, pair.model, pair.world, "succ")
    old: dict[str, Any] = {"base": accuracies(pair.base, pair.world, SKILLS), "tuned": accuracies(pair.model, pair.world, SKILLS)}
    for size in SIZES:
        for way, (model, patch) in (("learned", pair.learned(size, "succ")), ("movement", pair.top(size)), ("random", pair.random(size))):
            rows.append({"size": size, "way": way, **_figures(model, pair.model, pair.world, "succ")})
            if way == "learned":
                old[f"graft {size}"] = accuracies(model, pair.world, SKILLS)
                where = patch.histogram()
    adamw = _Tuned(pair.base, pair.world, Tune(steps=STEPS, optimizer="adamw", rate=1e-3, examples=TRAINED, seed=seed))
    by_adamw = {"tuned": _figures(adamw.model, adamw.model, pair.world, "succ")["accuracy"]}
    by_adamw |= {f"movement {size}": _figures(adamw.top(size)[0], adamw.model, pair.world, "succ")["accuracy"] for size in SIZES}
    places = [{"layer": row.layer, "kind": row.kind, "share": round(row.chosen / row.of, 4)} for row in where]
    return {"tuned": tuned_alone, "grafts": rows, "old_skills": old, "adamw": by_adamw, "places": places}


def _smallest(pair: _Tuned, known: dict[float, float]) -> float:
    """The smallest size of the grid whose learned graft is sufficient; infinite where none is. `known` are accuracies by size."""
    goal = SUFFICIENT * _figures(pair.model, pair.model, pair.world, "succ")["accuracy"]
    low, high = 0, len(GRID)
    while low < high:
        middle = (low + high) // 2
        size = GRID[middle]
        if size not in known:
            known[size] = _figures(pair.learned(size, "succ")[0], pair.model, pair.world, "succ")["accuracy"]
        low, high = (low, middle) if known[size] >= goal else (middle + 1, high)
    return GRID[low] if low < len(GRID) else math.inf


def _noisy(base: Any, world: Any, seed: int) -> dict[str, Any]:
    pair = _Tuned(base, world, Tune(steps=NOISY_STEPS, noise=NOISE, examples=TRAINED, seed=seed))
    graft, _ = pair.learned(NOISY_SIZE, "succ")
    return {name: _figures(model, pair.model, world, "succ") for name, model in (("tuned", pair.model), ("graft", graft))}


def _two(base: Any, world: Any, seed: int) -> dict[str, Any]:
    """Masks of two skills of one tuned model."""
    from keystep.edit.localize import overlap

    pair = _Tuned(base, world, Tune(TWO, steps=TWO_STEPS, examples=TRAINED, seed=seed))
    made = {skill: pair.learned(TWO_SIZE, skill, TWO_START) for skill in TWO}
    one, two = (made[skill][1] for skill in TWO)
    return {
        "overlap": round(overlap(one, two), 4),
        "by_chance": round(one.density, 4),
        "tuned": {skill: _figures(pair.model, pair.model, world, skill)["accuracy"] for skill in TWO},
        "accuracy": {
            f"mask of {mine} on {its}": _figures(made[mine][0], pair.model, world, its)["accuracy"] for mine in TWO for its in TWO
        },
    }


def _continual(base: Any, world: Any, seed: int) -> dict[str, Any]:
    """Skills learned one after another: by tuning on and on, and from the grafts of those before, of each tuning keeping the graft only.
    A skill that is known to be asked for has the patches up to its own in, those of later skills out."""

    def right(model: Any, skill: str) -> float:
        return accuracies(model, world, (skill,))[skill]

    plain, grafted, patches = copy.deepcopy(base), copy.deepcopy(base), list[Any]()
    fresh: dict[str, dict[str, float]] = {"tuned": {}, "grafts": {}}
    for skill in TASKS:
        tune = Tune((skill,), steps=TASK_STEPS, examples=TRAINED, seed=seed)
        tuned(plain, tune, world)
        grafted, patch = _Tuned(grafted, world, tune).learned(TASK_SIZE, skill)
        patches.append(patch)
        fresh["tuned"][skill], fresh["grafts"][skill] = right(plain, skill), right(grafted, skill)
    last = {"tuned": {skill: right(plain, skill) for skill in TASKS}, "all grafts": {skill: right(grafted, skill) for skill in TASKS}}
    old = {"tuned": accuracies(plain, world, SKILLS), "all grafts": accuracies(grafted, world, SKILLS)}
    known = {}
    for skill, patch in reversed(list(zip(TASKS, patches, strict=True))):
        known[skill] = right(grafted, skill)
        patch.revert(grafted)
    old["no graft"] = accuracies(grafted, world, SKILLS)
    return {
        "fresh": fresh,
        "last": {**last, "its own grafts": known},
        "old_skills": {way: mean(each.values()) for way, each in old.items()},
    }


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Tune and graft: all questions at every seed."""
    torch_for(0)
    began, busy = time.perf_counter(), time.process_time()
    bar = progress.add_task("bases", total=len(BASES) + 5 * seeds) if progress else None

    def done() -> None:
        if progress and bar is not None:
            progress.advance(bar)

    bases = [_base(base, done) for base in BASES]
    world, runs = BASES[MAIN].world, list[dict[str, Any]]()
    for seed in range(seeds):
        run: dict[str, Any] = {"seed": seed}
        pairs = [_Tuned(base, world, Tune(steps=STEPS, examples=TRAINED, seed=seed)) for base in bases]
        run |= _sizes(pairs[MAIN], seed)
        done()
        run["smallest"] = {}
        for each, pair in zip(BASES, pairs, strict=True):
            found: dict[float, float] = {}
            if pair is pairs[MAIN]:
                found = {row["size"]: row["accuracy"] for row in run["grafts"] if row["way"] == "learned"}
            smallest = _smallest(pair, found)
            run["smallest"][str(each.width)] = {"size": smallest if smallest < math.inf else None, "parameters": pair.parameters,
                                                "accuracy": {str(size): found[size] for size in sorted(found)}}  # fmt: skip
        done()
        run["noisy"] = _noisy(bases[MAIN], world, seed)
        done()
        run["two"] = _two(bases[MAIN], world, seed)
        done()
        run["continual"] = _continual(bases[MAIN], world, seed)
        done()
        runs.append(run)
    return _report(runs, [accuracies(base, world, SKILLS) for base in bases], time.perf_counter() - began, time.process_time() - busy)


def _base(base: Base, done: Callable[[], None]) -> Any:
    found = cached_base(base)
    done()
    return found


def _report(runs: Sequence[dict[str, Any]], bases: list[dict[str, float]], seconds: float, cpu: float) -> Reproduction:
    def kept(way: str, size: float) -> list[float]:
        rows = [next(row for row in run["grafts"] if row["way"] == way and row["size"] == size) for run in runs]
        return [round(row["accuracy"] / max(run["tuned"]["accuracy"], 1 / TESTED), 4) for row, run in zip(rows, runs, strict=True)]

    shares = {way: {str(size): kept(way, size) for size in SIZES} for way in ("learned", "movement", "random")}
    smallest = {str(base.width): [run["smallest"][str(base.width)]["size"] or 1.0 for run in runs] for base in BASES}
    calibration = [round(run["noisy"]["graft"]["ece"] / run["noisy"]["tuned"]["ece"], 4) for run in runs]
    old = {name: [round(mean(run["old_skills"][name].values()), 4) for run in runs] for name in runs[0]["old_skills"]}
    last = SIZES[-1]
    by_width = [mean(smallest[str(base.width)]) for base in BASES]
    judged = {
        f"a learned graft of {last:.0%} keeps 95 % of the accuracy, a random one at most 5 %": min(shares["learned"][str(last)]) >= 0.95
        and max(shares["random"][str(last)]) <= 0.05,
        "learned masks keep more than those of the largest movement": all(
            mean(shares["learned"][str(size)]) >= mean(shares["movement"][str(size)]) for size in SIZES
        ) and mean(shares["learned"][str(SIZES[1])]) > mean(shares["movement"][str(SIZES[1])]),
        "the smallest sufficient graft is a smaller share the wider the model": by_width[0] > by_width[1] > by_width[2],
        "with wrong answers in the tuning data the graft's calibration error is at most 0.6 of the tuned model's": max(calibration) <= 0.6,
        "the graft forgets less of the old skills than tuning": all(
            graft > tune for graft, tune in zip(old[f"graft {last}"], old["tuned"], strict=True)
        ),
        "the masks of two skills are mostly apart": max(run["two"]["overlap"] for run in runs) < 0.5,
        "each brings most of its own skill, and less than half of the other": all(
            (run["two"]["accuracy"][f"mask of {mine} on {its}"] > 0.5 * run["two"]["tuned"][its]) == (mine == its)
            for run in runs for mine in TWO for its in TWO
        ),
        "learned one after another, each with its own grafts in, all skills together are better than after tuning alone": all(
            mean(run["continual"]["last"]["its own grafts"].values()) > mean(run["continual"]["last"]["tuned"].values()) for run in runs
        ),
    }  # fmt: skip
    return Reproduction(
        name="skill-localization", room="edit",
        paper="Panigrahi et al. 2023, Task-Specific Skill Localization in Fine-tuned Language Models, arXiv 2302.06600",
        claim="A tiny part of the parameters carries a tuned skill: grafted into the base it keeps over 95 % of the accuracy, where "
        "a random part of the same size keeps nothing; its calibration error is 40 to 90 % lower; masks of different "
        "tasks are nearly disjoint.",
        setting={
            "bases": [repr(base) for base in BASES], "skill": "succ", "tuned": f"SGD, rate 0.3, {STEPS} steps, {TRAINED} examples",
            "mask": MASK, "sizes": SIZES, "grid": GRID, "noise": {"share": NOISE, "steps": NOISY_STEPS, "size": NOISY_SIZE},
            "two": {"skills": TWO, "steps": TWO_STEPS, "size": TWO_SIZE, "start": TWO_START},
            "continual": {"skills": TASKS, "steps": TASK_STEPS, "size": TASK_SIZE}, "tested_on": TESTED,
        },
        baseline={"movement": shares["movement"], "random": shares["random"], "tuned": [run["tuned"] for run in runs]},
        measured={
            "checks": judged, "kept": shares["learned"], "smallest": smallest, "smallest_mean": [round(each, 4) for each in by_width],
            "ece_graft_over_tuned": calibration, "old_skills_mean": old, "overlap": [run["two"]["overlap"] for run in runs],
            "bases": bases, "runs": list(runs), "cpu_seconds": round(cpu, 1),
        },
        ratio=round(mean(shares["learned"][str(last)]), 4),
        held=all(judged.values()),
        seeds=[run["seed"] for run in runs], seconds=round(seconds, 1),
        settings_tried=SETTINGS_TRIED,
        machine=machine(),
    )  # fmt: skip


def tables(found: Reproduction) -> str:
    """The figures as Markdown: means over seeds."""
    measured, runs = found.measured, found.measured["runs"]
    kept = [
        {"share of the parameters": f"{size:.0%}", "learned": _mean(measured["kept"][str(size)]),
         "largest movement": _mean(found.baseline["movement"][str(size)]), "random": _mean(found.baseline["random"][str(size)]),
         "old skills left": _mean(measured["old_skills_mean"][f"graft {size}"])}
        for size in SIZES
    ]  # fmt: skip
    widths = [
        {"width": base.width, "parameters": runs[0]["smallest"][str(base.width)]["parameters"],
         "smallest sufficient graft": f"{mean(measured['smallest'][str(base.width)]):.1%}"}
        for base in BASES
    ]  # fmt: skip
    noisy = [
        {"model": name, "right": _mean([run["noisy"][name]["accuracy"] for run in runs]),
         "calibration error": f"{mean(run['noisy'][name]['ece'] for run in runs):.3f}"}
        for name in ("tuned", "graft")
    ]  # fmt: skip
    two = [
        {"model": f"mask of {mine}", **{its: _mean([run["two"]["accuracy"][f"mask of {mine} on {its}"] for run in runs]) for its in TWO}}
        for mine in TWO
    ]
    two.insert(0, {"model": "tuned on both", **{its: _mean([run["two"]["tuned"][its] for run in runs]) for its in TWO}})
    continual = [
        {"model": way, **{skill: _mean([run["continual"]["last"][way][skill] for run in runs]) for skill in TASKS},
         "old skills left": _mean([run["continual"]["old_skills"][left] for run in runs])}
        for way, left in (("tuned", "tuned"), ("all grafts", "all grafts"), ("its own grafts", "no graft"))
    ]  # fmt: skip
    fresh = {skill: _mean([run["continual"]["fresh"]["tuned"][skill] for run in runs]) for skill in TASKS}
    continual.insert(0, {"model": "each when it had just been tuned", **fresh, "old skills left": "–"})
    heads = (
        "Accuracy kept, of the tuned model's", "By width", f"{NOISE:.0%} wrong answers in the tuning data",
        f"Two skills: overlap {_mean(measured['overlap'])}, by chance {_mean([run['two']['by_chance'] for run in runs])}",
        "Learned one after another, after the last", "Judged by",
    )  # fmt: skip
    parts = (*map(table, (kept, widths, noisy, two, continual)), checks(measured["checks"]))
    return "\n".join(f"### {head}\n\n{part}" for head, part in zip(heads, parts, strict=True))


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}"


def picture(found: Reproduction, path: Path) -> None:
    """What grafts keep by their size; the smallest sufficient graft by width; calibration; the old skills; where the graft is; what is
    left of skills learned one after another."""
    measured, seeds = found.measured, found.seeds
    ways = {"learned": measured["kept"], "largest movement": found.baseline["movement"], "random": found.baseline["random"]}
    kept = [
        Line(way, SIZES, [mean(rows[str(size)]) for size in SIZES], [min(rows[str(size)]) for size in SIZES],
             [max(rows[str(size)]) for size in SIZES], style="o-")
        for way, rows in ways.items()
    ]  # fmt: skip
    widths = [base.width for base in BASES]
    sizes = [measured["smallest"][str(width)] for width in widths]
    scaling = Line("", widths, [mean(each) for each in sizes], [min(each) for each in sizes], [max(each) for each in sizes], style="o-")
    noisy = [run["noisy"] for run in measured["runs"]]
    bars = [Line(name, list(range(len(seeds))), [each[name]["ece"] for each in noisy], style="bars") for name in ("tuned", "graft")]
    old = measured["old_skills_mean"]
    forgotten = Line("", list(range(len(old))), [mean(values) for values in old.values()], style="bars")
    places, where = dict[str, dict[int, list[float]]](), dict[str, int]()
    for run in measured["runs"]:
        for row in run["places"]:
            places.setdefault(f"layer {row['layer']}", {}).setdefault(where.setdefault(row["kind"], len(where)), []).append(row["share"])
    chosen = [Line(layer, list(kinds), [mean(shares) for shares in kinds.values()], style="bars") for layer, kinds in places.items()]
    last = [run["continual"]["last"] for run in measured["runs"]]
    learned = [
        Line(way, list(range(len(TASKS))), [mean(each[way][skill] for each in last) for skill in TASKS], style="bars") for way in last[0]
    ]
    save(
        [
            Chart("Accuracy kept by a graft (of the tuned model's)", "share of the parameters", "share kept", kept, log="x"),
            Chart("Smallest sufficient graft", "width of the model", "share of the parameters", [scaling], share=False),
            Chart("15 % wrong answers: calibration error", "", "ECE", bars, names=[f"seed {seed}" for seed in seeds], share=False),
            Chart("Accuracy on the five old skills", "", "mean accuracy", [forgotten], names=list(old)),
            Chart(f"Where the graft of {SIZES[-1]:.0%} is", "kind of parameter", "share chosen", chosen, names=list(where), share=False),
            Chart("Skills learned one after another", "", "accuracy after the last", learned, names=TASKS),
        ],
        path,
    )
