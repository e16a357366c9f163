"""Measure an embedded ensemble and write its model card: `python training/card.py hanoi` (or any other of train.py).

The figures go beside the weights (`<ensemble>.card.json`), a page to read into `docs/models/`. Every figure is exact for the steps it is
about: the probability of each right answer is computed by teacher forcing, nothing is sampled and counted, and that of the vote follows
from it, as if all wrong answers agreed. The steps are random ones (seeded, with the rare cases drawn as often as in training, or all steps
where that is possible) and every single step of the tasks the ensemble is made for.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arithmetic
import hanoi
import ledger
import lists
import numpy as np
import pairs
import problems
import strings
from scan import vote

from keystep.lm.embedded.arithmetic import encode as arithmetic_encode
from keystep.lm.embedded.ledger import END, MAX_VALUE, VALUE, encode, render
from keystep.lm.embedded.lists import encode as lists_encode
from keystep.lm.embedded.model import WEIGHTS, Ensemble, answer_probabilities, load
from keystep.lm.embedded.problems import encode as problems_encode
from keystep.lm.embedded.strings import encode as strings_encode
from keystep.run import Procedure
from keystep.run.builtin import builtin
from keystep.run.builtin.problem import Problem
from keystep.worlds import ledger as ledger_world

DOCS = Path(__file__).parent.parent / "docs/models"
SEED = 20260101
SIZES = {"hanoi": "disks", "ledger": "words"}  # what the random steps are told apart by; else it is a kind
NOTES = {
    "problems": "Held out of training are a fifth of all pairs of a name and things and a seventh of the numbers above twelve: nothing "
    "with one of them was trained on, though every name, thing and template was."
}
PER_HEIGHT = 600  # random steps for each height from 3 to 20 disks
WORDS, DICTIONARIES = (2, 10, 25, 50, 75, 100), 105  # dictionary sizes, and dictionaries of each; ledger.QUERIES steps on each dictionary
LEDGER_RUNS, LEDGER_STEPS, LEDGER_WORDS = 5, 2000, 100
PRODUCTS, PRODUCT_DIGITS = 200, (5, 10)  # multiplications of random numbers of so many digits
PAIRS = 1500  # pairs of each kind
LISTS = {5: 200, 500: 5}  # sorted lists: how many of each length
EDITS, EDIT_RUNS, EDIT_STEPS = 1500, 20, 500  # steps of each operation on lists; random edits: how many runs, and steps of each
VOTE, HEAT = 3, 0.5  # the vote that is foreseen: first to lead by so many, at this temperature
STRINGS = 3000  # string steps of each kind
TEXTS = {10: 100, 200: 10}  # texts of random words of at most 10 letters: how many of each number of words
SENTENCES = 500  # sentences of each kind, and as many with something in them that was held out of training
PROBLEMS, PROBLEM_OPERATIONS = 200, 4  # word problems about held-out pairs of a name and things


@dataclass
class Steps:
    """Steps of one prompt length: tokens of the prompts [N, P] and right answers [N, A], and how many a prompt shares with others.

    An answer ends with its first END, whatever fills it up behind."""

    label: int | str
    prompts: np.ndarray
    answers: np.ndarray
    shared: int = 0


def hanoi_steps(examples: np.ndarray, disks: int) -> Steps:
    start = hanoi.prompt_length(disks)
    return Steps(disks, examples[:, :start], examples[:, start:])


def examples(label: int | str, whole: np.ndarray, start: int) -> Steps:
    return Steps(label, whole[:, :start], whole[:, start:])


def random_steps(skill: str) -> Iterator[Steps]:
    rng = np.random.default_rng(SEED)
    if skill == "arithmetic":
        for label, rows in arithmetic.parts().items():
            yield examples(label, rows, arithmetic.PROMPT)
    elif skill == "pairs":
        for kind, label in enumerate(pairs.KINDS):
            yield examples(label, pairs.examples(*pairs.draw(rng, PAIRS, kind)), pairs.PROMPT)
    elif skill == "lists":
        for number, label in enumerate(lists.NAMES):
            yield examples(label, lists.examples(rng, np.full(EDITS, number)), lists.PROMPT)
    elif skill == "strings":
        for kind, label in enumerate(strings.KINDS):
            yield examples(label, strings.draw(rng, STRINGS, kind), strings.PROMPT)
    elif skill == "problems":
        for kind, label in enumerate(problems.KINDS):
            yield examples(label, problems.draw(rng, SENTENCES, kind), problems.PROMPT)
            yield examples(f"{label}, held out", problems.draw(rng, SENTENCES, kind, held=True), problems.PROMPT)
    elif skill == "hanoi":
        for disks in range(3, 21):
            yield hanoi_steps(hanoi.batch(rng, PER_HEIGHT, disks), disks)
    else:
        for words in WORDS:
            rows = ledger.batch(rng, DICTIONARIES, words)
            dictionary, queries = rows[:, : 2 * words], rows[:, 2 * words :].reshape(-1, ledger.QUERY)
            prompts = np.concatenate([dictionary.repeat(ledger.QUERIES, 0), queries[:, : ledger.PROMPT]], axis=1)
            yield Steps(words, prompts, queries[:, ledger.PROMPT :], 2 * words)


def task_steps(ensemble: str) -> dict[str, list[Steps]]:
    """Every step of the tasks."""
    if ensemble.startswith("hanoi"):
        heights = (12, 16) if ensemble.endswith("large") else (12,)
        return {f"{disks} disks, all {2**disks - 1:,} steps": [hanoi_steps(hanoi.path(disks), disks)] for disks in heights}
    if ensemble == "arithmetic":
        return {f"{PRODUCTS} products of {digits}-digit numbers, every step": products(digits) for digits in PRODUCT_DIGITS}
    if ensemble == "pairs":
        return {f"{count} lists of {size}, every step of their sorting": sorting(size, count) for size, count in LISTS.items()}
    if ensemble == "strings":
        return {f"the last letters of {count} texts of {words} words, every step": texts(words, count) for words, count in TEXTS.items()}
    if ensemble == "problems":
        title = f"the sentences of {PROBLEMS} problems with {PROBLEM_OPERATIONS} operations, about names and things held out of training"
        return {title: told()}
    if ensemble == "lists":
        runs = [run_steps(number, builtin("edits", {"steps": EDIT_STEPS, "instance": SEED + number})) for number in range(EDIT_RUNS)]
        return {f"{EDIT_RUNS} runs of {EDIT_STEPS} random edits, every step": runs}
    runs = [ledger_run(instance) for instance in range(LEDGER_RUNS)]
    return {f"{LEDGER_RUNS} ledgers of {LEDGER_WORDS} words, all {LEDGER_STEPS:,} steps of each": runs}


def ledger_run(instance: int, steps: int = LEDGER_STEPS) -> Steps:
    """The steps of the procedure `ledger` with this instance."""
    values = ledger_world.dictionary(LEDGER_WORDS, instance)
    prompts, answers, total, shared = [], [], 0, 0
    for word in ledger_world.keys(values, steps, instance):
        known = encode(render(values, total, word))
        assert known is not None
        total += values[word]
        shared = known[1]
        prompts.append(known[0])
        answers.append([VALUE + MAX_VALUE + values[word], *ledger.number_tokens(np.array(total)), END])
    return Steps(instance, np.array(prompts), np.array(answers), shared)


def products(digits: int) -> list[Steps]:
    """The steps of the procedure `multiply` on random numbers."""
    rng = np.random.default_rng([SEED, digits])
    runs = []
    for number, (a, b) in enumerate(rng.integers(10 ** (digits - 1), 10**digits, (PRODUCTS, 2)).tolist()):
        runs.append(run_steps(number, builtin("multiply", {"a": a, "b": b})))
    return runs


def sorting(size: int, count: int) -> list[Steps]:
    """The steps of the procedure `sort` on random lists."""
    return [run_steps(number, builtin("sort", {"size": size, "instance": SEED + number})) for number in range(count)]


def texts(words: int, count: int) -> list[Steps]:
    """The steps of the procedure `letters` on texts of random words."""
    rng = np.random.default_rng([SEED, words])
    alphabet = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    drawn = [["".join(rng.choice(alphabet, rng.integers(1, 11))) for _ in range(words)] for _ in range(count)]
    glues = ("nothing", "space", "comma", "semi-colon")
    return [
        run_steps(number, builtin("letters", {"text": " ".join(text), "glue": glues[number % len(glues)]}))
        for number, text in enumerate(drawn)
    ]


def told() -> list[Steps]:
    """The reading steps of the procedure `problem` on random problems about held-out names and things."""
    found: list[Steps] = []
    for instance in itertools.count(SEED):
        work = Problem(instance=instance, operations=PROBLEM_OPERATIONS)
        if problems.held_pair(*work.about):
            found.append(run_steps(len(found), work))
        if len(found) == PROBLEMS:
            return found
    raise AssertionError("there is no end of problems")


def run_steps(label: int, work: Procedure) -> Steps:
    """Every step of a procedure `multiply`, `sort`, `edits`, `letters` or `problem` as its ensemble's tokens."""
    assert work.truth is not None
    if work.name in ("letters", "problem"):
        known_as, tokens = (strings_encode, strings.answer) if work.name == "letters" else (problems_encode, problems.answer)
        steps = [(known_as(str(work.prompt(state))), answer) for state, answer in work.truth()]
        asked = [(known[0], tokens(answer)) for known, answer in steps if known]  # a problem's other steps are arithmetic
        return Steps(label, np.array([prompt for prompt, _ in asked]), np.array([answer for _, answer in asked]))
    if work.name == "multiply":
        known = [(arithmetic_encode(str(work.prompt(state))), answer) for state, answer in work.truth()]
        prompts, answers = ([each for each, _ in known if each], [answer for _, answer in known])
        return Steps(label, np.array([tokens for tokens, _ in prompts]), arithmetic.answer(np.array(answers)))
    if work.name == "edits":
        known = [
            (lists_encode(str(work.prompt(state))), lists.answer(edit, state["list"]))
            for edit, (state, _) in zip(work.edits, work.truth(), strict=True)
        ]
        return Steps(label, np.array([each[0] for each, _ in known if each]), np.array([answer for _, answer in known]))
    fronts = np.array([[run[0] for run in state["runs"][:2]] for state, _ in work.truth()])
    return examples(label, pairs.examples(*fronts.T), pairs.PROMPT)


@dataclass
class Found:
    """Of steps: probability of the right answer at temperature 1 and at HEAT, and whether greedy decoding gives it: all [members, N]."""

    p: np.ndarray
    heated: np.ndarray
    right: np.ndarray


def measured(ensemble: Ensemble, steps: Steps) -> Found:
    sizes = (steps.answers == ensemble.skill.tokenizer.END).argmax(1) + 1
    shape = len(ensemble.members), len(sizes)
    found = Found(np.empty(shape), np.empty(shape), np.empty(shape, bool))
    for size in np.unique(sizes):
        part = sizes == size
        for number, member in enumerate(ensemble.members):
            prompts, answers = steps.prompts[part], steps.answers[part][:, :size]
            found.p[number, part], found.right[number, part] = answer_probabilities(member, prompts, answers, 1.0, steps.shared)
            found.heated[number, part], _ = answer_probabilities(member, prompts, answers, HEAT, steps.shared)
    return found


def together(parts: list[Found]) -> Found:
    return Found(*(np.concatenate([getattr(part, name) for part in parts], 1) for name in ("p", "heated", "right")))


def wrong_together(wrong: np.ndarray) -> dict[str, Any]:
    """On how many steps 0, 1, ... all members are greedily wrong, and on how many they were if their errors were independent."""
    members, size = wrong.shape
    independent = np.ones(1)
    for rate in wrong.mean(1):
        independent = np.convolve(independent, [1 - rate, rate])
    pairs = [(a, b) for a in range(members) for b in range(a + 1, members)]
    return {
        "observed": np.bincount(wrong.sum(0), minlength=members + 1).tolist(),
        "if_independent": (independent * size).tolist(),
        "pairs": [
            {
                "members": [a, b],
                "both_wrong": int((wrong[a] & wrong[b]).sum()),
                "if_independent": float(wrong[a].mean() * wrong[b].mean() * size),
            }
            for a, b in pairs
        ],
    }


def summary(found: Found) -> dict[str, Any]:
    """The card's figures for one set of steps."""
    p, right, pooled = found.p, found.right, found.p.mean(0)
    voted = vote(found.heated, VOTE)[0]
    return {
        "steps": p.shape[1],
        "members": [
            {
                "greedy_wrong": int((~r).sum()),
                "greedy_error": float((~r).mean()),
                "sampled_error": float(1 - q.mean()),
                "min_p": float(q.min()),
            }
            for q, r in zip(p, right, strict=True)
        ],
        "pool": {"sampled_error": float(1 - pooled.mean()), "min_p": float(pooled.min()), "steps_below_half": int((pooled < 0.5).sum())},
        "vote": {"ahead_by": VOTE, "temperature": HEAT, "error": float(1 - voted.mean()), "min_p": float(voted.min())},
        "greedy_wrong_together": wrong_together(~right),
    }


def make_card(name: str) -> dict[str, Any]:
    ensemble = load(name)
    random, by_label = [], []
    for steps in random_steps(name.removesuffix("-large")):
        found = measured(ensemble, steps)
        random.append(found)
        by_label.append({
            "size": steps.label, "steps": found.p.shape[1], "pool_sampled_error": float(1 - found.p.mean()),
            "greedy_error": (~found.right).mean(1).tolist(), "vote_error": float(1 - vote(found.heated, VOTE)[0].mean()),
        })  # fmt: skip
    tasks = {}
    for title, parts in task_steps(name).items():
        runs = [measured(ensemble, part) for part in parts]
        tasks[title] = {
            **summary(together(runs)),
            "runs_without_error_greedy": np.array([run.right.all(1) for run in runs]).sum(0).tolist(),
            "chance_of_a_run_without_error_sampled": np.array([run.p.prod(1) for run in runs]).mean(0).tolist(),
            "chance_of_a_run_without_error_voted": float(np.mean([vote(run.heated, VOTE)[0].prod() for run in runs])),
        }
    return {
        "ensemble": name,
        "weights": ensemble.digest,
        "bytes": (WEIGHTS / f"{name}.safetensors").stat().st_size,
        "seed_of_random_steps": SEED,
        "members": [{"parameters": size, **member.about} for size, member in zip(ensemble.parameters, ensemble.members, strict=True)],
        "random": summary(together(random)),
        "random_by_size": by_label,
        "tasks": tasks,
    }


def percent(share: float) -> str:
    return "0" if not share else f"{100 * share:.3g} %"


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(title: str, found: dict[str, Any]) -> str:
    """The errors of members and pool on one set of steps, and how the greedy errors overlap."""
    runs, said = "chance_of_a_run_without_error_sampled" in found, ""
    if voted := found.get("vote"):
        said = f" The vote is first to lead by {voted['ahead_by']}, sampled at\ntemperature {voted['temperature']}."
    head = ["member", "greedy: steps wrong", "greedy error", "sampled error", "least p"]
    rows = [
        [place, one["greedy_wrong"], percent(one["greedy_error"]), percent(one["sampled_error"]), number(one["min_p"])]
        for place, one in enumerate(found["members"])
    ]
    pool = found["pool"]
    rows.append(["**pool**", "", "", percent(pool["sampled_error"]), number(pool["min_p"])])
    if voted:
        rows.append([f"**vote**, {voted['ahead_by']} ahead", "", "", percent(voted["error"]), number(voted["min_p"])])
    if runs:
        head += ["whole runs right, greedy", "chance of a whole run, sampled"]
        for row, clean, chance in zip(
            rows, found["runs_without_error_greedy"], found["chance_of_a_run_without_error_sampled"], strict=False
        ):
            row += [clean, number(chance)]
        for row in rows[len(found["members"]) :]:
            row += ["", number(found["chance_of_a_run_without_error_voted"]) if row[0].startswith("**vote") else ""]
    together = found["greedy_wrong_together"]
    counts = [
        [wrong, seen, number(even)] for wrong, (seen, even) in enumerate(zip(together["observed"], together["if_independent"], strict=True))
    ]
    pairs = [[" and ".join(map(str, pair["members"])), pair["both_wrong"], number(pair["if_independent"])] for pair in together["pairs"]]
    return f"""## {title}

{found["steps"]:,} steps. In the pool, a sample comes from a member drawn at random: its least probability of a right answer is
{number(pool["min_p"])}, and it is below ½ on {pool["steps_below_half"]:,} steps.{said}

{table(head, rows)}

How many members are greedily wrong on the same step:

{table(["members wrong", "steps", "if errors were independent"], counts)}

{table(["pair", "both wrong", "if errors were independent"], pairs)}
"""


def further(stages: list[dict[str, Any]]) -> list[str]:
    """How members were trained after the updates of their first stage."""
    if not stages:
        return []
    told = []
    for stage in stages:
        legal, listed = stage["legal"], stage["listed"]
        parts = f"{percent(legal)} random states, {percent(1 - legal - listed)} steps of the whole task"
        parts += f", {percent(listed)} steps of the 20-disk task that member 0 found hard" if listed else ""
        told.append(
            f"{stage['updates']:,} updates, each on the {stage['hardest']} of {stage['pool']} examples ({parts}) with the greatest loss "
            f"and {stage['others']} of the others"
        )
    seen = "So these members have been trained on steps of the tasks below, and most of all on those they got wrong."
    return [f"Then came {'; then '.join(told)}; six times out of ten with 20 disks. {seen}", ""]


def page(card: dict[str, Any]) -> str:
    name = card["ensemble"]
    sizes = SIZES.get(name.removesuffix("-large"), "kind")
    members = [
        [
            place,
            f"{one['parameters']:,}",
            "{hidden_size} / {intermediate_size} / {num_hidden_layers} / {num_attention_heads}".format(**one["config"]),
            one["seed"],
            f"{one['updates']:,}",
            one["minutes"],
        ]
        for place, one in enumerate(card["members"])
    ]
    by_size = []
    for one in card["random_by_size"]:
        row = [one["size"], f"{one['steps']:,}", percent(one["pool_sampled_error"]), *map(percent, one["greedy_error"])]
        by_size.append([*row, percent(one["vote_error"])] if "vote_error" in one else row)
    columns = [f"greedy {place}" for place in range(len(members))] + ["vote"] * ("vote_error" in card["random_by_size"][0])
    return "\n".join(
        [
            f"# Embedded model: {name}",
            "",
            f"{len(members)} members, {card['bytes'] / 1e6:.2f} MB in float32, weights `{card['weights']}`. "
            "Written by `training/card.py`; the probability of every right answer is exact (teacher forcing, temperature 1).",
            "",
            table(["member", "parameters", "width / hidden / layers / heads", "seed", "updates", "minutes of training"], members),
            "",
            *further(card["members"][0].get("hard", [])),
            *(section(title, found) for title, found in card["tasks"].items()),
            section("Every step there is" if name == "arithmetic" else "Random steps", card["random"]),
            *([NOTES[name], ""] if name in NOTES else []),
            f"By {sizes}:",
            "",
            table([sizes, "steps", "pool, sampled", *columns], by_size),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ensemble", choices=sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
    name = parser.parse_args().ensemble
    card = make_card(name)
    (WEIGHTS / f"{name}.card.json").write_text(json.dumps(card, indent=1) + "\n")
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / f"{name}.md").write_text(page(card))


if __name__ == "__main__":
    main()
