"""The skills of the mini skill-world asked for in words: no sign tells a skill, but any of four random words of three letters, and letters
come in rows of three to five. A small model that knows them, trained once and kept in the cache of `_skill_world`.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from keystep.nn.checkpoint import load_model, save_model
from keystep.reproduce import torch_for
from keystep.reproduce._nets import _cache
from keystep.reproduce._skill_world import Base, _digest, _state_of, examples
from keystep.worlds.skills import LETTERS, MIXTURE, SKILLS, Problem, small_model, tokenizer

WORDS, LENGTHS = 4, (3, 4, 5)
POOL, HELD_OUT = 6000, 1500  # problems of a skill that are trained on, and that are not
_RULES: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text, "rev": lambda text: text[::-1], "sort": lambda text: "".join(sorted(text)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Worded:
    """Problems by skill; `base` has the facts and decides everything that is drawn."""

    base: Base

    def words(self, skill: str) -> list[str]:
        """The four of a skill; no word belongs to two."""
        drawn = Random(f"worded words {self.base.seed}")
        every = ["".join(word) for word in zip(*(drawn.choices(string.ascii_lowercase, k=10_000) for _ in range(3)), strict=True)]
        mine = list(dict.fromkeys(every))[: WORDS * len(SKILLS)]
        return mine[SKILLS.index(skill) * WORDS :][:WORDS]

    def bodies(self, skill: str, split: str) -> list[tuple[str, str]]:
        """(what is asked without its word, answer); those of "train" and "test" have nothing in common but the facts."""
        if skill in ("fact", "add"):
            known = self.base.world.problems(skill, "train" if split == "train" else "val")
            known += self.base.world.problems(skill, "test") if split == "test" and skill == "add" else []
            return [(problem.prompt[1:], problem.answer) for problem in known]
        drawn = Random(f"worded bodies {self.base.seed} {skill}")
        found: dict[str, None] = {}
        while len(found) < POOL + HELD_OUT:
            found["".join(drawn.choices(LETTERS, k=drawn.choice(LENGTHS)))] = None
        texts = list(found)
        drawn.shuffle(texts)
        texts = texts[HELD_OUT:] if split == "train" else texts[:HELD_OUT]
        return [(f"{text}=", _RULES[skill](text)) for text in texts]

    def problems(self, skill: str, split: str, words: Sequence[int] = range(WORDS), lengths: Sequence[int] = LENGTHS) -> list[Problem]:
        """Each body with one of the words, drawn; of letters only those of the lengths."""
        drawn = Random(f"worded problems {self.base.seed} {skill} {split} {list(words)}")
        known = [self.words(skill)[word] for word in words]
        bodies = [(body, answer) for body, answer in self.bodies(skill, split) if skill in ("fact", "add") or len(answer) in lengths]
        return [Problem(drawn.choice(known) + body, answer) for body, answer in bodies]


def cached_worded(worded: Worded, tick: Callable[[float], object] | None = None) -> Any:
    """A model trained on the worded skills, from the cache or trained into it."""
    base = worded.base
    folder: Path = _cache() / f"worded-skills-{_digest(asdict(base))}"
    if not folder.exists():
        from keystep.nn.fit import Fit, fit

        torch_for(base.seed)
        model = small_model(base.architecture, width=base.width, layers=base.layers, heads=base.heads, seed=base.seed)
        # facts are asked for by every one of their words, the rest by one drawn for each
        pools = {skill: worded.problems(skill, "train") for skill in SKILLS if skill != "fact"}
        pools["fact"] = [problem for word in range(WORDS) for problem in worded.problems("fact", "train", [word])]
        data = examples([problem for pool in pools.values() for problem in pool])
        starts, at = {}, 0
        for skill, pool in pools.items():
            starts[skill], at = range(at, at + len(pool)), at + len(pool)

        def draw(step: int) -> list[int]:
            random = Random(f"worded batch {base.seed} {step}")
            return [random.choice(starts[skill]) for skill in random.choices(list(MIXTURE), list(MIXTURE.values()), k=base.batch)]

        settings = Fit(base.steps, base.rate, batch=base.batch, warmup=50, seed=base.seed)
        fit(model, lambda step: data.batch(draw(step)), settings, state=_state_of(folder), identity={"worded": asdict(base)}, tick=tick)
        save_model(model, tokenizer(), folder)
    return load_model(folder)
