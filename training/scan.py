"""What the vote will do at every single step of the Tower of Hanoi, before it is run: `python training/scan.py --disks 20`.

For every step of the whole task and every member of hanoi-large, the exact probability of the right answer (teacher forcing). From these,
for every step and margin, the exact probability that the vote over the members in turn is right, as if all wrong answers agreed on one
rival and a malformed answer were a vote for it: a lower bound. The product over the steps is the chance of a run without an error.

A member's probabilities are kept in `training/build/`, so a scan that was stopped goes on with the next member, and two can be scanned side
by side (`--member`). With `--journal FILE --run NAME`, what came out is put beside: the run's votes, and every step that was wrong.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import hanoi
import numpy as np
import torch
from forward import in_parts
from numpy.typing import NDArray
from rich.progress import track
from torch.nn import functional
from train import BUILD, stock

from keystep.lm.embedded.model import Ensemble, Member, answer_probabilities, load

ENSEMBLE = "hanoi-large"
RESULTS = Path(__file__).parent.parent / "results/maker"
TEMPERATURES = (1.0, 0.7, 0.5)
MARGINS = (1, 2, 3, 4, 5, 6)
CAP = 100  # samples of a step, as `keystep run` has it
AT_ONCE = 1 << 13  # steps
WORST = 12  # steps that are named

Floats = NDArray[np.float64]


def surprise(ensemble: Ensemble, number: int, disks: int) -> NDArray[np.float32]:
    """-ln p of every step's right answer for a member, at each of TEMPERATURES: float32 [T, steps]."""
    path = BUILD / f"scan-{ensemble.digest[:12]}-{disks}-{number}.npy"
    if path.exists():
        return np.load(path)
    net, steps, start = stock(ensemble.path, number), 2**disks - 1, hanoi.prompt_length(disks)
    found = np.empty((len(TEMPERATURES), steps), np.float32)
    for begin in track(range(0, steps, AT_ONCE), f"member {number}"):
        numbers = np.arange(begin, min(begin + AT_ONCE, steps))
        tokens = torch.from_numpy(hanoi.path_steps(disks, numbers))
        logits = in_parts(net, tokens, start).transpose(1, 2)
        for place, temperature in enumerate(TEMPERATURES):
            lost = functional.cross_entropy(logits / temperature, tokens[:, start:], reduction="none")
            found[place, numbers] = lost.double().sum(1).numpy()
    BUILD.mkdir(exist_ok=True)
    kept = path.with_suffix(".new.npy")
    np.save(kept, found)
    kept.replace(path)
    return found


def agreement(member: Member, disks: int, found: NDArray[np.float32]) -> float:
    """The greatest difference between the scan's p and that of the decoder which runs, on some steps."""
    numbers = np.random.default_rng(0).choice(2**disks - 1, min(200, 2**disks - 1), replace=False)
    examples, start = hanoi.path_steps(disks, numbers), hanoi.prompt_length(disks)
    decoded, _ = answer_probabilities(member, examples[:, :start], examples[:, start:])
    return float(np.abs(decoded - np.exp(-found[0, numbers])).max())


def vote(p: Floats, k: int) -> tuple[Floats, Floats]:
    """Probability that the right answer gets k ahead, and the mean number of votes, for steps with p [members, N] and members in turn.

    An undecided vote (after CAP samples) is not right.
    """
    lead = np.zeros((2 * k + 1, p.shape[1]))
    lead[k] = 1.0
    mean = np.zeros(p.shape[1])
    for sample in range(CAP):
        alive = lead[1:-1].copy()
        still = alive.sum(0)
        mean += still
        if still.max() < 1e-15:
            break
        lead[1:-1] = 0
        right = p[sample % len(p)]
        lead[2:] += alive * right
        lead[:-2] += alive * (1 - right)
    return lead[-1], mean


def predicted(p: Floats) -> dict[str, Any]:
    """What the exact p of all steps [members, N] say about the whole run."""
    margins = {}
    for k in MARGINS:
        parts = [vote(p[:, begin : begin + AT_ONCE], k) for begin in range(0, p.shape[1], AT_ONCE)]
        right, votes = (np.concatenate(each) for each in zip(*parts, strict=True))
        margins[str(k)] = {
            "success": float(np.exp(np.log(right).sum())),
            "expected_wrong_steps": float((1 - right).sum()),
            "votes_per_step": float(votes.mean()),
            "least_vote_success": float(right.min()),
            "steps_with_vote_success_below_half": int((right < 0.5).sum()),
        }
    pooled = p.mean(0)
    wrong = (p < 0.5).sum(0)
    worst = np.argsort(pooled)[:WORST]
    return {
        "members": [{"mean_error": float(1 - q.mean()), "least_p": float(q.min()), "below_half": int((q < 0.5).sum())} for q in p],
        "pool": {"mean_error": float(1 - pooled.mean()), "least_p": float(pooled.min()), "below_half": int((pooled < 0.5).sum())},
        "members_below_half_together": np.bincount(wrong, minlength=len(p) + 1).tolist(),
        "by_margin": margins,
        "worst_steps": [{"step": int(step), "p": p[:, step].round(4).tolist()} for step in worst],
    }


def outcome(journal: str, run: str, disks: int, p: Floats) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """What the journal says of a finished run, and the samples of every step."""
    from keystep.run import Journal
    from keystep.run.builtin import builtin

    store = Journal(journal)
    procedure, samples, wrong = builtin("hanoi", {"disks": disks}), [], []
    rows = (row for scope in store.procedures(run, "0") for row in store.rows(scope))
    assert procedure.truth is not None
    for number, (row, (_, right)) in enumerate(zip(rows, procedure.truth(), strict=True)):
        samples.append(row.samples)
        if row.answer != right:
            wrong.append({"step": number, "p": p[:, number].round(6).tolist(), "answer": row.answer, "right": right})
    known = store.run(run)
    store.close()
    return {"run": known["result"], "k": known["spec"]["ahead_by"], "seed": known["spec"]["seed"], "wrong_steps": wrong}, np.array(samples)


def picture(path: Path, p: Floats, samples: NDArray[np.int64] | None) -> None:
    """Error of the pool, and samples drawn where the run is known, along the task: the mean and the worst step of 512 stretches of it."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "keystep"
    steps = p.shape[1]
    edges = np.linspace(0, steps, 513).astype(int)[:-1]
    rows = [("probability of a wrong sample", 1 - p.mean(0))] + ([] if samples is None else [("samples of a step", samples)])
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 2.6 * len(rows)), sharex=True, squeeze=False, layout="constrained")
    for axis, (label, values) in zip(axes[:, 0], rows, strict=True):
        axis.plot(edges, np.maximum.reduceat(values, edges), lw=0.8, label="worst step of 2,048" if steps > 10**6 else "worst step")
        axis.plot(edges, np.add.reduceat(values, edges) / np.diff([*edges, steps]), lw=0.8, label="mean")
        axis.set_ylabel(label)
        axis.legend(loc="upper right", fontsize=8)
    axes[0, 0].set_yscale("log")
    axes[-1, 0].set_xlabel("step")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, choices=range(3, 21), metavar="3-20", default=20)
    parser.add_argument("--member", type=int, choices=range(5), metavar="0-4", help="scan this member only")
    parser.add_argument("--temperature", type=float, choices=TEMPERATURES, default=1.0, help="of the picture and of --run")
    parser.add_argument("--journal")
    parser.add_argument("--run")
    arguments = parser.parse_args()
    if (arguments.journal is None) != (arguments.run is None):
        parser.error("--journal and --run go together")
    torch.set_num_threads(1)
    ensemble, disks = load(ENSEMBLE), arguments.disks
    if arguments.member is not None:
        surprise(ensemble, arguments.member, disks)
        return
    found = [surprise(ensemble, number, disks) for number in range(len(ensemble.members))]
    every = np.exp(-np.stack(found, axis=1).astype(np.float64))  # [T, members, steps]
    p = every[TEMPERATURES.index(arguments.temperature)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    name, samples = f"hanoi-{disks}-scan", None
    if arguments.run:
        came, samples = outcome(arguments.journal, arguments.run, disks, p)
        name = f"hanoi-{disks}-seed{came['seed']}-beside"
        report = {"temperature": arguments.temperature, "predicted": predicted(p), **came}
    else:
        report = {
            "ensemble": ENSEMBLE,
            "weights": ensemble.digest,
            "disks": disks,
            "steps": p.shape[1],
            "largest_difference_from_the_decoder": max(map(agreement, ensemble.members, [disks] * len(found), found)),
            "by_temperature": {str(t): predicted(each) for t, each in zip(TEMPERATURES, every, strict=True)},
        }
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    picture(RESULTS / f"{name}.svg", p, samples)


if __name__ == "__main__":
    main()
