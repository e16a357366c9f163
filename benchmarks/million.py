"""A million steps: `python benchmarks/million.py` runs the Tower of Hanoi with 20 disks on embedded-large, by the command that users give.

K is chosen before the run, from the exact probabilities of `python training/scan.py --disks 20` at temperature 1: the least of 3 to 6 with
which the whole run is right with a probability of CHANCE or more. Where there is none it does not begin.
`--disks 16 --split 0` is a chain that cannot be taken apart.

Writes results/maker/hanoi-DISKS-seedS.json (the run's own `--json` object, what was predicted, time, memory, bytes of the journal). A run
that was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from keystep.reproduce import machine

RESULTS = Path(__file__).parent.parent / "results/maker"
CHANCE = 0.99
MARGINS = range(3, 7)


def chosen(disks: int) -> tuple[int, dict[str, Any]]:
    """The margin, and what the scan says of it."""
    scan = json.loads((RESULTS / f"hanoi-{disks}-scan.json").read_text())
    found = scan["by_temperature"]["1.0"]
    for k in MARGINS:
        if found["by_margin"][str(k)]["success"] >= CHANCE:
            pool = found["pool"]
            return k, {"weights": scan["weights"], "temperature": 1.0, "k": k, "pool": pool, **found["by_margin"][str(k)]}
    raise SystemExit(f"no k of {list(MARGINS)} gives the whole run a chance of {CHANCE}: {found['by_margin']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--split", type=int, help="as in `keystep run hanoi --set split=N`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path, default=Path("million.db"))
    arguments = parser.parse_args()
    k, predicted = chosen(arguments.disks)
    keystep, journal = [sys.executable, "-c", "from keystep.cli import main; main()"], ["--journal", str(arguments.journal), "--json"]
    if arguments.journal.exists():
        command = ["resume", *journal]
    else:
        split = [] if arguments.split is None else ["--set", f"split={arguments.split}"]
        model = ["--model", "embedded-large", "--ahead-by", str(k), "--seed", str(arguments.seed)]
        command = ["run", "hanoi", "--set", f"disks={arguments.disks}", *split, *model, *journal]
    began = time.time()
    ended = subprocess.run([*keystep, *command], stdout=subprocess.PIPE, text=True)
    if not ended.stdout.strip():
        raise SystemExit(ended.returncode)
    found = {
        "command": f"keystep {' '.join(command)}",
        "outcome": json.loads(ended.stdout),
        "predicted": predicted,
        "wall_seconds_of_the_last_part": round(time.time() - began, 1),
        "largest_process_megabytes": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
        "journal_megabytes": round(
            sum(os.path.getsize(file) for file in arguments.journal.parent.glob(f"{arguments.journal.name}*")) / 1e6, 1
        ),
        "machine": machine(),
    }
    kind = "" if arguments.split is None else "-sequential" if arguments.split == 0 else f"-split{arguments.split}"
    name = f"hanoi-{arguments.disks}{kind or f'-seed{arguments.seed}'}"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    raise SystemExit(ended.returncode)


if __name__ == "__main__":
    main()
