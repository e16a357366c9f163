"""Putting a patch into a model and taking it out, beside copying the model: `python benchmarks/graft.py [--quick]`.

The ways to have a model with a skill and the base again afterwards: `patch` (`Patch.apply`, `Patch.revert`, in place, both checking
that the patch belongs to the model), `unchecked` (the same writes without the check), `copy` (a deep copy gets the values and is
dropped) and `load` (the tuned state dict into the model in place, then the base's). Ways take turns, round after round, in one process; the
median of the rounds counts. Memory is what a way holds beside the base. Writes results/benchmarks/graft.json and prints it as one line.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from keystep.edit.localize import Patch, patch_of
from keystep.edit.localize.graft import in_scope, largest
from keystep.reproduce import machine
from keystep.worlds.skills import small_model

OUT = Path(__file__).parent.parent / "results/benchmarks/graft.json"
WIDTH, LAYERS, HEADS, VOCABULARY = 768, 12, 12, 8000  # 125 million parameters
DENSITIES = (1e-4, 1e-3, 1e-2)
ROUNDS = 7


def made(model: Any, density: float) -> tuple[Patch, dict[str, torch.Tensor]]:
    """A patch of random places, and the state dict of the model with it in."""
    draw = torch.Generator().manual_seed(0)
    scope = in_scope(model, "layers")
    scores = {name: torch.rand(tensor.shape, generator=draw) for name, tensor in scope.items()}
    masks = largest(scores, int(density * sum(tensor.numel() for tensor in scope.values())))
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, mask in masks.items():
        tuned[name][mask] += 0.5
    return patch_of(dict(model.named_parameters()), tuned, masks), tuned


def ways(model: Any, patch: Patch, tuned: dict[str, torch.Tensor]) -> dict[str, tuple[Callable[[], object], int]]:
    """By name: what has the skill in and the base back, and the bytes it holds beside the base."""
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = sum(tensor.numel() * tensor.element_size() for part in patch.parts.values() for tensor in part)
    whole = sum(tensor.numel() * tensor.element_size() for tensor in base.values())

    def by_patch() -> None:
        patch.apply(model)
        patch.revert(model)

    def unchecked() -> None:
        patch._put(model, "values")
        patch._put(model, "before")

    def by_copy() -> None:
        patch._put(copy.deepcopy(model), "values")

    def by_load() -> None:
        model.load_state_dict(tuned)
        model.load_state_dict(base)

    return {"patch": (by_patch, held), "unchecked": (unchecked, held), "copy": (by_copy, whole + held), "load": (by_load, 2 * whole)}


def main() -> None:
    quick = "--quick" in sys.argv
    torch.set_num_threads(1)
    model = small_model(width=64) if quick else small_model(width=WIDTH, layers=LAYERS, heads=HEADS, vocabulary=VOCABULARY)
    rows = []
    for density in DENSITIES:
        patch, tuned = made(model, density)
        contestants = ways(model, patch, tuned)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(1 if quick else ROUNDS):
            for name, (work, _) in contestants.items():
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
        medians = {name: median(each) for name, each in seconds.items()}
        rows.append({
            "density": density, "changed": patch.size, "ms": {name: round(1000 * each, 2) for name, each in medians.items()},
            "copy_over_patch": round(medians["copy"] / medians["patch"], 1),
            "load_over_patch": round(medians["load"] / medians["patch"], 1),
            "held_mb": {name: round(held / 1e6, 2) for name, (_, held) in contestants.items()},
        })  # fmt: skip
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {"name": "graft", "machine": machine(), "parameters": parameters, "dtype": "float32", "rounds": ROUNDS, "rows": rows}
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
