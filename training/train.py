"""Train the members of the embedded ensembles from scratch: `python training/train.py hanoi` (or any other of ENSEMBLES).

Every member is a stock `transformers` LlamaForCausalLM with its own seed, data order and size. Of the small skills, each but the first also
sees more often what the members before it get wrong, so that no two err alike. A member is trained on random states drawn by
`training/<skill>.py`, with the loss on the answer's tokens only, by Muon (matrices) and AdamW (embeddings, norms) under a cosine rate.
Finished members lie in `training/build/` and are not trained again; when all are there they are packed into the package.
One thread; the minutes each member took stand in its model card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
import torch
from forward import answer_logits, in_parts
from rich.progress import Progress, track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from keystep.lm.embedded import arithmetic as arithmetic_tokens
from keystep.lm.embedded import hanoi as hanoi_tokens
from keystep.lm.embedded import ledger as ledger_tokens
from keystep.lm.embedded import lists as lists_tokens
from keystep.lm.embedded import pairs as pairs_tokens
from keystep.lm.embedded import problems as problem_tokens
from keystep.lm.embedded import strings as string_tokens

HERE = Path(__file__).parent
BUILD = HERE / "build"
WEIGHTS = HERE.parent / "src/keystep/lm/embedded/weights"


CONFIG = (  # what of a transformers configuration the decoder needs
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "rope_parameters",
)  # fmt: skip


@dataclass(frozen=True)
class Hard:
    """A further stage of hanoi on what a member still gets wrong in tall towers: of `pool` examples, a part of them `legal` random states
    and the others steps of the whole task, it learns the `hardest` (those with the greatest loss just now) and `others` of the rest.

    A part of them is `listed`: steps of the tallest tower that were hard for member 0 after its second stage (`hard_steps`)."""

    updates: int
    rate: float = 1.5e-3
    embedding_rate: float = 6e-4
    pool: int = 192
    legal: float = 0.5
    listed: float = 0.0
    hardest: int = 48
    others: int = 16


@dataclass(frozen=True)
class Member:
    """One model and how it is trained. `rate` is Muon's peak learning rate, `batch` the examples (hanoi) or dictionaries (ledger) of an
    update."""

    seed: int
    width: int
    hidden: int
    updates: int
    layers: int = 2
    heads: int = 2
    batch: int = 96
    rate: float = 2e-2
    embedding_rate: float = 3e-3
    decay: float = 0.01
    tall: float = 1.0  # hanoi: how much more often towers of 12 and more disks are drawn
    hard: tuple[Hard, ...] = ()  # hanoi: further stages


Loss = Callable[[LlamaForCausalLM, Member, np.random.Generator, float], torch.Tensor]


@dataclass(frozen=True)
class Examples:
    """`batch(rng, size)` draws whole examples of one length, int [size, T], whose first `prompt` tokens are the prompt; `pool()` are those
    among which it is looked for what earlier members get wrong."""

    batch: Callable[[np.random.Generator, int], np.ndarray]
    prompt: int
    pool: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """What differs between skills: the vocabulary, the longest sequence, and the loss of one batch, or the examples it is made of."""

    vocabulary: int
    length: int
    loss: Loss | None = None
    examples: Examples | None = None
    start: Callable[[LlamaForCausalLM], None] = lambda net: None  # changes a blank net before its training


def hanoi_loss(net: LlamaForCausalLM, member: Member, rng: np.random.Generator, done: float) -> torch.Tensor:
    disks = hanoi.draw_disks(rng, member.tall)
    tokens = torch.from_numpy(hanoi.batch(rng, member.batch, disks))
    start = hanoi.prompt_length(disks)
    logits = net(tokens[:, :-1]).logits[:, start - 1 :]
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, start:].flatten())


def hard_loss(net: LlamaForCausalLM, hard: Hard, rng: np.random.Generator, listed: np.ndarray) -> torch.Tensor:
    """The loss of an update of a further stage; `listed` are the numbers of the listed steps."""
    disks = hanoi.draw_tall(rng)
    number = round(hard.pool * hard.listed) if disks == hanoi.MAX_DISKS else 0
    again = hanoi.path_steps(disks, rng.choice(listed, number)) if number else None
    tokens = torch.from_numpy(hanoi.pool(rng, hard.pool, disks, hard.legal, again))
    start = hanoi.prompt_length(disks)
    losses = functional.cross_entropy(in_parts(net, tokens, start).transpose(1, 2), tokens[:, start:], reduction="none").sum(1)
    order = losses.argsort(descending=True)
    rest = hard.hardest + torch.from_numpy(rng.choice(hard.pool - hard.hardest, hard.others, replace=False))
    tokens = tokens[torch.cat([order[: hard.hardest], order[rest]])]
    return functional.cross_entropy(answer_logits(net, tokens, start).flatten(0, 1), tokens[:, start:].flatten())


def examples_loss(net: LlamaForCausalLM, examples: Examples, member: Member, rng: np.random.Generator, missed: np.ndarray) -> torch.Tensor:
    """The loss of a skill whose examples are all of one length; a share of them is drawn from those that earlier members `missed`."""
    again = round(member.batch * AGAIN) if len(missed) else 0
    drawn = examples.batch(rng, member.batch - again)
    tokens = torch.from_numpy(np.concatenate([drawn, missed[rng.integers(0, len(missed), again)]]) if again else drawn)
    return functional.cross_entropy(
        answer_logits(net, tokens, examples.prompt).flatten(0, 1), wanted(tokens[:, examples.prompt :]).flatten()
    )


def wanted(answers: torch.Tensor) -> torch.Tensor:
    """The answers' tokens [B, A], with what only fills up a row behind the first END (0) as -100, which no loss counts."""
    return answers.masked_fill(((answers == 0).cumsum(1) - (answers == 0).int()) > 0, -100)


def missed_before(kind: Kind, earlier: Sequence[Path]) -> np.ndarray:
    """The examples of the pool that a member of these files gets wrong."""
    if kind.examples is None or not earlier:
        return np.empty((0, 0), int)
    pool, start = kind.examples.pool(), kind.examples.prompt
    tokens = torch.from_numpy(pool)
    answers = wanted(tokens[:, start:])
    said = [in_parts(stage_net(kind, path), tokens, start).argmax(-1) for path in earlier]
    return pool[~np.logical_and.reduce([((each == answers) | (answers < 0)).all(1).numpy() for each in said])]


KINDS = {
    "hanoi": Kind(hanoi_tokens.VOCABULARY, 64, hanoi_loss),
    "ledger": Kind(ledger_tokens.VOCABULARY, 256, ledger.loss, ledger.start),
    "arithmetic": Kind(arithmetic_tokens.VOCABULARY, 16, examples=Examples(arithmetic.batch, arithmetic.PROMPT, arithmetic.wanted)),
    "pairs": Kind(pairs_tokens.VOCABULARY, 16, examples=Examples(pairs.batch, pairs.PROMPT, pairs.pool)),
    "lists": Kind(lists_tokens.VOCABULARY, 32, start=lists.start, examples=Examples(lists.batch, lists.PROMPT, lists.pool)),
    "strings": Kind(string_tokens.VOCABULARY, 64, examples=Examples(strings.batch, strings.PROMPT, strings.pool)),
    "problems": Kind(problem_tokens.VOCABULARY, 32, examples=Examples(problems.batch, problems.PROMPT, problems.pool)),
}

AGAIN = 0.15  # of a batch: examples that members before this one got wrong, so that its errors are others

HARD = (Hard(2000), Hard(1200, rate=1.2e-3, embedding_rate=5e-4, pool=128, legal=0.25, listed=0.5))
HARD_BELOW = 0.97  # a step is listed where the right answer's probability is less

ENSEMBLES: dict[str, list[Member]] = {
    "hanoi": [
        Member(seed=1, width=24, hidden=64, updates=5000),
        Member(seed=2, width=24, hidden=72, updates=5000),
        Member(seed=3, width=24, hidden=56, updates=5000),
        Member(seed=4, width=20, hidden=64, updates=6000),
        Member(seed=5, width=24, hidden=64, updates=5000),
    ],
    "ledger": [
        Member(seed=1, width=48, hidden=56, heads=3, batch=8, updates=1500),
        Member(seed=7, width=48, hidden=56, heads=3, batch=8, updates=1500),
        Member(seed=4, width=48, hidden=48, heads=3, batch=8, updates=1500),
        Member(seed=5, width=48, hidden=56, heads=3, batch=8, updates=1500),
        Member(seed=6, width=48, hidden=64, heads=3, batch=8, updates=1500),
    ],
    "arithmetic": [
        Member(seed=31, width=32, hidden=96, batch=256, updates=1800),
        Member(seed=32, width=32, hidden=112, batch=256, updates=1000),
        Member(seed=33, width=28, hidden=96, batch=256, updates=1600),
        Member(seed=34, width=32, hidden=80, batch=256, updates=1500),
        Member(seed=35, width=32, hidden=104, batch=256, updates=1400),
    ],
    "pairs": [
        Member(seed=41, width=32, hidden=64, batch=192, updates=540),
        Member(seed=42, width=32, hidden=56, batch=192, updates=560),
        Member(seed=43, width=32, hidden=72, batch=192, updates=650),
        Member(seed=44, width=28, hidden=64, batch=192, updates=720),
        Member(seed=45, width=32, hidden=48, batch=192, updates=620),
    ],
    "lists": [
        Member(seed=71, width=48, hidden=96, heads=3, batch=128, updates=1300),
        Member(seed=72, width=48, hidden=88, heads=3, batch=128, updates=1100),
        Member(seed=78, width=48, hidden=112, heads=3, batch=128, updates=1300),
        Member(seed=74, width=48, hidden=112, heads=3, batch=128, updates=1100),
        Member(seed=77, width=48, hidden=96, heads=3, batch=128, updates=1500),
    ],
    "strings": [
        Member(seed=51, width=32, hidden=96, heads=4, batch=128, updates=900),
        Member(seed=52, width=32, hidden=112, heads=4, batch=128, updates=800),
        Member(seed=53, width=36, hidden=80, heads=3, batch=128, updates=800),
        Member(seed=54, width=32, hidden=80, heads=4, batch=128, updates=900),
        Member(seed=55, width=28, hidden=96, heads=2, batch=128, updates=900),
    ],
    "problems": [
        Member(seed=61, width=40, hidden=80, heads=4, batch=128, updates=700),
        Member(seed=62, width=40, hidden=88, heads=4, batch=128, updates=700),
        Member(seed=63, width=44, hidden=72, heads=2, batch=128, updates=700),
        Member(seed=64, width=40, hidden=72, heads=4, batch=128, updates=750),
        Member(seed=65, width=40, hidden=80, heads=2, batch=128, updates=700),
    ],
    "hanoi-large": [
        Member(seed=11, width=64, hidden=176, updates=6000, tall=3.0, hard=HARD),
        Member(seed=12, width=64, hidden=192, updates=4500, tall=3.0, hard=HARD),
        Member(seed=13, width=72, hidden=176, updates=4500, tall=3.0, hard=HARD),
        Member(seed=14, width=64, hidden=208, updates=4500, tall=3.0, hard=HARD),
        Member(seed=15, width=72, hidden=192, updates=4500, tall=3.0, hard=HARD),
    ],
    "ledger-large": [
        Member(seed=21, width=64, hidden=160, heads=4, batch=8, updates=2000),
        Member(seed=23, width=64, hidden=176, heads=4, batch=8, updates=2000),
        Member(seed=24, width=64, hidden=192, heads=4, batch=8, updates=2000),
        Member(seed=25, width=72, hidden=160, heads=4, batch=8, updates=2000),
        Member(seed=26, width=64, hidden=160, heads=4, batch=8, updates=2200),
    ],
}


def train(kind: Kind, member: Member, label: str, earlier: Sequence[Path] = ()) -> tuple[LlamaForCausalLM, float]:
    """A member trained by its first stage, and the seconds it took; `earlier` are the files of the members before it."""
    torch.manual_seed(member.seed)
    rng = np.random.default_rng(member.seed)
    sizes = {"hidden_size": member.width, "intermediate_size": member.hidden, "num_hidden_layers": member.layers}
    net = blank(kind.length, {"vocab_size": kind.vocabulary, "num_attention_heads": member.heads, **sizes})
    kind.start(net)
    if kind.examples is None:
        assert kind.loss is not None
        loss = partial(kind.loss, net, member, rng)
    else:
        missed = missed_before(kind, earlier)
        loss = lambda done: examples_loss(net, kind.examples, member, rng, missed)  # noqa: E731
    return net, descend(net, loss, member.updates, member.rate, member.embedding_rate, member.decay, label)


def blank(length: int, config: dict[str, Any]) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            **config,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=0,
            attn_implementation="sdpa",
        )
    )


def stage_net(kind: Kind, path: Path) -> LlamaForCausalLM:
    """A member as a stage left it."""
    net = blank(kind.length, json.loads(path.with_suffix(".json").read_text())["config"])
    net.load_state_dict(load_file(path), strict=False)  # the head is the embedding
    return net


def stock(path: Path, number: int) -> LlamaForCausalLM:
    """A member of a packed ensemble as a model of transformers."""
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["members"])[number]["config"]
        tensors = {key.partition(".")[2]: file.get_tensor(key) for key in file.keys() if key.startswith(f"{number}.")}  # noqa: SIM118
    net = blank(256, config)
    net.load_state_dict(tensors, strict=False)
    return net


def train_on(kind: Kind, member: Member, stage: int, before: Path, label: str) -> tuple[LlamaForCausalLM, float]:
    """A member (`before`, its file) taken through a further stage, counted from 0, and the seconds that took."""
    hard, net = member.hard[stage], stage_net(kind, before)
    rng = np.random.default_rng([member.seed, 2 + stage])
    listed = hard_steps(kind) if hard.listed else np.empty(0)
    loss = lambda done: hard_loss(net, hard, rng, listed)  # noqa: E731
    return net, descend(net, loss, hard.updates, hard.rate, hard.embedding_rate, member.decay, label)


def hard_steps(kind: Kind) -> np.ndarray:
    """Numbers of the steps of the tallest tower's whole task that member 0 of hanoi-large, after its second stage, finds hard."""
    path = BUILD / "hanoi-large-hard.npy"
    if not path.exists():
        net, disks, found = stage_net(kind, BUILD / "hanoi-large-0-stage1.safetensors"), hanoi.MAX_DISKS, []
        start = hanoi.prompt_length(disks)
        for numbers in track(np.array_split(np.arange(2**disks - 1), 256), "hard steps"):
            tokens = torch.from_numpy(hanoi.path_steps(disks, numbers))
            lost = functional.cross_entropy(in_parts(net, tokens, start).transpose(1, 2), tokens[:, start:], reduction="none").sum(1)
            found.append(numbers[(lost > -math.log(HARD_BELOW)).numpy()])
        np.save(path, np.concatenate(found))
    return np.load(path)


def descend(
    net: LlamaForCausalLM,
    loss_of: Callable[[float], torch.Tensor],
    updates: int,
    rate: float,
    embedding_rate: float,
    decay: float,
    label: str,
) -> float:
    """Train `net`; `loss_of` gives the loss of one batch, told what part of the updates is done. The seconds it took."""
    matrices = [p for name, p in net.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in net.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=embedding_rate, weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: warm_cosine(step, updates)) for o in optimizers]
    start = time.perf_counter()
    with Progress() as progress:
        bar = progress.add_task(label, total=updates)
        for update in range(updates):
            loss = loss_of(update / updates)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            if update % 100 == 99:
                progress.update(bar, completed=update + 1, description=f"{label} loss {loss.item():.4f}")
    return time.perf_counter() - start


def warm_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def pack(name: str) -> None:
    """All members of an ensemble into one safetensors file of the package."""
    tensors: dict[str, torch.Tensor] = {}
    members = []
    for number, member in enumerate(ENSEMBLES[name]):
        path = BUILD / f"{name}-{number}.safetensors"
        tensors |= {f"{number}.{key}": value for key, value in load_file(path).items()}
        members.append({**asdict(member), **json.loads(path.with_suffix(".json").read_text())})
    WEIGHTS.mkdir(exist_ok=True)
    packed = WEIGHTS / f"{name}.safetensors"
    save_file(tensors, packed, metadata={"members": json.dumps(members)})
    packed.chmod(0o644)  # safetensors leaves it to its owner alone


def keep(path: Path, net: LlamaForCausalLM, seconds: float, minutes: float = 0.0) -> None:
    """Store a member and how many minutes it took, those of an earlier stage included."""
    config = net.config.to_dict()
    about = {"config": {key: config[key] for key in CONFIG}, "minutes": round(seconds / 60 + minutes, 1)}
    path.with_suffix(".json").write_text(json.dumps(about))
    save_file({key: value for key, value in net.state_dict().items() if key != "lm_head.weight"}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ensemble", choices=sorted(ENSEMBLES))
    parser.add_argument("--member", type=int, help="train this member only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    BUILD.mkdir(exist_ok=True)
    name = arguments.ensemble
    members = ENSEMBLES[name]
    if arguments.member is not None and not 0 <= arguments.member < len(members):
        parser.error(f"argument --member: {name} has the members 0 to {len(members) - 1}")
    for number in [arguments.member] if arguments.member is not None else range(len(members)):
        kind, member, label = KINDS[name.removesuffix("-large")], members[number], f"{name} {number}"
        last = BUILD / f"{name}-{number}.safetensors"
        stages = [*(last.with_stem(f"{last.stem}-stage{stage}") for stage in range(len(member.hard))), last]
        done = max((stage for stage, path in enumerate(stages) if path.exists()), default=-1)
        for stage, path in enumerate(stages[done + 1 :], done + 1):
            if stage == 0:
                keep(path, *train(kind, member, label, [BUILD / f"{name}-{before}.safetensors" for before in range(number)]))
            else:
                spent = json.loads(stages[stage - 1].with_suffix(".json").read_text())["minutes"]
                keep(path, *train_on(kind, member, stage - 1, stages[stage - 1], f"{label}, stage {stage}"), spent)
    if all((BUILD / f"{name}-{number}.safetensors").exists() for number in range(len(members))):
        pack(name)


if __name__ == "__main__":
    main()
