"""Decomposed Prompting at small scale: separate skill nets under a learned decomposer against one net that writes the procedure out.

k-th letter concatenation, in tokens by which a place can be looked up (`_letter_nets`). Four small transformers from scratch are the
handlers of a program of the solver's (the shipped `letters`, its frames, its two levels of decomposers): one decomposes, one takes apart,
one finds a letter at a position, one puts together. The words are the question's context, which the decomposer does not see (as in the
paper's question answering). The program examples have two or three words; the skills' examples cover their lists up to eight, as a skill
is trained for all of its use. The baselines are one net of about as many parameters as the four together and trained on as many tokens: on
the procedure rolled out as one chain (two or three words), and on that and the examples of all four nets, in turn (the honest control).
All are asked through the solver: a baseline is a program of one handler, whose answer a regular expression reads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import Progress

from keystep.lm.base import LM
from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import Reproduction, machine
from keystep.reproduce import _letter_nets as letters
from keystep.reproduce._letter_nets import VOCABULARY, Writer
from keystep.reproduce._nets import Net, trained
from keystep.reproduce._tables import checks, table
from keystep.run import AheadBy, Many, Run, Sampling
from keystep.run.forecast import wilson
from keystep.run.vote import First, Rule
from keystep.solve.decomposed_prompting.decomposer import Decomposer
from keystep.solve.decomposed_prompting.handlers import PromptHandler, every
from keystep.solve.decomposed_prompting.program import Program, Scoring
from keystep.solve.decomposed_prompting.solver import DecomposedPrompting
from keystep.solve.solver import Solving, task_of

SHORT, LONG = 3, 8  # words of the longest program that is trained on; items of the longest list that a skill is
SIZES = (3, 5, 8)  # words of the questions that are asked
ITEMS = 30  # questions of each size
VOTED, VOTED_ITEMS = 5, 30  # words and questions of the comparison of votes
WIDTH, BASELINE_WIDTH = 48, 96
SKILLS: dict[str, tuple[letters.Examples, int, int, int]] = {  # examples, longest, updates, gaps in the positions
    "decomposer": (letters.decomposing, SHORT, 160, 160),
    "split": (letters.splitting, LONG, 230, 0),
    "arr_position": (letters.positioning, LONG, 270, 0),
    "merge": (letters.merging, LONG, 200, 0),
}
UPDATES = sum(updates for _, _, updates, _ in SKILLS.values())
GAPS = 160  # in the baselines' positions
TOKENS = 1024  # of a batch
NET: dict[str, Any] = {"vocabulary": VOCABULARY, "longest": 512, "layers": 2, "heads": 2, "embedding_rate": 1e-2}
WAYS = ("decomposed", "rolled out", "rolled out, and the skills")

# What has to be found, fixed beforehand; on the mean over seeds.
RATIO = 2.0  # decomposed over the better baseline, at eight words
FLAT = 0.10  # decomposed may lose from three words to eight


@dataclass(frozen=True, kw_only=True)
class Letters(DecomposedPrompting):
    """The solver with trained nets as its models: a net for every handler, or one that writes everything out."""

    way: str = WAYS[0]
    seed: int = 0

    def load(self) -> Program:
        nets, frames = _NETS[self.seed], [self.prompt_text(file) for file in self.prompt_files]
        score: Scoring = "exact"
        if self.way != WAYS[0]:
            whole = PromptHandler("write", frames[1], context=True, answer=r' so "([^"]*)"$', lm=nets[self.way])
            return Program([whole], "write", limits=self._limits(), score=score)
        upper = Decomposer("decompose", frames[0], uses=["words", "str_position", "merge"], lm=nets["decomposer"])
        lower = Decomposer("str_position", frames[0], uses=["split", "arr_position"], lm=nets["decomposer"])
        words = PromptHandler("words", frames[1], context=True, lm=nets["split"])
        skills = [PromptHandler(name, frames[1], lm=nets[name]) for name in ("split", "arr_position", "merge")]
        return Program([upper, lower, words, *skills], "decompose", limits=self._limits(), score=score)


_NETS: dict[int, dict[str, LM]] = {}  # the nets of every seed


def nets(seed: int, tick: Any) -> dict[str, LM]:
    """The six trained nets of a seed, from the cache where they are."""
    found: dict[str, LM] = {}

    def net(name: str, kinds: Sequence[Callable[[Random], list[letters.Row]]], width: int, updates: int, gaps: int) -> None:
        about = f"letters with their places, numbered separators, {name}, to {SHORT} and {LONG}, {TOKENS} tokens a batch"
        how = Net(about, updates=updates, seed=seed, width=width, stretch=gaps, **NET)
        model = trained(how, letters.batches(kinds, TOKENS), tick=tick)
        found[name] = Writer(f"{name}, seed {seed}", model, longest=260)

    for name, (examples, longest, updates, gaps) in SKILLS.items():
        net(name, [partial(examples, longest=longest)], WIDTH, updates, gaps)
    skills = [partial(examples, longest=longest) for examples, longest, _, _ in SKILLS.values()]
    whole = partial(letters.rolled_out, longest=SHORT)
    net(WAYS[1], [whole], BASELINE_WIDTH, UPDATES, GAPS)
    net(WAYS[2], [part for skill in skills for part in (whole, skill)], BASELINE_WIDTH, UPDATES, GAPS)
    return found


def asked(words: int, count: int, seed: int) -> list[dict[str, Any]]:
    random = Random(f"letters, asked {words} {seed}")
    drawn = [letters.drawn(random, words) for _ in range(count)]
    return [{"question": question, "context": given, "answer": letters.truth(question, given)} for question, given in drawn]


def solved(
    way: str, seed: int, rows: list[dict[str, Any]], rule: Rule | None = None, temperature: float = 0.0
) -> tuple[list[bool], list[dict[str, Any]], int]:
    """Which questions came out right, the trees of those with an answer, and the samples drawn."""
    made, ended, trees = Letters(way=way, seed=seed), [False] * len(rows), list[dict[str, Any]]()

    class Kept(Solving):
        async def carry_out(self, ctx: Any) -> Any:
            solution = await self.solver.solve(self.task, ctx)
            ended[number[id(self.task)]] = solution.answer == self.task.state["expected"]
            trees.append({"words": self.task.inputs["context"], "tree": solution.details["tree"]})
            return {"answer": solution.answer}

    tasks = [task_of(row) for row in rows]
    number = {id(task): place for place, task in enumerate(tasks)}
    run = Run(next(iter(_NETS[seed].values())), vote=rule or First(cap=2), seed=seed, sampling=Sampling(temperature=temperature))
    asyncio.run(Many(lambda row: Kept(made, tasks[row["n"]]), [{"n": n} for n in range(len(rows))], concurrency=1000).execute(run))
    samples = run.meter.calls
    run.close()
    return ended, trees, samples


def handler_accuracy(trees: Sequence[Any]) -> dict[str, list[int]]:
    """(right, asked) of every handler, judged by the question that it was given, wherever that came from."""
    count: Counter[str] = Counter()
    good: Counter[str] = Counter()
    for each in trees:
        for node in every(each["tree"]):
            name = node["handler"]
            count[name] += 1
            good[name] += letters.right(name, node["question"], each["words"], node["answer"])
    return {name: [good[name], count[name]] for name in sorted(count)}


def expected(accuracy: dict[str, list[int]], words: int) -> float:
    """What the handlers' accuracies let expect of a whole question: its words, N positions, one merge, each on its own."""
    share = {name: good / count for name, (good, count) in accuracy.items()}
    return share.get("words", 0.0) * share.get("str_position", 0.0) ** words * share.get("merge", 0.0)


def one_seed(seed: int, tick: Any) -> dict[str, Any]:
    """Train and ask everything for one seed."""
    _NETS[seed] = nets(seed, tick)
    found: dict[str, Any] = {"seed": seed, "accuracy": {}, "handlers": {}, "expected": {}}
    for way in WAYS:
        found["accuracy"][way] = {}
        for words in SIZES:
            right, trees, _ = solved(way, seed, asked(words, ITEMS, seed))
            found["accuracy"][way][words] = sum(right) / ITEMS
            if way == WAYS[0]:
                found["handlers"][words] = handler_accuracy(trees)
                found["expected"][words] = round(expected(found["handlers"][words], words), 4)
    rows = asked(VOTED, VOTED_ITEMS, seed + 1000)
    once, _, drawn = solved(WAYS[0], seed, rows, First(cap=20), temperature=1.0)
    voted, _, more = solved(WAYS[0], seed, rows, AheadBy(3, cap=60), temperature=1.0)
    found["votes"] = {"first": once, "ahead by 3": voted, "samples": [drawn, more]}
    return found


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Run the whole reproduction."""
    began, cpu = time.perf_counter(), time.process_time()
    bar = progress.add_task("updates", total=seeds * 3 * UPDATES) if progress else None

    def tick() -> None:
        if progress and bar is not None:
            progress.advance(bar)

    each = [one_seed(seed, tick) for seed in range(seeds)]
    mean = {way: {words: _mean([one["accuracy"][way][words] for one in each]) for words in SIZES} for way in WAYS}
    better = max(WAYS[1:], key=lambda way: mean[way][LONG])
    ours, theirs = mean[WAYS[0]][LONG], mean[better][LONG]
    lost = mean[WAYS[0]][SIZES[0]] - ours
    first = [right for one in each for right in one["votes"]["first"]]
    voted = [right for one in each for right in one["votes"]["ahead by 3"]]
    held = {
        f"at {LONG} words decomposed is at least {RATIO:g} times the better baseline": ours >= RATIO * theirs and ours > 0,
        f"decomposed loses at most {FLAT:g} from {SIZES[0]} words to {LONG}": lost <= FLAT,
        "both baselines fall": all(mean[way][SIZES[0]] > mean[way][LONG] for way in WAYS[1:]),
    }
    for one in each:
        votes = one["votes"]
        one["votes"] = {"first": sum(votes["first"]), "ahead by 3": sum(votes["ahead by 3"]), "samples": votes["samples"]}
    return Reproduction(
        name="decomposed-prompting", room="solve",
        paper="Khot et al. 2023, Decomposed Prompting: A Modular Approach for Solving Complex Tasks, arXiv 2210.02406",
        claim="On k-th letter concatenation, decomposed prompting stays near its accuracy on short inputs as the number of words grows; "
        "the same procedure rolled out as one chain falls.",
        setting={
            "task": "letters at position 1 to 4 of N names, sixty names, three ways of putting them together",
            "questions": {"words": list(SIZES), "of_each": ITEMS, "trained_on": f"2 to {SHORT} words"},
            "skill_nets": {"width": WIDTH, "updates": {name: updates for name, (_, _, updates, _) in SKILLS.items()}, "lists_to": LONG},
            "baseline_nets": {"width": BASELINE_WIDTH, "updates": UPDATES},
            "gaps_in_positions": {**{name: gaps for name, (_, _, _, gaps) in SKILLS.items()}, "baselines": GAPS},
            "parameters": {"four skill nets": 4 * _parameters(0, "split"), "a baseline": _parameters(0, WAYS[1])},
            "tokens_of_a_batch": TOKENS, "net": NET, "temperature": 0,
            "votes": {"words": VOTED, "questions_a_seed": VOTED_ITEMS, "temperature": 1.0},
            "has_to_be_found": {"ratio": RATIO, "loses_at_most": FLAT},
        },
        baseline={way: _rounded(mean[way]) for way in WAYS[1:]},
        measured={
            "checks": held, "decomposed": _rounded(mean[WAYS[0]]),
            "intervals": {way: {words: _interval(mean[way][words], seeds * ITEMS) for words in SIZES} for way in WAYS},
            "expected_from_handlers": _rounded({words: _mean([one["expected"][words] for one in each]) for words in SIZES}),
            "ahead_by_3": votes_compared(first, voted), "runs": each, "cpu_seconds": round(time.process_time() - cpu, 1),
        },
        ratio=round(ours / theirs, 2) if theirs else None,
        held=all(held.values()),
        seeds=list(range(seeds)), seconds=round(time.perf_counter() - began, 1),
        settings_tried=SETTINGS_TRIED,
        machine=machine(),
    )  # fmt: skip


SETTINGS_TRIED = [
    "seed 100, skill nets alone, words inside the question, embedding rate .003: 300 updates copy 65 % of lists to 8",
    "the same with tied embeddings (58 %) and without gaps in the positions (60 %); with embedding rate .01: 98 %, the rate used",
    "words inside the question, 500 updates: a decomposer trained on 2 and 3 words copies 3 of 8 into its first line, also where it is "
    "trained on copying up to 8 besides; so the words became the context, which the paper's decomposers do not see in question answering",
    "seed 100, words as the context: 150 updates of the decomposer get all lines right at 8 words, 250 of split 73 %, of the others 100 %",
    "three seeds, letters and separators as plain tokens, gaps in all nets' positions, 200, 350, 120, 130 updates (800 of a baseline): not "
    "held, decomposed 0 at every length, the chain 1.00 at 3 words and 0 beyond; of single letters 13 to 21 % were found, of 3 letters at "
    "most 43 % merged, of 8 words 1 to 5 in 30 listed",
    "seeds 100 to 105, skill nets alone, a letter and its place as one token, separators numbered, gaps only where programs grow: merging "
    "repeated letters had no place to go by before. Right: single letters .30 after 120 updates, .58 and .94 after 180, 1.00 after 200 and "
    "270; 8 items merged .90 to 1.00 after 190 to 250; 8 words listed .88 to 1.00 after 190, 1.00 after 220; all lines after 150, .80 of "
    "them after 110",
    "seed 100, the chain alone, 500 updates: 93 % at three words. The setting reported has 860",
]


def votes_compared(first: Sequence[bool], voted: Sequence[bool]) -> dict[str, Any]:
    """Accuracies on the same questions, and their difference with a 95 % interval (of a paired difference, normal)."""
    n = len(first)
    gains = [int(after) - int(before) for before, after in zip(first, voted, strict=True)]
    gain = sum(gains) / n
    wide = 1.96 * math.sqrt(sum((each - gain) ** 2 for each in gains) / max(1, n - 1) / n)
    return {
        "questions": n, "first": round(sum(first) / n, 4), "ahead by 3": round(sum(voted) / n, 4), "gain": round(gain, 4),
        "gain_interval": [round(gain - wide, 4), round(gain + wide, 4)],
    }  # fmt: skip


def _parameters(seed: int, name: str) -> int:
    model: Any = _NETS[seed][name]
    return sum(weight.numel() for weight in model.model.parameters())


def _interval(share: float, n: int) -> list[float]:
    return [round(end, 4) for end in wilson(round(share * n), n)]


def _rounded(values: dict[int, float]) -> dict[int, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def tables(found: Reproduction) -> str:
    """Accuracy by the number of words, what each handler did, and what votes change."""
    measured = found.measured
    by_way = {WAYS[0]: measured["decomposed"], **found.baseline, "expected from the handlers": measured["expected_from_handlers"]}
    accuracy = [{"right, of questions with": way, **{f"{words} words": _at(by_way[way], words) for words in SIZES}} for way in by_way]
    handlers = []
    for name in ("decompose", "words", "str_position", "split", "arr_position", "merge"):
        shares = {}
        for words in SIZES:
            counts = [_at(one["handlers"], words).get(name, (0, 0)) for one in measured["runs"]]
            good, asked_for = sum(good for good, _ in counts), sum(count for _, count in counts)
            shares[f"{words} words"] = f"{good:,} of {asked_for:,}"
        handlers.append({"handler": name, **shares})
    votes = measured["ahead_by_3"]
    low, high = votes["gain_interval"]
    voted = [{f"{VOTED} words, temperature 1: first": votes["first"], "ahead by 3": votes["ahead by 3"], "difference": votes["gain"],
              "95 %": f"{low:+.3f} to {high:+.3f}"}]  # fmt: skip
    parts = [table(accuracy), "Right answers of each handler, to the question it was asked:\n", table(handlers), table(voted)]
    return "\n".join([*parts, checks(measured["checks"])])


def _at(values: Any, words: int) -> Any:
    """Of a number of words; what was read from a file has texts for numbers."""
    return values[words] if words in values else values[str(words)]


def picture(found: Reproduction, path: Path) -> None:
    """Accuracy by the number of words; and what votes change."""
    measured = found.measured
    by_way = {WAYS[0]: measured["decomposed"], **found.baseline}
    lines = [
        Line(way, list(SIZES), [_at(by_way[way], words) for words in SIZES], style=style)
        for way, style in zip(WAYS, ("o-", "s--", "^--"), strict=True)
    ]
    lines.append(
        Line("expected from the handlers", list(SIZES), [_at(measured["expected_from_handlers"], words) for words in SIZES], style=":")
    )
    votes = measured["ahead_by_3"]
    bars = [Line("decomposed, 5 words, temperature 1", [0, 1], [votes["first"], votes["ahead by 3"]], style="bars")]
    save(
        [
            Chart("Trained on two and three words", "words", "questions answered exactly", lines),
            Chart("What votes change", "", "", bars, names=["first", "ahead by 3"]),
        ],
        path,
    )
