"""CorDA's initialisation here and by PEFT, on one model and sample: `python benchmarks/corda.py [--quick]`.

Each way runs in a process of its own, in turn, several times; medians are compared. `covariance` is the most bytes of covariance matrices
that are held at one time, `growth` how far the process's peak memory rose above what it was before (model and sample loaded), `seconds`
the whole initialisation, down to the `PeftModel`. Sequences have one length, and go through one at a time on both sides, as PEFT wants
them. `difference` is the largest difference of the two results' changed base weights. Writes results/benchmarks/corda.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from keystep.reproduce import machine

OUT = Path(__file__).parent.parent / "results/benchmarks/corda.json"
SIZES = {"width": 128, "layers": 8, "heads": 4, "longest": 128}
QUICK = {"width": 64, "layers": 2, "heads": 4, "longest": 128}
RANK, SEQUENCES, LENGTH, ROUNDS = 16, 32, 128, 3


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(way: str, sizes: dict[str, int], weights: Path) -> dict[str, float]:
    import torch
    from safetensors.torch import save_file

    from keystep.worlds.skills import small_model

    torch.set_num_threads(1)
    model = small_model("llama", **sizes)
    rows = torch.randint(3, 40, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(rows[:1])
    before, clock = peak(), time.perf_counter()
    found, held = (keystep if way == "keystep" else peft)(model, rows)
    seconds, growth = time.perf_counter() - clock, peak() - before
    save_file({name: tensor for name, tensor in found.state_dict().items() if "base_layer" in name}, weights)
    return {"seconds": seconds, "growth": growth, "covariance": held}


def keystep(model: Any, rows: Any) -> tuple[Any, int]:
    from keystep.edit import corda
    from keystep.edit.corda.covariance import _Inputs

    held, real = [0], _Inputs.found

    def counted(self: Any) -> Any:
        held.append(sum(each.total.nbytes for each in self.sums.values()))
        return real(self)

    _Inputs.found = counted  # type: ignore[method-assign]
    settings = corda.Corda(rank=RANK, batch=1)
    found = corda.adapt(model, corda.batches(rows.tolist(), settings.batch), settings)
    return found.model, max(held)


def peft(model: Any, rows: Any) -> tuple[Any, int]:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import corda
    from peft.tuners.lora.config import CordaConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm")
    )
    held, real = [0], corda.collect_eigens

    def counted(*arguments: Any) -> Any:
        held.append(sum(module.covariance_matrix.nbytes for _, module in corda.target_modules(model, config)))
        return real(*arguments)

    corda.collect_eigens = counted
    corda.preprocess_corda(model, config, run_model=lambda: [model(row[None]) for row in rows])
    return get_peft_model(model, config), max(held)


def main(quick: bool) -> None:
    from safetensors.torch import load_file

    rounds: dict[str, list[dict[str, float]]] = {"keystep": [], "peft": []}
    sizes = QUICK if quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / way for way in rounds}
        for _ in range(1 if quick else ROUNDS):
            for way, found in rounds.items():
                command = [sys.executable, __file__, "--one", way, json.dumps(sizes), str(files[way])]
                found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        mine, theirs = (load_file(file) for file in files.values())
        difference = max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
    middle = {way: {key: median(each[key] for each in found) for key in found[0]} for way, found in rounds.items()}
    ratio = {key: middle["peft"][key] / middle["keystep"][key] for key in ("seconds", "growth", "covariance") if middle["keystep"][key]}
    setting = {**sizes, "rank": RANK, "sequences": SEQUENCES, "length": LENGTH, "rounds": len(rounds["peft"])}
    result = {"name": "corda", "setting": setting, **middle, "peft_over_keystep": ratio, "difference": difference, "machine": machine()}
    if not quick:
        OUT.write_text(json.dumps({**result, "each": rounds}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main("--quick" in sys.argv)
