"""Models of the mini skill-world: a base trained on its five skills, and one tuned on from there, written as checkpoints with their data.

`keystep skill-world` shows it to users; reproductions take bases from the cache (`cached_base`), `$XDG_CACHE_HOME/keystep` or
`~/.cache/keystep`: deleting it costs time only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from keystep.errors import BadInput
from keystep.files import free_for, whole
from keystep.nn.checkpoint import load_model, load_tokenizer, transformers_for
from keystep.reproduce import torch_for
from keystep.reproduce._nets import _cache
from keystep.worlds.skills import LONGEST, SKILLS, SPLITS, UNSEEN, Problem, World, small_model, tokenizer

TESTED = 500  # problems of a split that an accuracy is told from
ABOUT = "skill_world.json"
Tick = Callable[[float], object]


@dataclass(frozen=True, slots=True)
class Base:
    """A base model: its shape and its training (AdamW, cosine, clipped at norm 1)."""

    architecture: str = "llama"
    width: int = 64
    layers: int = 2
    heads: int = 4
    entities: int = 60
    steps: int = 1200
    batch: int = 64
    rate: float = 4e-3
    seed: int = 0

    @property
    def world(self) -> World:
        return World(self.entities, self.seed)


@dataclass(frozen=True, slots=True)
class Tune:
    """A tuning of a base: on `examples` problems of each of `skills`, a share `noise` of them spoiled; embeddings and head frozen."""

    skills: tuple[str, ...] = ("succ",)
    examples: int = 512
    noise: float = 0.0
    optimizer: str = "sgd"
    rate: float = 0.3
    steps: int = 300
    batch: int = 64
    seed: int = 0


def examples(problems: Sequence[Problem]) -> Any:
    """Problems of the world as tokens."""
    from keystep.nn.examples import Example, Examples

    return Examples([Example(problem.prompt, problem.answer) for problem in problems], tokenizer(), longest=LONGEST)


def accuracies(model: Any, world: World, skills: Sequence[str] = (*SKILLS, *UNSEEN), split: str = "test") -> dict[str, float]:
    """The share of right answers, by skill."""
    from keystep.nn.examples import judge

    return {skill: judge(model, _asked(world, skill, split, TESTED)).accuracy for skill in skills}


@cache
def _asked(world: World, skill: str, split: str, n: int) -> Any:
    return examples(world.drawn(skill, split, n))


def train_base(base: Base, *, state: Path | None = None, tick: Tick | None = None) -> Any:
    """The base model, trained; `state` keeps an unfinished training."""
    torch_for(base.seed)
    from keystep.nn.fit import Fit, fit

    model = small_model(base.architecture, width=base.width, layers=base.layers, heads=base.heads, seed=base.seed)
    problems, draw = base.world.mixture()
    pool = examples(problems)
    settings = Fit(base.steps, base.rate, batch=base.batch, warmup=min(50, base.steps // 10), seed=base.seed)
    fit(
        model, lambda step: pool.batch(draw(step, base.batch, base.seed)), settings, state=state, identity={"base": asdict(base)}, tick=tick
    )  # fmt: skip
    return model


def tuned(model: Any, tune: Tune, world: World, *, state: Path | None = None, tick: Tick | None = None) -> Any:
    """The model tuned in place on problems of the train split; everything outside the transformer layers stays as it is."""
    torch_for(tune.seed)
    from keystep.nn.fit import Fit, fit, shuffled
    from keystep.nn.layers import layer_parameters

    data = examples([p for skill in tune.skills for p in world.drawn(skill, "train", tune.examples, tune.seed, tune.noise)])
    settings = Fit(tune.steps, tune.rate, tune.optimizer, tune.batch, seed=tune.seed)
    identity = {"tune": asdict(tune) | {"skills": list(tune.skills)}, "world": asdict(world)}
    layers = layer_parameters(model).items()
    fit(model, shuffled(data, tune.batch, tune.seed), settings, trainable=layers, state=state, identity=identity, tick=tick)
    return model


def cached_base(base: Base, tick: Tick | None = None) -> Any:
    """The base model, from the cache or trained into it."""
    folder = _cache() / f"skill-world-{_digest(asdict(base))}"
    if not folder.exists():
        write(folder, train_base(base, state=_state_of(folder), tick=tick), base.world, {"base": asdict(base)})
    return load_model(folder)


def _digest(settings: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def _state_of(folder: Path) -> Path:
    """Where an unfinished training of what is to stand in `folder` is kept: beside it."""
    return folder.with_name(f"{folder.name}.unfinished.safetensors")


def write(folder: Path, model: Any, world: World, about: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint, `data/SKILL.SPLIT.jsonl` of all skills and `skill_world.json` with the accuracies; gives the last."""
    found = {**about, "world": asdict(world), "accuracy": accuracies(model, world)}
    with whole(folder) as part:
        part.mkdir()
        transformers_for("writing a checkpoint")
        model.save_pretrained(part)
        tokenizer().save_pretrained(part)
        (part / "data").mkdir()
        for skill in (*SKILLS, *UNSEEN):
            for split in SPLITS:
                rows = [json.dumps(problem._asdict()) for problem in world.problems(skill, split)]
                (part / "data" / f"{skill}.{split}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
        (part / ABOUT).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def make_base(folder: Path, base: Base, tick: Tick | None = None) -> dict[str, Any]:
    """Train a base into `folder`; an unfinished training beside it is gone on with.

    Raises:
        BadInput: something stands there already, or a setting is none.
    """
    free_for(folder)
    return write(folder, train_base(base, state=_state_of(folder), tick=tick), base.world, {"base": asdict(base)})


def make_tuned(source: Path, folder: Path, tune: Tune, tick: Tick | None = None) -> dict[str, Any]:
    """Tune the checkpoint in `source`, one of `make_base`, into `folder`.

    Raises:
        BadInput: `source` is no checkpoint of the skill-world, or something stands at `folder` already.
    """
    free_for(folder)
    about = world_of(source)
    model, world = load_model(source), World(**about["world"])
    load_tokenizer(source)
    tuned(model, tune, world, state=_state_of(folder), tick=tick)
    return write(folder, model, world, {"base": about.get("base"), "tune": asdict(tune)})


def world_of(folder: Path) -> dict[str, Any]:
    """What `skill_world.json` says of a checkpoint.

    Raises:
        BadInput: there is none.
    """
    try:
        found = json.loads((folder / ABOUT).read_text("utf-8"))
        World(**found["world"])
    except (OSError, ValueError, KeyError, TypeError):
        mend = "make one with: keystep skill-world --out FOLDER"
        raise BadInput("is no checkpoint of the skill-world", field="model", value=str(folder), mend=mend) from None
    return dict(found)
